"""Affine, then B-spline registration of each pair with SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import SimpleITK
from pydantic import Field
from torch import Tensor

from medtame.networks.pairs import each_alone
from medtame.networks.simple_itk import affine_transform, by_information, run, to_displacement, to_image
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class BSplineAdapted(Adapted):
    cells: int
    iterations: int

    def answer(self, query: Query) -> Grids:
        return each_alone(query, self.register)

    def register(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(1, 2, H, W) of two grey images (1, 1, H, W)."""
        images = to_image(moving), to_image(fixed)
        affine = affine_transform(*images)
        spline = SimpleITK.BSplineTransformInitializer(images[1], [self.cells] * 2, 3)
        method = by_information((4, 2), (1, 0.5))
        method.SetOptimizerAsLBFGSB(1e-5, self.iterations, 5, 500, 1e7)
        method.SetMovingInitialTransform(affine)
        method.SetInitialTransform(spline, True)
        run(method, *images)
        return to_displacement(SimpleITK.CompositeTransform([affine, spline]), images[1])


@dataclass(frozen=True)
class BSpline(Method):
    """Free-form deformation: a cubic B-spline of `cells` a side that maximises mutual information (Rueckert et al. 1999).

    An affine map comes first. Two resolutions, the finer at half the image's; no term holds the spline smooth but its cells.
    """

    gives = ("grids",)
    needs = frozenset({"pair"})
    cost = "seconds a pair, at predict"
    good_when = "soft organs of one or two modalities, where an affine map is not enough"
    poor_when = "large rotations, and fields that must not fold: nothing holds the spline smooth"
    papers = ("doi:10.1109/42.796284", "doi:10.1109/TMI.2003.809072")
    cells: Annotated[int, Field(ge=1)] = 12
    iterations: Annotated[int, Field(ge=1)] = 50

    def fit(self, problem: Problem) -> Adapted:
        return BSplineAdapted(self.cells, self.iterations)
