"""Tip-Adapter: zero-shot plus a cache of the support, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from medtame.learning.caches import cached_logits, searched
from medtame.learning.supports import balance, leaves_one_out, midway, rows_a_class
from medtame.strategies.base import Method, labelled, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class TipAdapterAdapted(Adapted):
    names: tuple[str, ...]
    keys: Tensor  # (n, F) unit norm
    values: Tensor  # (n, C)
    offset: Tensor  # (C,) threshold where several may hold, else 0
    alpha: float
    beta: float
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = nn.functional.normalize(query.features(), dim=-1)
        cached = cached_logits(features, self.keys, self.values, self.alpha, self.beta)
        return Scores(masked(zero_shot_logits(query) + self.offset + cached, query.allowed))


@dataclass(frozen=True)
class TipAdapter(Method):
    """Zero-shot logits + alpha x exp(-beta (1 - f K')) V: keys K are support features, values V their labels (Zhang et al. 2022).

    `alpha` and `beta` are meant at CLIP's scale of 100 and are multiplied by the encoder's scale / 100, so that the cache keeps
    its weight beside the scaled cosine and cosines keep their sharpness. Where every class has rows of two patients both are
    searched on a grid of 20 x 20 for the least cross-entropy of the support, every class with the same weight, and the rows of a
    patient never see their own entries in the cache. Else, so at K = 1, the settings hold and the result says that they were not
    chosen by data.

    Values are one-hot for balanced supports; else a row counts mean rows a class / rows of its class, so that a frequent class
    does not win by number; beyond 16 rows a class the cache no longer grows. A class without rows keeps its zero-shot logit.
    Where several may hold, a row with a candidate speaks for it, one without against it, an unknown one not at all.
    """

    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    stores_support = True
    trains = "a cache of support features"
    good_when = "1 to 4 images a class beside words that know the classes"
    poor_when = "words that do not know the classes: it keeps them in the answer"
    papers = ("arxiv:2207.09519",)
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] = 5.5
    search: bool = True

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        keys, zero_shot, scale = nn.functional.normalize(query.features(), dim=-1), zero_shot_logits(query), query.encoder.scale
        weights, groups = balance(targets, exclusive=exclusive), query.samples.groups[query.source]
        values = weights * rows_a_class(targets, exclusive=exclusive)
        offset = midway(zero_shot, targets, exclusive=exclusive)
        chosen = self.search and leaves_one_out(targets, groups, exclusive=exclusive)
        alpha, beta = self.alpha * scale / 100, self.beta * scale / 100
        if chosen:
            alpha, beta = searched(keys, values, zero_shot + offset, weights, groups, scale, exclusive=exclusive)
        return TipAdapterAdapted(query.wanted.names, keys, values, offset, alpha, beta, chosen)
