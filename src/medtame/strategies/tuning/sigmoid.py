"""Sigmoid pretraining: each pair of image and text is right or wrong by itself."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.fine_tuning import with_values
from medtame.learning.loop import Descent, Step
from medtame.learning.pretraining import Pairs, Train, pretrained
from medtame.strategies.base import Learner, Tuned
from medtame.types import Adapted, Encoder, Problem


@dataclass(frozen=True)
class SigmoidAdapted(Tuned):
    image: dict[str, Tensor]
    text: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        image = with_values(base.image_tower, self.image) if self.image else None
        text = with_values(base.text_tower, self.text) if self.text else None
        return base.changed(image=image, text=text, identity="sigmoid")


def pairwise(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss of unit images (n, D) and texts (n, D), `same` (n, n) saying which pairs are right."""
    logits = scale * images @ texts.T + bias
    return -nn.functional.logsigmoid(torch.where(same, logits, -logits)).sum(1).mean()


@dataclass(frozen=True)
class Sigmoid(Learner):
    """Sum over all pairs of a batch of log(1 + exp(-z (scale x cosine + bias))), z = 1 where right, else -1, a row's mean (Zhai et al.
    2023, SigLIP). Scale and bias are learnt, from 10 and -10 as there.

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
    good_when = "batches must be small, since each pair counts by itself"
    poor_when = "pairs are few: a closed-form map on frozen vectors (linear_maps) is safer and takes a second"
    papers = ("arxiv:2303.15343",)
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
        more = {"log_scale": torch.tensor(math.log(10.0)), "bias": torch.tensor(-10.0)}

        def objective(vectors: Sequence[Tensor], rows: Tensor) -> Tensor:
            return pairwise(vectors[0], vectors[1], pairs.same[rows][:, rows], more["log_scale"].exp(), more["bias"])

        rate, decay, warm_up = self.learning_rate, self.weight_decay, min(5, self.steps // 4)
        how = Descent(steps=self.steps, learning_rate=rate, batch=self.batch, weight_decay=decay, warm_up=warm_up)
        kept = yield from pretrained(pairs, objective, more, how, chunk=self.chunk, seed=problem.seed, resume=resume)
        image, text = (
            {name.removeprefix(side): tensor for name, tensor in kept.items() if name.startswith(side)} for side in ("image.", "text.")
        )
        return SigmoidAdapted(image, text)
