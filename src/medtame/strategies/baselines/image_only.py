"""Answers from the image alone: the question tells only which answers are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.strategies.base import REFUSED, Method, hard, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class ImageOnlyAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return Scores(masked(query.vectors() @ self.weight.T + self.bias, query.allowed))


@dataclass(frozen=True)
class ImageOnly(Method):
    """Logistic regression on the encoder's image vector; the words of the question are never read (Goyal et al. 2017).

    The wording still says which answers may be given, as for every method.
    """

    needs = frozenset({"labels", "questions"})
    trains = "a linear layer on the image's vector"
    cost = "seconds on cached features"
    good_when = "as a control: what can be answered without reading the question"
    poor_when = "questions whose answer depends on what is asked"
    papers = ("arxiv:1612.00837",)
    inverse_penalty: Annotated[float, Field(gt=0)] = 10.0

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        names, vectors = problem.query.wanted.names, problem.query.vectors()[rows]
        model = LogisticRegression(C=self.inverse_penalty, max_iter=100, tol=1e-3).fit(vectors.numpy(), hard(targets))
        weight = np.zeros((len(names), vectors.shape[1]), dtype=np.float32)
        bias = np.full(len(names), REFUSED, dtype=np.float32)
        two = len(model.classes_) == 2  # scikit-learn keeps one row of weights for two classes
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
        return ImageOnlyAdapted(names, torch.from_numpy(weight), torch.from_numpy(bias))
