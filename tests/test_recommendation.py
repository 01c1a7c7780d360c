"""The recommendation: what zero-shot reaches on training rows, the rule by rows a class, and no method that may be worse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from medtame.comparison.recommendation import KNOWN, Words, gain, on_test, reason, words_know
from medtame.metrics.statistic import Mean


def test_words_are_known_where_the_whole_interval_lies_above_chance():
    labels = ["a"] * 50 + ["b"] * 50
    said = [{"prediction": name} for name in ["a"] * 40 + ["b"] * 10 + ["b"] * 35 + ["a"] * 15]
    found = words_know(said, labels)
    z, p, n = norm.ppf(0.975), 0.75, 100
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.right, found.n, found.chance) == (0.75, 100, pytest.approx(0.5))
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert found.known


def test_naming_the_commonest_class_is_chance():
    labels = ["a"] * 90 + ["b"] * 10
    found = words_know([{"prediction": "a"}] * 100, labels)
    assert found.right == found.chance == 0.9
    assert not found.known
    assert "does not know these classes" in reason(found, 10)


def test_a_gain_is_paired_over_patients():
    start, better = Mean(np.tile([0.0, 1.0], 50)), Mean(np.tile([1.0, 1.0], 50))
    found = gain(better, start, np.repeat(np.arange(50), 2), 0, "accuracy")
    assert found.value == 0.5
    assert found.low == found.high == 0.5  # every patient gains one half
    assert gain(better, start, np.repeat(np.arange(50), 2), 0, "brier").value == -0.5  # lower is better


def test_the_rule_names_methods_that_exist():
    from medtame import catalogue

    for _, names in KNOWN:
        for name in names:
            assert name in catalogue.names(catalogue.METHODS)
    assert Words(0.5, 0.4, 0.6, 0.4, 9).known is False


def test_the_test_gain_is_told_after_the_choice_and_warned_of_where_it_reaches_below_zero():
    advice = {"method": "gda", "why": "by rule"}
    row = {"method": "gda", "encoder": "tiny", "shots": 4, "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    last = row | {"shots": "all", "gain": 0.05, "gain_low": -0.01, "gain_high": 0.1}
    told = on_test(advice, [row, last, last | {"encoder": "other", "gain": 0.9}], "tiny")
    assert (told["test_shots"], told["test_gain"], told["test_gain_low"]) == ("all", 0.05, -0.01)
    assert "it gains +0.050 [-0.010, +0.100] over zero_shot with all training rows; warning" in told["on_test"]
    assert "warning" not in on_test(advice, [row], "tiny")["on_test"]
    assert on_test({"method": "zero_shot"}, [row], "tiny") == {"method": "zero_shot"}
