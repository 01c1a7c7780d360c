"""Soft-target pretraining: texts that say nearly the same are nearly right for each other's images."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning.fine_tuning import with_values
from medtame.learning.loop import Descent, Step
from medtame.learning.pretraining import Pairs, Train, pretrained
from medtame.strategies.base import Learner, Tuned
from medtame.types import Adapted, Encoder, Problem


@dataclass(frozen=True)
class SoftTargetAdapted(Tuned):
    image: dict[str, Tensor]
    text: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        image = with_values(base.image_tower, self.image) if self.image else None
        text = with_values(base.text_tower, self.text) if self.text else None
        return base.changed(image=image, text=text, identity="soft_target")


def softened(images: Tensor, texts: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of softmax(scale x cosine) and targets (n, n), rows of sum 1; they are symmetric
    but for that.
    """
    logits = scale * images @ texts.T
    return -((targets * logits.log_softmax(1)).sum(1).mean() + (targets * logits.T.log_softmax(1)).sum(1).mean()) / 2


@dataclass(frozen=True)
class SoftTarget(Learner):
    """Cross-entropy, in both directions, with targets softmax(cosine of the frozen texts / temperature) (the idea of MedCLIP, Wang et al.
    2022, and UniCL, Yang et al. 2022), with a learnt scale.

    The training pairs continue the encoder, which then answers as zero-shot does. `train`: what lies behind the towers' blocks,
    their last `blocks` blocks too, or all; `sides` image, text or both by commas. The gradient is that of the whole batch, seen in
    chunks (Gao et al. 2021), so memory grows with `chunk` alone. No augmentation; batch norm stays as it is; steps and rate were
    not searched.
    """

    learning = "pretraining"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates"})
    starts_at_zero_shot = True
    trains = "both towers, from the part that `train` names"
    cost = "minutes: passes through both towers"
    good_when = "captions repeat each other nearly, so that other images' texts are not wrong"
    poor_when = "the frozen text side does not tell your captions apart: its likeness is what is taught"
    papers = ("arxiv:2210.10163", "arxiv:2204.03610")
    temperature: Annotated[float, Field(gt=0)] = 0.1
    train: Train = "last"
    blocks: Annotated[int, Field(gt=0)] = 1
    sides: tuple[str, ...] = ("image", "text")
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    batch: Annotated[int, Field(gt=1)] = 64
    chunk: Annotated[int, Field(gt=0)] = 32

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        pairs = Pairs.of(problem, self.train, self.blocks, self.sides)
        more = {"log_scale": torch.tensor(math.log(problem.query.encoder.scale))}
        with torch.no_grad():
            frozen = problem.query.encoder.texts(pairs.texts)

        def objective(vectors: Sequence[Tensor], rows: Tensor) -> Tensor:
            targets = (frozen[rows] @ frozen[rows].T / self.temperature).softmax(1)
            return softened(vectors[0], vectors[1], targets, more["log_scale"].exp().clamp(max=100))

        rate, decay, warm_up = self.learning_rate, self.weight_decay, min(5, self.steps // 4)
        how = Descent(steps=self.steps, learning_rate=rate, batch=self.batch, weight_decay=decay, warm_up=warm_up)
        kept = yield from pretrained(pairs, objective, more, how, chunk=self.chunk, seed=problem.seed, resume=resume)
        image, text = (
            {name.removeprefix(side): tensor for name, tensor in kept.items() if name.startswith(side)} for side in ("image.", "text.")
        )
        return SoftTargetAdapted(image, text)
