"""The numbers behind the figures: against plain loops and scikit-learn, on planted answers, and where nothing is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score, roc_curve

from medtame.comparison import curves
from medtame.comparison.figures import BINS, figures
from medtame.comparison.grid import Outcome
from medtame.comparison.table import Resampling
from medtame.metrics.bins import equal_mass_bins
from medtame.metrics.classification import classification, multi_label
from medtame.metrics.intervals import resampled_draws, resampled_groups
from medtame.metrics.statistic import Mean

CLASSES = ("clear", "effusion", "mass")
GROUPS = np.repeat(np.arange(45), 2)
LOOPED = slice(0, 40)  # resamples that the plain loops go through


def problem(seed: int, n: int = 90, classes: int = 3, signal: float = 1.0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + signal * np.eye(classes)[truth]
    logits = np.round(logits) if ties else logits
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, truth


def outcome(probabilities: np.ndarray, truth: np.ndarray) -> Outcome:
    return Outcome(classification(probabilities, truth), {})


def resampling(resamples: int = 200) -> Resampling:
    return Resampling(resampled_groups(GROUPS, resamples, 7), 7)


def made(*probabilities: np.ndarray, truth: np.ndarray, names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """The figures of one method over one draw or several."""
    found = figures({("probe", 4): [outcome(one, truth) for one in probabilities]}, "probe", ["zero_shot"], 4, names, resampling())
    assert found is not None
    return found


def slow(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Both curves of one resample: rows repeated, thresholds one after the other."""
    scores, truth = np.repeat(scores, counts), np.repeat(truth, counts)
    positives, negatives = (truth == 1).sum(), (truth == 0).sum()
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        said = scores >= threshold
        points.append(((said & (truth == 0)).sum() / negatives, (said & (truth == 1)).sum() / positives))
    rates, precisions = [], []
    for place in curves.PLACES:
        before = max(k for k, (false, _) in enumerate(points) if false <= place + 1e-9)
        (x, y), after = points[before], points[before + 1 : before + 2]
        rates.append(y if not after else y + (place - x) / (after[0][0] - x) * (after[0][1] - y))
        false, true = next((f, t) for f, t in points if t > 0 and t >= place - 1e-9)
        precisions.append(true * positives / (true * positives + false * negatives))
    return rates, precisions


@pytest.mark.parametrize("ties", [False, True])
def test_curves_of_every_resample_equal_a_plain_loop(ties: bool) -> None:
    probabilities, truth = problem(1, ties=ties)
    one, counts = (truth == 1).astype(float), resampling().rows[LOOPED]
    roc, precision = curves.roc_and_precision(probabilities[:, 1], one, counts)
    for b, weights in enumerate(counts):
        rates, precisions = slow(probabilities[:, 1], one, weights)
        np.testing.assert_allclose(roc[b], rates, atol=1e-6)
        np.testing.assert_allclose(precision[b], precisions, atol=1e-6)


def test_the_roc_passes_through_the_points_of_scikit_learn() -> None:
    probabilities, truth = problem(2)
    roc, _ = curves.roc_and_precision(probabilities[:, 0], (truth == 0).astype(float), np.ones((1, len(truth))))
    false, true, _ = roc_curve(truth == 0, probabilities[:, 0], drop_intermediate=False)
    inner = ~np.isin(curves.PLACES, false)  # where the curve rises straight up, both ends are right
    np.testing.assert_allclose(roc[0][inner], np.interp(curves.PLACES, false, true)[inner], atol=1e-9)


def test_what_a_resample_or_a_class_lacks_is_undefined() -> None:
    scores, truth = np.array([0.1, 0.9, np.nan, 0.4]), np.array([0.0, 1.0, 1.0, np.nan])
    roc, precision = curves.roc_and_precision(scores, truth, np.array([[1, 1, 5, 5], [0, 1, 1, 1], [1, 0, 9, 9]]))
    assert (roc[0] == 1).all()  # the row without a score and the row without a truth are left out
    assert (precision[0] == 1).all()
    assert np.isnan(roc[1]).all()
    assert (precision[1] == 1).all()
    assert np.isnan(roc[2]).all()
    assert np.isnan(precision[2]).all()
    nothing = curves.roc_and_precision(np.array([np.nan]), np.array([1.0]), np.ones((2, 1)))
    assert np.isnan(nothing).all()


