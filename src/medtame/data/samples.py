"""Chosen lines of a manifest. Nothing is read from a file until its pixels are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medtame.data.images import FilePicture
from medtame.data.series import LabelPicture, SeriesPicture
from medtame.errors import DataError
from medtame.types import Array, Picture, Rows


@dataclass(frozen=True, eq=False)
class ManifestSamples:
    """N samples: columns of equal length, by name. Satisfies `Samples`.

    Columns hold text or None; box corners and age hold floats or None; image columns hold paths as the manifest spells them, or
    pictures (a DICOM series, a structure of a label map, one in memory). `groups` (N,) is the unit of draws, folds and intervals.
    `hidden` are the columns that `only` dropped.
    """

    columns: Mapping[str, Sequence[Any]]
    groups: Array
    root: Path = Path()
    notes: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()
    window: str = ""  # an intensity window by name, for images that have more than 8 bits

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.columns.items()} | {"groups": len(self.groups)}
        if len(set(sizes.values())) > 1:
            raise DataError(f"columns of unequal length: {', '.join(f'{name} has {size}' for name, size in sizes.items())}")

    def __len__(self) -> int:
        return len(self.groups)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def take(self, index: Rows) -> ManifestSamples:
        """Some samples, in that order; a mask of N booleans works too. No file is read."""
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        columns = {name: [values[row] for row in chosen.tolist()] for name, values in self.columns.items()}
        return replace(self, columns=columns, groups=self.groups[chosen])

    def only(self, columns: Sequence[str]) -> ManifestSamples:
        """The named columns, where they exist; asking for another is an error from here on. Groups stay."""
        kept = {name: values for name, values in self.columns.items() if name in columns}
        return replace(self, columns=kept, hidden=self.hidden | (self.columns.keys() - kept.keys()))

    def replaced(self, **columns: Any) -> ManifestSamples:
        """Columns added or put in the place of others; an image column may hold pictures. Groups stay."""
        new = {name: list(values) for name, values in columns.items()}
        return replace(self, columns={**self.columns, **new}, hidden=self.hidden - new.keys())

    def noted(self, note: str) -> ManifestSamples:
        """The same samples with one more thing to be said about them; an empty note adds none."""
        return replace(self, notes=(*self.notes, note)) if note else self

    def windowed(self, window: str) -> ManifestSamples:
        """The same samples, seen through another intensity window."""
        return self if window == self.window else replace(self, window=window)

    def column(self, name: str) -> list[Any]:
        """N values. Raises DataError where the column is absent or was dropped."""
        if name in self.columns:
            return list(self.columns[name])
        seen = ", ".join(self.columns) or "nothing"
        if name in self.hidden:
            raise DataError(f"this query may not see {name!r}; it may see {seen}")
        raise DataError(f"there is no column {name!r}; there is {seen}. Name yours with --columns {name}=YOURS")

    def rows_where(self, column: str, value: Any) -> Array:
        """The numbers of the samples whose column has this value."""
        return np.flatnonzero([entry == value for entry in self.column(column)])

    def paths(self, name: str) -> list[Path | None]:
        """Where the files of a column lie (of a series, the shown one), None for an empty cell. Raises DataError for pictures in memory."""
        values = [value.shown().path if isinstance(value, SeriesPicture | LabelPicture) else value for value in self.column(name)]
        if any(not isinstance(value, (str, Path)) for value in values if value is not None):
            raise DataError(f"column {name!r} holds pictures in memory, which have no path")
        return [None if value is None else self.root / value for value in values]

    def pictures(self, name: str = "image") -> list[Picture]:
        """N images, not yet read, to be seen through `window`. Raises DataError for an empty cell."""
        values = self.column(name)
        empty = sum(value is None for value in values)
        if empty:
            raise DataError(f"{empty} of {len(values)} rows have no {name!r}; take only rows that have one")
        return [self._picture(value) for value in values]

    def _picture(self, value: Any) -> Picture:
        if isinstance(value, (str, Path)):
            return _file(self.root, str(value), self.window)
        made: Picture = value.windowed(self.window) if self.window and hasattr(value, "windowed") else value
        return made

    def pixels(self, name: str = "image", size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) float32 in 0..1, grey if all are grey, else RGB; antialiased bilinear resizing to `size`.

        Raises DataError where no size is given and the images differ in theirs.
        """
        images = [_resized(picture.array(), size) for picture in self.pictures(name)]
        if not images:
            return torch.zeros(0, 1, *(size or (0, 0)))
        sizes = sorted({tuple(image.shape[1:]) for image in images})
        if len(sizes) > 1:
            raise DataError(f"images of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}: give the size that is wanted")
        channels = max(image.shape[0] for image in images)
        return torch.stack([image.expand(channels, -1, -1) for image in images])


@lru_cache(maxsize=2**17)
def _file(root: Path, name: str, window: str) -> FilePicture:
    """The picture of a cell, made once: a grid asks for the same rows thousands of times."""
    return FilePicture(root / name, name, window=window)


def _resized(pixels: Array, size: tuple[int, int] | None) -> Tensor:
    """(H, W, C) to (C, h, w)."""
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    if size is None or tuple(image.shape[1:]) == tuple(size):
        return image
    return interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
