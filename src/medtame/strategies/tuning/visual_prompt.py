"""Visual prompts: free tokens beside an image's own in the blocks of a vision transformer; the words stay as they are."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.encoders.opened import opened
from medtame.learning import block_prompts
from medtame.learning.block_prompts import DeepPrompted
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.prompt_learning import scores_of
from medtame.strategies.base import Learner, classification_loss, labelled
from medtame.types import Adapted, Problem


@dataclass(frozen=True)
class VisualPrompt(Learner):
    """Visual prompt tuning, deep (Jia et al. 2022): `tokens` free tokens in each of the first `depth` blocks, scored by the cosine
    with the words as written.

    They stand after the image's tokens and leave after the last block, so that pooling and maps are the tower's own; without
    positions it does not matter where they stand. They start at random (deviation .02), so the first answer is near zero-shot's
    and not the same. The towers stay frozen. AdamW, no augmentation. Needs a vision transformer.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules", "image_blocks"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "tokens in the blocks of the image tower"
    cost = "minutes: passes through the image tower"
    good_when = "a vision transformer, 16 images a class or more, fixed words"
    poor_when = "no transformer, a few images a class, or no minutes: use clap"
    papers = ("arxiv:2203.12119",)
    tokens: Annotated[int, Field(gt=0, le=200)] = 8
    depth: Annotated[int, Field(gt=0)] = 12
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    batch: Annotated[int, Field(gt=0)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, encoder = problem.query.take(rows.numpy()), problem.query.encoder
        blocks, tower = block_prompts.image_blocks(encoder), opened(encoder.image_tower)
        shape = (min(self.depth, len(blocks)), self.tokens, block_prompts.width_of(tower, blocks))
        prompts, texts = block_prompts.drawn(shape, problem.seed, 0), block_prompts.plain_texts(query)

        def loss(batch: Tensor) -> Tensor:
            vectors = block_prompts.image_vectors(query, batch, block_prompts.image_prompted(tower, prompts))
            logits = scores_of(texts, query.take(batch.numpy()), vectors, encoder)
            return classification_loss(logits, targets[batch], exclusive=query.wanted.exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"prompts": prompts}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        none = torch.zeros(0, 0)
        return DeepPrompted(kept["prompts"], none, none, torch.zeros(0, dtype=torch.long), "")
