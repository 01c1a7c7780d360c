"""Registration by optimising the displacement of each pair, with no network and no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from medtame.networks.pairs import each_alone
from medtame.networks.warp import bending, crowding, local_correlation, smooth_field, warp
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query

LEAST_AREA = 0.2  # of a mapped pixel: below it the penalty starts, long before a fold


@dataclass(frozen=True)
class InstanceOptimisationAdapted(Adapted):
    cells: tuple[int, ...]
    steps: int
    learning_rate: float
    window_radius: int
    stiffness: float
    fold_penalty: float

    def answer(self, query: Query) -> Grids:
        return each_alone(query, self.register)

    def register(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(1, 2, H, W) of two grey images (1, 1, H, W): a sum of B-splines, coarse to fine, all of them free at every level."""
        knots: list[Tensor] = []
        for level, cells in enumerate(self.cells):
            factor = 2 ** (len(self.cells) - 1 - level)
            size = (max(8, fixed.shape[2] // factor), max(8, fixed.shape[3] // factor))
            source, target = (interpolate(image, size, mode="bilinear", antialias=True) for image in (moving, fixed))
            knots.append(torch.zeros(1, 2, *control_points(cells, size)))
            self.descend(knots, source, target, self.learning_rate / 2**level)
        return field_of(knots, (fixed.shape[2], fixed.shape[3])).detach()

    def descend(self, knots: list[Tensor], moving: Tensor, fixed: Tensor, learning_rate: float) -> None:
        """Adam on the knots, in place, at the resolution of the images."""
        with torch.enable_grad():
            optimiser = torch.optim.Adam([knot.requires_grad_() for knot in knots], lr=learning_rate)
            for _ in range(self.steps):
                field = field_of(knots, (fixed.shape[2], fixed.shape[3]))
                unlike = 1 - local_correlation(warp(moving, field), fixed, 2 * self.window_radius + 1)
                loss = unlike + self.stiffness * bending(field) + self.fold_penalty * crowding(field, LEAST_AREA)
                optimiser.zero_grad()
                loss.sum().backward()  # type: ignore[no-untyped-call]
                optimiser.step()


def control_points(cells: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of square cells, `cells` along the mean side, none smaller than three pixels."""
    pixels = max(3.0, (size[0] * size[1]) ** 0.5 / cells)
    return max(1, round(size[0] / pixels)) + 3, max(1, round(size[1] / pixels)) + 3


def field_of(knots: list[Tensor], size: tuple[int, int]) -> Tensor:
    return torch.stack([smooth_field(knot, size) for knot in knots]).sum(0)


@dataclass(frozen=True)
class InstanceOptimisation(Method):
    """Per pair: 1 - squared local correlation + bending energy + a penalty before folds, over B-spline grids by Adam.

    The loss and the idea of optimising one pair are VoxelMorph's (Balakrishnan et al. 2019), without its network; the grids are
    free-form deformations (Rueckert et al. 1999), the coarsest of which stands for an affine step. Defaults were chosen on the
    `train` pairs of brain_pairs and histology_pairs. No encoder and no word is used: text enters only with prompted structures, later.
    """

    gives = ("grids",)
    needs = frozenset({"pair"})
    cost = "seconds a pair, at predict"
    good_when = "single pairs, also of two modalities, with seconds to spend on each"
    poor_when = "very large shifts, or thousands of pairs"
    papers = ("arxiv:1809.05231", "doi:10.1109/42.796284")
    cells: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (2, 8, 24, 64)
    steps: Annotated[int, Field(ge=0)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    window_radius: Annotated[int, Field(ge=1)] = 4
    stiffness: Annotated[float, Field(ge=0)] = 3e-5
    fold_penalty: Annotated[float, Field(ge=0)] = 100.0

    def fit(self, problem: Problem) -> Adapted:
        return InstanceOptimisationAdapted(
            self.cells, self.steps, self.learning_rate, self.window_radius, self.stiffness, self.fold_penalty
        )
