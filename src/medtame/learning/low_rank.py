"""Low-rank changes of a tower's matrices (LoRA, Hu et al. 2022), with peft's layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from medtame.encoders.opened import exchanged
from medtame.learning.fine_tuning import copied


@dataclass(frozen=True)
class LowRank:
    """How large a change is: (alpha / rank) B A or, `rslora`, (alpha / sqrt(rank)) B A."""

    rank: int
    alpha: float
    rslora: bool

    def around(self, tower: Any, names: Sequence[str], seed: int, own: Sequence[str] = ()) -> tuple[Any, dict[str, Tensor]]:
        """The tower with low-rank layers that do nothing yet, and their numbers by name; weights are shared, but those named in `own`."""
        pattern = "|".join(re.escape(name) for name in names)  # a whole name: peft would match a list by its endings
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, use_rslora=self.rslora, target_modules=f"({pattern})", lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = inject_adapter_in_model(config, copied(tower, own)[0]).eval()
        for layer in changed.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False
        parameters = {name: parameter for name, parameter in changed.named_parameters() if "lora_" in name}
        for name, parameter in changed.named_parameters():
            parameter.requires_grad_(name in parameters)
        return changed, dict(parameters)

    def merged(self, tower: Any, names: Sequence[str], weights: Mapping[str, Tensor]) -> Any:
        """The tower with plain attention and the changes added to its weights: as fast as the original."""
        changed, parameters = self.around(tower, names, 0, [f"{name}.weight" for name in names])
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])

        def bare(name: str, part: nn.Module) -> nn.Module | None:
            if not isinstance(part, LoraLayer):
                return None
            part.merge()
            layer: nn.Module = part.get_base_layer()
            return layer

        return exchanged(changed, bare).requires_grad_(False)


def side_of(named: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """Tensors whose name begins with the side, without it."""
    return {name.removeprefix(side): tensor for name, tensor in named.items() if name.startswith(side)}
