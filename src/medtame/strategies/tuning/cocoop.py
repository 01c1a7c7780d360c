"""CoCoOp: a learnt context that a small network moves for each image."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning import prompt_learning
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.prompt_learning import Precision, wording
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Problem, Query, Scores

ROWS_AT_ONCE = 8
SHRINK = 16


def moved(context: Tensor, network: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
    """(N, M, E): the context (M, E) with what the network makes of each image vector (N, D) added to every token of it."""
    hidden = torch.relu(vectors @ network["into"] + network["into_bias"])
    return context[None] + (hidden @ network["out"] + network["out_bias"])[:, None]


@dataclass(frozen=True)
class CocoopAdapted(Adapted):
    context: Tensor
    network: dict[str, Tensor]
    ids: Tensor
    template: str

    def answer(self, query: Query) -> Scores:
        words = wording(query.encoder.text_tower, query.wanted, self.template, self.ids)
        vectors, found = query.vectors(), []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(query)), ROWS_AT_ONCE):
                texts = words.texts_of_rows(moved(self.context, self.network, vectors[rows]))
                found.append(prompt_learning.scores_of(texts, query.take(rows.numpy()), vectors[rows], query.encoder))
            return Scores(torch.cat(found) if found else torch.zeros(0, len(query.wanted.names)))


@dataclass(frozen=True)
class Cocoop(Learner):
    """Conditional context optimisation (Zhou et al. 2022b): context + network(image vector), D -> D/16 -> E with a ReLU.

    Every image has prompts of its own: B x C strings a step, and so at prediction. The network's last layer starts at zero
    instead of at random, so that the first answer is zero-shot's. Learning rate in units of the deviation of the words' numbers,
    AdamW instead of SGD, batches of 8 instead of 1; steps and rate were not searched: they are CoOp's, with fewer steps.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt, and a small network that moves them"
    cost = "minutes: an image has its own passes through the text tower, also at prediction"
    good_when = "new classes will be asked after learning, and words that know them"
    poor_when = "many classes or images: every image has prompts of its own, so it is slow"
    papers = ("arxiv:2203.05557",)
    steps: Annotated[int, Field(ge=0)] = 50
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    batch: Annotated[int, Field(gt=0)] = 8
    tokens: Annotated[int, Field(ge=0, le=64)] = 0
    template: str = "a medical image of {}"
    precision: Precision = "float32"

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        lesson = prompt_learning.lesson(problem.query.take(rows.numpy()), targets, self.template, self.precision)
        words, first = lesson.words, prompt_learning.first_context(lesson.words, self.tokens, problem.seed)
        width, spread = lesson.vectors.shape[1], words.spread
        inside = max(1, width // SHRINK)
        into = torch.randn(width, inside, generator=torch.Generator().manual_seed(problem.seed)) / width**0.5
        named = {"change": torch.zeros_like(first), "into": into, "into_bias": torch.zeros(inside)}
        named |= {"out": torch.zeros(inside, first.shape[1]), "out_bias": torch.zeros(first.shape[1])}

        def of(now: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            into = {name: now[name] for name in ("into", "into_bias")}
            return first + spread * now["change"], {**into, **{name: spread * now[name] for name in ("out", "out_bias")}}

        def loss(batch: Tensor) -> Tensor:
            return lesson.loss(words.texts_of_rows(moved(*of(named), lesson.vectors[batch])), batch)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend(named, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return CocoopAdapted(*of(kept), words.ids, words.template)
