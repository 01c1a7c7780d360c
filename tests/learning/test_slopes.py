"""Gradients in closed form are those of autograd."""

from __future__ import annotations

import pytest
import torch

from medtame.learning.slopes import of_balanced, of_mean, to_prototypes, units
from medtame.learning.supports import balance, balanced_loss


def made(*, exclusive: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (6, 5) and targets (6, 3): the last class is missing; where several may hold, one is unknown."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(6, 5, generator=random, dtype=torch.float64), dim=1)
    targets = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 0, 1, 0, 1, 0])]
    if not exclusive:
        targets[1, 1], targets[2, 2], targets[0, 1] = 1, 1, torch.nan
    return vectors, targets


def plain_mean(logits: torch.Tensor, targets: torch.Tensor, *, exclusive: bool) -> torch.Tensor:
    if exclusive:
        return torch.nn.functional.cross_entropy(logits, targets)
    known = ~targets.isnan()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("of_rows", [True, False])
@pytest.mark.parametrize("loss", ["mean", "balanced"])
def test_the_gradient_to_prototypes_is_autograds(exclusive: bool, of_rows: bool, loss: str):
    vectors, targets = made(exclusive=exclusive)
    random = torch.Generator().manual_seed(1)
    texts = torch.randn(*((6, 3, 5) if of_rows else (3, 5)), generator=random, dtype=torch.float64)
    shift = torch.randn(3, 5, generator=random, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(6, 3, dtype=torch.bool)
    allowed[3, 1] = allowed[4, 1] = False  # row 4 may not take what it is
    scale, weights = 7.0, balance(targets, exclusive=exclusive)

    unit, norms = units(texts + shift)
    cosine = vectors @ unit.T if unit.ndim == 2 else torch.einsum("nd,ncd->nc", vectors, unit)
    logits = (scale * cosine).masked_fill(~allowed, -1e4)
    if loss == "mean":
        wanted, (value, slope) = plain_mean(logits, targets, exclusive=exclusive), of_mean(logits, targets, exclusive=exclusive)
    else:
        wanted, (value, slope) = balanced_loss(logits, weights, exclusive=exclusive), of_balanced(logits, weights, exclusive=exclusive)
    wanted.backward()
    with torch.no_grad():
        found = to_prototypes(slope, vectors, unit, norms, scale, allowed.numpy())
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    torch.testing.assert_close(found, shift.grad, rtol=1e-9, atol=1e-12)
    assert float(found.abs().max()) > 0.1
