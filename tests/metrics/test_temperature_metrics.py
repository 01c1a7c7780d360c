"""The temperature against a planted one and a slow search, and the debiased calibration error against the published procedure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medtame.errors import MedtameError
from medtame.metrics.classification import classification
from medtame.metrics.statistic import Calibration
from medtame.metrics.temperature import RANGE, temperature
from medtame.types import Array


def softmax(logits: Array) -> Array:
    raw = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raw / raw.sum(1, keepdims=True))


def drawn(rng: np.random.Generator, rows: int, classes: int, planted: float) -> tuple[Array, Array]:
    """Logits and labels drawn from their softmax at the planted temperature."""
    logits = 4 * rng.normal(size=(rows, classes))
    return logits, (softmax(logits / planted).cumsum(1) < rng.random((rows, 1))).sum(1)


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_planted_temperature_is_found_and_mends_the_calibration(planted: float, classes: int) -> None:
    logits, truth = drawn(np.random.default_rng(classes), 8000, classes, planted)
    found = temperature(logits, truth)
    assert found == pytest.approx(planted, rel=0.05)
    before, after = classification(softmax(logits), truth), classification(softmax(logits / found), truth)
    assert after["ece"].value() < 0.015
    assert after["accuracy"].value() == before["accuracy"].value()
    assert after["balanced_accuracy"].value() == before["balanced_accuracy"].value()
    if planted != 1:
        assert before["ece"].value() > 0.05
        assert after["brier"].value() < before["brier"].value()


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_a_slow_search_of_the_likelihood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = drawn(rng, 25, 3, 1.5)

    def loss(value: float) -> float:
        total = 0.0
        for row, label in zip(logits, truth, strict=True):
            each = [z / value - math.log(sum(math.exp(other / value) for other in row)) for z in row]
            total -= sum((26 / 27 if k == label else 1 / 27 / 2) * one for k, one in enumerate(each))
        return total

    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 1500))
    slow = grid[int(np.argmin([loss(one) for one in grid]))]
    assert temperature(logits, truth) == pytest.approx(slow, rel=0.005)


def test_rows_that_are_all_right_leave_it_finite() -> None:
    logits = 10 * np.eye(2)[np.arange(20) % 2]
    found = temperature(logits, np.arange(20) % 2)
    assert RANGE[0] < found < RANGE[1]
    assert softmax(logits / found).max(1) == pytest.approx(np.full(20, 21 / 22), abs=1e-4)  # Platt's rule of succession


def test_refusals_and_unknown_truth_are_left_out() -> None:
    logits, truth = drawn(np.random.default_rng(0), 200, 3, 2.0)
    spoilt, unknown = logits.copy(), truth.copy()
    spoilt[:20], unknown[20:40] = np.nan, -1
    assert temperature(spoilt, unknown) == pytest.approx(temperature(logits[40:], truth[40:]), rel=1e-6)
    assert temperature(np.full((3, 2), np.nan), np.zeros(3, dtype=int)) == 1.0
    assert temperature(np.empty((0, 2)), np.empty(0, dtype=int)) == 1.0
    with pytest.raises(MedtameError, match="classes"):
        temperature(logits, truth[:5])


def plain_ece(confidence: Array, correct: Array, bins: int = 15) -> tuple[float, float]:
    """The plug-in error over bins of equal mass, and the debiased one as Kumar et al. publish it: by redrawing each share correct."""
    order = np.argsort(confidence)
    parts = np.array_split(order, bins)
    held = np.array([confidence[part].mean() for part in parts])
    right = np.array([correct[part].mean() for part in parts])
    size = np.array([len(part) for part in parts])
    plugin = float((size / len(order)) @ np.abs(held - right))
    deviation = np.sqrt(right * (1 - right) / size)
    redrawn = np.random.default_rng(0).normal(right, deviation, (40000, bins))
    return plugin, 2 * plugin - float((np.abs(redrawn - held) @ (size / len(order))).mean())


@pytest.mark.parametrize("seed", range(6))
def test_the_calibration_error_is_debiased_as_published(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.random(450) * 0.5 + 0.5
    correct = (rng.random(450) < confidence ** (1 + seed / 2)).astype(float)
    plugin, debiased = plain_ece(confidence, correct)
    found = Calibration(confidence, correct)
    assert found.bins == 15
    assert found.value() == pytest.approx(max(debiased, 0.0), abs=0.0015)
    assert found.value() < plugin
