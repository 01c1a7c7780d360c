"""Affine, then diffeomorphic demons of each pair with SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import SimpleITK
from pydantic import Field
from torch import Tensor

from medtame.networks.pairs import each_alone
from medtame.networks.simple_itk import affine_transform, alone, resampled, shrunk, to_displacement, to_image
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class DemonsAdapted(Adapted):
    smoothing_pixels: float
    iterations: tuple[int, ...]

    def answer(self, query: Query) -> Grids:
        return each_alone(query, self.register)

    def register(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(1, 2, H, W) of two grey images (1, 1, H, W)."""
        target, source = to_image(fixed), to_image(moving)
        affine = affine_transform(source, target)
        field = self.field(matched(resampled(source, target, affine), target), target)
        return to_displacement(SimpleITK.CompositeTransform([affine, SimpleITK.DisplacementFieldTransform(field)]), target)

    def field(self, moving: Any, fixed: Any) -> Any:
        """Coarse to fine, each level from the field before it."""
        method = alone(SimpleITK.DiffeomorphicDemonsRegistrationFilter())
        method.SetStandardDeviations(self.smoothing_pixels)
        field = SimpleITK.Image(fixed.GetSize(), SimpleITK.sitkVectorFloat64)
        for level, iterations in enumerate(self.iterations):
            factor = 2 ** (len(self.iterations) - 1 - level)
            target = shrunk(fixed, factor)
            method.SetNumberOfIterations(iterations)
            field = method.Execute(target, shrunk(moving, factor), resampled(field, target))
        return field


def matched(moving: Any, fixed: Any) -> Any:
    """The moving image with the histogram of the fixed one: demons compare grey values."""
    method = alone(SimpleITK.HistogramMatchingImageFilter())
    method.SetNumberOfHistogramLevels(256)
    method.SetNumberOfMatchPoints(15)
    method.ThresholdAtMeanIntensityOn()
    return method.Execute(moving, fixed)


@dataclass(frozen=True)
class Demons(Method):
    """Diffeomorphic demons (Thirion 1998; Vercauteren et al. 2009) after an affine map and histogram matching.

    The whole field is smoothed by a Gaussian at every step: 1 pixel was chosen on the `train` pairs of brain_pairs. For one
    modality only.
    """

    gives = ("grids",)
    needs = frozenset({"pair"})
    cost = "seconds a pair, at predict"
    good_when = "two images of one modality that differ by a smooth warp"
    poor_when = "two modalities: it compares intensities"
    papers = ("doi:10.1016/S1361-8415(98)80022-4", "doi:10.1016/j.neuroimage.2008.10.040")
    smoothing_pixels: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (60, 40, 20)

    def fit(self, problem: Problem) -> Adapted:
        return DemonsAdapted(self.smoothing_pixels, self.iterations)
