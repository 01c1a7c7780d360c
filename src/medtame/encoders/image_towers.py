"""Image towers of open_clip's models: prepared pixels -> (whole, maps), as `TowerEncoder` wants them.

`whole` is the model's own image embedding. The first map gives each position what the pool would give it alone: its token through
the final norm and the projection or, under attention pooling, the value path, since attention over one position has weight one.
So both lie in the text's space. The second map is the last layer's tokens as they are, for probes. Every linear layer is called as
a layer, so LoRA reaches it; those inside torch's MultiheadAttention (open_clip's own ViT) once `opened` has taken it apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from medtame.errors import EncoderError

Maps = tuple[Tensor, ...]


def tower_of(visual: Any) -> nn.Module:
    """The tower around the image side of an open_clip model. Raises EncoderError for a kind that has no map."""
    kinds = {"VisionTransformer": ClipViT, "ModifiedResNet": ClipResNet, "TimmModel": TimmTower}
    kind = type(visual).__name__
    if kind not in kinds:
        raise EncoderError(f"image towers of kind {kind} are not known: give a CLIP, SigLIP or BiomedCLIP kind of model")
    return kinds[kind](visual)


class ClipViT(nn.Module):
    """CLIP's vision transformer: (N, 3, S, S) -> whole (N, D), maps (N, D, G, G) and (N, width, G, G)."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
            raise EncoderError("this vision transformer pools by attention as CoCa does, which is not known: give another encoder")
        self.visual = visual

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        visual: Any = self.visual
        raw = visual.transformer(visual._embeds(prepared))
        pooled, _ = visual._pool(raw)
        aligned = visual.ln_post(raw[:, 1:]) @ visual.proj
        return normalize(pooled @ visual.proj, dim=-1), (as_map(aligned), as_map(raw[:, 1:]))


class ClipResNet(nn.Module):
    """CLIP's ResNet with its attention pool: (N, 3, S, S) -> whole (N, D), maps (N, D, G, G) and (N, C, G, G)."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        visual: Any = self.visual
        raw = visual.stem(prepared)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            raw = layer(raw)
        positions = raw.flatten(2).transpose(1, 2)
        placed = torch.cat([positions.mean(1, keepdim=True), positions], 1) + visual.attnpool.positional_embedding.to(raw.dtype)
        values = visual.attnpool.v_proj(placed)
        return self.pooled(placed, values), (as_map(visual.attnpool.c_proj(values[:, 1:])), raw)

    def pooled(self, placed: Tensor, values: Tensor) -> Tensor:
        """The mean token attends to itself and to all positions (N, 1 + G x G, C): (N, D), unit norm."""
        pool: Any = self.visual.attnpool
        query, keys, values = (
            each.reshape(*each.shape[:2], pool.num_heads, -1).transpose(1, 2)
            for each in (pool.q_proj(placed[:, :1]), pool.k_proj(placed), values)
        )
        attended = scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)[:, 0]
        return normalize(pool.c_proj(attended), dim=-1)


class TimmTower(nn.Module):
    """A timm trunk with open_clip's head: vision transformers (BiomedCLIP, SigLIP) and networks that pool a map (ConvNeXt)."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk
        self.tokens = all(hasattr(trunk, part) for part in ("blocks", "attn_pool", "fc_norm", "head_drop", "head", "num_prefix_tokens"))
        rows_last = getattr(trunk, "output_fmt", "NCHW") != "NCHW"
        if not self.tokens and (hasattr(visual.head, "pool") or not hasattr(trunk, "forward_head") or rows_last):
            raise EncoderError(f"timm's {type(trunk).__name__} with this pool has no known map: give another encoder")
        self.visual = visual

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        visual: Any = self.visual
        raw = visual.trunk.forward_features(prepared)
        whole = normalize(visual.head(visual.trunk.forward_head(raw)), dim=-1)
        return whole, self.token_maps(raw) if self.tokens else self.pooled_maps(raw)

    def token_maps(self, raw: Tensor) -> Maps:
        visual: Any = self.visual
        trunk = visual.trunk
        tokens = raw[:, trunk.num_prefix_tokens :]
        alone = tokens if trunk.attn_pool is None else each_alone(trunk.attn_pool, tokens)
        return as_map(visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(alone))))), as_map(tokens)

    def pooled_maps(self, raw: Tensor) -> Maps:
        visual: Any = self.visual
        count, channels, height, width = raw.shape
        alone = raw.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        aligned = visual.head(visual.trunk.forward_head(alone)).reshape(count, height * width, -1)
        return as_map(aligned), raw


def each_alone(pool: nn.Module, tokens: Tensor) -> Tensor:
    """An attention pool (M, L, C) -> (M, D) over each token of (N, L, C) alone: (N, L, D)."""
    pooled: Tensor = pool(tokens.reshape(-1, 1, tokens.shape[2]))
    return pooled.reshape(*tokens.shape[:2], pooled.shape[-1])


def as_map(tokens: Tensor) -> Tensor:
    """(N, G x G, F), row by row -> (N, F, G, G)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)
