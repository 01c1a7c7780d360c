"""Resamples of a classification's metrics: all in one call against scikit-learn in a loop, on the same resamples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks.harness import Case, verdict
from medtame.metrics.classification import classification
from medtame.metrics.intervals import resampled_groups
from medtame.types import Array

MOST_DIFFERENCE = 1e-6


@contextmanager
def macro_auroc_and_balanced_accuracy(rows: int = 800, classes: int = 8, resamples: int = 1000) -> Iterator[Case]:
    """Both metrics on every resample of the rows: (2, B). Drawing the resamples is in our time and not in the plain loop's."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(rows) % classes)
    logits = rng.standard_normal((rows, classes)) + 1.5 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probabilities = np.round(probabilities, 3) / np.round(probabilities, 3).sum(1, keepdims=True)  # so that some scores are equal
    drawn = [np.repeat(np.arange(rows), counts) for counts in resampled_groups(np.arange(rows), resamples, 0)]

    def ours() -> Array:
        found, counts = classification(probabilities, truth), resampled_groups(np.arange(rows), resamples, 0)
        return np.stack([found["macro_auroc"].at(counts), found["balanced_accuracy"].at(counts)])

    def plain() -> Array:
        return np.array([in_a_loop(probabilities, truth, chosen) for chosen in drawn]).T

    def check() -> str:
        gap = float(np.abs(ours() - plain()).max())
        return verdict(gap <= MOST_DIFFERENCE, f"largest difference {gap:.1e} over {resamples} resamples of both metrics")

    yield Case(ours=ours, plain=plain, check=check, goal=100.0, rounds=2)


def in_a_loop(probabilities: Array, truth: Array, chosen: Array) -> tuple[float, float]:
    """Macro AUROC and balanced accuracy of some rows by scikit-learn."""
    area = roc_auc_score(truth[chosen], probabilities[chosen], multi_class="ovr", average="macro")
    return float(area), float(balanced_accuracy_score(truth[chosen], probabilities[chosen].argmax(1)))
