"""The class frequencies of the support, whatever the image shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medtame.strategies.base import REFUSED, Method, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class PriorAdapted(Adapted):
    names: tuple[str, ...]
    logits: Tensor  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return Scores(masked(self.logits.expand(len(query), -1).clone(), query.allowed))


@dataclass(frozen=True)
class Prior(Method):
    """log frequency of each class; where several may hold, its log odds among known rows, half a row added to each side.

    Its balanced accuracy is chance by construction (Brodersen et al. 2010), its accuracy is not: read the latter against it. A
    class without a support row is never answered. Neither image nor words are read.
    """

    needs = frozenset({"labels"})
    trains = "class frequencies"
    cost = "milliseconds"
    good_when = "as the level of chance"
    poor_when = "as a classifier: it reads neither image nor words"
    papers = ("doi:10.1109/ICPR.2010.764",)

    def fit(self, problem: Problem) -> Adapted:
        _, targets = labelled(problem)
        known = ~targets.isnan()
        yes = targets.nan_to_num(0).sum(0)
        if problem.query.wanted.exclusive:
            logits = (yes / len(targets)).log().masked_fill(yes == 0, REFUSED)
        else:
            logits = torch.log((yes + 0.5) / (known.sum(0) - yes + 0.5))
        return PriorAdapted(problem.query.wanted.names, logits)
