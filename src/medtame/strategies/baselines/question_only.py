"""Answers from the question alone: what visual question answering has to beat before the image can be said to matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.strategies.base import REFUSED, Method, hard, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class QuestionOnlyAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    penalty: float

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return Scores(masked(query.encoder.texts(query.words or ()) @ self.weight.T + self.bias, query.allowed))


@dataclass(frozen=True)
class QuestionOnly(Method):
    """Logistic regression on the sentence embedding of the question; the image is never read.

    Its penalty (scikit-learn's C) is the best of three by cross-validation inside the support, grouped by image or patient
    (accuracy among the answers that a question may take). The reference that VQA-RAD needs: Lau et al. 2018.
    """

    needs = frozenset({"labels", "questions"})
    towers = frozenset({"text"})
    reads = frozenset({"rows"})
    trains = "a linear layer on the question's embedding"
    cost = "seconds on cached features"
    good_when = "as a control: how much can be answered without the image"
    poor_when = "answers that depend on the image"
    papers = ("doi:10.1038/sdata.2018.251",)
    folds: Annotated[int, Field(ge=2)] = 3
    inverse_penalties: tuple[float, ...] = (3.0, 30.0, 300.0)

    def fit(self, problem: Problem) -> Adapted:
        scored = [(self._held_out_accuracy(problem, penalty), penalty) for penalty in self.inverse_penalties]
        return self._fitted(problem, max(scored)[1])

    def _held_out_accuracy(self, problem: Problem, penalty: float) -> float:
        right = [
            (self._fitted(inside, penalty).answer(outside.query).values.argmax(1) == outside.targets.argmax(1)).float()
            for inside, outside in problem.folds(self.folds)
            if len(set(hard(inside.targets).tolist())) > 1
        ]
        return float(torch.cat(right).mean()) if right else 0.0

    def _fitted(self, problem: Problem, penalty: float) -> QuestionOnlyAdapted:
        names, questions = problem.query.wanted.names, problem.query.encoder.texts(problem.query.words or ())
        model = LogisticRegression(C=penalty, max_iter=200, tol=1e-3).fit(questions.numpy(), hard(problem.targets))
        weight = np.zeros((len(names), questions.shape[1]), dtype=np.float32)
        bias = np.full(len(names), REFUSED, dtype=np.float32)
        if len(model.classes_) == 2:
            weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
            bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        return QuestionOnlyAdapted(names, torch.from_numpy(weight), torch.from_numpy(bias), penalty)
