"""Towers taken apart: attention as plain layers that can be adapted and run in 16 bits, and parts exchanged without touching the rest.

torch's MultiheadAttention keeps the weights of query, key and value in one bare tensor and reads it without calling a layer: what is
put around a layer never sees it, and its path for 16-bit weights on CPU is slow. Here the same weights sit in `nn.Linear`s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from medtame.errors import PairError

Change = Callable[[str, nn.Module], nn.Module | None]


class PlainAttention(nn.Module):
    """What an `nn.MultiheadAttention` computes, in eval mode, with its own weights: `qkv` (E -> 3E) and `out_proj` are layers."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = fused.num_heads, fused.batch_first
        self.qkv = nn.Linear(fused.embed_dim, 3 * fused.embed_dim, bias=fused.in_proj_bias is not None, device="meta")
        self.qkv.weight, self.out_proj = fused.in_proj_weight, fused.out_proj
        if fused.in_proj_bias is not None:
            self.qkv.bias = fused.in_proj_bias
        self.train(fused.training)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """(N, L, E) and None for the weights; `attn_mask` is boolean (True: not attended) or added."""
        width = query.shape[-1]
        parts = self.qkv(query).chunk(3, -1) if query is key else (self.qkv(query)[..., :width], *self.qkv(key)[..., width:].chunk(2, -1))
        if not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(queries.dtype)
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        return self.out_proj(mixed if self.batch_first else mixed.transpose(0, 1)), None


def opened(tower: nn.Module) -> nn.Module:
    """The tower with plain attention throughout, sharing every weight with the original, which stays as it is."""

    def change(name: str, part: nn.Module) -> nn.Module | None:
        plain = isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None and part.bias_k is None
        return PlainAttention(part) if plain else None  # type: ignore[arg-type]

    return exchanged(tower, change)


def exchanged(module: nn.Module, change: Change) -> nn.Module:
    """The module with the parts that `change(name, part)` gives in place of its own; all else is shared, and nothing is altered."""

    def visit(name: str, part: nn.Module) -> nn.Module:
        new = change(name, part)
        if new is not None:
            return new
        children = {own: visit(f"{name}.{own}" if name else own, child) for own, child in part.named_children()}
        if all(children[own] is child for own, child in part.named_children()):
            return part
        copied = copy.copy(part)
        copied._modules = {**part._modules, **children}
        return copied

    return visit("", module)


def module_of(tower: Any) -> nn.Module:
    """The tower, if it has layers. Raises PairError."""
    if not isinstance(tower, nn.Module) or not any(True for _ in tower.parameters()):
        raise PairError("this side of the encoder has no layers that could be trained: use a method on frozen features, such as clap")
    return tower


def copied(tower: Any, moving: Iterable[str]) -> tuple[Any, dict[str, Tensor]]:
    """The tower with plain attention, and copies of the weights of these names in it, by name; all other weights are shared.

    Names are those of `opened(tower)`. The original stays as it is. Raises PairError where the tower has no layers.
    """
    apart, names = opened(module_of(tower)), set(moving)
    still = [parameter for name, parameter in apart.named_parameters() if name not in names]
    made = copy.deepcopy(apart, {id(tensor): tensor for tensor in [*still, *apart.buffers()]})
    made.eval()
    return made, {name: parameter.requires_grad_(True) for name, parameter in made.named_parameters() if name in names}


def with_values(tower: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """The tower with plain attention and these weights in the place of its own."""
    made, named = copied(tower, values)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(values[name])
    frozen: nn.Module = made.requires_grad_(False)
    return frozen
