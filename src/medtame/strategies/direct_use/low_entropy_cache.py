"""A cache of the rows that zero-shot is surest of, filled from all rows before any is answered: no order, unlike dynamic_cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from medtame.strategies.base import Method, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class LowEntropyCacheAdapted(Adapted):
    names: tuple[str, ...]
    size: int
    weight: float
    sharpness: float

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            logits, features = zero_shot_logits(query), normalize(query.features(), dim=-1)
            kept = surest(logits, self.size)
            votes = one_hot(logits[kept].argmax(1), logits.shape[1]).float()
            found = []
            for rows in torch.split(torch.arange(len(query)), ROWS_AT_ONCE):
                near = torch.exp(-self.sharpness * (1 - features[rows] @ features[kept].T))
                found.append(near.masked_fill(rows[:, None] == kept, 0) @ votes)
            cached = torch.cat(found) if found else torch.zeros_like(logits)
            return Scores(masked(logits + query.encoder.scale * self.weight * cached, query.allowed))


def surest(logits: Tensor, size: int) -> Tensor:
    """The numbers of the rows of least entropy, at most `size` of each guessed class."""
    log_probability = logits.log_softmax(1)
    entropy = -(log_probability.exp() * log_probability).sum(1)
    guess = logits.argmax(1)
    kept = []
    for own in range(logits.shape[1]):
        rows = torch.nonzero(guess == own)[:, 0]
        kept.append(rows[entropy[rows].argsort(stable=True)[:size]])
    return torch.cat(kept)


@dataclass(frozen=True)
class LowEntropyCache(Method):
    """The positive cache of a training-free dynamic adapter (Karmanov et al. 2024) filled from all query rows at once.

    Of the rows that zero-shot gives to a class the `size` of least entropy are kept; a row's logits are zero-shot's plus
    scale x weight x sum over kept rows of exp(-sharpness x (1 - cosine)) for their class, itself left out. So the order of rows
    does not matter, but they must be asked together. Weight, sharpness and size are dynamic_cache's. Where zero-shot's sure
    guesses are wrong it spreads them.
    """

    needs = frozenset({"one_label"})
    scope = "set"
    reads = frozenset({"candidates"})
    towers = frozenset({"text"})
    trains = "nothing at fit; a cache of query rows at predict"
    cost = "microseconds a row, at predict"
    good_when = "zero-shot is already good and all rows are asked together"
    poor_when = "zero-shot is poor (its sure errors spread), or rows come one by one"
    papers = ("arxiv:2403.18293",)
    size: Annotated[int, Field(ge=1)] = 3
    weight: Annotated[float, Field(ge=0)] = 0.02
    sharpness: Annotated[float, Field(ge=0)] = 5.0

    def fit(self, problem: Problem) -> Adapted:
        return LowEntropyCacheAdapted(problem.query.wanted.names, self.size, self.weight, self.sharpness)