def test_scores_that_know_nothing_lie_on_the_diagonal_and_true_ones_above() -> None:
    for signal, apart in ((0.0, False), (2.0, True)):
        probabilities, truth = problem(3, signal=signal)
        macro = next(one for one in made(probabilities, truth=truth)["curves"] if one["kind"] == "roc" and one["label"] is None)
        inside = slice(5, -5)
        above = np.array(macro["low"])[inside] > np.array(macro["x"])[inside]
        assert above.all() if apart else above.mean() < 0.2


def test_the_mean_curve_is_over_classes_and_draws_and_its_band_is_of_the_same_resamples() -> None:
    (first, truth), (second, _) = problem(4), problem(5)
    found = made(first, second, truth=truth)
    rows, draws = resampling().rows, resampled_draws(2, 200, 7)
    macro = next(one for one in found["curves"] if one["kind"] == "precision_recall" and one["label"] is None)
    each = np.zeros((2, 3, 201, 51))
    for d, probabilities in enumerate((first, second)):
        for k in range(3):
            counts = np.concatenate([np.ones((1, len(truth)), dtype=int), rows])
            each[d, k] = curves.roc_and_precision(probabilities[:, k], (truth == k).astype(float), counts)[1]
    np.testing.assert_allclose(macro["y"], each[:, :, 0].mean((0, 1)), atol=1e-5)
    spread = np.stack([np.average(each[:, :, b + 1].mean(1), axis=0, weights=draws[b]) for b in range(200)])
    np.testing.assert_allclose(macro["low"], np.percentile(spread, 2.5, axis=0), atol=1e-5)
    np.testing.assert_allclose(macro["high"], np.percentile(spread, 97.5, axis=0), atol=1e-5)
    assert found["draws"] == 2
    assert macro["chance"] == pytest.approx(1 / 3)


def test_areas_recall_and_precision_are_those_of_scikit_learn() -> None:
    probabilities, truth = problem(6)
    found = made(probabilities, truth=truth)
    predicted = probabilities.argmax(1)
    for k, one in enumerate(found["classes"]):
        assert (one["label"], one["n"]) == (CLASSES[k], (truth == k).sum())
        assert one["auroc"]["value"] == pytest.approx(roc_auc_score(truth == k, probabilities[:, k]))
        assert one["average_precision"]["value"] == pytest.approx(average_precision_score(truth == k, probabilities[:, k]))
        assert one["recall"]["value"] == pytest.approx(recall_score(truth == k, predicted == k))
        assert one["precision"]["value"] == pytest.approx(precision_score(truth == k, predicted == k))
        assert one["recall"]["n"] == (truth == k).sum()
        assert one["precision"]["n"] == (predicted == k).sum()
    rows = resampling().rows
    looped = [recall_score(np.repeat(truth == 1, c), np.repeat(predicted == 1, c)) for c in rows]
    patients = len(set(GROUPS.tolist()))
    level = 100 * norm.cdf(-np.sqrt(patients / (patients - 1)) * t.ppf(0.975, patients - 1))  # expanded, for so many patients
    expected = np.percentile(looped, (level, 100 - level)).tolist()
    assert [found["classes"][1]["recall"][end] for end in ("low", "high")] == pytest.approx(expected)
    macro = {one["kind"]: one["area"] for one in found["curves"] if one["label"] is None}
    assert macro["roc"]["value"] == pytest.approx(np.mean([one["auroc"]["value"] for one in found["classes"]]))
    assert np.mean([one["y"] for one in found["curves"] if one["kind"] == "roc" and one["label"] is None]) == pytest.approx(
        macro["roc"]["value"], abs=0.02
    )


def test_reliability_counts_every_image_once_and_equals_a_plain_loop() -> None:
    probabilities, truth = problem(8)
    (found,) = made(probabilities, truth=truth)["reliability"]
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins, rows = equal_mass_bins(sure, BINS), resampling().rows
    assert len(found["bins"]) == BINS
    assert sum(one["n"] for one in found["bins"]) == len(truth)
    for number, one in enumerate(found["bins"]):
        inside = bins == number
        assert one["n"] == inside.sum() == 6
        assert (one["low"], one["high"]) == (sure[inside].min(), sure[inside].max())
        assert one["confidence"] == pytest.approx(sure[inside].mean())
        assert one["right"]["value"] == pytest.approx(right[inside].mean())
        held = rows[:, inside].sum(1)
        shares = (rows[:, inside] @ right[inside])[held > 0] / held[held > 0]
        assert [one["right"][end] for end in ("low", "high")] == pytest.approx(np.percentile(shares, (2.5, 97.5)).tolist())


