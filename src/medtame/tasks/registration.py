"""Registration: a line of the manifest is a pair of images; the answer is the displacement that brings the moving onto the fixed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.metrics.registration import folding_percent, registration
from medtame.metrics.statistic import Statistic
from medtame.networks.warp import bending, in_pixels, local_correlation, resized_field, warp
from medtame.tasks.base import Frame, Task, every
from medtame.types import Answer, Array, Encoder, Geometry, Grids, Kind, Predicted, Problem, Query, Samples

LONGEST_SIDE = 320  # pixels, of the grid on which methods work unless `size` says otherwise


def unlike(displacement: Tensor, images: Tensor) -> Tensor:
    """Mean of 1 - squared local correlation, and bending, of displacements (N, 2, H, W) for moving and fixed images (N, 2, H, W)."""
    similarity = local_correlation(warp(images[:, :1], displacement), images[:, 1:])
    return (1 - similarity + 3e-5 * bending(displacement)).mean()


@dataclass(frozen=True)
class RegistrationFrame(Frame):
    size: tuple[int, int]  # (height, width) at which methods work; both images of a pair are brought to it

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Targets are the grey moving and fixed images themselves (N, 2, H, W): no label map and no landmark is learnt from."""
        query = self.query(support.only(("moving", "fixed")), encoder)
        images = torch.cat([query.pixels(name).mean(1, keepdim=True) for name in ("moving", "fixed")], 1)
        return Problem(query=query, targets=images, seed=seed, loss=unlike)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        if words is not None:
            raise PairError(f"registration asks no words yet; it was given {', '.join(map(repr, words[:3]))}: leave them out")
        return Query(wants="grids", samples=samples, encoder=encoder, source=every(samples), size=self.size)

    def read(self, query: Query, answer: Answer) -> Predicted:
        """`i/displacement` (2, H, W): (x, y) in pixels, on the fixed image's own grid, for pair i."""
        if not isinstance(answer, Grids) or answer.values.shape[1] != 2:
            raise PairError("registration reads grids of two maps: the displacement in x and in y")
        table, arrays = [], {}
        pairs = zip(query.samples.pictures("moving"), query.samples.pictures("fixed"), answer.values, strict=True)
        for pair, (moving, fixed, field) in enumerate(pairs):
            pixels = in_pixels(resized_field(field[None].float(), size_of(fixed.geometry())))[0].numpy()
            folds = folding_percent(pixels)
            warning = "the displacement folds" if folds > 0 else ""
            table.append({"moving": moving.name, "fixed": fixed.name, "folding_percent": folds, "warning": warning})
            arrays[f"{pair}/displacement"] = pixels
        return Predicted(table=table, arrays=arrays)

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Dice of warped label maps, errors of landmarks, regularity. Lengths are those of the fixed image (mm where all say so)."""
        fields = [said.arrays[f"{pair}/displacement"] for pair in range(len(truth))]
        maps, points = label_maps(fields, truth), landmarks(fields, truth)
        if all(pair is None for pair in [*maps, *points]):
            raise DataError(
                "no pair has truth to measure with: fill moving_labels and fixed_labels, or moving_landmarks and fixed_landmarks"
            )
        labels = sorted({int(label) for pair in maps if pair is not None for image in pair for label in np.unique(image)} - {0})
        spacings = [picture.geometry().spacing_mm for picture in truth.pictures("fixed")]
        found = registration(fields, maps, points, labels, spacings)
        first = "dice" if "dice" in found else "relative_target_registration_error"
        return {first: found[first], **found}


def size_of(geometry: Geometry) -> tuple[int, int]:
    return geometry.height, geometry.width


def both(truth: Samples, moving: str, fixed: str) -> list[int]:
    """The pairs that have both columns filled."""
    if moving not in truth or fixed not in truth:
        return []
    return [i for i, values in enumerate(zip(truth.column(moving), truth.column(fixed), strict=True)) if None not in values]


def label_maps(fields: Sequence[Array], truth: Samples) -> list[tuple[Array, Array] | None]:
    """Warped moving and fixed label maps (H, W) a pair, None where one is not given. A label map may be finer than its image."""
    found: list[tuple[Array, Array] | None] = [None] * len(fields)
    rows = both(truth, "moving_labels", "fixed_labels")
    if rows:
        given = truth.take(rows)
        for i, moving, fixed in zip(rows, given.pictures("moving_labels"), given.pictures("fixed_labels"), strict=True):
            seen = torch.from_numpy(moving.values().astype(np.float32))[None, None]
            height, width = fields[i].shape[1:]
            fractions = torch.from_numpy(fields[i] / np.array([width, height], dtype=np.float32)[:, None, None])[None]
            wanted = fixed.values()
            found[i] = warp(seen, resized_field(fractions, wanted.shape), "nearest")[0, 0].numpy(), wanted
    return found


def landmarks(fields: Sequence[Array], truth: Samples) -> list[tuple[Array, Array] | None]:
    """Where the displacement puts the fixed landmarks, and the moving ones, (P, 2) a pair, None where one file is not given.

    Pixels of the fixed image; a moving image of another size is stretched onto it, as it is for the methods.
    """
    found: list[tuple[Array, Array] | None] = [None] * len(fields)
    rows = both(truth, "moving_landmarks", "fixed_landmarks")
    if rows:
        given = truth.take(rows)
        files = zip(rows, paths(given, "moving_landmarks"), paths(given, "fixed_landmarks"), given.pictures("moving"), strict=True)
        for i, moving_file, fixed_file, picture in files:
            moving, fixed = points_of(moving_file), points_of(fixed_file)
            if len(moving) != len(fixed):
                raise DataError(f"{moving_file.name} has {len(moving)} landmarks, {fixed_file.name} {len(fixed)}: give them point by point")
            own, working = np.array(size_of(picture.geometry()))[::-1], np.array(fields[i].shape[1:])[::-1]
            found[i] = moved(fixed, fields[i]), (moving + 0.5) * working / own - 0.5
    return found


def moved(points: Array, field: Array) -> Array:
    """Points (P, 2) of the fixed image, carried by a displacement (2, H, W): all in pixels, (x, y), pixel centres at whole numbers."""
    shift = [map_coordinates(channel, points.T[::-1], order=1, mode="nearest") for channel in field]
    return np.asarray(points + np.stack(shift, 1))


def paths(samples: Samples, column: str) -> list[Path]:
    """Where the files of a full column lie."""
    given = samples.paths(column) if isinstance(samples, ManifestSamples) else samples.column(column)
    return [Path(path) for path in given if path is not None]


def points_of(path: Path) -> Array:
    """(P, 2) the columns X and Y of a CSV of landmarks, in pixels."""
    try:
        return pd.read_csv(path)[["X", "Y"]].to_numpy(dtype=float)
    except (OSError, ValueError, KeyError):
        raise DataError(f"{path.name} is not a table of landmarks: give a CSV with the columns X and Y, in pixels") from None


@dataclass(frozen=True)
class Registration(Task):
    """`size`: height and width at which methods work; empty: that of the first fixed image, brought to 320 pixels at most."""

    kinds = ("grids",)
    inputs = ("moving", "fixed")
    requires = ("moving", "fixed")
    offers = frozenset({"pair"})
    references = ("identity_transform", "affine", "b_spline", "demons")
    plain = "b_spline"
    start = "identity_transform"
    shots = ("all",)
    size: tuple[int, ...] = ()

    def settled(self, train: Samples) -> Registration:
        return replace(self, size=self.working_size(train))

    def working_size(self, samples: Samples) -> tuple[int, int]:
        """Height and width, in whole pixels, 16 at least."""
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        height, width = size_of(samples.take([0]).pictures("fixed")[0].geometry())
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        return max(16, round(height * factor)), max(16, round(width * factor))

    def frame(self, support: Samples, wants: Kind) -> Frame:
        return RegistrationFrame(wants, self.working_size(support))
