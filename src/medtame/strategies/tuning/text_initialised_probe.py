"""A linear probe that starts at the text vectors: the plain way to use both labels and words."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Some, Step, descend_slopes
from medtame.learning.slopes import of_mean, to_prototypes, units
from medtame.learning.supports import present
from medtame.strategies.base import Learner, allowed_of, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class TextInitialisedProbeAdapted(Adapted):
    names: tuple[str, ...]
    shift: Tensor  # (C, D) weights minus text vectors

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        weights = nn.functional.normalize(query.texts() + self.shift, dim=-1)
        return Scores(masked(cosine_logits(query.vectors(), weights, query.encoder), query.allowed))


@dataclass(frozen=True)
class TextInitialisedProbe(Learner):
    """Logistic regression whose weights start at the text vectors (ZS-LP of Silva-Rodriguez et al. 2024).

    Weights and images are of unit norm in the forward pass, the scale is the encoder's and frozen, and there is no bias: CLAP
    without its constraint. SGD with momentum, cosine decay, 300 steps of the whole support, the last one kept. The learning rate is
    a hundredth of the released one, whose text embeddings have a norm of about 10 and not 1: at .1 unit vectors leave the text in
    one step. What is stored is
    weights minus text vectors, so that a row's own words still change the texts. A class without a support row keeps its text.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "class prototypes in the text's space"
    cost = "a second on cached features"
    good_when = "4 images a class or more, with words of unknown use"
    poor_when = "1 image a class beside words that know the classes: it lets go of them"
    papers = ("arxiv:2312.12730",)
    steps: Annotated[int, Field(ge=0)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        vectors, texts = query.vectors(), query.texts()
        learnt = present(targets, exclusive=exclusive)[:, None]
        shift = torch.zeros(targets.shape[1], vectors.shape[1])

        def loss(batch: Some) -> tuple[Tensor, dict[str, Tensor]]:
            allowed = allowed_of(query, batch)
            unit, norms = units((texts if texts.ndim == 2 else texts[batch]) + shift * learnt)
            shown = vectors[batch]
            logits = masked(cosine_logits(shown, unit, query.encoder), allowed)
            value, slope = of_mean(logits, targets[batch], exclusive=exclusive)
            return value, {"shift": learnt * to_prototypes(slope, shown, unit, norms, query.encoder.scale, allowed)}

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, optimiser="sgd", warm_up=1)
        kept = yield from descend_slopes({"shift": shift}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return TextInitialisedProbeAdapted(problem.query.wanted.names, kept["shift"])
