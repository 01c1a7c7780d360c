"""Masks: MONAI's numbers against a slow twin of distance transforms, closed forms, and what an empty mask means."""

from __future__ import annotations

import numpy as np
import pytest
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU, SurfaceDiceMetric
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, label
from torch import from_numpy

from medtame.errors import MedtameError
from medtame.metrics.segmentation import dice_of, hd95_of, instance_f1_of, iou_of, segmentation, surface_dice_of
from medtame.types import Array

EMPTY, FULL = np.zeros((12, 10), dtype=bool), np.ones((12, 10), dtype=bool)


def blob(rng: np.random.Generator, size: tuple[int, ...] = (20, 28)) -> Array:
    return np.asarray(binary_dilation(rng.random(size) < 0.02 / (len(size) - 1) ** 3, iterations=3))


def distances(a: Array, b: Array, spacing: tuple[float, ...]) -> tuple[Array, Array]:
    """From each surface pixel of a mask to the surface of the other; pixels beyond the image are background."""
    surfaces = [mask & ~binary_erosion(mask) for mask in (a, b)]
    away = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return away[1][surfaces[0]], away[0][surfaces[1]]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("spacing", [None, (0.7, 1.9), (3.0, 0.7, 1.9)])
def test_all_equal_a_slow_twin(seed: int, spacing: tuple[float, ...] | None) -> None:
    """Pictures and volumes. MONAI works out distances in 32 bits, so that one of 20 mm is good to 2e-6 and no better."""
    rng = np.random.default_rng(seed)
    size = (20, 28) if len(spacing or (1, 1)) == 2 else (8, 20, 16)
    a, b = blob(rng, size), blob(rng, size)
    forth, back = distances(a, b, spacing or (1, 1))
    near = (forth <= 2).sum() + (back <= 2).sum()
    assert dice_of(a, b) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)
    assert iou_of(a, b) == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-6)
    assert hd95_of(a, b, spacing) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)), rel=1e-6)
    assert surface_dice_of(a, b, spacing) == pytest.approx(near / (len(forth) + len(back)), abs=1e-6)


def test_all_equal_the_metric_classes_of_monai() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = (np.stack([blob(rng) for _ in range(6)]) for _ in range(2))
    a, b = (from_numpy(masks)[:, None] for masks in (predicted, truth))
    found = segmentation(list(predicted), list(truth), [(0.5, 0.8)] * 6, tolerance=1.0)
    theirs = {
        "dice": DiceMetric()(a, b),
        "iou": MeanIoU()(a, b),
        "hd95_mm": HausdorffDistanceMetric(include_background=True, percentile=95)(a, b, spacing=(0.5, 0.8)),
        "surface_dice": SurfaceDiceMetric([1.0], include_background=True)(a, b, spacing=(0.5, 0.8)),
    }
    assert list(found) == list(theirs)
    for name, values in theirs.items():
        np.testing.assert_allclose(found[name].arrays()["values"], values[:, 0].numpy(), rtol=0, atol=1e-6)


def test_a_shifted_square_in_mm() -> None:
    a, b = np.zeros((2, 40, 40), dtype=bool)
    a[10:20, 10:20] = True
    b[10:20, 15:25] = True
    assert dice_of(a, b) == pytest.approx(0.5)
    assert iou_of(a, b) == pytest.approx(1 / 3)
    assert hd95_of(a, b) == pytest.approx(5)
    assert hd95_of(a, b, (1.0, 0.2)) == pytest.approx(1)
    assert surface_dice_of(a, b, (1.0, 0.2)) == 1
    assert surface_dice_of(a, b, (1.0, 1.0)) < 1


@pytest.mark.parametrize(
    ("predicted", "truth", "overlap", "distance"),
    [(EMPTY, EMPTY, np.nan, np.nan), (FULL, EMPTY, 0, np.nan), (EMPTY, FULL, 0, np.nan), (FULL, FULL, 1, 0)],
    ids=["both empty", "truth empty", "nothing found", "the same"],
)
@pytest.mark.filterwarnings("error", "ignore:.*always_return_as_numpy")
def test_what_an_empty_mask_means(predicted: Array, truth: Array, overlap: float, distance: float) -> None:
    assert [dice_of(predicted, truth), iou_of(predicted, truth), surface_dice_of(predicted, truth)] == pytest.approx(
        [overlap] * 3, nan_ok=True
    )
    assert hd95_of(predicted, truth) == pytest.approx(distance, nan_ok=True)


def test_undefined_rows_are_left_out_of_the_mean_and_counted() -> None:
    found = segmentation([EMPTY, FULL, FULL], [EMPTY, EMPTY, FULL])
    assert (found["dice"].value(), found["dice"].defined) == (0.5, 2)
    assert (found["hd95_pixels"].value(), found["hd95_pixels"].defined) == (0, 1)


def test_units_are_not_mixed() -> None:
    half = FULL.copy()
    half[:, 5:] = False
    assert segmentation([half], [FULL], [(1, 0.1)])["hd95_mm"].value() == pytest.approx(0.5)
    both = segmentation([half, half], [FULL, FULL], [(1, 0.1), None])
    assert "hd95_mm" not in both
    assert both["hd95_pixels"].value() == pytest.approx(5)


def test_masks_of_unequal_size_are_refused() -> None:
    with pytest.raises(MedtameError, match=r"\(12, 10\)"):
        dice_of(EMPTY, np.ones((5, 5)))
    with pytest.raises(MedtameError, match="one of each a row"):
        segmentation([EMPTY], [EMPTY, EMPTY])


# ---- objects ----------------------------------------------------------------------------------------------------


def slow_f1(predicted: Array, truth: Array) -> float:
    ours, count = label(predicted)
    found = [ours == k for k in range(1, count + 1)]
    true = [truth == k for k in np.unique(truth[truth > 0])]
    if not found and not true:
        return float("nan")
    hits = sum(any((a & b).sum() / (a | b).sum() > 0.5 for b in true) for a in found)
    return 2 * hits / (len(found) + len(true))


@pytest.mark.parametrize("seed", range(10))
def test_f1_of_objects_equals_a_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = label(blob(rng, (40, 48)))[0]
    truth = np.where(truth > 0, 7 * truth, 0)  # numbers need not follow each other
    predicted = (truth > 0) & (rng.random(truth.shape) > 0.02) | blob(rng, (40, 48)) & (rng.random() > 0.5)
    assert instance_f1_of(predicted, truth) == pytest.approx(slow_f1(predicted, truth), abs=1e-12, nan_ok=True)


def test_f1_of_objects_in_closed_form() -> None:
    truth = np.zeros((10, 20), dtype=int)
    truth[1:5, 1:5], truth[1:5, 10:14] = 1, 2
    assert instance_f1_of(truth > 0, truth) == 1
    assert instance_f1_of(truth == 1, truth) == pytest.approx(2 / 3)
    joined = truth > 0
    joined[2, 5:10] = True  # both count as one object, which is neither
    assert instance_f1_of(joined, truth) == 0
    assert np.isnan(instance_f1_of(EMPTY, np.zeros((12, 10), dtype=int)))
    assert instance_f1_of(EMPTY, np.ones((12, 10), dtype=int)) == 0
    assert instance_f1_of(FULL, np.full((12, 10), 4)) == 1
    with pytest.raises(MedtameError, match="bring it to the source's size"):
        instance_f1_of(EMPTY, truth)
