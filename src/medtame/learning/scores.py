"""How vectors become scores, and scores a loss: the same lines under every method whose answers are scores of candidates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medtame.types import Array, Encoder

REFUSED = -1e4  # the logit of an answer that a row may not take or that was never learnt


def cosine_logits(vectors: Tensor, texts: Tensor, encoder: Encoder) -> Tensor:
    """(N, C) logits from unit vectors (N, D) and candidates (C, D), or (N, C, D) where a row's words change them."""
    cosine = vectors @ texts.T if texts.ndim == 2 else torch.einsum("nd,ncd->nc", vectors, texts)
    return encoder.scale * cosine + encoder.bias


def masked(logits: Tensor, allowed: Array | None) -> Tensor:
    """Logits with the candidates that a row may not take put far below everything else; `allowed` is (N, C)."""
    return logits if allowed is None else logits.masked_fill(~torch.as_tensor(allowed), REFUSED)


def classification_loss(logits: Tensor, targets: Tensor, *, exclusive: bool) -> Tensor:
    """Mean cross-entropy over rows; where several may hold, the mean binary one over known targets (NaN carries no loss)."""
    if exclusive:
        return -(targets * logits.log_softmax(1)).sum(1).mean()
    known = ~targets.isnan()
    return nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])
