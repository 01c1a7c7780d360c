"""What a support set allows and how its rows count, for methods in closed form: classes that are there, balance, thresholds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from medtame.types import Array

MOST = 16.0  # rows a class: the most that the few-shot papers fixed their defaults for


def present(targets: Tensor, *, exclusive: bool) -> Tensor:
    """(C,) whether a class can be learnt: it has a row; where several may hold, it has a row with it and a row without."""
    has = (targets > 0).any(0)
    return has if exclusive else has & (targets == 0).any(0)


def balance(targets: Tensor, *, exclusive: bool) -> Tensor:
    """(n, C) weights of rows with which every class counts the same, however many rows it has; NaN counts nothing.

    One of C: a class's weights sum to 1, or are 0 where it has no row. Several may hold: weights of rows with a class sum to 1,
    of rows without it to -1; both are 0 where either is missing.
    """
    yes = targets.nan_to_num(0)
    weights = yes / yes.sum(0).clamp(min=1e-12)
    if exclusive:
        return weights
    no = (1 - targets).nan_to_num(0)
    return (weights - no / no.sum(0).clamp(min=1e-12)) * present(targets, exclusive=False)


def rows_a_class(targets: Tensor, *, exclusive: bool) -> float:
    """Mean number of rows of a class that is there (one of C), or of each side of one (several may hold); at most `MOST`."""
    there = present(targets, exclusive=exclusive)
    counts = targets.sum(0) if exclusive else (~targets.isnan()).sum(0) / 2
    return min(MOST, float(counts[there].float().mean())) if bool(there.any()) else 1.0


def balanced_loss(logits: Tensor, weights: Tensor, *, exclusive: bool) -> Tensor:
    """(...) cross-entropy of logits (..., n, C) in which rows count as `balance` says: a sum over classes."""
    if exclusive:
        return -(weights * logits.log_softmax(-1)).sum((-2, -1))
    return (weights.abs() * nn.functional.softplus(-weights.sign() * logits)).sum((-2, -1))


def leaves_one_out(targets: Tensor, groups: Array, *, exclusive: bool) -> bool:
    """Whether every class that is there has rows of two patients (groups (n,)): else nothing may be chosen by leaving rows out."""
    there = present(targets, exclusive=exclusive)
    names, of_row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sides = [targets > 0] if exclusive else [targets > 0, targets == 0]
    found = [torch.zeros(len(names), targets.shape[1]).index_add(0, torch.as_tensor(of_row), side.float()) for side in sides]
    return bool(there.any()) and all(bool(((rows > 0).sum(0)[there] >= 2).all()) for rows in found)


def midway(logits: Tensor, targets: Tensor, *, exclusive: bool) -> Tensor:
    """(C,) what to add to logits (n, C) so that zero lies midway between rows with a candidate and rows without it.

    Cosines of images and texts are nearly all of one sign, so a yes or no needs a threshold. Zero for one of C, and where a side
    is missing.
    """
    if exclusive:
        return torch.zeros(targets.shape[1])
    yes, no = (targets > 0).float(), (targets == 0).float()
    middle = ((yes * logits).sum(0) / yes.sum(0).clamp(min=1) + (no * logits).sum(0) / no.sum(0).clamp(min=1)) / 2
    return -middle * present(targets, exclusive=False)
