"""Logistic regression on frozen features: the plain reference that every adaptation has to beat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.errors import DataError
from medtame.features.transforms import View, folded, rooted, spread
from medtame.strategies.base import REFUSED, Method, hard, labelled, masked, same_candidates
from medtame.types import Adapted, Array, Problem, Query, Scores


@dataclass(frozen=True)
class LinearProbeAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)
    power: bool = False  # whether the weights are of the rooted features

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = rooted(query.features()) if self.power else query.features()
        return Scores(masked(features @ self.weight.T + self.bias, query.allowed))


@dataclass(frozen=True)
class LinearProbe(Method):
    """Logistic regression on unit-norm features (the linear probe of Radford et al. 2021; scikit-learn, lbfgs).

    One sigmoid a candidate where several may hold.
    Unknown labels (NaN) carry no loss; a class without a support row is never answered. `inverse_penalty` is scikit-learn's C.
    `features`: plain (the reference), power (signed root, unit norm again), or standardised (each column to one mean and spread;
    both are of the support alone and are kept inside the weights).
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    reads = frozenset({"rows"})
    trains = "a linear layer on frozen features"
    good_when = "16 images a class or more: the plain reference"
    poor_when = "1 or 2 images a class beside words that know the classes"
    papers = ("arxiv:2103.00020",)
    inverse_penalty: Annotated[float, Field(gt=0)] = 100.0
    iterations: Annotated[int, Field(gt=0)] = 1000
    features: View = "plain"

    def fit(self, problem: Problem) -> Adapted:
        features = problem.query.features()
        if self.features != "standardised":
            return self._probe(problem, rooted(features) if self.features == "power" else features)
        mean, divisor = spread(features)
        probe = self._probe(problem, (features - mean) / divisor)
        return LinearProbeAdapted(probe.names, *folded(probe.weight, probe.bias, mean, divisor))

    def _probe(self, problem: Problem, features: Tensor) -> LinearProbeAdapted:
        candidates = problem.query.wanted
        weight = np.zeros((len(candidates.names), features.shape[1]), dtype=np.float32)
        bias = np.full(len(candidates.names), REFUSED, dtype=np.float32)
        if candidates.exclusive:
            rows, targets = labelled(problem)
            self._exclusive(features[rows].numpy(), hard(targets), weight, bias)
        else:
            for candidate, column in enumerate(problem.targets.T):
                known = ~column.isnan()
                self._one(features[known].numpy(), (column[known] > 0.5).numpy(), candidate, weight, bias)
            if (bias == REFUSED).all():
                raise DataError("no candidate has both a positive and a negative support row: give more rows")
        return LinearProbeAdapted(candidates.names, torch.from_numpy(weight), torch.from_numpy(bias), self.features == "power")

    def _exclusive(self, features: Array, labels: Array, weight: Array, bias: Array) -> None:
        model = self._fitted(features, labels)
        two = len(model.classes_) == 2  # scikit-learn keeps one row of weights for two classes
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_

    def _one(self, features: Array, labels: Array, candidate: int, weight: Array, bias: Array) -> None:
        if labels.any() and not labels.all():
            model = self._fitted(features, labels)
            weight[candidate], bias[candidate] = model.coef_[0], model.intercept_[0]

    def _fitted(self, features: Array, labels: Array) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # few-shot supports are separable: the penalty bounds the fit
            return LogisticRegression(C=self.inverse_penalty, max_iter=self.iterations).fit(features, labels)
