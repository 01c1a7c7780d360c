"""Intervals are held to what they promise: coverage and type I error, by simulation with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medtame.errors import MedtameError
from medtame.metrics.classification import classification
from medtame.metrics.intervals import difference, harm_rate, one_way, resampled_draws, resampled_groups, two_way
from medtame.metrics.statistic import Auroc, Mean
from medtame.types import Array

SIMULATIONS, RESAMPLES = 400, 300
PATIENTS, IMAGES = 50, 4


def test_a_patient_is_resampled_with_all_rows() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"], dtype=object)
    counts = resampled_groups(groups, 3000, 0)
    assert counts.shape == (3000, 6)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    np.testing.assert_array_equal(counts[:, [0, 1, 3]].sum(1), 3)
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.06)
    np.testing.assert_array_equal(counts, resampled_groups(groups, 3000, 0))
    assert (counts != resampled_groups(groups, 3000, 1)).any()


def test_resamples_do_not_depend_on_what_patients_are_called() -> None:
    named, numbered = np.array(["p9", "p10", "p9", "a", "p10", "z"]), np.array([0, 1, 0, 2, 1, 3])
    np.testing.assert_array_equal(resampled_groups(named, 50, 3), resampled_groups(numbered, 50, 3))


def test_draws_and_patients_share_no_random_numbers_where_they_share_a_seed() -> None:
    rows, draws = resampled_groups(np.arange(10), 2000, 7), resampled_draws(10, 2000, 7)
    np.testing.assert_array_equal(draws.sum(1), 10)
    assert abs(np.corrcoef(rows.ravel(), draws.ravel())[0, 1]) < 0.03


def ends(resampled: list[float], taken: list[list[float]], values: list[float], groups: int) -> tuple[float, float]:
    """The interval once more, a resample and a draw at a time: `taken[b][d]` is draw d on resample b of the patients."""
    few, draws = groups / (groups - 1), len(values)
    middle = [sum(row) / draws for row in taken]
    of_patients = few * np.var(middle)
    whole = peculiar = 0.0
    if draws > 1:
        whole = np.var(values, ddof=1) / draws
        each = [np.var([row[d] - m for row, m in zip(taken, middle, strict=True)]) for d in range(draws)]
        peculiar = few * np.mean(each) * draws / (draws - 1) / draws
    total = of_patients + max(whole - peculiar, 0)
    freedom = total**2 / (of_patients**2 / (groups - 1) + (whole**2 / (draws - 1) if draws > 1 else 0))
    level = 100 * norm.cdf(-np.sqrt(total / np.var(resampled)) * t.ppf(0.975, max(freedom, 1)))
    low, high = np.percentile(resampled, (level, 100 - level))
    return float(low), float(high)


def test_one_way_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=30), rng.integers(0, 8, 30)
    counts = resampled_groups(groups, 200, 5)
    slow = [np.repeat(values, times).mean() for times in counts]
    found = one_way(Mean(values), counts)
    assert (found.value, found.n) == (pytest.approx(values.mean()), 30)
    assert (found.low, found.high) == pytest.approx(ends(slow, [[one] for one in slow], [values.mean()], len(set(groups))), abs=1e-9)
    assert found.low < np.percentile(slow, 2.5) < np.percentile(slow, 97.5) < found.high  # eight patients are few


def test_two_way_equals_a_loop_over_draws_and_rows() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(4, 30)), rng.integers(0, 8, 30)
    rows, draws = resampled_groups(groups, 200, 5), resampled_draws(4, 200, 5)
    taken = [[np.repeat(one, r).mean() for one in values] for r in rows]
    slow = [np.mean([row[d] for d in np.repeat(np.arange(4), k)]) for row, k in zip(taken, draws, strict=True)]
    found = two_way([Mean(one) for one in values], rows, draws)
    np.testing.assert_allclose(found.resampled, slow)
    assert found.interval.value == pytest.approx(values.mean())
    assert (found.interval.low, found.interval.high) == pytest.approx(
        ends(slow, taken, values.mean(1).tolist(), len(set(groups))), abs=1e-9
    )


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_auroc", "brier"])
def test_two_way_intervals_of_a_classification_equal_scikit_learn_in_a_loop(name: str) -> None:
    """Two methods, three draws, clustered patients: the intervals of both and of their paired difference."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(14), 4)
    truth = rng.permutation(np.arange(14) % 3)[groups]
    rows, draws = resampled_groups(groups, 40, 1), resampled_draws(3, 40, 1)

    def plain(p: Array, chosen: Array) -> float:
        if name == "balanced_accuracy":
            return float(balanced_accuracy_score(truth[chosen], p[chosen].argmax(1)))
        if name == "macro_auroc":
            return float(roc_auc_score(truth[chosen], p[chosen], multi_class="ovr", labels=range(3)))
        return float(np.mean([sum((p[row, k] - (truth[row] == k)) ** 2 for k in range(3)) for row in chosen]))

    found, taken, values, slow = [], [], [], []
    for _ in range(2):
        p = [rng.dirichlet(np.ones(3), len(groups)) + 0.4 * np.eye(3)[truth] for _ in range(3)]
        p = [one / one.sum(1, keepdims=True) for one in p]
        found.append(two_way([classification(one, truth)[name] for one in p], rows, draws))
        taken.append([[plain(one, np.repeat(np.arange(len(groups)), r)) for one in p] for r in rows])
        values.append([plain(one, np.arange(len(groups))) for one in p])
        slow.append([sum(k * one for k, one in zip(count, row, strict=True)) / 3 for row, count in zip(taken[-1], draws, strict=True)])
        np.testing.assert_allclose(found[-1].resampled, slow[-1], atol=1e-6)
        assert (found[-1].interval.low, found[-1].interval.high) == pytest.approx(ends(slow[-1], taken[-1], values[-1], 14), abs=1e-6)
    gap = difference(*found)
    apart = [(np.array(pair[0]) - np.array(pair[1])).tolist() for pair in (slow, taken, values)]
    assert (gap.low, gap.high) == pytest.approx(ends(*apart, 14), abs=1e-6)


