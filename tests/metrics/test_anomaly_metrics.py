"""Metrics of anomaly maps against scikit-learn and against a plain twin that asks every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from medtame.errors import MedtameError
from medtame.metrics import anomaly as metrics
from medtame.metrics.statistic import from_arrays, to_arrays
from medtame.types import Array


def made(levels: int | None, seed: int = 0, n: int = 6, size: int = 40) -> tuple[list[Array], list[Array | None]]:
    """Maps of few distinct scores (or of any), and masks of none to two regions; one mask is unknown."""
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for k in range(n):
        mask = np.zeros((size, size + k), dtype=bool)
        for _ in range(k % 3):
            y, x = random.integers(0, size - 10, 2)
            mask[y : y + random.integers(2, 9), x : x + random.integers(2, 9)] = True
        score = random.normal(size=mask.shape) + 1.5 * mask
        maps.append((np.round(np.clip(score, -2, 3) * levels) / levels if levels else score).astype(np.float32))
        masks.append(None if k == 4 else mask)
    return maps, masks


def pro_twin(maps: list[Array], masks: list[Array | None], end: float = 0.3) -> float:
    """Bergmann et al. 2020 as it is written: every threshold, every region, a trapezoid up to the false-positive rate `end`."""
    known = [(a, b) for a, b in zip(maps, masks, strict=True) if b is not None]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([a.ravel() for a, _ in known]))[::-1]:
        overlaps, wrong, negatives = [], 0, 0
        for scores, mask in known:
            parts, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [float((scores[parts == part] >= threshold).mean()) for part in range(1, count + 1)]
            wrong, negatives = wrong + int((scores[~mask] >= threshold).sum()), negatives + int((~mask).sum())
        curve.append((wrong / negatives, float(np.mean(overlaps))))
    rates, found = np.array(curve).T
    inside = np.append(rates[rates < end], end)
    return float(np.trapezoid(np.append(found[rates < end], np.interp(end, rates, found)), inside) / end)


def statistics(maps: list[Array], masks: list[Array | None], threshold: float | None = 0.5):
    scores = np.array([one.max() for one in maps])
    abnormal = np.array([1.0 if mask is None or mask.any() else 0.0 for mask in masks])
    return metrics.anomaly(scores, abnormal, maps, masks, threshold), scores, abnormal


def test_with_few_distinct_scores_they_equal_scikit_learn_and_the_twin():
    maps, masks = made(8)
    found, scores, abnormal = statistics(maps, masks)
    known = [(a, b) for a, b in zip(maps, masks, strict=True) if b is not None]
    labels, pixels = np.concatenate([b.ravel() for _, b in known]), np.concatenate([a.ravel() for a, _ in known])
    assert found["pixel_ap"].value() == pytest.approx(average_precision_score(labels, pixels), abs=1e-12)
    assert found["pixel_pro"].value() == pytest.approx(pro_twin(maps, masks), abs=1e-12)
    assert found["image_auroc"].value() == pytest.approx(roc_auc_score(abnormal, scores), abs=1e-12)
    assert found["image_ap"].value() == pytest.approx(average_precision_score(abnormal, scores), abs=1e-12)
    assert next(iter(found)) == "image_auroc"


def test_with_any_scores_they_are_within_two_thousandths():
    maps, masks = made(None, size=36)
    found, *_ = statistics(maps, masks)
    known = [(a, b) for a, b in zip(maps, masks, strict=True) if b is not None]
    labels, pixels = np.concatenate([b.ravel() for _, b in known]), np.concatenate([a.ravel() for a, _ in known])
    assert len(np.unique(pixels)) > 10 * metrics.BINS
    assert found["pixel_ap"].value() == pytest.approx(average_precision_score(labels, pixels), abs=0.002)
    assert found["pixel_pro"].value() == pytest.approx(pro_twin(maps, masks), abs=0.002)


def test_a_resample_equals_the_metric_of_the_repeated_images():
    maps, masks = made(8)
    found, *_ = statistics(maps, masks)
    counts = np.array([[2, 0, 3, 1, 1, 0]])
    rows = np.repeat(np.arange(6), counts[0])
    again = [maps[row] for row in rows], [masks[row] for row in rows]
    assert found["pixel_pro"].at(counts)[0] == pytest.approx(pro_twin(*again), abs=1e-12)
    labels, pixels = (np.concatenate([side[k].ravel() for k in range(len(rows)) if again[1][k] is not None]) for side in again[::-1])
    assert found["pixel_ap"].at(counts)[0] == pytest.approx(average_precision_score(labels, pixels), abs=1e-12)


def test_a_perfect_map_scores_one_and_a_constant_one_the_prevalence():
    _, masks = made(8)
    perfect, *_ = statistics([np.zeros((40, 44)) if mask is None else mask.astype(float) for mask in masks], masks)
    assert perfect["pixel_ap"].value() == 1
    assert perfect["pixel_pro"].value() == pytest.approx(1)
    flat, *_ = statistics([np.zeros((40, 44)) if mask is None else np.zeros(mask.shape) for mask in masks], masks)
    prevalence = sum(mask.sum() for mask in masks if mask is not None) / sum(mask.size for mask in masks if mask is not None)
    assert flat["pixel_ap"].value() == pytest.approx(prevalence)
    assert flat["pixel_pro"].value() == pytest.approx(0.15)  # the diagonal up to .3, over .3


def test_what_is_unknown_is_no_number():
    maps, masks = made(8)
    found, *_ = statistics(maps, [None if mask is None or mask.any() else mask for mask in masks], threshold=None)
    assert np.isnan([found[name].value() for name in ("pixel_ap", "pixel_pro", "false_positive_rate", "sensitivity")]).all()
    with pytest.raises(MedtameError, match="map 0 has the size"):
        metrics.anomaly(np.zeros(1), np.zeros(1), [np.zeros((2, 2))], [np.zeros((3, 2), dtype=bool)], None)


def test_the_threshold_gives_both_rates():
    found = metrics.anomaly(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1, np.nan]), [np.zeros((1, 1))] * 5, [None] * 5, 0.5)
    assert (found["false_positive_rate"].value(), found["sensitivity"].value()) == (0.5, 1.0)
    assert (found["false_positive_rate"].defined, found["sensitivity"].defined) == (2, 2)


def test_they_are_stored_and_read():
    found, *_ = statistics(*made(8))
    again = from_arrays(*to_arrays(found))
    assert {name: one.value() for name, one in again.items()} == {name: one.value() for name, one in found.items()}
