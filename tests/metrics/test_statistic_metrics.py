"""Every statistic on a resample equals the reference library on rows that are really repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from scipy.stats import foldnorm
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from medtame.errors import MedtameError, RunError
from medtame.metrics import statistic as module
from medtame.metrics.bins import equal_mass_bins, running_sums
from medtame.metrics.statistic import (
    F1,
    Auroc,
    AveragePrecision,
    BalancedAccuracy,
    Calibration,
    CorpusBleu,
    MacroAuroc,
    Mean,
    Median,
    Ratio,
    Statistic,
    from_arrays,
    joined,
    to_arrays,
)
from medtame.types import Array

NAN = np.nan
N, RESAMPLES = 24, 12


def resamples(rng: np.random.Generator, rows: int = N) -> Array:
    """Some plain bootstraps, some that hold few rows only, and one that holds none."""
    plain = np.stack([np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(RESAMPLES)])
    few = np.stack([np.bincount(rng.integers(0, rows, 3), minlength=rows) for _ in range(RESAMPLES)])
    return np.concatenate([plain, few, np.zeros((1, rows), dtype=int)])


def agrees(statistic: Statistic, slow: Callable[[Array], float], rng: np.random.Generator) -> None:
    """`slow` is given row numbers, each as often as it counts, and is asked again for every resample."""
    counts = resamples(rng, statistic.rows)
    expected = [slow(np.repeat(np.arange(statistic.rows), times)) for times in counts]
    np.testing.assert_allclose(statistic.at(counts), expected, atol=1e-9)
    np.testing.assert_allclose(statistic.value(), slow(np.arange(statistic.rows)), atol=1e-9)


def with_gaps(rng: np.random.Generator, values: Array, chance: float = 0.2) -> Array:
    return np.where(rng.random(values.shape) < chance, NAN, values)


def tied_scores(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Array:
    return rng.integers(0, 6, shape) / 5.0


def auroc(truth: Array, scores: Array) -> float:
    known = ~np.isnan(truth) & ~np.isnan(scores)
    both = len(set(truth[known])) == 2
    return float(roc_auc_score(truth[known], scores[known])) if both else NAN


@pytest.mark.parametrize("seed", range(12))
def test_mean_and_median_leave_out_what_is_undefined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = with_gaps(rng, tied_scores(rng, N) if seed % 2 else rng.normal(size=N))

    def taken(reduced: Callable[[Array], float]) -> Callable[[Array], float]:
        return lambda rows: reduced(values[rows][~np.isnan(values[rows])]) if (~np.isnan(values[rows])).any() else NAN

    agrees(Mean(values), taken(np.mean), rng)
    agrees(Median(values), taken(np.median), rng)
    assert Mean(values).defined == Median(values).defined == np.isfinite(values).sum()


@pytest.mark.parametrize("seed", range(12))
def test_balanced_accuracy_equals_sklearn_with_missing_classes_refusals_and_unknowns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(-1, 5, N), rng.integers(-1, 5, N)

    def slow(rows: Array) -> float:
        rows = rows[truth[rows] >= 0]
        present = set(truth[rows])
        return float(np.mean([np.mean(predicted[rows][truth[rows] == k] == k) for k in present])) if present else NAN

    agrees(BalancedAccuracy(predicted, truth, 6), slow, rng)
    answered = predicted.clip(0), np.r_[np.arange(5), truth[5:].clip(0)]
    assert BalancedAccuracy(*answered, 5).value() == pytest.approx(balanced_accuracy_score(answered[1], answered[0]), abs=1e-12)
    assert BalancedAccuracy(predicted, truth, 6).defined == (truth >= 0).sum()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tied", [True, False])
def test_auroc_and_average_precision_equal_sklearn_on_repeated_rows(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = with_gaps(rng, tied_scores(rng, N) if tied else rng.normal(size=N), 0.1)
    truth = with_gaps(rng, rng.integers(0, 2, N).astype(float), 0.1)

    def precision(rows: Array) -> float:
        rows = rows[~np.isnan(scores[rows]) & ~np.isnan(truth[rows])]
        return float(average_precision_score(truth[rows], scores[rows])) if truth[rows].sum() else NAN

    agrees(Auroc(scores, truth), lambda rows: auroc(truth[rows], scores[rows]), rng)
    agrees(AveragePrecision(scores, truth), precision, rng)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tied", [True, False])
def test_macro_auroc_is_the_mean_of_sklearn_over_the_classes_that_have_both(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = tied_scores(rng, (N, 4)) if tied else rng.normal(size=(N, 4))
    truth = with_gaps(rng, (rng.random((N, 4)) < (0.5, 0.3, 0.1, 0.02)).astype(float))

    def slow(rows: Array) -> float:
        each = [auroc(truth[rows, k], scores[rows, k]) for k in range(4)]
        return float(np.nanmean(each)) if np.isfinite(each).any() else NAN

    agrees(MacroAuroc(scores, truth), slow, rng)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("columns", [None, 3])
def test_calibration_equals_a_loop_over_bins(seed: int, columns: int | None) -> None:
    rng = np.random.default_rng(seed)
    shape = (N,) if columns is None else (N, columns)
    confidence = rng.choice([0.0, 0.2, 1 / 3, 1.0, *rng.random(5)], shape)
    correct = with_gaps(rng, (rng.random(shape) < 0.7).astype(float), 0.15)

    known = np.sort(confidence[~np.isnan(correct)])
    edges = np.unique([known[max(math.ceil(k * len(known) / 15) - 1, 0)] for k in range(1, 15)])

    def slow(rows: Array) -> float:
        p, y = confidence[rows].ravel(), correct[rows].ravel()
        of_row = np.repeat(rows, confidence[0].size)
        p, y, of_row = p[~np.isnan(y)], y[~np.isnan(y)], of_row[~np.isnan(y)]
        total = 0.0
        for low, high in pairwise([-np.inf, *edges, np.inf]):
            b = (p > low) & (p <= high)
            if b.any():
                often = sum(int((rows == row).sum()) for row in of_row[b])  # the sum of squares of how often each judgement counts
                gap, spread = abs(p[b].mean() - y[b].mean()), math.sqrt(y[b].mean() * (1 - y[b].mean()) * often) / b.sum()
                noisy = gap if spread == 0 else foldnorm(gap / spread, scale=spread).mean()
                total += b.sum() / len(p) * (2 * gap - noisy)
        return max(total, 0.0) if len(p) else NAN

    agrees(Calibration(confidence, correct), slow, rng)


def test_bins_hold_equal_mass_and_equal_values_share_one() -> None:
    values = np.random.default_rng(0).random(1500) ** 4
    assert np.bincount(equal_mass_bins(values, 15)).tolist() == [100] * 15
    tied = np.r_[np.full(700, 0.5), values[:800]]
    assert len(set(equal_mass_bins(tied, 15)[:700].tolist())) == 1


def test_debiasing_brings_a_small_calibrated_sample_nearer_to_zero() -> None:
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        p = rng.random(120)
        y = (rng.random(120) < p).astype(float)
        bins = equal_mass_bins(p, 15)
        plain.append(sum(abs(p[bins == b].mean() - y[bins == b].mean()) for b in range(15)) / 15)
        debiased.append(Calibration(p, y).value())
    assert np.mean(debiased) < 0.65 * np.mean(plain)


def test_the_resamples_of_a_calibration_error_lie_around_its_value() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(60):
        p = rng.random(150)
        found = Calibration(p, (rng.random(150) < p**2).astype(float))
        low, high = np.percentile(
            found.at(np.stack([np.bincount(rng.integers(0, 150, 150), minlength=150) for _ in range(200)])), (2.5, 97.5)
        )
        inside.append(low <= found.value() <= high)
    assert np.mean(inside) > 0.9


def test_calibration_of_a_planted_gap() -> None:
    confidence, correct = np.full(1000, 0.9), np.r_[np.ones(700), np.zeros(300)]
    assert Calibration(confidence, correct).value() == pytest.approx(0.2)
    assert Calibration(np.full(1000, 0.7), correct).value() == 0


@pytest.mark.parametrize("seed", range(12))
def test_bleu_equals_sacrebleu_on_the_repeated_corpus(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = np.array(["no", "acute", "effusion", "heart", "lung", "is", "clear", "normal", ".", "left"])
    said, true = ([" ".join(rng.choice(words, rng.integers(low, 9))) for _ in range(N)] for low in (0, 1))
    if seed % 3 == 0:
        said = [" ".join(rng.permutation(text.split())) for text in true]
    scorer = BLEU(force=True)
    one = [scorer.corpus_score([a], [[b]]) for a, b in zip(said, true, strict=True)]
    fields = [np.array([getattr(score, name) for score in one], dtype=float) for name in ("counts", "totals", "sys_len", "ref_len")]

    def slow(rows: Array) -> float:
        return scorer.corpus_score([said[k] for k in rows], [[true[k] for k in rows]]).score if len(rows) else NAN

    agrees(CorpusBleu(*fields), slow, rng)


@pytest.mark.parametrize("seed", range(8))
def test_pooled_f1_and_ratio_equal_counting_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    said, true = rng.random((N, 3)) < 0.2, rng.random((N, 3)) < 0.2

    def f1(rows: Array) -> float:
        a, b = said[rows].ravel(), true[rows].ravel()
        return float(f1_score(b, a)) if (a | b).any() else NAN

    def ratio(rows: Array) -> float:
        return float((said & ~true)[rows].sum() / said[rows].sum()) if said[rows].any() else NAN

    counted = [both.sum(1).astype(float) for both in (said & true, said & ~true, true & ~said)]
    agrees(F1(*counted), f1, rng)
    agrees(Ratio(counted[1], said.sum(1).astype(float)), ratio, rng)
    assert F1(*counted).defined == (said | true).any(1).sum()


def examples() -> dict[str, Statistic]:
    rng = np.random.default_rng(3)
    zero_one = rng.integers(0, 2, (N, 3)).astype(float)
    return {
        "mean": Mean(with_gaps(rng, rng.normal(size=N))),
        "part.median": Median(rng.normal(size=N)),
        "balanced_accuracy": BalancedAccuracy(rng.integers(-1, 3, N), rng.integers(-1, 3, N), 3),
        "macro_auroc": MacroAuroc(rng.normal(size=(N, 3)), zero_one),
        "auroc": Auroc(rng.normal(size=N), zero_one[:, 0]),
        "ap": AveragePrecision(rng.normal(size=N), zero_one[:, 0]),
        "ece": Calibration(rng.random(N), zero_one[:, 0], bins=7),
        "bleu4": CorpusBleu(rng.integers(1, 3, (N, 4)), rng.integers(3, 5, (N, 4)), rng.integers(5, 9, N), rng.integers(5, 9, N)),
        "f1": F1(*zero_one.T),
        "ratio": Ratio(*zero_one.T[:2]),
    }


def test_what_is_stored_and_loaded_is_the_same_statistic() -> None:
    kept = examples()
    config, arrays = to_arrays(kept)
    loaded = from_arrays(json.loads(json.dumps(config)), arrays)
    assert list(loaded) == list(kept)
    counts = resamples(np.random.default_rng(0))
    for name, statistic in kept.items():
        assert type(loaded[name]) is type(statistic)
        assert loaded[name].defined == statistic.defined
        np.testing.assert_array_equal(loaded[name].at(counts), statistic.at(counts))


@pytest.mark.parametrize("name", sorted(examples()))
def test_joined_rows_give_what_they_give_together(name: str) -> None:
    whole = examples()[name]
    parts = [
        type(whole)(**{**vars(whole), **{key: value[rows] for key, value in whole.arrays().items()}}) for rows in (np.s_[:9], np.s_[9:])
    ]
    together = joined(parts)
    assert (together.rows, together.defined) == (N, whole.defined)
    assert together.value() == pytest.approx(whole.value(), abs=1e-12)


def test_what_does_not_belong_together_is_not_joined() -> None:
    made = examples()
    for other in (made["ratio"], Calibration(np.ones(2), np.ones(2), bins=3)):
        with pytest.raises(MedtameError, match="do not join"):
            joined([made["ece"], other])


@dataclass(frozen=True, eq=False)
class Planted(Mean):
    """A subclass that a stored file must not be able to name: it is not of the package."""


@pytest.mark.parametrize("kind", ["Planted", "Statistic", "os.system", "__class__", "dataclass"])
def test_only_the_statistics_of_the_package_can_be_loaded(kind: str) -> None:
    config, arrays = to_arrays({"x": Planted(np.ones(2))})
    config["x"]["statistic"] = kind
    with pytest.raises(RunError, match="unknown kind"):
        from_arrays(config, arrays)


def test_a_stored_statistic_with_missing_or_extra_fields_is_refused() -> None:
    config, arrays = to_arrays({"x": Mean(np.ones(2))})
    with pytest.raises(RunError, match="values"):
        from_arrays(config, {})
    config["x"]["plain"]["more"] = 1
    with pytest.raises(RunError, match="more"):
        from_arrays(config, arrays)


def test_wrong_shapes_are_told_in_one_line() -> None:
    with pytest.raises(MedtameError, match="unequal length: scores has 3, truth has 2"):
        Auroc(np.ones(3), np.ones(2))
    with pytest.raises(MedtameError, match=r"counts of shape \(5, 4\) for 3 rows"):
        Mean(np.ones(3)).at(np.ones((5, 4)))
    with pytest.raises(MedtameError, match="infinite"):
        Mean(np.array([1.0, np.inf]))
    with pytest.raises(MedtameError, match=r"lie in 0\.\.1"):
        Calibration(np.array([3.0]), np.array([1.0]))


def test_blocks_of_resamples_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic, counts = examples()["macro_auroc"], resamples(np.random.default_rng(1))
    whole = statistic.at(counts)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(module, "LEAST_RESAMPLES_AT_ONCE", 2)
    np.testing.assert_array_equal(statistic.at(counts), whole)


def test_a_metric_without_a_defined_row_is_nan_and_says_zero() -> None:
    none = np.full(4, NAN)
    for statistic in (
        Mean(none),
        Median(none),
        Auroc(none, np.ones(4)),
        AveragePrecision(none, np.ones(4)),
        Calibration(none, none),
        Ratio(none, none),
    ):
        assert np.isnan(statistic.value())
        assert statistic.defined == 0


@pytest.mark.parametrize("most", [3, 2**23])
def test_auroc_of_large_counts_is_that_of_repeated_rows(most):
    """Beyond 2^24 whole numbers are not exact in 32 bits."""
    rng = np.random.default_rng(most)
    scores, truth = np.round(rng.random(23), 1), rng.integers(0, 2, 23)
    counts = rng.integers(0, most, (4, 23))
    pairs = (scores[:, None] > scores[None]) + 0.5 * (scores[:, None] == scores[None])
    slow = [((truth * c)[:, None] * ((1 - truth) * c)[None] * pairs).sum() / (truth * c).sum() / ((1 - truth) * c).sum() for c in counts]
    np.testing.assert_allclose(Auroc(scores, truth.astype(float)).at(counts), slow, rtol=1e-12)


@pytest.mark.parametrize(("rows", "most"), [(0, 3), (1, 3), (25, 3), (26, 3), (53, 3), (40, 2**20)])
def test_running_sums_are_the_cumulative_sums_exactly(rows, most):
    counts = np.random.default_rng(rows).integers(0, most, (rows, 7)).astype(float)
    slow = [counts[:n].sum(0) for n in range(rows + 1)]
    assert np.array_equal(running_sums(counts), np.array(slow))