def clustered(rng: np.random.Generator) -> Array:
    """(PATIENTS * IMAGES,) values whose true mean is 0; images of a patient are alike."""
    return (rng.normal(size=(PATIENTS, 1)) + 0.5 * rng.normal(size=(PATIENTS, IMAGES))).ravel()


def coverage(groups: Array) -> float:
    hit = 0
    for seed in range(SIMULATIONS):
        found = one_way(Mean(clustered(np.random.default_rng(seed))), resampled_groups(groups, RESAMPLES, seed))
        hit += found.low <= 0 <= found.high
    return hit / SIMULATIONS


def test_intervals_over_patients_cover_and_intervals_over_rows_do_not() -> None:
    assert 0.90 <= coverage(np.repeat(np.arange(PATIENTS), IMAGES)) <= 0.98
    assert coverage(np.arange(PATIENTS * IMAGES)) < 0.80


def test_intervals_of_an_auroc_cover_its_true_value() -> None:
    truth = np.repeat([0.0, 1.0], PATIENTS)
    right, hit = 0.760249938906524, 0  # normal scores one standard deviation apart: the normal distribution at 1 / sqrt(2)
    for seed in range(SIMULATIONS):
        scores = np.random.default_rng(seed).normal(size=2 * PATIENTS) + truth
        found = one_way(Auroc(scores, truth), resampled_groups(np.arange(2 * PATIENTS), RESAMPLES, seed))
        hit += found.low <= right <= found.high
    assert 0.90 <= hit / SIMULATIONS <= 0.98


def few_shot(rng: np.random.Generator, draws: int) -> Array:
    """(draws, PATIENTS) values of one method, true mean 0: a part of the patient, one of the draw, one of both."""
    return 0.3 * rng.normal(size=(draws, 1)) + rng.normal(size=(1, PATIENTS)) + 0.5 * rng.normal(size=(draws, PATIENTS))


def test_two_way_intervals_cover_and_patients_alone_do_not() -> None:
    draws, hit, patients_only = 20, 0, 0
    for seed in range(SIMULATIONS):
        values = 2 * few_shot(np.random.default_rng(seed), draws)
        rows = resampled_groups(np.arange(PATIENTS), RESAMPLES, seed)
        found = two_way([Mean(one) for one in values], rows, resampled_draws(draws, RESAMPLES, seed)).interval
        hit += found.low <= 0 <= found.high
        alone = two_way([Mean(values[0])], rows, resampled_draws(1, RESAMPLES, seed)).interval
        patients_only += alone.low <= 0 <= alone.high
    assert 0.90 <= hit / SIMULATIONS <= 0.98
    assert patients_only < hit


