"""Kernel ridge regression on products: rows are alike where their questions are alike, and more so where their images are too.

k(r, r') = q(r, r') (1 + sum over views w v(r, r')): q compares questions, a view compares images (or what is said of them). The
part q alone answers from the question; q v is the (implicit) bilinear product of question and image features, so that the same
image feature can mean yes to one question and no to another. Weights and penalty by exact leave-one-group-out inside the support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medtame.types import Array

PENALTIES = torch.tensor([0.03, 0.1, 0.3, 1.0, 3.0, 10.0], dtype=torch.float64)
WEIGHTS = (0.5, 1.0, 2.0)
SHARPNESS = 20.0  # of predicted targets, in the softmax that weighs them


@dataclass(frozen=True)
class View:
    """How vectors (n, F) are made alike in scale: the support's mean is taken off, parts get one spread, each row unit norm."""

    centre: Tensor  # (F,)
    divisor: Tensor  # (F,)

    @classmethod
    def of(cls, parts: Sequence[Tensor], *, centred: bool = True) -> View:
        """From the support's vectors in parts (n, F_i) that count the same, such as scales of a grid."""
        means = [part.mean(0) if centred else torch.zeros_like(part[0]) for part in parts]
        spreads = [(part - mean).square().sum(1).mean().sqrt().clamp(min=1e-6) for part, mean in zip(parts, means, strict=True)]
        return cls(torch.cat(means), torch.cat([spread.expand(len(mean)) for spread, mean in zip(spreads, means, strict=True)]))

    def placed(self, parts: Sequence[Tensor]) -> Tensor:
        """(n, F) unit norm."""
        return nn.functional.normalize((torch.cat(list(parts), 1) - self.centre) / self.divisor, dim=-1)


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) (exp(cosine) - 1) / (e - 1) of unit vectors: 1 for the same, 0 at right angles; positive semidefinite (all powers but 0)."""
    alike: Tensor = torch.expm1(a.double() @ b.double().T) / np.expm1(1)
    return alike


def same_question(a: Tensor, b: Tensor, width: float) -> Tensor:
    """(n, m) Gaussian kernel exp(-width squared distance) of unit vectors of questions."""
    return torch.exp(-2 * width * (1 - a.double() @ b.double().T))


def leave_group_out(kernel: Tensor, targets: Tensor, groups: Array, penalties: Tensor) -> Iterator[Tensor]:
    """For each penalty (n, C): the rows of each group predicted by a fit without that group; kernel (n, n), targets (n, C).

    With A = (K + penalty I)^-1 the residual of group g without g is A_gg^-1 (A y)_g: one eigendecomposition serves all.
    """
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    rotated = vectors.T @ targets
    members = [torch.as_tensor(np.flatnonzero(groups == name)) for name in np.unique(groups)]
    for penalty in penalties:
        shrunk = 1 / (values + penalty)
        weights = vectors @ (shrunk[:, None] * rotated)
        predicted = targets.clone()
        for rows in members:
            block = (vectors[rows] * shrunk) @ vectors[rows].T
            predicted[rows] -= torch.linalg.solve(block, weights[rows])
        yield predicted


@dataclass(frozen=True)
class Judge:
    """How held-out predictions (n, C), about a mean, are weighed: the mean softmax probability of the true answer.

    A smooth accuracy: squared errors would prefer predictions so shrunken that the prior decides.
    """

    targets: Tensor  # (n, C)
    mean: Tensor  # (C,)
    allowed: Array | None

    def worth(self, predicted: Tensor) -> float:
        scores = SHARPNESS * (predicted + self.mean)
        if self.allowed is not None:
            scores = scores.masked_fill(~torch.as_tensor(self.allowed), -torch.inf)
        return float((scores.softmax(1) * self.targets).sum(1).mean())


@dataclass(frozen=True)
class ProductFit:
    """Support rows as the kernel sees them, and what was chosen."""

    questions: Tensor  # (n, D) unit norm
    views: tuple[Tensor, ...]  # a view: (n, F) unit norm
    weights: tuple[float, ...]  # a view
    coefficients: Tensor  # (n, C)
    mean: Tensor  # (C,)
    width: float
    penalty: float
    chosen_by_data: bool

    def scores(self, questions: Tensor, views: Sequence[Tensor]) -> Tensor:
        """(N, C) predicted targets, about 0 to 1, of questions (N, D) and placed vectors (N, F) a view."""
        alike = torch.ones(len(questions), len(self.questions), dtype=torch.float64)
        for kept, weight, vectors in zip(self.views, self.weights, views, strict=True):
            if weight:
                alike += weight * likeness(vectors, kept)
        kernel = same_question(questions, self.questions, self.width) * alike
        return (kernel @ self.coefficients.double() + self.mean.double()).float()


def fitted(
    questions: Tensor, views: Sequence[Tensor], targets: Tensor, groups: Array, width: float, allowed: Array | None = None
) -> ProductFit:
    """The fit whose weights (0 or one of three a view, one view after the other) and penalty answer best without a row's group.

    questions (n, D) and views (n, F) of unit norm, targets (n, C). Fewer than three groups choose nothing: weights 1, penalty .3.
    """
    base, likenesses = same_question(questions, questions, width), [likeness(view, view) for view in views]
    mean = targets.double().mean(0)
    centred = targets.double() - mean
    weights, penalty = [1.0] * len(views), 0.3
    enough = len(np.unique(groups)) > 2
    if enough:
        weights, penalty = chosen(base, likenesses, centred, groups, Judge(targets.double(), mean, allowed))
    kernel = mixed(base, likenesses, weights)
    coefficients = torch.linalg.solve(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype), centred)
    return ProductFit(questions, tuple(views), tuple(weights), coefficients.float(), mean.float(), width, penalty, enough)


def mixed(base: Tensor, likenesses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    alike = torch.ones_like(base)
    for weight, one in zip(weights, likenesses, strict=True):
        alike = alike + weight * one
    return base * alike


def chosen(base: Tensor, likenesses: Sequence[Tensor], targets: Tensor, groups: Array, judge: Judge) -> tuple[list[float], float]:
    """Weights and penalty by a search along one view after the other, from the question alone."""
    weights = [0.0] * len(likenesses)
    best, penalty = tried(base, targets, groups, judge)
    for place in range(len(weights)):
        for weight in WEIGHTS:
            other = [*weights[:place], weight, *weights[place + 1 :]]
            worth, found = tried(mixed(base, likenesses, other), targets, groups, judge)
            if worth > best:
                best, penalty, weights = worth, found, other
    return weights, penalty


def tried(kernel: Tensor, targets: Tensor, groups: Array, judge: Judge) -> tuple[float, float]:
    """The best worth over the penalties, and its penalty."""
    worths = [judge.worth(predicted) for predicted in leave_group_out(kernel, targets, groups, PENALTIES)]
    best = int(np.argmax(worths))
    return worths[best], float(PENALTIES[best])
