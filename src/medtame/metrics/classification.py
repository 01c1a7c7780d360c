"""Metrics of classification, one label a row or several."""

from __future__ import annotations

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.statistic import BalancedAccuracy, Calibration, MacroAuroc, Mean, Ratio, Statistic
from medtame.types import Array


def classification(probabilities: Array, truth: Array) -> dict[str, Statistic]:
    """balanced_accuracy, macro_auroc, accuracy, ece, brier of probabilities (N, C) and truth (N,), a class number or -1 for unknown.

    A row with NaN is a refusal: wrong in both accuracies, left out of macro_auroc, ece and brier. `ece` is of the largest probability in
    15 bins of equal mass, debiased. `brier` is the sum over classes of squared errors, 0 to 2 (Brier 1950).
    """
    if probabilities.ndim != 2 or truth.shape != probabilities.shape[:1]:
        raise MedtameError(
            f"probabilities of shape {probabilities.shape} for truth of shape {truth.shape}: they must be (rows, classes) and (rows,)"
        )
    classes = probabilities.shape[1]
    if (truth >= classes).any():
        raise MedtameError(
            f"class number {truth.max()} where there are {classes} classes: numbers go from 0 to {classes - 1}, -1 is unknown"
        )
    scores = np.where(np.isnan(probabilities).any(axis=1, keepdims=True), np.nan, probabilities)
    predicted = np.where(np.isnan(scores[:, 0]), -1, np.nan_to_num(probabilities).argmax(1))
    one_hot = np.where(truth[:, None] >= 0, truth[:, None] == np.arange(classes), np.nan)
    correct = np.where(truth >= 0, predicted == truth, np.nan)
    return {
        "balanced_accuracy": BalancedAccuracy(predicted, truth, classes),
        "macro_auroc": MacroAuroc(scores, one_hot),
        "accuracy": Mean(correct),
        "ece": Calibration(scores.max(1), correct),
        "brier": Mean(((scores - one_hot) ** 2).sum(1)),
    }


def multi_label(probabilities: Array, truth: Array) -> dict[str, Statistic]:
    """macro_auroc, brier, ece of C times yes or no: probabilities (N, C) of yes, truth (N, C) in {0, 1}, NaN unknown.

    A row with NaN probabilities is a refusal and left out. `brier` is the mean squared error and `ece` the gap between the probability of
    yes and how often it is true, both pooled over rows and classes.
    """
    if probabilities.ndim != 2 or truth.shape != probabilities.shape:
        raise MedtameError(f"probabilities of shape {probabilities.shape} for truth of shape {truth.shape}: both must be (rows, classes)")
    scores = np.where(np.isnan(probabilities).any(axis=1, keepdims=True), np.nan, probabilities)
    error = (scores - truth) ** 2
    return {
        "macro_auroc": MacroAuroc(scores, truth),
        "brier": Ratio(np.nansum(error, 1), (~np.isnan(error)).sum(1).astype(float)),
        "ece": Calibration(scores, truth),
    }
