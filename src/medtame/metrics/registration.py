"""Metrics of a registration: overlap of labels, distance of landmarks, and how regular the displacement is.

Displacements are in pixels, channels (x, y), on the grid of the fixed image. Points are (x, y) in pixels. Spacings are (row, column).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.segmentation import Spacing, dice_of
from medtame.metrics.statistic import Mean, Statistic
from medtame.types import Array


def folding_percent(displacement: Array) -> float:
    """Per cent of cells that fold: of a displacement (2, H, W) in pixels.

    A cell is a square of four pixels; it folds where the map turns over or flattens any of its four corner triangles. This also finds folds
    that central differences overlook (Liu et al. 2022).
    """
    return float(100 * (_corner_determinants(displacement) <= 0).any(0).mean())


def log_jacobian_sd(displacement: Array) -> float:
    """Standard deviation of the logarithm of the area of the mapped cells, of a displacement (2, H, W) in pixels; 0 for an affine map.

    Cells of no or negative area have no logarithm and are left out: folding_percent counts them. NaN where none is left.
    """
    area = _corner_determinants(displacement).mean(0)
    return float(np.log(area[area > 0]).std()) if (area > 0).any() else np.nan


def _corner_determinants(displacement: Array) -> Array:
    """(4, H-1, W-1) determinants of the map x + u(x) at the corners of each cell; their mean is the area of the mapped cell."""
    if displacement.ndim != 3 or len(displacement) != 2 or min(displacement.shape[1:]) < 2:
        raise MedtameError(f"a displacement of shape {displacement.shape}: it must be (2, H, W), two pixels a side at least")
    height, width = displacement.shape[1:]
    y, x = np.mgrid[:height, :width]
    place = displacement.astype(float) + np.stack([x, y])
    across, down = np.diff(place, axis=2), np.diff(place, axis=1)
    sides = [(across[:, rows], down[:, :, columns]) for rows in (np.s_[:-1], np.s_[1:]) for columns in (np.s_[:-1], np.s_[1:])]
    return np.stack([a[0] * b[1] - a[1] * b[0] for a, b in sides])


def target_registration_error(moved: Array, fixed: Array, spacing_mm: Spacing = None) -> float:
    """Mean distance of moved and fixed landmarks (P, 2): mm, or pixels without a spacing; NaN where there is no landmark.

    A landmark with NaN is left out.
    """
    if moved.ndim != 2 or moved.shape != fixed.shape or moved.shape[1] != 2:
        raise MedtameError(f"landmarks of shapes {moved.shape} and {fixed.shape}: both must be (points, 2), point by point the same")
    row, column = spacing_mm or (1.0, 1.0)
    distance = np.linalg.norm((moved - fixed) * (column, row), axis=1)
    known = distance[~np.isnan(distance)]
    return float(known.mean()) if len(known) else np.nan


def relative_target_registration_error(moved: Array, fixed: Array, size: tuple[int, int], spacing_mm: Spacing = None) -> float:
    """The same divided by the diagonal of the image of `size` (height, width), as ANHIR does (Borovec et al. 2020)."""
    row, column = spacing_mm or (1.0, 1.0)
    return float(target_registration_error(moved, fixed, spacing_mm) / np.hypot(size[0] * row, size[1] * column))


def label_dice(moved: Array, fixed: Array, labels: Sequence[int]) -> float:
    """Mean Dice over those of `labels` that are present in either label map (H, W); NaN where none is."""
    values = np.array([dice_of(moved == label, fixed == label) for label in labels], dtype=float)
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan


def registration(
    displacements: Sequence[Array],
    label_maps: Sequence[tuple[Array, Array] | None] | None = None,
    landmarks: Sequence[tuple[Array, Array] | None] | None = None,
    labels: Sequence[int] = (),
    spacings_mm: Sequence[Spacing] | None = None,
) -> dict[str, Statistic]:
    """dice, target_registration_error, relative_target_registration_error, folding_percent, log_jacobian_sd of N pairs of images.

    `displacements` (2, H, W) in pixels; `label_maps` and `landmarks` are (moved, fixed) or None a row; what no row has gives no metric.
    Landmark errors are in mm, or all in pixels where the spacing of a single row is unknown.
    """
    spacings = list(spacings_mm or [None] * len(displacements))
    if any(spacing is None for spacing in spacings):
        spacings = [None] * len(displacements)
    maps, points = (list(given or [None] * len(displacements)) for given in (label_maps, landmarks))
    if not len(displacements) == len(maps) == len(points) == len(spacings):
        raise MedtameError(
            f"{len(displacements)} displacements, {len(maps)} label maps, {len(points)} landmarks: give one of each a row, or None"
        )
    found: dict[str, list[float]] = {}
    if any(pair is not None for pair in maps):
        found["dice"] = [np.nan if pair is None else label_dice(*pair, labels) for pair in maps]
    if any(pair is not None for pair in points):
        sizes = [(field.shape[1], field.shape[2]) for field in displacements]
        rows = list(zip(points, sizes, spacings, strict=True))
        found["target_registration_error"] = [np.nan if p is None else target_registration_error(*p, s) for p, _, s in rows]
        found["relative_target_registration_error"] = [
            np.nan if p is None else relative_target_registration_error(*p, size, s) for p, size, s in rows
        ]
    found["folding_percent"] = [folding_percent(field) for field in displacements]
    found["log_jacobian_sd"] = [log_jacobian_sd(field) for field in displacements]
    return {name: Mean(np.array(values, dtype=float)) for name, values in found.items()}
