"""PromptSRC: prompts in both towers that are held near the frozen encoder and averaged over the steps."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.encoders.opened import opened
from medtame.learning import block_prompts, prompt_learning
from medtame.learning.block_prompts import DeepPrompted, image_prompted, text_prompted
from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Problem


@dataclass(frozen=True)
class Promptsrc(Learner):
    """Self-regulating prompts (Khattak et al. 2023b): free prompts in both towers; loss + `near_text` x L1(texts, frozen texts)
    + `near_image` x L1(vectors, frozen vectors) + KL(frozen logits, logits); the prompts of the steps are averaged with Gaussian
    weights about `middle` of the steps, of deviation `width` of them.

    Frozen texts are the means of all sentences of a class. L1 is the mean over numbers, weights 25 and 10, as there; one
    Gaussian for all data (there one for each group of data sets). The contexts' learning rate is in units of the deviation of
    the words' numbers. The context starts at the words that the prompts begin with, deeper prompts at random. AdamW instead of
    SGD, no augmentation. Needs a vision transformer.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules", "image_blocks"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "prompts in the blocks of both towers"
    cost = "minutes: passes through both towers"
    good_when = "16 images a class, a vision transformer, and new classes later"
    poor_when = "no transformer, words that do not know the classes, or no minutes"
    papers = ("arxiv:2307.06948",)
    depth: Annotated[int, Field(gt=0)] = 9
    tokens: Annotated[int, Field(gt=0, le=200)] = 4
    near_text: Annotated[float, Field(ge=0)] = 25.0
    near_image: Annotated[float, Field(ge=0)] = 10.0
    middle: Annotated[float, Field(ge=0, le=1)] = 0.6
    width: Annotated[float, Field(gt=0)] = 0.2
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    batch: Annotated[int, Field(gt=0)] = 16
    template: str = "a medical image of {}"

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, encoder = problem.query.take(rows.numpy()), problem.query.encoder
        blocks, tower = block_prompts.image_blocks(encoder), opened(encoder.image_tower)
        lesson = prompt_learning.lesson(query, targets, self.template)
        words, first, spread = lesson.words, lesson.words.beginning, lesson.words.spread
        depth, width = min(self.depth, len(blocks)), block_prompts.width_of(tower, blocks)
        later = min(depth, max(1, len(block_prompts.attention_blocks(words.tower)))) - 1
        named = {"first": torch.zeros_like(first), "text": block_prompts.drawn((later, *first.shape), problem.seed, 0) / spread}
        named["image"] = block_prompts.drawn((depth, self.tokens, width), problem.seed, 1) / spread
        written = block_prompts.plain_texts(query)
        taught = lesson.likely(prompt_learning.scores_of(written, query, lesson.vectors, encoder))

        def loss(batch: Tensor) -> Tensor:
            vectors = block_prompts.image_vectors(query, batch, image_prompted(tower, spread * named["image"]))
            texts = text_prompted(words, spread * named["text"]).texts(first + spread * named["first"])
            near = self.near_text * (texts - written).abs().mean() + self.near_image * (vectors - lesson.vectors[batch]).abs().mean()
            logits = lesson.logits_at(texts, batch, vectors)
            return lesson.loss_of(logits, targets[batch]) + near + lesson.loss_of(logits, taught[batch])

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        sums = {f"sum.{name}": torch.zeros_like(tensor) for name, tensor in named.items()} | {"sum": torch.zeros(())}
        if resume is not None:
            sums = {name: resume[name].clone() for name in sums}
        steps = descend(named, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        kept = yield from averaged(steps, named, sums, self.middle, self.width)
        return DeepPrompted(spread * kept["image"], first + spread * kept["first"], spread * kept["text"], words.ids, words.template)


def averaged(
    steps: Generator[Step, None, dict[str, Tensor]], named: Mapping[str, Tensor], sums: dict[str, Tensor], middle: float, width: float
) -> Generator[Step, None, dict[str, Tensor]]:
    """The named tensors averaged over steps with Gaussian weights; `sums` holds what was added so far, and joins a step's state."""
    final: dict[str, Tensor] = {}

    def to_the_end() -> Generator[Step, None, None]:
        final.update((yield from steps))

    for step in to_the_end():
        weight = math.exp(-0.5 * ((step.number / step.of - middle) / width) ** 2)
        sums["sum"] += weight
        for name, tensor in named.items():
            sums[f"sum.{name}"] += weight * tensor.detach()

        def state(own: Step = step) -> dict[str, Tensor]:
            return own.state() | {name: tensor.clone() for name, tensor in sums.items()}

        yield Step(step.number, step.of, step.loss, state)
    return {name: sums[f"sum.{name}"] / sums["sum"] for name in named} if float(sums["sum"]) else final
