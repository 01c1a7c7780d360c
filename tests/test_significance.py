"""What may be said of many methods at once: p-values against a plain loop and a known test, Holm, and how often it is wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, ttest_1samp

from medtame.comparison.grid import Outcome
from medtame.comparison.significance import adjusted, holm
from medtame.comparison.table import Resampling, rows_of
from medtame.metrics.intervals import TwoWay, paired, resampled_draws, resampled_groups, two_way
from medtame.metrics.statistic import Mean
from medtame.report.record import SIGNIFICANT as LEVEL
from medtame.strategies.tuning.ridge_probe import RidgeProbe
from medtame.types import Array

METHODS, DRAWS, PATIENTS, RESAMPLES = 5, 6, 40, 400  # of a null experiment


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_stepping_down_rejects(seed: int) -> None:
    p = np.random.default_rng(seed).random(seed + 1) ** 3
    corrected = holm(p.tolist())
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        rejected = set()
        for step, place in enumerate(sorted(range(len(p)), key=lambda k: p[k])):  # the definition of Holm 1979
            if p[place] > level / (len(p) - step):
                break
            rejected.add(place)
        assert rejected == {k for k, one in enumerate(corrected) if one <= level}
    assert all(one >= raw for one, raw in zip(corrected, p, strict=True))
    assert holm([]) == []


def measured(values: Array, groups: Array, resamples: int, seed: int) -> TwoWay:
    """Values (D, N) of one method."""
    counts = resampled_groups(groups, resamples, seed), resampled_draws(len(values), resamples, seed)
    return two_way([Mean(one) for one in values], *counts)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.25, 0.4])
@pytest.mark.parametrize("patients", [6, 30])
def test_a_p_value_is_that_of_a_t_test_where_one_value_a_patient_is_known(gain: float, patients: int) -> None:
    values = np.random.default_rng(patients).normal(size=(1, patients))
    values += gain - values.mean()
    found = measured(values, np.arange(patients), 4000, 0).p_value()
    assert found == pytest.approx(ttest_1samp(values[0], 0).pvalue, abs=0.04)


def test_a_p_value_equals_a_loop_over_the_same_resamples() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(20), 3)
    shared = rng.normal(size=(4, 60))
    a, b = (measured(shared + 0.5 * rng.normal(size=(4, 60)) + shift, groups, 300, 2) for shift in (0.2, 0.0))
    gap = paired(a, b)
    scale, freedom = gap.scale()
    far = 0
    for number, resample in enumerate(a.resampled - b.resampled):
        tail = np.sqrt(freedom / chi2.ppf((number + 0.5) / 300, freedom))
        far += abs((resample - gap.interval.value) * scale * tail) >= abs(gap.interval.value)
    assert gap.p_value() == pytest.approx((1 + far) / 301, abs=1e-12)
    assert 1 / 301 < gap.p_value() < 1


def test_equal_methods_have_a_p_of_one_and_far_ones_the_smallest_there_is() -> None:
    values = np.random.default_rng(0).normal(size=(3, 30))
    a, b = (measured(one, np.arange(30), 200, 0) for one in (values, values + 50 + 0.1 * np.random.default_rng(1).normal(size=(3, 30))))
    assert paired(a, a).p_value() == 1
    assert paired(a, b).p_value() == paired(b, a).p_value() == pytest.approx(1 / 201)
    assert np.isnan(measured(values, np.zeros(30), 50, 0).p_value())  # one patient


def row(method: str, p: float | None, shots: int = 1, metric: str = "accuracy") -> dict[str, Any]:
    return {"method": method, "metric": metric, "shots": shots, "gain_p": p, "gain_over_probe_p": None}


def test_a_family_is_the_methods_of_one_metric_and_number_of_shots_without_references() -> None:
    rows = [row("zero_shot", None), row("linear_probe", 0.001), row("a", 0.01), row("b", 0.02), row("c", None), row("d", float("nan"))]
    rows += [row("a", 0.04, shots=4), row("b", 0.5, shots=4), row("a", 0.03, metric="brier")]
    found = adjusted(rows, ["zero_shot", "linear_probe"])
    corrected = [one["gain_p_holm"] for one in found]
    assert corrected == [None, None, pytest.approx(0.02), pytest.approx(0.02), None, None, pytest.approx(0.08), 0.5, 0.03]
    assert all(one["gain_over_probe_p_holm"] is None for one in found)
    assert [{key: one[key] for key in rows[0]} for one in found[:5]] == rows[:5]


def test_the_rows_of_a_table_hold_the_p_of_the_paired_gain() -> None:
    rng = np.random.default_rng(0)
    resampling = Resampling(resampled_groups(np.arange(30), 300, 0), 0)
    shared, costs = rng.normal(size=(3, 30)), {"fit_seconds": 0.0, "trainable_parameters": 0.0}
    made = {"start": shared, "same": shared + 0.3 * rng.normal(size=(3, 30)), "ridge_probe": shared + 1 + 0.3 * rng.normal(size=(3, 30))}
    outcomes = {(name, 4): [Outcome({"dice": Mean(one)}, costs) for one in values] for name, values in made.items()}
    outcomes = {("zero_shot" if name == "start" else "clap" if name == "same" else name, k): one for (name, k), one in outcomes.items()}
    methods = dict.fromkeys(("zero_shot", "clap", "ridge_probe"), RidgeProbe())
    rows = {one["method"]: one for one in rows_of(outcomes, methods, resampling, "dice", "zero_shot", "linear_probe", {})}
    gap = paired(*(resampling.two_way(outcomes[name, 4], "dice") for name in ("ridge_probe", "zero_shot")))
    assert rows["ridge_probe"]["gain_p"] == gap.p_value() == pytest.approx(1 / 301)
    assert rows["ridge_probe"]["gain_low"] == gap.interval.low > 0
    assert rows["clap"]["gain_p"] > LEVEL
    assert rows["zero_shot"]["gain_p"] is None
    assert all(one["gain_over_probe_p"] is None for one in rows.values())


def null(rng: np.random.Generator) -> tuple[Array, Array]:
    """Right or wrong (1 + METHODS, DRAWS, N) of methods that are equally good, the reference first, and the patient (N,) of each row.

    What makes a row right: its patient, its support, the method's own luck with either, and chance; one to three images a patient.
    """
    groups = np.repeat(np.arange(PATIENTS), rng.integers(1, 4, PATIENTS))
    patient = rng.normal(size=(1, 1, PATIENTS)) + 0.7 * rng.normal(size=(1 + METHODS, 1, PATIENTS))
    support = 0.3 * rng.normal(size=(1, DRAWS, 1)) + 0.4 * rng.normal(size=(1 + METHODS, DRAWS, 1))
    chance = 0.7 * rng.normal(size=(1 + METHODS, DRAWS, len(groups)))
    return (patient[..., groups] + support + chance > -0.5).astype(float), groups


def wrong(seed: int) -> tuple[bool, bool]:
    """In one null experiment: is any method said to beat the reference; to differ from it."""
    right, groups = null(np.random.default_rng([seed, 5]))
    counts = resampled_groups(groups, RESAMPLES, seed), resampled_draws(DRAWS, RESAMPLES, seed)
    reference, *others = (two_way([Mean(one) for one in method], *counts) for method in right)
    gaps = [paired(one, reference) for one in others]
    said = [p <= LEVEL for p in holm([gap.p_value() for gap in gaps])]
    return any(one and gap.interval.value > 0 for one, gap in zip(said, gaps, strict=True)), any(said)


def test_equal_methods_are_seldom_said_to_beat_one_another() -> None:
    """A few of the simulations below: their own error is 1.4 % (one standard deviation)."""
    beats, differs = np.mean([wrong(seed) for seed in range(250)], axis=0)
    assert beats <= 0.06
    assert differs <= 0.08


@pytest.mark.full
def test_any_wrong_claim_among_methods_is_made_in_at_most_5_per_cent_of_null_experiments() -> None:
    beats, differs = np.mean([wrong(seed) for seed in range(2000)], axis=0)
    assert beats <= LEVEL
    assert differs <= LEVEL + 0.01  # two standard deviations of 2000 simulations


def test_a_planted_gain_is_claimed() -> None:
    rng = np.random.default_rng(0)
    right, groups = null(rng)
    right[1] = np.maximum(right[1], rng.random((1, len(groups))) < 0.8)  # rows that the reference gets wrong
    counts = resampled_groups(groups, 1000, 0), resampled_draws(DRAWS, 1000, 0)
    reference, *others = (two_way([Mean(one) for one in method], *counts) for method in right)
    corrected = holm([paired(one, reference).p_value() for one in others])
    assert corrected[0] <= LEVEL
    assert all(a <= b for a, b in pairwise(sorted(corrected)))
    assert min(corrected[1:]) > LEVEL
