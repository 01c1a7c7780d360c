"""LoRA: low-rank changes of the image tower's linear layers and pointwise convolutions, scored by the tower's own cosine."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import Tensor, nn

from medtame.errors import PairError
from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner, Tuned, classification_loss, cosine_logits, labelled, masked
from medtame.types import Adapted, Encoder, Problem


def adaptable(tower: nn.Module) -> list[str]:
    """Names of the layers that take a low-rank change: linear layers and pointwise convolutions.

    Layers inside torch's own attention and encoder layers are left out: these read the weights without calling the layer, so a
    change around it would be passed by in silence.
    """
    fused = [name for name, layer in tower.named_modules() if isinstance(layer, (nn.MultiheadAttention, nn.TransformerEncoderLayer))]
    linear = [
        name
        for name, layer in tower.named_modules()
        if isinstance(layer, nn.Linear) and not any(name.startswith(f"{inside}.") for inside in fused)
    ]
    pointwise = [
        name for name, layer in tower.named_modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    ]
    if not linear and not pointwise:
        raise PairError(
            "the encoder's image tower has neither linear layers nor pointwise convolutions: use a method on frozen features, such as clap"
        )
    return linear + pointwise


def with_lora(tower: nn.Module, rank: int, alpha: float, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the tower with low-rank layers that do nothing yet, and their parameters by name."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=adaptable(tower), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = inject_adapter_in_model(config, copy.deepcopy(tower))
    changed.eval()
    parameters = {name: parameter for name, parameter in changed.named_parameters() if "lora_" in name}
    for name, parameter in changed.named_parameters():
        parameter.requires_grad_(name in parameters)
    return changed, dict(parameters)


@dataclass(frozen=True)
class LoraAdapted(Tuned):
    rank: int
    alpha: float
    weights: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        tower, parameters = with_lora(base.image_tower, self.rank, self.alpha, 0)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
        return base.changed(image=tower.requires_grad_(False), identity="lora")


@dataclass(frozen=True)
class Lora(Learner):
    """W + (alpha / rank) B A on the image tower (Hu et al. 2022; for CLIP: Zanella and Ben Ayed 2024), peft's layers.

    B starts at zero, so it answers like zero-shot before the first step. Batch norm stays frozen. Cross-entropy over
    scale x cosine with fixed text vectors; AdamW, cosine decay; no augmentation.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "low-rank changes of the image tower"
    cost = "minutes: passes through the image tower"
    papers = ("arxiv:2106.09685", "arxiv:2405.18541")
    rank: Annotated[int, Field(gt=0)] = 4
    alpha: Annotated[float, Field(gt=0)] = 8.0
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch: Annotated[int, Field(gt=0)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, base = problem.query.take(rows.numpy()), problem.query.encoder
        texts = query.texts()
        tower, parameters = with_lora(base.image_tower, self.rank, self.alpha, problem.seed)
        encoder = base.changed(image=tower, identity="lora")

        def loss(batch: Tensor) -> Tensor:
            part = query.take(batch.numpy())
            wording = texts if texts.ndim == 2 else texts[batch]
            logits = masked(cosine_logits(part.vectors(encoder), wording, base), part.allowed)
            return classification_loss(logits, targets[batch], exclusive=query.wanted.exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend(parameters, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return LoraAdapted(self.rank, self.alpha, kept)
