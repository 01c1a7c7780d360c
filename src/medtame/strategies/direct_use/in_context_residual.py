"""A few normal images as examples: what of an image they do not explain, part by part and as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from medtame.features.patch_memory import nearest, resized
from medtame.learning.anomaly import at_size, normal_rows
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


def scales_of(query: Query, side: int) -> list[Tensor]:
    """Each map of the images, of unit norm, (N, side x side, F); no map has more cells than it came with."""
    maps = (resized(normalize(scale, dim=1), min(side, scale.shape[2])) for scale in query.encoder.grid(query.samples))
    rows = torch.as_tensor(query.source)
    return [normalize(scale, dim=1)[rows].flatten(2).transpose(1, 2) for scale in maps]


@dataclass(frozen=True)
class InContextResidualAdapted(Adapted):
    scales: tuple[Tensor, ...]  # of each map (m, F) cells of the examples
    wholes: Tensor  # (n, D)
    side: int

    def answer(self, query: Query) -> Grids:
        wholes = query.encoder.whole(query.samples)[torch.as_tensor(query.source)]
        unexplained = 1 - (wholes @ self.wholes.T).amax(1)
        parts = []
        for cells, known in zip(scales_of(query, self.side), self.scales, strict=True):
            cosine_gap = nearest(cells.flatten(0, 1).contiguous(), known).square() / 2
            width = int(cells.shape[1] ** 0.5)
            parts.append(at_size(cosine_gap.reshape(len(cells), width, width), query))
        return Grids(torch.stack(parts).mean(0) + unexplained[:, None, None, None])


@dataclass(frozen=True)
class InContextResidual(Method):
    """1 - the highest cosine to any cell of a few normal examples, the mean over the encoder's maps, plus the same of the whole image.

    The residuals of InCTRL (Zhu and Pang 2024), which also trains a small network on them with abnormal images of other domains; nothing is
    trained here, and its text prior is left to text_and_memory. At most `examples` normals are looked at, chosen by the seed.
    """

    gives = ("grids",)
    needs = frozenset({"normals"})
    stores_support = True
    trains = "nothing: a few normals are kept as examples"
    good_when = "one to eight normal images are all there is"
    poor_when = "normals are many (memory_bank) or look unlike each other"
    papers = ("arxiv:2403.06495",)
    examples: Annotated[int, Field(gt=0)] = 16
    side: Annotated[int, Field(gt=0)] = 14

    def fit(self, problem: Problem) -> Adapted:
        rows = normal_rows(problem)
        rows = np.sort(np.random.default_rng(problem.seed).permutation(rows)[: self.examples])
        query = problem.query.take(rows)
        wholes = query.encoder.whole(query.samples)[torch.as_tensor(query.source)]
        return InContextResidualAdapted(tuple(scale.flatten(0, 1).contiguous() for scale in scales_of(query, self.side)), wholes, self.side)
