"""Other views of feature vectors for a linear probe: a signed root of every number, or every column at one spread."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

View = Literal["plain", "power", "standardised"]
LEAST = 0.1  # of the root mean square deviation: a column that hardly varies in the support is not blown up


def rooted(features: Tensor) -> Tensor:
    """(N, F) sign x square root of every number, then unit norm (the power transform of Perronnin et al. 2010)."""
    return nn.functional.normalize(features.sign() * features.abs().sqrt(), dim=-1)


def spread(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and divisor (F,) of support features (n, F) after which every column has deviation 1 / root of F.

    The divisor of a column is at least a tenth of the columns' root mean square; 1 where no row differs from another.
    """
    mean = features.mean(0)
    deviation = (features - mean).square().mean(0).sqrt()
    typical = deviation.square().mean().sqrt()
    if float(typical) == 0:
        return mean, deviation + 1
    return mean, deviation.clamp(min=LEAST * float(typical)) * features.shape[1] ** 0.5


def folded(weight: Tensor, bias: Tensor, mean: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (C, F) and bias (C,) on the features themselves that equal those on (features - mean) / divisor."""
    weight = weight / divisor
    return weight, bias - weight @ mean
