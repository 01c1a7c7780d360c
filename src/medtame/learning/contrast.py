"""The contrast of images and texts over a batch (InfoNCE), which several objectives share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medtame.learning.pairs import Pairs
from medtame.types import Encoder

LARGEST_SCALE = 100.0


def both_ways(logits: Tensor, same: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of logits (n, n) of images and texts and what is right, in equal shares (n, n)."""
    right = same.float()
    to_text = -(right / right.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_image = -(right / right.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (to_text + to_image) / 2


def info_nce(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """`both_ways` of scale x cosine, of unit images (n, D) and texts (n, D)."""
    return both_ways(scale * images @ texts.T, same)


def bounded(log_scale: Tensor) -> Tensor:
    """Exp of it, at most LARGEST_SCALE; the gradient is that of exp, so that what stands at the bound can come down again."""
    scale = log_scale.exp()
    return scale + (scale.clamp(max=LARGEST_SCALE) - scale).detach()


def heat_learnt(ended: Mapping[str, Tensor], part: str, encoder: Encoder) -> tuple[float, float]:
    """Scale and bias that a part has learnt among the weights it ended with; the encoder's own where it has not."""
    log_scale, bias = ended.get(f"{part}.log_scale"), ended.get(f"{part}.bias")
    if log_scale is None or math.isclose(float(log_scale), math.log(min(encoder.scale, LARGEST_SCALE)), abs_tol=1e-6):
        return encoder.scale, encoder.bias
    return float(bounded(log_scale)), encoder.bias if bias is None else float(bias)


@dataclass(frozen=True)
class Contrast:
    """`info_nce` of some pairs with a temperature that moves, from the encoder's own."""

    pairs: Pairs
    log_scale: Tensor

    @classmethod
    def of(cls, pairs: Pairs) -> Contrast:
        return cls(pairs, torch.tensor(math.log(min(pairs.encoder.scale, LARGEST_SCALE))))

    @property
    def scale(self) -> Tensor:
        return bounded(self.log_scale)

    def __call__(self, images: Tensor, texts: Tensor, draws: Tensor) -> Tensor:
        """() of unit images (n, D) and texts (n, D) of draws (n,)."""
        return info_nce(images, texts, self.pairs.same(draws), self.scale)
