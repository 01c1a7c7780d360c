"""An index of images: identifiers, unit vectors in 16 bits, lists with sign bits, and the columns of the manifest, by one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medtame.errors import DataError
from medtame.features.search_lists import Depth, Frame, Listed, Lists, by_lists, deepened
from medtame.features.searching import Bank, Found, exact
from medtame.types import Array, Encoder

EXACT_UP_TO = 100_000  # rows; with more, not all are looked at
QUERIES = 200  # of each kind, by which the depth is found
MANY_PARTS = 32  # so many are joined


@dataclass(frozen=True)
class Part:
    """n images that were added at once: vectors (n, D) float16, SHA-256 (n, 32), columns of n cells (text or None), lists or None."""

    rows: Array
    digests: Array
    columns: Mapping[str, Sequence[str | None]]
    lists: Lists | None = None
    file: str = ""  # in the folder, without its ending; empty where it is in memory only


@dataclass(frozen=True)
class Measured:
    """How deep to look, and the recall@10 that was measured: of images, and of texts where the manifest has them."""

    depth: Depth
    recalls: tuple[float, ...]


@dataclass(frozen=True)
class Index:
    """Parts, numbered through. `encoder`: spec, image and text identity. Frame and `measured` stand with more than EXACT_UP_TO rows."""

    encoder: Mapping[str, str]
    parts: tuple[Part, ...] = ()
    frame: Frame | None = None
    measured: Measured | None = None  # None beside a frame: lists do not pay, all is exact

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def column(self, name: str) -> list[str | None]:
        """A cell a row; None where a part has no such column. Raises DataError where none has."""
        if name not in self.names:
            raise DataError(f"the index has no column {name!r}; it has {', '.join(self.names)}: name one of these with --where")
        return [cell for part in self.parts for cell in part.columns.get(name, [None] * len(part.rows))]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.columns))

    @property
    def bank(self) -> Bank:
        return Bank([part.rows for part in self.parts])

    def known(self) -> set[str]:
        """SHA-256 of the images that it holds, in hexadecimal."""
        return {row.tobytes().hex() for part in self.parts for row in part.digests}

    def where(self, filters: Mapping[str, str]) -> Array | None:
        """Numbers of the rows whose columns have these values, whatever their case; None without a filter. Raises DataError for none."""
        if not filters:
            return None
        kept = np.ones(len(self), dtype=bool)
        for name, value in filters.items():
            cells = self.column(name)
            here = np.array([cell is not None and str(cell).casefold() == value.casefold() for cell in cells])
            if not here.any():
                seen = sorted({str(cell) for cell in cells if cell is not None})
                raise DataError(f"no image has {name}={value}; {name} is {', '.join(seen[:8])}{' …' if len(seen) > 8 else ''}")
            kept &= here
        if not kept.any():
            raise DataError(f"no image has {' and '.join(f'{name}={value}' for name, value in filters.items())}: give fewer filters")
        return np.flatnonzero(kept)

    def nearest(self, asked: Tensor, count: int, chosen: Array | None = None, *, exactly: bool = False) -> Found:
        """The `count` nearest rows of `asked` (Q, D), unit norm, among `chosen` row numbers (rising) or all."""
        size = len(self) if chosen is None else len(chosen)
        if self.measured is None or self.frame is None or exactly or size <= EXACT_UP_TO:
            return exact(self.bank, asked, count, chosen)
        return by_lists(self.listed(self.frame), asked, count, self.measured.depth, chosen)

    def listed(self, frame: Frame) -> Listed:
        return Listed(self.bank, [part.lists for part in self.parts if part.lists is not None], frame)

    def how(self, size: int, *, exactly: bool = False) -> str:
        """How `nearest` looks among `size` rows, in words."""
        if self.measured is None or exactly or size <= EXACT_UP_TO:
            return "exact"
        depth, told = self.measured.depth, " and ".join(f"{share:.3f}" for share in self.measured.recalls)
        return (
            f"{depth.by_bits} rows in near lists by sign bits and {depth.by_rows} in single precision; recall@10 {told} when it was built"
        )

    def line(self, row: int) -> dict[str, str | None]:
        """The cells of one row."""
        for part in self.parts:
            if row < len(part.rows):
                return {name: cells[row] for name, cells in part.columns.items()}
            row -= len(part.rows)
        raise IndexError(row)

    def added(self, vectors: Tensor, digests: Sequence[str], columns: Mapping[str, Sequence[str | None]], texts: Tensor | None) -> Index:
        """With more images: vectors (n, D), unit norm. `texts` (m, D) are queries for finding the depth. Raises DataError."""
        if not len(vectors):
            return self
        if self.parts and self.parts[0].rows.shape[1] != vectors.shape[1]:
            raise DataError(f"vectors of {vectors.shape[1]} numbers for an index of {self.parts[0].rows.shape[1]}: build another index")
        rows = np.ascontiguousarray(vectors.numpy(), dtype="<f2")
        if not np.isfinite(rows).all():
            raise DataError("a vector that is no number: check the encoder's weights")
        keys = np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(-1, 32)
        index = replace(self, parts=(*self.parts, Part(rows, keys, {name: list(cells) for name, cells in columns.items()})))
        crossing = self.frame is None and len(index) > EXACT_UP_TO
        if crossing or len(index.parts) > MANY_PARTS:
            index = replace(index, parts=(joined(index.parts),))
        if len(index) <= EXACT_UP_TO:
            return index
        frame = self.frame or Frame.of([part.rows for part in index.parts])
        parts = tuple(part if part.lists is not None else replace(part, lists=frame.lists(part.rows), file="") for part in index.parts)
        return measured(replace(index, parts=parts, frame=frame), frame, texts)


def joined(parts: Sequence[Part]) -> Part:
    """One part of several; its lists are left for the caller."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns = {name: [cell for part in parts for cell in part.columns.get(name, [None] * len(part.rows))] for name in names}
    return Part(np.concatenate([part.rows for part in parts]), np.concatenate([part.digests for part in parts]), columns)


def measured(index: Index, frame: Frame, texts: Tensor | None) -> Index:
    """With the depth at which recall@10 of images, and of texts where there are some, is at least GOAL."""
    bank, own = index.bank, np.linspace(0, len(index) - 1, QUERIES).astype(np.int64)
    queries = [torch.nn.functional.normalize(bank.rows(own), dim=1), *([] if texts is None or not len(texts) else [texts[:QUERIES]])]
    depth, recalls = deepened(index.listed(frame), queries, own)
    return replace(index, measured=None if depth is None else Measured(depth, tuple(recalls)))


def identity(encoder: Encoder) -> dict[str, str]:
    return {"spec": encoder.spec, "image_identity": encoder.image_identity, "text_identity": encoder.text_identity}
