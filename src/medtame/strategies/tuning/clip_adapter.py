"""CLIP-Adapter: a small bottleneck network changes the image vector, mixed with what it was."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner, classification_loss, cosine_logits, labelled, masked
from medtame.types import Adapted, Problem, Query, Scores


def adapted(vectors: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """(N, D) unit norm: ratio x relu(up relu(down f)) + (1 - ratio) x f, mixed first and normalised after."""
    changed = torch.relu(torch.relu(vectors @ down.T) @ up.T)
    return nn.functional.normalize(ratio * changed + (1 - ratio) * vectors, dim=-1)


@dataclass(frozen=True)
class ClipAdapterAdapted(Adapted):
    down: Tensor  # (H, D)
    up: Tensor  # (D, H)
    ratio: float

    def answer(self, query: Query) -> Scores:
        vectors = adapted(query.vectors(), self.down, self.up, self.ratio)
        return Scores(masked(cosine_logits(vectors, query.texts(), query.encoder), query.allowed))


@dataclass(frozen=True)
class ClipAdapter(Learner):
    """A bottleneck of D/4 on the image side, a ReLU after both layers, no bias, mixed in by the residual ratio (Gao et al. 2021).

    The texts are not touched, so new candidates may be asked. The network starts at random (from the seed), hence not quite at
    zero-shot; with ratio 0 it is zero-shot. AdamW, cosine decay, 300 whole-support steps, the last one kept: with the 20 epochs
    that some comparisons give it, it stays where it began. One ratio for all data, where the paper searches one for each.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "a bottleneck network on the image vector"
    cost = "seconds on cached features"
    good_when = "4 images a class or more, and new candidates may be asked later"
    poor_when = "1 image a class: it starts at random and may fall below zero-shot"
    papers = ("arxiv:2110.04544",)
    steps: Annotated[int, Field(ge=0)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    reduction: Annotated[int, Field(gt=0)] = 4

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        vectors, texts = query.vectors(), query.texts()
        width = vectors.shape[1]
        hidden = max(1, width // self.reduction)
        generator = torch.Generator().manual_seed(problem.seed)
        down = (2 * torch.rand(hidden, width, generator=generator) - 1) / width**0.5
        up = (2 * torch.rand(width, hidden, generator=generator) - 1) / hidden**0.5

        def loss(batch: Tensor) -> Tensor:
            wording = texts if texts.ndim == 2 else texts[batch]
            allowed = None if query.allowed is None else query.allowed[batch.numpy()]
            logits = masked(cosine_logits(adapted(vectors[batch], down, up, self.ratio), wording, query.encoder), allowed)
            return classification_loss(logits, targets[batch], exclusive=exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, weight_decay=0.01, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"down": down, "up": up}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return ClipAdapterAdapted(kept["down"], kept["up"], self.ratio)
