"""No registration at all: what the pair looks like before. Gains of registration are taken against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medtame.errors import PairError
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class IdentityTransformAdapted(Adapted):
    """A displacement of zero everywhere."""

    def answer(self, query: Query) -> Grids:
        if query.size is None:
            raise PairError("identity_transform needs the size of the displacement: ask through the task registration")
        return Grids(torch.zeros(len(query), 2, *query.size))


@dataclass(frozen=True)
class IdentityTransform(Method):
    """The displacement is zero: the state before registration, as registration studies report it (Klein et al. 2009)."""

    gives = ("grids",)
    needs = frozenset({"pair"})
    trains = "nothing"
    cost = "nothing"
    good_when = "as the state before registration"
    poor_when = "as a registration: nothing moves"
    papers = ("doi:10.1016/j.neuroimage.2008.12.037",)

    def fit(self, problem: Problem) -> Adapted:
        return IdentityTransformAdapted()
