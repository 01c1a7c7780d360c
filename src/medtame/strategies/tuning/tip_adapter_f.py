"""Tip-Adapter-F: the keys of the cache are trained, its values are not."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from medtame.learning.caches import cached_logits, searched
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.supports import balance, leaves_one_out, midway, rows_a_class
from medtame.strategies.base import Learner, classification_loss, labelled, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class TipAdapterFAdapted(Adapted):
    names: tuple[str, ...]
    keys: Tensor  # (n, F)
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
class TipAdapterF(Learner):
    """Tip-Adapter whose keys start at the support features and are trained; the labels in the values stay (Zhang et al. 2022).

    alpha and beta are those of tip_adapter: at the settings (relative to the encoder's scale / 100) unless every class has rows
    of two patients, where they are searched before training, on the cache as it is, with a patient's own entries masked out; once
    keys are trained the support can choose nothing any more. AdamW, cosine decay, cross-entropy of the support, the last step
    kept: one number, not the best on test. Balance, missing classes and several that may hold are as in tip_adapter.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    stores_support = True
    trains = "the keys of a cache of support features"
    cost = "a second on cached features"
    good_when = "4 images a class or more beside words that know the classes"
    poor_when = "1 image a class, or training features that may not be stored"
    papers = ("arxiv:2207.09519",)
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] = 5.5
    search: bool = True

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        features, scale = nn.functional.normalize(query.features(), dim=-1), query.encoder.scale
        weights, groups = balance(targets, exclusive=exclusive), query.samples.groups[query.source]
        values = weights * rows_a_class(targets, exclusive=exclusive)
        zero_shot = zero_shot_logits(query)
        offset = midway(zero_shot, targets, exclusive=exclusive)
        chosen = self.search and leaves_one_out(targets, groups, exclusive=exclusive)
        alpha, beta = self.alpha * scale / 100, self.beta * scale / 100
        if chosen:
            alpha, beta = searched(features, values, zero_shot + offset, weights, groups, scale, exclusive=exclusive)
        keys = features.clone()

        def loss(batch: Tensor) -> Tensor:
            logits = zero_shot[batch] + offset + cached_logits(features[batch], keys, values, alpha, beta)
            return classification_loss(logits, targets[batch], exclusive=exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, weight_decay=0.01, warm_up=1)
        kept = yield from descend({"keys": keys}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return TipAdapterFAdapted(query.wanted.names, kept["keys"], values, offset, alpha, beta, chosen)
