"""The nearest rows of the support vote, the nearer the more: no text, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.supports import present
from medtame.strategies.base import REFUSED, Method, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

AT_ONCE = 2**24  # similarities, at most, of a block
NOBODY = 1e-3  # the vote that every class has


@dataclass(frozen=True)
class KNearestNeighboursAdapted(Adapted):
    names: tuple[str, ...]
    keys: Tensor  # (n, F) unit norm
    targets: Tensor  # (n, C), NaN unknown
    learnt: Tensor  # (C,) whether a class can be answered
    neighbours: int
    temperature: float
    exclusive: bool

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = nn.functional.normalize(query.features(), dim=-1)
        logits = torch.cat([self._voted(block) for block in torch.split(features, max(1, AT_ONCE // len(self.keys)))])
        return Scores(masked(logits.masked_fill(~self.learnt, REFUSED), query.allowed))

    def _voted(self, features: Tensor) -> Tensor:
        """(N, C) log of the share of votes, or of those for yes against those for no."""
        similarity, nearest = (features @ self.keys.T).topk(min(self.neighbours, len(self.keys)), dim=1)
        votes = (similarity / self.temperature).softmax(1)[..., None]  # (N, k, 1)
        yes = (votes * self.targets[nearest].nan_to_num(0)).sum(1) + NOBODY
        if self.exclusive:
            return yes.log() - yes.sum(1, keepdim=True).log()
        return yes.log() - ((votes * (1 - self.targets[nearest]).nan_to_num(0)).sum(1) + NOBODY).log()


@dataclass(frozen=True)
class KNearestNeighbours(Method):
    """Log of the vote of the k nearest support rows by cosine, each vote exp(cosine / .07) (Wu et al. 2018).

    k is fixed, and all rows where there are fewer; nothing is chosen by data. A class without rows is never answered. Where
    several may hold, known neighbours vote yes or no on each.
    """

    needs = frozenset({"labels"})
    reads = frozenset({"rows"})
    stores_support = True
    trains = "a list of support features"
    good_when = "many rows, and an answer that must show its like"
    poor_when = "few rows a class, or training images that may not be stored"
    papers = ("arxiv:1805.01978",)
    neighbours: Annotated[int, Field(gt=0)] = 5
    temperature: Annotated[float, Field(gt=0)] = 0.07

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        candidates = problem.query.wanted
        keys = nn.functional.normalize(problem.query.features()[rows], dim=-1)
        learnt = present(targets, exclusive=candidates.exclusive)
        return KNearestNeighboursAdapted(candidates.names, keys, targets, learnt, self.neighbours, self.temperature, candidates.exclusive)
