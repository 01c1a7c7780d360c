"""Affine registration of each pair with SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from medtame.networks.pairs import each_alone
from medtame.networks.simple_itk import affine_transform, to_displacement, to_image
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class AffineAdapted(Adapted):
    iterations: int

    def answer(self, query: Query) -> Grids:
        return each_alone(query, self.register)

    def register(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(1, 2, H, W) of two grey images (1, 1, H, W)."""
        images = to_image(moving), to_image(fixed)
        return to_displacement(affine_transform(*images, self.iterations), images[1])


@dataclass(frozen=True)
class Affine(Method):
    """The affine map of most mutual information (Mattes et al. 2003), each pair alone; nothing is fitted before.

    The information is that of the whole image: where skull and skin fill it, the head is matched and not the brain inside.
    """

    gives = ("grids",)
    needs = frozenset({"pair"})
    cost = "seconds a pair, at predict"
    good_when = "heads or organs that only moved and were scaled between two images"
    poor_when = "organs that bend, or one small structure inside a large frame that fills the image"
    papers = ("doi:10.1109/TMI.2003.809072",)
    iterations: Annotated[int, Field(ge=1)] = 100

    def fit(self, problem: Problem) -> Adapted:
        return AffineAdapted(self.iterations)
