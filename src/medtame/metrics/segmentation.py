"""Metrics of masks, by MONAI. A row is one structure in one image or volume; what is undefined is NaN and left out of the mean.

Both masks empty: all NaN. One empty: Dice, IoU and surface Dice are 0, the distance is NaN. MONAI takes seconds to import, so it is
imported where it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medtame.errors import MedtameError
from medtame.metrics.statistic import Mean, Statistic
from medtame.types import Array

OVERLAP = 0.5  # IoU above which an object is found
TOLERANCE = 2.0  # of surface Dice: mm, or pixels where the spacing is unknown
Spacing = tuple[float, ...] | None  # (row, column) in mm, of a volume (slice, row, column)


def dice_of(predicted: Array, truth: Array) -> float:
    """Twice the overlap over the sum of areas, of masks (H, W)."""
    from monai.metrics import compute_dice

    a, b = _pair(predicted, truth)
    return float(compute_dice(a, b, ignore_empty=False)) if bool(a.any() or b.any()) else np.nan


def iou_of(predicted: Array, truth: Array) -> float:
    """Overlap over union, of masks (H, W)."""
    from monai.metrics import compute_iou

    a, b = _pair(predicted, truth)
    return float(compute_iou(a, b, ignore_empty=False)) if bool(a.any() or b.any()) else np.nan


def hd95_of(predicted: Array, truth: Array, spacing_mm: Spacing = None) -> float:
    """The larger of the two directed 95th percentiles of surface distances (Huttenlocher et al. 1993): mm, or pixels without a spacing.

    MONAI's definition: surface pixels, each counted once. Other tools differ; name MONAI with the number.
    """
    from monai.metrics import compute_hausdorff_distance

    a, b = _pair(predicted, truth)
    if not bool(a.any() and b.any()):
        return np.nan
    return float(compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=_sides(spacing_mm)))


def surface_dice_of(predicted: Array, truth: Array, spacing_mm: Spacing = None, tolerance: float = TOLERANCE) -> float:
    """Share of surface pixels within `tolerance` of the other surface (Nikolov et al. 2021): mm, or pixels without a spacing."""
    from monai.metrics import compute_surface_dice

    a, b = _pair(predicted, truth)
    if not bool(a.any() and b.any()):
        return 0.0 if bool(a.any() or b.any()) else np.nan
    return float(compute_surface_dice(a, b, class_thresholds=[tolerance], include_background=True, spacing=_sides(spacing_mm)))


def instance_f1_of(predicted: Array, truth: Array, overlap: float = OVERLAP) -> float:
    """F1 of objects: a mask (H, W), whose parts that touch by a side are its objects, against numbered objects (H, W), 0 outside.

    A predicted object is right where its IoU with a true one is above `overlap`; from one half on no object can be right twice
    (Caicedo et al. 2019). NaN where neither has an object. Objects that touch count as one where the mask joins them.
    """
    if predicted.shape != truth.shape:
        raise MedtameError(f"a mask of shape {predicted.shape} for objects of shape {truth.shape}: bring it to the source's size first")
    ours, count = ndimage.label(predicted > 0)
    _, theirs = np.unique(truth, return_inverse=True)
    theirs = theirs.reshape(truth.shape) + int((truth > 0).all())  # number 0 stays for what is outside
    both = np.zeros((count + 1, int(theirs.max()) + 1), dtype=np.int64)
    np.add.at(both, (ours.ravel(), theirs.ravel()), 1)
    union = both.sum(1)[1:, None] + both.sum(0)[None, 1:] - both[1:, 1:]
    right, objects = int((both[1:, 1:] > overlap * union).sum()), sum(union.shape)
    return 2 * right / objects if objects else np.nan


def segmentation(
    predicted: Sequence[Array], truth: Sequence[Array], spacings_mm: Sequence[Spacing] | None = None, tolerance: float = TOLERANCE
) -> dict[str, Statistic]:
    """dice, iou, hd95_mm, surface_dice of N pairs of masks (H, W) or volumes (S, H, W), each the mean over rows.

    Where the spacing of a single row is unknown, distances of all rows are in pixels and the name is `hd95_pixels`: units are not mixed.
    """
    spacings = [None] * len(truth) if spacings_mm is None else list(spacings_mm)
    if not len(predicted) == len(truth) == len(spacings):
        raise MedtameError(f"{len(predicted)} predicted masks, {len(truth)} true ones, {len(spacings)} spacings: give one of each a row")
    known = bool(spacings) and all(spacing is not None for spacing in spacings)
    rows = list(zip(predicted, truth, spacings if known else [None] * len(truth), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of an argument that it passes to itself
        return {
            "dice": Mean(np.array([dice_of(a, b) for a, b, _ in rows], dtype=float)),
            "iou": Mean(np.array([iou_of(a, b) for a, b, _ in rows], dtype=float)),
            "hd95_mm" if known else "hd95_pixels": Mean(np.array([hd95_of(*row) for row in rows], dtype=float)),
            "surface_dice": Mean(np.array([surface_dice_of(*row, tolerance) for row in rows], dtype=float)),
        }


def _sides(spacing_mm: Spacing) -> list[float] | None:
    """MONAI wants numbers of one type."""
    return None if spacing_mm is None else [float(side) for side in spacing_mm]


def _pair(predicted: Array, truth: Array) -> tuple[Tensor, Tensor]:
    """Two masks as MONAI reads them: (1, 1, H, W) or (1, 1, S, H, W) booleans."""
    if predicted.shape != truth.shape:
        raise MedtameError(f"a mask of shape {predicted.shape} for a true one of shape {truth.shape}: bring it to the source's size first")
    a, b = (torch.from_numpy(np.ascontiguousarray(mask, dtype=bool))[None, None] for mask in (predicted, truth))
    return a, b
