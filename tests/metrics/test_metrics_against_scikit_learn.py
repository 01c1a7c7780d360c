"""Every metric of classification against scikit-learn on a thousand random cases; a missing class is handled by a stated rule.

The rule: a class without a row is left out of the mean over classes (of balanced accuracy), and a class without a positive or
without a negative row has no AUROC and is left out of that mean. scikit-learn does the first by itself; of the second its means over
classes are undefined, so it is asked class by class.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import config_context
from sklearn.metrics import (
    accuracy_score,
    auc,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from medtame.metrics.classification import classification, multi_label
from medtame.metrics.statistic import AveragePrecision
from medtame.types import Array

CASES, CASES_OF_SEVERAL = 1000, 100
EXACT = 1e-9


def case(seed: int) -> tuple[Array, Array]:
    """(N, C) probabilities and (N,) truth: 2 to 6 classes, from balanced to one row of a class, often tied, often with a class missing."""
    rng = np.random.default_rng(seed)
    classes, rows = 2 if seed % 3 == 0 else int(rng.integers(3, 7)), int(rng.integers(2, 90))
    share = rng.dirichlet(np.full(classes, (0.2, 1.0, 50.0)[seed % 3 if seed % 2 else 2]))
    truth = rng.choice(classes, rows, p=share)
    raw = rng.integers(1, 4, (rows, classes)).astype(float) if seed % 4 < 2 else rng.exponential(size=(rows, classes))
    raw[np.arange(rows), truth] *= rng.choice([0.5, 1.0, 4.0])
    return raw / raw.sum(1, keepdims=True), truth


def macro_auroc(truth: Array, scores: Array) -> float:
    """Of scikit-learn, over the columns that have both kinds of rows; NaN where none has."""
    known = [~np.isnan(column) for column in truth.T]
    both = [k for k, rows in enumerate(known) if len(set(truth[rows, k])) == 2]
    each = [auc(*roc_curve(truth[known[k], k], scores[known[k], k])[:2]) for k in both]
    return float(np.mean(each)) if each else np.nan


def test_a_thousand_cases_equal_scikit_learn() -> None:
    missing = tied = single = 0
    with config_context(skip_parameter_validation=True, assume_finite=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true|A single label was found")
        for seed in range(CASES):
            p, truth = case(seed)
            classes = p.shape[1]
            one_hot = np.eye(classes)[truth]
            found = {name: statistic.value() for name, statistic in classification(p, truth).items()}
            expected = {
                "balanced_accuracy": balanced_accuracy_score(truth, p.argmax(1)),
                "macro_auroc": macro_auroc(one_hot, p),
                "accuracy": accuracy_score(truth, p.argmax(1)),
                "brier": brier_score_loss(truth, p[:, 1] if classes == 2 else p, labels=range(classes), scale_by_half=False),
            }
            assert {name: found[name] for name in expected} == pytest.approx(expected, abs=EXACT, nan_ok=True), seed
            if seed % 10 == 1 and len(np.unique(truth)) == classes > 2:  # then scikit-learn's own mean over classes is defined
                assert found["macro_auroc"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=EXACT)
            missing += len(np.unique(truth)) < classes
            tied += len(np.unique(p[:, 0])) < len(p)
            single += len(np.unique(truth)) == 1
    assert min(missing, tied) > 150
    assert single > 20


def test_cases_of_several_labels_with_unknowns_equal_scikit_learn() -> None:
    with config_context(skip_parameter_validation=True, assume_finite=True):
        for seed in range(CASES_OF_SEVERAL):
            rng = np.random.default_rng([seed, 1])
            rows, findings = int(rng.integers(2, 60)), int(rng.integers(1, 4))
            p = rng.integers(0, 9, (rows, findings)) / 8 if seed % 2 else rng.random((rows, findings))
            truth = (rng.random((rows, findings)) < rng.random(findings)).astype(float)
            truth[rng.random(truth.shape) < 0.15] = np.nan
            known = ~np.isnan(truth)
            found = multi_label(p, truth)
            assert found["macro_auroc"].value() == pytest.approx(macro_auroc(truth, p), abs=EXACT, nan_ok=True), seed
            if known.any():
                assert found["brier"].value() == pytest.approx(np.mean((p - truth)[known] ** 2), abs=EXACT), seed
            first = known[:, 0]
            if truth[first, 0].sum():
                precise = average_precision_score(truth[first, 0], p[first, 0])
                assert AveragePrecision(p[:, 0], truth[:, 0]).value() == pytest.approx(precise, abs=EXACT), seed
