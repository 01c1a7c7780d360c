"""Patch nearest neighbours: what lies far from every patch of the normals is abnormal. No text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from medtame.features.patch_memory import coreset, nearest, patch_vectors
from medtame.learning.anomaly import at_size, normal_rows
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class MemoryBankAdapted(Adapted):
    bank: Tensor  # (m, F) patches of normals
    side: int

    def answer(self, query: Query) -> Grids:
        vectors = patch_vectors(query, self.side)
        distances = nearest(vectors.flatten(0, 1), self.bank).reshape(len(vectors), self.side, self.side)
        return Grids(at_size(distances, query))


@dataclass(frozen=True)
class MemoryBank(Method):
    """The distance of each patch to the nearest patch of the normals (PatchCore: Roth et al. 2022).

    Patches are cells of the encoder's finer maps with their neighbours, each map of unit norm; the bank is a spread-out choice of at most
    `patches` of them. The paper weighs the highest distance by how dense the bank is around it; here the task's mean of the highest cells
    is the score. Which maps are joined was chosen by three folds of the training rows of breast_ultrasound.
    """

    gives = ("grids",)
    needs = frozenset({"normals"})
    stores_support = True
    trains = "nothing: patches of normals are kept"
    cost = "a second on cached features"
    good_when = "normal images alone are at hand and all were taken alike"
    poor_when = "normals that vary much, or another scanner at test time"
    papers = ("arxiv:2106.08265",)
    patches: Annotated[int, Field(gt=0)] = 2000
    side: Annotated[int, Field(gt=0)] = 14

    def fit(self, problem: Problem) -> Adapted:
        vectors = patch_vectors(problem.query.take(normal_rows(problem)), self.side).flatten(0, 1)
        return MemoryBankAdapted(vectors[coreset(vectors, self.patches, problem.seed)], self.side)
