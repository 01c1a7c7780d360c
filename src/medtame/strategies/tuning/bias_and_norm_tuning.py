"""Biases and norms: the smallest weights that a network has, moved; all matrices stay as they are."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from medtame.encoders.opened import opened
from medtame.errors import PairError
from medtame.learning.fine_tuning import Sight, copied, fine_tuned, is_norm, module_of, with_values
from medtame.learning.loop import Descent, Step
from medtame.strategies.base import Learner, Tuned, labelled, support_loss
from medtame.types import Adapted, Encoder, Problem


def small_weights(tower: Any) -> list[str]:
    """Names, in `opened(tower)`, of all biases and of the weights of norm layers. Raises PairError where there are none."""
    apart = opened(module_of(tower))
    norms = {id(parameter) for part in apart.modules() if is_norm(part) for parameter in part.parameters(recurse=False)}
    names = [name for name, parameter in apart.named_parameters() if id(parameter) in norms or name.rpartition(".")[2] == "bias"]
    if not names:
        raise PairError("the encoder's image tower has neither biases nor norm layers: use lora")
    return names


@dataclass(frozen=True)
class BiasAndNormAdapted(Tuned):
    weights: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        return base.changed(image=with_values(base.image_tower, self.weights), identity="bias_and_norm")


@dataclass(frozen=True)
class BiasAndNormTuning(Learner):
    """All biases (BitFit: Ben Zaken et al. 2022) and the scales of norm layers of the image tower (for CLIP: Li et al. 2024).

    It starts at the encoder's own, so it answers like zero-shot before the first step. The running mean and variance of batch norm
    stay as they are; its scale and shift move. Cross-entropy over scale x cosine with fixed texts, AdamW, cosine decay, no
    augmentation.

    Tried on `bundled` with 40 steps, one draw of 8 images a class, held-out training patients, at this rate only: .36 balanced accuracy
    on the phantom, .58 on breast ultrasound (zero-shot .17 and .42, clap .49 and .55).
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "biases and norm layers of the image tower"
    cost = "minutes: passes through the image tower"
    good_when = "images of another scanner or contrast, 8 a class or more"
    poor_when = "a class or two images a class, or minutes cannot be spent: use clap"
    papers = ("arxiv:2106.10199", "arxiv:2409.16223")
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch: Annotated[int, Field(gt=0)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        tower, named = copied(query.encoder.image_tower, small_weights(query.encoder.image_tower))
        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        see, loss = Sight.of(query, tower, None), support_loss(query, targets)
        return BiasAndNormAdapted((yield from fine_tuned(see, named, loss, how, rows=len(rows), seed=problem.seed, resume=resume)))