def test_two_equal_methods_differ_in_five_per_cent_of_experiments() -> None:
    draws, said = 20, 0
    for seed in range(SIMULATIONS):
        rng = np.random.default_rng(seed)
        shared = few_shot(rng, draws)
        rows, counts = resampled_groups(np.arange(PATIENTS), RESAMPLES, seed), resampled_draws(draws, RESAMPLES, seed)
        a, b = (
            two_way([Mean(one) for one in shared + 0.2 * rng.normal(size=(draws, 1)) + 0.3 * rng.normal(size=(1, PATIENTS))], rows, counts)
            for _ in range(2)
        )
        gap = difference(a, b)
        said += not gap.low <= 0 <= gap.high
    assert 0.02 <= said / SIMULATIONS <= 0.09


def test_a_paired_difference_is_narrower_and_finds_a_planted_gain() -> None:
    rng = np.random.default_rng(0)
    values = few_shot(rng, 10)
    rows, counts = resampled_groups(np.arange(PATIENTS), 500, 0), resampled_draws(10, 500, 0)
    a, b = (
        two_way([Mean(one) for one in shifted], rows, counts) for shifted in (values + 0.1 + 0.05 * rng.normal(size=values.shape), values)
    )
    gap = difference(a, b)
    assert gap.value == pytest.approx(0.1, abs=0.02)
    assert 0 < gap.low < gap.high
    assert gap.high - gap.low < 0.2 * (a.interval.high - a.interval.low)
    assert difference(a, a).low == difference(a, a).high == 0


def test_a_single_draw_pairs_with_many() -> None:
    rng = np.random.default_rng(0)
    values = few_shot(rng, 5)
    rows, counts = resampled_groups(np.arange(PATIENTS), 300, 0), resampled_draws(5, 300, 0)
    many, single = two_way([Mean(one) for one in values], rows, counts), two_way([Mean(values[0])], rows, counts)
    repeated = two_way([Mean(values[0])] * 5, rows, counts)
    np.testing.assert_allclose(single.resampled, repeated.resampled)
    assert difference(single, many) == difference(repeated, many)


def test_a_draw_without_a_value_is_left_out() -> None:
    rows, counts = resampled_groups(np.arange(6), 100, 0), resampled_draws(3, 100, 0)
    found = two_way([Mean(np.full(6, 0.2)), Mean(np.full(6, np.nan)), Mean(np.full(6, 0.4))], rows, counts)
    assert found.interval.value == pytest.approx(0.3)
    assert found.interval.n == 0
    known = found.resampled[~np.isnan(found.resampled)]
    assert 0.2 - 1e-9 <= known.min() < known.max() <= 0.4 + 1e-9


def test_undefined_resamples_are_left_out() -> None:
    statistic = Auroc(np.arange(6.0), np.array([0, 0, 0, 0, 0, 1.0]))
    counts = resampled_groups(np.arange(6), 400, 0)
    assert np.isnan(statistic.at(counts)).any()
    found = one_way(statistic, counts)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_one_patient_gives_a_value_and_no_interval() -> None:
    found = one_way(Mean(np.array([0.2, 0.6])), resampled_groups(np.array(["p", "p"]), 50, 0))
    assert found.value == pytest.approx(0.4)
    assert np.isnan([found.low, found.high]).all()


def test_harm_rate_counts_draws_below_the_reference() -> None:
    assert harm_rate([0.5, 0.7, 0.6, 0.4], [0.6, 0.6, 0.6, 0.6]) == 0.5
    assert harm_rate([0.5, 0.7], [0.6]) == 0.5
    assert harm_rate([0.5], [0.4, 0.6, 0.7, 0.8]) == 0.75
    assert harm_rate([np.nan, 0.5], [0.6, 0.6]) == 1
    assert harm_rate([0.6], [0.6]) == 0


def test_what_cannot_be_paired_is_refused() -> None:
    rows, draws = resampled_groups(np.arange(4), 10, 0), resampled_draws(3, 10, 0)
    one = Mean(np.arange(4.0))
    with pytest.raises(MedtameError, match="2 draws measured but 3"):
        two_way([one, one], rows, draws)
    with pytest.raises(MedtameError, match="resamples"):
        two_way([one], rows[:5], draws)
    with pytest.raises(MedtameError, match="do not pair"):
        difference(two_way([one], rows, draws), two_way([one], rows[:5], draws[:5]))
    with pytest.raises(MedtameError, match="3 draws against 2"):
        harm_rate([1, 2, 3], [1, 2])
    with pytest.raises(MedtameError, match="no row"):
        resampled_groups(np.array([]), 10, 0)