def test_few_images_make_fewer_bins_of_five() -> None:
    probabilities, truth = problem(9, n=90)
    few = np.where(np.arange(90)[:, None] < 12, probabilities, np.nan)
    (found,) = made(few, truth=truth)["reliability"]
    assert [one["n"] for one in found["bins"]] == [6, 6]


def test_a_matrix_counts_all_draws_and_a_refusal_has_a_column() -> None:
    (first, truth), (second, _) = problem(10), problem(11)
    found = made(first, second, truth=truth)["confusion"]
    assert (found["labels"], found["said"]) == (list(CLASSES), list(CLASSES))
    said = [one.argmax(1) for one in (first, second)]
    assert found["counts"] == [[sum(int(((truth == i) & (one == j)).sum()) for one in said) for j in range(3)] for i in range(3)]
    refused = np.where(np.arange(90)[:, None] == 0, np.nan, first)
    found = made(refused, truth=truth)["confusion"]
    assert found["said"] == [*CLASSES, "refused"]
    assert sum(row[3] for row in found["counts"]) == found["counts"][truth[0]][3] == 1


def test_many_classes_get_a_list_of_mistakes_and_no_curves() -> None:
    probabilities, truth = problem(12, classes=60, signal=0.5)
    names = tuple(f"class {k}" for k in range(60))
    found = made(probabilities, truth=truth, names=names)
    assert found["curves"] == []
    assert "confusion" not in found
    assert len(found["classes"]) == 50
    assert "50" in found["left_out"]
    counts = [one["n"] for one in found["confusions"]]
    assert counts == sorted(counts, reverse=True)
    predicted = probabilities.argmax(1)
    for one in found["confusions"]:
        i, j = names.index(one["truth"]), names.index(one["said"])
        assert i != j
        assert one["n"] == ((truth == i) & (predicted == j)).sum()
        assert one["share"] == pytest.approx(one["n"] / (truth == i).sum())
    seven = made(*[problem(13, classes=7)[0]], truth=problem(13, classes=7)[1], names=names[:7])
    assert {one["label"] for one in seven["curves"]} == {None}


def test_findings_have_no_matrix_and_are_said_above_one_half() -> None:
    random = np.random.default_rng(14)
    truth = (random.random((90, 2)) < 0.4).astype(float)
    truth[:5, 0] = np.nan
    scores = np.clip(0.6 * np.nan_to_num(truth) + 0.5 * random.random((90, 2)), 0, 1)
    found = figures({("probe", "all"): [Outcome(multi_label(scores, truth), {})]}, "probe", [], "all", ("mass", "cyst"), resampling())
    assert found is not None
    assert "confusion" not in found
    known = ~np.isnan(truth[:, 0])
    one = found["classes"][0]
    assert one["n"] == np.nansum(truth[:, 0])
    assert one["recall"]["value"] == pytest.approx(recall_score(truth[known, 0], scores[known, 0] > 0.5))
    assert one["precision"]["value"] == pytest.approx(precision_score(truth[known, 0], scores[known, 0] > 0.5))
    assert sum(one["n"] for one in found["reliability"][0]["bins"]) == known.sum() + 90


def test_one_patient_gives_no_band_one_class_no_curve_and_other_tasks_no_figures() -> None:
    probabilities, truth = problem(15)
    alone = Resampling(resampled_groups(np.zeros(90), 50, 0), 0)
    found = figures({("probe", 1): [outcome(probabilities, truth)]}, "probe", [], 1, CLASSES, alone)
    assert found is not None
    for one in found["curves"]:
        assert np.isnan(one["low"]).all()
        assert not np.isnan(one["y"]).any()
    single = made(probabilities, truth=np.zeros(90, dtype=int))
    assert {one["kind"] for one in single["curves"]} == {"precision_recall"}
    assert figures({("probe", 1): [Outcome({"dice": Mean(np.ones(4))}, {})]}, "probe", [], 1, (), alone) is None
