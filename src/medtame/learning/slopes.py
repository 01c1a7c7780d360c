"""Gradients in closed form of what the small methods descend: a few products a step, where a tape costs ten times as much."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medtame.learning.supports import balanced_loss
from medtame.types import Array


def units(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (..., D) at unit norm, and their norms (..., 1)."""
    norms = torch.linalg.vector_norm(weights, dim=-1, keepdim=True).clamp(min=1e-12)
    return weights / norms, norms


def through_units(slope: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """(..., D) the gradient to weights, given that to their `units`."""
    return (slope - (slope * unit).sum(-1, keepdim=True) * unit) / norms


def to_prototypes(slope: Tensor, vectors: Tensor, unit: Tensor, norms: Tensor, scale: float, allowed: Array | None = None) -> Tensor:
    """(C, D) the gradient to weights whose units (C, D), or (n, C, D) where words of a row change them, score vectors (n, D).

    `slope` (n, C) is the gradient to the logits scale x cosine; none passes where a row may not take a candidate (`allowed`). Weights
    of rows are one weight plus the row's own text: their gradients are summed.
    """
    slope = slope if allowed is None else slope.masked_fill(~torch.as_tensor(allowed), 0)
    if unit.ndim == 2:
        return through_units(scale * slope.T @ vectors, unit, norms)
    return through_units(scale * slope[..., None] * vectors[:, None], unit, norms).sum(0)


def of_mean(logits: Tensor, targets: Tensor, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of rows, and its gradient to logits (n, C); where several may hold, over known targets (NaN is unknown)."""
    if exclusive:
        return of_shares(logits, targets / len(targets))
    known = ~targets.isnan()
    loss = nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])
    return loss, torch.where(known, logits.sigmoid() - targets, 0) / known.sum()


def of_shares(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """- sum of weights x log softmax of logits, both (n, C), and its gradient to logits; with classes first: long rows are added."""
    shares, mass = logits.T.contiguous(), weights.sum(1)
    most = shares.amax(0)
    shares = (shares - most).exp_()
    total = shares.sum(0)
    loss = mass @ total.log().add_(most) - (weights * logits).sum()
    return loss, shares.mul_(mass / total).T - weights


def of_balanced(logits: Tensor, weights: Tensor, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """`supports.balanced_loss` of logits (n, C), and its gradient to them."""
    if exclusive:
        return of_shares(logits, weights)
    loss = balanced_loss(logits, weights, exclusive=exclusive)
    return loss, -weights * torch.sigmoid(-weights.sign() * logits)
