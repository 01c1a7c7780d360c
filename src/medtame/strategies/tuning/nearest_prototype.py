"""The nearest class mean of the support features: no text, no training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from medtame.strategies.base import REFUSED, Method, hard, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class NearestPrototypeAdapted(Adapted):
    names: tuple[str, ...]
    prototypes: Tensor  # (C, F) unit norm; zero where a class was missing
    scale: float

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        logits = self.scale * nn.functional.normalize(query.features(), dim=-1) @ self.prototypes.T
        return Scores(masked(logits.masked_fill(self.prototypes.abs().sum(1) == 0, REFUSED), query.allowed))


@dataclass(frozen=True)
class NearestPrototype(Method):
    """scale x cosine(features, class mean): SimpleShot without centring (Wang et al. 2019). A missing class is never answered."""

    needs = frozenset({"labels"})
    reads = frozenset({"rows"})
    trains = "class means"
    good_when = "a few images a class, nothing to choose, new classes at any time"
    poor_when = "classes that are no single cluster"
    papers = ("arxiv:1911.04623",)

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        features = nn.functional.normalize(problem.query.features()[rows], dim=-1)
        if problem.query.wanted.exclusive:
            targets = nn.functional.one_hot(targets.new_tensor(hard(targets)).long(), targets.shape[1]).float()
        prototypes = nn.functional.normalize(targets.nan_to_num(0).T @ features, dim=-1)
        return NearestPrototypeAdapted(problem.query.wanted.names, prototypes, problem.query.encoder.scale)
