"""Nothing is learnt: windows of the image are compared with sentences of normal and of abnormal states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from medtame.learning.anomaly import at_size, direction, word_maps
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class ZeroShotStatesAdapted(Adapted):
    windows: tuple[int, ...]

    def answer(self, query: Query) -> Grids:
        with torch.no_grad():
            return Grids(at_size(word_maps(query, direction(query.encoder, query), self.windows), query))


@dataclass(frozen=True)
class ZeroShotStates(Method):
    """scale x (cosine to abnormal - cosine to normal) of windows of several sizes and of the whole image (WinCLIP: Jeong et al. 2023).

    The sentences are the task's: states in medical, not in industrial words ("with a lesion", not "damaged"), in several templates. The
    paper takes harmonic means of probabilities over windows; here logits are averaged, which any scale of the encoder leaves in order.
    """

    gives = ("grids",)
    needs = frozenset({"states"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates"})
    good_when = "no image to learn from, and an encoder whose words know the findings"
    poor_when = "normal images are at hand: a memory of them is better"
    papers = ("arxiv:2303.14814",)
    windows: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)

    def fit(self, problem: Problem) -> Adapted:
        return ZeroShotStatesAdapted(self.windows)
