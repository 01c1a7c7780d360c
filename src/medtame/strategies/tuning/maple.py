"""MaPLe: prompts in both towers, those of the image made from those of the text."""

from __future__ import annotations

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
class Maple(Learner):
    """Multi-modal prompt learning (Khattak et al. 2023): a context in each of the first `depth` blocks of the text tower, and for each
    a linear layer that makes the image tower's prompts of it.

    The context of the first block starts at the words that all prompts begin with (two words of the template there), the deeper
    ones at random; so the first answer is not zero-shot's. Where the text tower has fewer blocks, the last context serves the
    rest of the image tower. The contexts' learning rate is in units of the deviation of the words' numbers. AdamW instead of
    SGD, no augmentation. Needs a vision transformer; a run keeps the prompts that the linear layers made.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules", "image_blocks"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "a context in the text tower's blocks, and linear layers to the image tower's"
    cost = "minutes: passes through both towers"
    good_when = "16 images a class, a vision transformer, and words that know the classes"
    poor_when = "no transformer, 1 or 2 images a class, or no minutes: it passes through both towers"
    papers = ("arxiv:2210.03117",)
    depth: Annotated[int, Field(gt=0)] = 9
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
        named["into"] = block_prompts.drawn((depth, first.shape[1], width), problem.seed, 1)
        named["bias"] = torch.zeros(depth, 1, width)

        def of(now: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            context = first + spread * now["first"]
            text = spread * now["text"]
            sources = torch.cat([context[None], text, (text[-1:] if later else context[None]).expand(depth - 1 - later, -1, -1)])
            return context, text, sources @ now["into"] + spread * now["bias"]

        def loss(batch: Tensor) -> Tensor:
            context, text, image = of(named)
            vectors = block_prompts.image_vectors(query, batch, image_prompted(tower, image))
            return lesson.loss_at(text_prompted(words, text).texts(context), batch, vectors)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend(named, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        context, text, image = of(kept)
        return DeepPrompted(image, context, text, words.ids, words.template)
