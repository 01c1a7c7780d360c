"""The model as it is: the cosine of image and prompt, at the checkpoint's own scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medtame.strategies.base import Method, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class ZeroShotAdapted(Adapted):
    """Nothing was learnt; new candidates are welcome."""

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            return Scores(zero_shot_logits(query))


@dataclass(frozen=True)
class ZeroShot(Method):
    """scale x cosine(image, mean of the unit prompt vectors) + bias (Radford et al. 2021)."""

    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    towers = frozenset({"text"})
    good_when = "no labels, and an encoder whose words know the classes"
    poor_when = "an encoder that saw no medical text: it is near chance there"
    papers = ("arxiv:2103.00020",)

    def fit(self, problem: Problem) -> Adapted:
        return ZeroShotAdapted()
