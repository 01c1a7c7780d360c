"""`ENCODER@dense`: a vision transformer seen finely, for tasks that need maps. More pixels, and maps of several layers.

Images are stretched to up to twice the checkpoint's side, its positions interpolated. The first map lies in the text's space: the
last block is left out but for its values, which attend to each other, without residual and MLP (value-value attention: CLIP Surgery,
Li et al. 2023, arxiv:2304.05653; the rest left out: ClearCLIP, Lan et al. 2024, arxiv:2407.12442), so that a cell tells of its
own place. The other maps are the tokens after a third, two thirds and all of the blocks. `whole` is made from the same pixels, so it
is not the checkpoint's published vector. Maps of an image take at most `BUDGET_BYTES` in 16 bits: the side is chosen by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, normalize, scaled_dot_product_attention

from medtame.encoders.image_towers import ClipViT, Maps, TimmTower, as_map, each_alone
from medtame.encoders.preparation import Preparation
from medtame.encoders.towers import EncoderCard, TowerEncoder
from medtame.errors import EncoderError

DENSE = "@dense"
BUDGET_BYTES = 4 * 2**20
LARGER = 2  # times the checkpoint's grid, at most
LAYERS = 3


def card(base: EncoderCard) -> EncoderCard:
    """What `of` gives, without a model; that it is a vision transformer is only seen when weights are read."""
    (dimension, grid), width = base.scales[0], base.scales[-1][0]
    side = grid_of(grid, dimension, width)
    scales = ((dimension, side), *[(width, side)] * LAYERS)
    return replace(base, spec=base.spec + DENSE, image_identity=identity(base.image_identity, side), scales=scales)


def of(base: TowerEncoder) -> TowerEncoder:
    """The same encoder seen finely. Raises EncoderError where its image side is no vision transformer with positions."""
    if not isinstance(base.prepare, Preparation):
        raise EncoderError(f"{base.spec} is no vision transformer: its maps have scales of their own, so leave {DENSE} out")
    tower = DenseTower(base.image_tower, base.spec)
    native = base.prepare.side
    with torch.no_grad():
        maps = base.image_tower(torch.zeros(1, 3, native, native))[1]
    grid, dimension, width = maps[0].shape[2], maps[0].shape[1], maps[-1].shape[1]
    side = grid_of(grid, dimension, width)
    prepare = replace(base.prepare.whole, side=native // grid * side, edge=native // grid * side)
    return replace(
        base,
        spec=base.spec + DENSE,
        image_identity=identity(base.image_identity, side),
        image_tower=tower.eval(),
        prepare=prepare,
        prepare_grid=None,
    )


def grid_of(native: int, dimension: int, width: int) -> int:
    """Cells a side: twice the checkpoint's, or what the budget allows."""
    return max(1, min(LARGER * native, math.isqrt(BUDGET_BYTES // (2 * (dimension + LAYERS * width)))))


def identity(base: str, side: int) -> str:
    return f"{base};dense{side}x{LAYERS}-vv1"


class DenseTower(nn.Module):
    """Prepared pixels (N, 3, S, S) -> whole (N, D), maps (N, D, G, G) and three of (N, width, G, G). `inner` is the plain tower."""

    def __init__(self, inner: nn.Module, spec: str) -> None:
        super().__init__()
        self.inner = inner
        self.kind = self._kind(spec)

    def _kind(self, spec: str) -> str:
        inner: Any = self.inner
        if isinstance(inner, ClipViT):
            return "clip"
        if isinstance(inner, TimmTower) and inner.tokens and hasattr(inner.visual.trunk.blocks[-1].attn, "qkv"):
            trunk = inner.visual.trunk
            if trunk.pos_embed is None or not hasattr(trunk, "dynamic_img_size"):
                raise EncoderError(f"the positions of {spec} cannot be interpolated: leave {DENSE} out")
            return "timm"
        if hasattr(inner, "vision"):
            return "transformers"
        raise EncoderError(f"{spec} is no vision transformer: its maps have scales of their own, so leave {DENSE} out")

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        tokens, blocks, read = {"clip": self._clip, "timm": self._timm, "transformers": self._transformers}[self.kind](prepared)
        depths = [max(1, round(len(blocks) * part / LAYERS)) for part in range(1, LAYERS + 1)]
        kept, before = [], tokens
        for number, block in enumerate(blocks, 1):
            before, tokens = tokens, _first(block(tokens))
            kept += [tokens] * depths.count(number)
        whole, aligned, prefix = read(tokens, value_value(blocks[-1], before))
        return whole, (as_map(aligned), *(as_map(each[:, prefix:]) for each in kept))

    def _clip(self, prepared: Tensor) -> tuple[Tensor, Any, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]]:
        visual: Any = self.inner.visual
        cells = visual.conv1(prepared).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(cells.dtype).expand(len(cells), 1, -1)
        placed = torch.cat([first, cells], 1) + resized(visual.positional_embedding, cells.shape[1])

        def read(tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
            pooled, _ = visual._pool(tokens)
            return normalize(pooled @ visual.proj, dim=-1), visual.ln_post(values[:, 1:]) @ visual.proj, 1

        return visual.ln_pre(visual.patch_dropout(placed)), visual.transformer.resblocks, read

    def _timm(self, prepared: Tensor) -> tuple[Tensor, Any, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]]:
        visual: Any = self.inner.visual
        trunk = visual.trunk
        prefix = trunk.num_prefix_tokens
        cells = trunk.patch_embed.norm(trunk.patch_embed.proj(prepared).flatten(2).transpose(1, 2))
        firsts = [each for each in (trunk.cls_token, trunk.reg_token) if each is not None]
        firsts = [each.expand(len(cells), -1, -1) for each in firsts]
        if trunk.no_embed_class:
            placed = torch.cat([*firsts, cells + resized(trunk.pos_embed[0], cells.shape[1])], 1)
        else:
            placed = torch.cat([*firsts, cells], 1) + resized(trunk.pos_embed[0], cells.shape[1])

        def read(tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
            whole = normalize(visual.head(trunk.forward_head(trunk.norm(tokens))), dim=-1)
            alone = trunk.norm(values[:, prefix:])
            alone = alone if trunk.attn_pool is None else each_alone(trunk.attn_pool, alone)
            return whole, visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(alone)))), prefix

        return trunk.norm_pre(trunk.patch_drop(trunk.pos_drop(placed))), trunk.blocks, read

    def _transformers(self, prepared: Tensor) -> tuple[Tensor, Any, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]]:
        inner: Any = self.inner
        vision = inner.vision
        if hasattr(inner, "embedded"):  # SigLIP: no class token, an attention pool
            placed = inner.embedded(prepared) if inner.patches else vision.embeddings(prepared, interpolate_pos_encoding=True)

            def read(tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
                whole = normalize(vision.head(vision.post_layernorm(tokens)), dim=-1)
                return whole, each_alone(vision.head, vision.post_layernorm(values)), 0

            return placed, Layers(vision.encoder.layers), read

        def read_clip(tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
            whole = normalize(inner.projection(vision.post_layernorm(tokens[:, 0])), dim=-1)
            return whole, inner.projection(vision.post_layernorm(values[:, 1:])), 1

        placed = vision.pre_layrnorm(vision.embeddings(prepared, interpolate_pos_encoding=True))
        return placed, Layers(vision.encoder.layers), read_clip


class Layers:
    """transformers' layers, which want a mask."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, number: int) -> Any:
        if number == -1:
            return self.layers[-1]
        layer = self.layers[number]  # raises IndexError at the end, which ends a loop
        return lambda tokens: layer(tokens, attention_mask=None)


def _first(found: Any) -> Tensor:
    tokens: Tensor = found[0] if isinstance(found, tuple) else found
    return tokens


def value_value(block: Any, tokens: Tensor) -> Tensor:
    """(N, L, width): what the last block's attention adds where values attend to values, of the tokens before it."""
    if hasattr(block, "ln_1") and hasattr(block.attn, "qkv"):  # open_clip, taken apart to be changed
        attention = block.attn
        values, heads, out = attention.qkv(block.ln_1(tokens)).chunk(3, -1)[2], attention.heads, attention.out_proj
    elif hasattr(block, "ln_1"):  # open_clip
        normed, attention = block.ln_1(tokens), block.attn
        width = normed.shape[2]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
        values, heads, out = linear(normed, attention.in_proj_weight[2 * width :], bias), attention.num_heads, attention.out_proj
    elif hasattr(block, "norm1"):  # timm
        attention = block.attn
        values, heads, out = attention.qkv(block.norm1(tokens)).chunk(3, -1)[2], attention.num_heads, attention.proj
    else:  # transformers
        attention = block.self_attn
        values, heads, out = attention.v_proj(block.layer_norm1(tokens)), attention.num_heads, attention.out_proj
    split = values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)
    mixed: Tensor = out(scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2))
    return mixed


def resized(positions: Tensor, cells: int) -> Tensor:
    """Position vectors (P + G x G, width) of a square for another square of `cells`; those of the first tokens stay."""
    native = math.isqrt(len(positions))
    prefix = len(positions) - native**2
    side = math.isqrt(cells)
    if side == native:
        return positions
    square = positions[prefix:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
    grown = interpolate(square, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:prefix], grown.flatten(2)[0].T])
