"""Classification metrics against scikit-learn, and what a refusal costs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, roc_auc_score

from medtame.errors import MedtameError
from medtame.metrics.bins import debiased_gap, equal_mass_bins
from medtame.metrics.classification import classification, multi_label
from medtame.types import Array


def probabilities(rng: np.random.Generator, rows: int, classes: int, *, tied: bool) -> Array:
    raw = rng.integers(1, 4, (rows, classes)).astype(float) if tied else rng.random((rows, classes))
    return raw / raw.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(60))
def test_all_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    p = probabilities(rng, 60, classes, tied=seed % 2 == 0)
    truth = np.r_[np.arange(classes), rng.integers(0, classes, 60 - classes)]
    found = {name: statistic.value() for name, statistic in classification(p, truth).items()}
    one_hot = np.eye(classes)[truth]
    expected = {
        "balanced_accuracy": balanced_accuracy_score(truth, p.argmax(1)),
        "macro_auroc": roc_auc_score(one_hot, p, average="macro"),
        "accuracy": accuracy_score(truth, p.argmax(1)),
        "brier": brier_score_loss(truth, p[:, 1] if classes == 2 else p, labels=range(classes), scale_by_half=False),
    }
    assert list(found) == ["balanced_accuracy", "macro_auroc", "accuracy", "ece", "brier"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_calibrated_probabilities_have_a_small_ece_and_sharpened_ones_a_known_one() -> None:
    rng = np.random.default_rng(0)
    p = np.full((20000, 2), (0.7, 0.3))
    truth = (rng.random(20000) > 0.7).astype(int)
    assert classification(p, truth)["ece"].value() < 0.01
    sharp = np.full((20000, 2), (0.95, 0.05))
    assert classification(sharp, truth)["ece"].value() == pytest.approx(0.25, abs=0.01)


def test_a_refusal_is_wrong_for_accuracy_and_left_out_of_the_rest() -> None:
    rng = np.random.default_rng(1)
    p, truth = probabilities(rng, 40, 3, tied=False), rng.integers(0, 3, 40)
    refused = p.copy()
    refused[:10] = np.nan
    whole, answered, found = classification(p, truth), classification(p[10:], truth[10:]), classification(refused, truth)
    hits = p[10:].argmax(1) == truth[10:]
    assert found["accuracy"].value() == pytest.approx(hits.sum() / 40)
    assert found["balanced_accuracy"].value() == pytest.approx(
        np.mean([hits[truth[10:] == k].sum() / (truth == k).sum() for k in range(3)])
    )
    for name in ("macro_auroc", "ece", "brier"):
        assert found[name].value() == pytest.approx(answered[name].value())
        assert (found[name].defined, whole[name].defined) == (30, 40)
    assert found["accuracy"].defined == found["balanced_accuracy"].defined == 40


def test_a_row_without_truth_is_left_out_of_everything() -> None:
    rng = np.random.default_rng(2)
    p, truth = probabilities(rng, 40, 3, tied=False), rng.integers(0, 3, 40)
    unknown = np.where(np.arange(40) < 12, -1, truth)
    known, found = classification(p[12:], truth[12:]), classification(p, unknown)
    assert {n: s.value() for n, s in found.items()} == pytest.approx({n: s.value() for n, s in known.items()})
    assert {s.defined for s in found.values()} == {28}


def test_constant_scores_are_at_chance() -> None:
    truth = np.repeat(np.arange(4), 10)
    found = classification(np.full((40, 4), 0.25), truth)
    assert found["macro_auroc"].value() == 0.5
    assert found["balanced_accuracy"].value() == 0.25
    assert found["brier"].value() == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(20))
def test_several_labels_with_unknowns_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, truth = rng.integers(0, 9, (50, 3)) / 8, (rng.random((50, 3)) < 0.4).astype(float)
    truth[rng.random((50, 3)) < 0.2] = np.nan
    known = ~np.isnan(truth)
    found = {name: statistic.value() for name, statistic in multi_label(p, truth).items()}
    expected = {
        "macro_auroc": np.mean([roc_auc_score(truth[known[:, k], k], p[known[:, k], k]) for k in range(3)]),
        "brier": brier_score_loss(truth[known], p[known]),
        "ece": max(sum(share * debiased_gap(np.array(abs(gap)), np.array(v)) for gap, share, v in gaps(p[known], truth[known])), 0),
    }
    assert found == pytest.approx(expected, abs=1e-9)
    refused = p.copy()
    refused[0, 0] = np.nan
    assert multi_label(refused, truth)["brier"].value() == pytest.approx(brier_score_loss(truth[1:][known[1:]], p[1:][known[1:]]))


def gaps(p: Array, y: Array) -> list[tuple[float, float, float]]:
    """For each bin of equal mass: the gap, the share of judgements, the variance of the share correct."""
    bins = equal_mass_bins(p, 15)
    held = [(p[bins == b].mean(), y[bins == b]) for b in np.unique(bins)]
    return [(value - right.mean(), len(right) / len(y), right.mean() * (1 - right.mean()) / len(right)) for value, right in held]


def test_wrong_shapes_and_numbers_are_told() -> None:
    with pytest.raises(MedtameError, match="classes"):
        classification(np.ones((3, 2)), np.ones(2, dtype=int))
    with pytest.raises(MedtameError, match="class number 2"):
        classification(np.full((1, 2), 0.5), np.array([2]))
    with pytest.raises(MedtameError, match="classes"):
        multi_label(np.ones((3, 2)), np.ones((3, 1)))
