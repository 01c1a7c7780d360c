"""Contrastive pretraining: pairs of images and texts draw each other's vectors near."""

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
class ContrastiveAdapted(Tuned):
    image: dict[str, Tensor]
    text: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        image = with_values(base.image_tower, self.image) if self.image else None
        text = with_values(base.text_tower, self.text) if self.text else None
        return base.changed(image=image, text=text, identity="contrastive")


def info_nce(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of softmax(scale x cosine) and what is right, in equal shares (n, n)."""
    logits, right = scale * images @ texts.T, same.float()
    to_text = -(right / right.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_image = -(right / right.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (to_text + to_image) / 2


@dataclass(frozen=True)
class Contrastive(Learner):
    """InfoNCE in both directions over a batch (Radford et al. 2021; Zhang et al. 2022, ConVIRT), with a learnt temperature.

    Texts of the same case and equal texts share what is right, so none is counted as a wrong answer of its own image.

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
    good_when = "there are hundreds of pairs of your own and the encoder's text does not know them"
    poor_when = "pairs are few: a closed-form map on frozen vectors (linear_maps) is safer and takes a second"
    papers = ("arxiv:2103.00020", "arxiv:2010.00747")
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

        def objective(vectors: Sequence[Tensor], rows: Tensor) -> Tensor:
            return info_nce(vectors[0], vectors[1], pairs.same[rows][:, rows], more["log_scale"].exp().clamp(max=100))

        rate, decay, warm_up = self.learning_rate, self.weight_decay, min(5, self.steps // 4)
        how = Descent(steps=self.steps, learning_rate=rate, batch=self.batch, weight_decay=decay, warm_up=warm_up)
        kept = yield from pretrained(pairs, objective, more, how, chunk=self.chunk, seed=problem.seed, resume=resume)
        image, text = (
            {name.removeprefix(side): tensor for name, tensor in kept.items() if name.startswith(side)} for side in ("image.", "text.")
        )
        return ContrastiveAdapted(image, text)
