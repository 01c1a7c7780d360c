"""One scorer a kind of question: a where-question never learns from a what-question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.data.questions import kind_of
from medtame.learning.question_product import Judge, likeness, tried
from medtame.strategies.base import Method, labelled, masked, same_candidates
from medtame.types import Adapted, Array, Problem, Query, Scores

ALL = "all"


@dataclass(frozen=True)
class QuestionTypeRouterAdapted(Adapted):
    names: tuple[str, ...]
    centre: Tensor  # (F,)
    features: dict[str, Tensor]  # of a kind: (n, F)
    coefficients: dict[str, Tensor]  # (n, C)
    means: dict[str, Tensor]  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        kinds = [kind if (kind := kind_of(question)) in self.features else ALL for question in query.words or ()]
        features = nn.functional.normalize(query.features() - self.centre, dim=-1)
        scores = torch.zeros(len(query), len(self.names))
        for kind in sorted(set(kinds)):
            rows = torch.tensor([place for place, one in enumerate(kinds) if one == kind])
            kernel = likeness(features[rows], self.features[kind])
            scores[rows] = (kernel @ self.coefficients[kind].double() + self.means[kind].double()).float()
        return Scores(masked(query.encoder.scale * scores, query.allowed))


@dataclass(frozen=True)
class QuestionTypeRouter(Method):
    """Kernel ridge regression on joined image and question features, one for each kind of question (yes or no, plane, place ...).

    After the models that predict the type of the answer first (Kafle and Kanan 2016), with rules in the place of a predictor.
    The kind is told by the question's words, by rules (`medtame.data.questions`). A kind with less than `least` support rows is
    answered by a scorer of all rows. Penalties by leave-one-group-out inside the support.
    """

    needs = frozenset({"labels", "questions"})
    towers = frozenset({"text"})
    reads = frozenset({"rows"})
    stores_support = True
    trains = "a kernel ridge regression a kind of question, in closed form"
    cost = "seconds on cached features"
    good_when = "several kinds of question, twenty of each or more"
    poor_when = "one kind of question, or few of each"
    papers = ("Kafle and Kanan, Answer-Type Prediction for Visual Question Answering, CVPR 2016",)
    least: Annotated[int, Field(ge=2)] = 20

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        vectors = query.features()
        centre = vectors.mean(0)
        features = nn.functional.normalize(vectors - centre, dim=-1)
        groups = np.asarray(query.samples.groups, dtype=str)[query.source]
        kinds = np.array([kind_of(question) for question in query.words or ()])
        chosen = {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(kinds.tolist()))}
        parts = {kind: members for kind, members in chosen.items() if len(members) >= self.least}
        fits = {
            kind: solved(features[members], targets[members], groups[members], may(query.allowed, members))
            for kind, members in parts.items()
        }
        fits[ALL] = solved(features, targets, groups, query.allowed)
        kept = {kind: features[members] for kind, members in parts.items()} | {ALL: features}
        return QuestionTypeRouterAdapted(
            query.wanted.names, centre, kept, {kind: fit[0] for kind, fit in fits.items()}, {kind: fit[1] for kind, fit in fits.items()}
        )


def may(allowed: Array | None, rows: Array) -> Array | None:
    return None if allowed is None else allowed[rows]


def solved(features: Tensor, targets: Tensor, groups: Array, allowed: Array | None) -> tuple[Tensor, Tensor]:
    """Coefficients (n, C) and mean (C,) of a kernel ridge fit, its penalty by groups; .3 where there are fewer than three groups."""
    kernel, mean = likeness(features, features), targets.double().mean(0)
    centred, penalty = targets.double() - mean, 0.3
    if len(np.unique(groups)) > 2:
        penalty = tried(kernel, centred, groups, Judge(targets.double(), mean, allowed))[1]
    found = torch.linalg.solve(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype), centred)
    return found.float(), mean.float()
