"""Key-value caches of support rows (Tip-Adapter): their logits, and the search of their two numbers on the support itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medtame.learning.supports import balanced_loss
from medtame.types import Array

STRENGTHS = torch.logspace(-2, 2, 20)  # alpha, at a logit scale of 100
SHARPNESSES = torch.arange(1.0, 21.0)  # beta, at a logit scale of 100: multiples of the first
NO_WORSE = 1e-3  # a difference of mean cross-entropy that is none: where many settings fit the support, the weakest cache is taken
LN_2 = math.log(2)
AT_ONCE = 2**24  # numbers, at most, of a block


def cached_logits(features: Tensor, keys: Tensor, values: Tensor, alpha: float, beta: float) -> Tensor:
    """(N, C) alpha x exp(-beta (1 - cosine)) summed over keys (n, F) with their values (n, C); features (N, F)."""
    blocks = torch.split(features, max(1, AT_ONCE // len(keys)))
    return torch.cat([alpha * torch.exp(-beta * (1 - block @ keys.T)) @ values for block in blocks])


def searched(
    features: Tensor, values: Tensor, zero_shot: Tensor, weights: Tensor, groups: Array, scale: float, *, exclusive: bool
) -> tuple[float, float]:
    """Alpha and beta of 20 x 20 with the least balanced cross-entropy of support rows that do not see themselves in the cache.

    All rows of a row's group (its image, its patient) are masked out of the cache for it, and what is left of a class is brought
    to its full weight: else a row's own class is always the one that is short of entries. Similarities are computed once; since
    the values of beta are multiples of the first, each affinity is the one before times the first. Of settings that are as good as
    the best to a thousandth, the least alpha is taken, with its best beta.

    Args:
        features: (n, F) unit norm; they are the keys too.
        values: (n, C) what a key adds.
        zero_shot: (n, C) logits to which the cache is added.
        weights: (n, C) of `supports.balance`.
        groups: (n,) patient or case of each row.
        scale: the encoder's; both numbers are relative to it.
    """
    alphas, first = STRENGTHS * scale / 100, float(SHARPNESSES[0]) * scale / 100
    losses = torch.zeros(len(SHARPNESSES), len(alphas))
    own = torch.as_tensor(np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1])
    sides = [values.clamp(min=0)] if exclusive else [values.clamp(min=0), values.clamp(max=0)]
    at_once = max(1, AT_ONCE // (len(features) + len(alphas) * values.shape[1]))
    for rows in torch.split(torch.arange(len(features)), at_once):
        others = (own[rows, None] != own).float()
        full = [(side.sum(0) / (others @ side)).nan_to_num(1, posinf=1) for side in sides]  # 1 for a class without rows
        step = torch.exp(-first * (1 - features[rows] @ features.T)) * others
        affinity, of_strengths = step.clone(), losses_of(zero_shot[rows], weights[rows], alphas, exclusive=exclusive)
        for number in range(len(SHARPNESSES)):
            losses[number] += of_strengths(sum((affinity @ side * share for side, share in zip(sides, full, strict=True)), torch.zeros(())))
            affinity.mul_(step)
    alpha = int((losses <= losses.min() + NO_WORSE * values.shape[1]).any(0).float().argmax())
    return float(alphas[alpha]), float(SHARPNESSES[losses[:, alpha].argmin()]) * scale / 100


def losses_of(start: Tensor, weights: Tensor, alphas: Tensor, *, exclusive: bool) -> Callable[[Tensor], Tensor]:
    """A function of cached (n, C) that gives (A,) `supports.balanced_loss` of start + alpha x cached for each alpha.

    Classes come first, so that long rows are added; powers are of 2, which take half as long as those of e.
    """
    if not exclusive:
        return lambda cached: balanced_loss(start + alphas[:, None, None] * cached, weights, exclusive=False)
    of_start, mass, said = (start.T / LN_2)[:, None].contiguous(), weights.sum(1) * LN_2, (weights * start).sum()
    held = torch.empty(start.shape[1], len(alphas), len(start))

    def losses(cached: Tensor) -> Tensor:
        logits = torch.addcmul(of_start, alphas[:, None], (cached.T / LN_2)[:, None].contiguous(), out=held)
        most = logits.amax(0)
        return logits.sub_(most).exp2_().sum(0).log2_().add_(most) @ mass - said - alphas * (weights * cached).sum()

    return losses
