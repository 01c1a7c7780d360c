"""A logistic readout of any features: scikit-learn's models as weights and biases over all candidates."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.errors import DataError
from medtame.types import Array


def logistic(
    features: Array, targets: Tensor, model: Callable[[], LogisticRegression], *, exclusive: bool, never: float
) -> tuple[Tensor, Tensor]:
    """Weights (C, F) and biases (C,) of logits, from features (n, F) and targets (n, C).

    One of C: one model over the classes that have a row. Several may hold: a model a candidate on its known rows (NaN is
    unknown). A candidate that cannot be learnt has zero weights and the bias `never`. Raises DataError where none can.
    """
    weight = np.zeros((targets.shape[1], features.shape[1]), dtype=np.float32)
    bias = np.full(targets.shape[1], never, dtype=np.float32)
    if exclusive:
        fitted = _fitted(model(), features, np.asarray(targets.argmax(1)))
        two = len(fitted.classes_) == 2  # scikit-learn keeps one row of weights for two classes
        weight[fitted.classes_] = np.concatenate([-fitted.coef_, fitted.coef_]) / 2 if two else fitted.coef_
        bias[fitted.classes_] = np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2 if two else fitted.intercept_
        return torch.from_numpy(weight), torch.from_numpy(bias)
    learnt = False
    for candidate, column in enumerate(targets.T.numpy()):
        known = ~np.isnan(column)
        yes = column[known] > 0.5
        if yes.any() and not yes.all():
            fitted = _fitted(model(), features[known], yes)
            weight[candidate], bias[candidate], learnt = fitted.coef_[0], fitted.intercept_[0], True
    if not learnt:
        raise DataError("no candidate has both a positive and a negative support row: give more rows")
    return torch.from_numpy(weight), torch.from_numpy(bias)


def _fitted(model: LogisticRegression, features: Array, labels: Array) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few-shot supports are separable: the penalty bounds the fit
        return model.fit(features, labels)
