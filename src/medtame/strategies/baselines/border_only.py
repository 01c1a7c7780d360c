"""How far the border of an image lies from the borders of the normals: what acquisition alone gives away. No encoder, no text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning.anomaly import at_size, normal_rows
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query

SIDE = 32  # pixels to which an image is brought


def border_pixels(query: Query, width: int) -> Tensor:
    """(N, P) the grey levels of the frame of `width` pixels around each image, at 32 x 32."""
    pixels = query.samples.pixels(size=(SIDE, SIDE)).mean(1)[torch.as_tensor(query.source)]
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[width : SIDE - width, width : SIDE - width] = True
    return pixels[:, ~inside]


@dataclass(frozen=True)
class BorderOnlyAdapted(Adapted):
    normals: Tensor  # (n, P)
    width: int

    def answer(self, query: Query) -> Grids:
        distance = torch.cdist(border_pixels(query, self.width), self.normals).amin(1)
        return Grids(at_size(distance[:, None, None].expand(-1, 2, 2), query))


@dataclass(frozen=True)
class BorderOnly(Method):
    """The Euclidean distance of an image's border to the nearest border of a normal: a control, not a detector.

    Where it does better than chance, normals and abnormal images differ by how they were acquired (Zech et al. 2018, DeGrave et al. 2021),
    and what other methods reach may be owed to that. Its map is the same everywhere.
    """

    gives = ("grids",)
    needs = frozenset({"normals"})
    stores_support = True
    trains = "nothing: borders of normals are kept"
    cost = "milliseconds"
    good_when = "as a control: what it finds is owed to how images were acquired"
    poor_when = "as a detector: it looks at no tissue"
    papers = ("doi:10.1371/journal.pmed.1002683", "doi:10.1038/s42256-021-00338-7")
    width: Annotated[int, Field(gt=0, lt=SIDE // 2)] = 3

    def fit(self, problem: Problem) -> Adapted:
        return BorderOnlyAdapted(border_pixels(problem.query.take(normal_rows(problem)), self.width), self.width)
