"""Gaussian discriminant analysis on image features, added to zero-shot: closed form, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

from medtame.learning.supports import balance, balanced_loss, leaves_one_out, midway, present
from medtame.strategies.base import Method, hard, labelled, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Array, Problem, Query, Scores, dealt

STRENGTHS = torch.logspace(-2, 2, 17)
Shrinkage = Literal["ridge", "ledoit_wolf"]


@dataclass(frozen=True)
class GdaAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, F) times alpha and scale
    bias: Tensor  # (C,)
    alpha: float
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = nn.functional.normalize(query.features(), dim=-1)
        return Scores(masked(zero_shot_logits(query) + features @ self.weight.T + self.bias, query.allowed))


def shrunk(deviations: Tensor, shrinkage: Shrinkage) -> float:
    """What is added to the diagonal of the scatter matrix X'X of deviations (n, F) from class means."""
    n, width = deviations.shape
    total = float(deviations.square().sum())
    if shrinkage == "ridge":
        return total / max(n - 1, 1)  # (n - 1) S + trace(S) I
    share = min(float(ledoit_wolf_shrinkage(deviations.numpy(), assume_centered=True)), 1 - 1e-6)
    return max(share, 1e-6) / (1 - share) * total / width


def whitened(rows: Tensor, deviations: Tensor, shrinkage: Shrinkage) -> tuple[Tensor, float]:
    """Rows (C, F) times the precision P of deviations X (n, F), whose mean eigenvalue is brought to 1; and the trace of P X'X.

    The inverse of X'X + r I by the smaller of both Gram matrices; without any deviation it is the identity.
    """
    n, width = deviations.shape
    ridge = shrunk(deviations, shrinkage)
    if ridge < 1e-12:
        return rows, 0.0
    if n < width:
        gram = deviations @ deviations.T
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge * torch.eye(n, dtype=rows.dtype)))
        typical = (width - n + ridge * float(inverse.trace())) / width  # mean eigenvalue times the ridge
        spread = float(gram.trace() - (gram @ inverse * gram).sum()) / typical
        return (rows - rows @ deviations.T @ inverse @ deviations) / typical, spread
    gram = deviations.T @ deviations
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge * torch.eye(width, dtype=rows.dtype)))
    inverse = inverse * (width / float(inverse.trace()))
    return rows @ inverse, float((inverse * gram).sum())


def gaussians(features: Tensor, weights: Tensor, of_class: Tensor, shrinkage: Shrinkage) -> tuple[Tensor, Tensor]:
    """P m (C, F) and -m'P m / 2 (C,) of class means m, given by weights (n, C) of rows (n, F) that are of one class each (n,).

    The mean of few rows is longer than the mean of many by the noise in it. What is expected of it, the trace of P S over the
    rows of a class, is taken off, or a class would lose for being rare; where classes are balanced this changes nothing.
    """
    means, counts = weights.T @ features, torch.bincount(of_class, minlength=weights.shape[1])
    deviations = features - means[of_class]
    whole, spread = whitened(means, deviations, shrinkage)
    noise = spread / max(len(features) - int((counts > 0).sum()), 1) / counts.clamp(min=1)
    return whole, -((whole * means).sum(1) - noise) / 2


def discriminant(features: Tensor, targets: Tensor, shrinkage: Shrinkage, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Weight (C, F) and bias (C,) of f'P m - m'P m / 2, with P the precision and m the class mean; 0 for a class that is missing.

    One of C: taken against the mean over the classes that are there, so that one without rows stands where its text puts it.
    Several may hold: each is a problem of two classes, and gets the difference of both.
    """
    there = present(targets, exclusive=exclusive)
    weight, bias = torch.zeros(len(there), features.shape[1], dtype=features.dtype), torch.zeros(len(there), dtype=features.dtype)
    if exclusive:
        whole, part = gaussians(features, balance(targets, exclusive=True).to(features.dtype), targets.argmax(1), shrinkage)
        return (whole - whole[there].mean(0)) * there[:, None], (part - part[there].mean()) * there
    for k in torch.nonzero(there)[:, 0].tolist():
        known = ~targets[:, k].isnan()
        x, y = features[known], (targets[known, k] > 0.5).long()
        sides = nn.functional.one_hot(y, 2).to(features.dtype)
        whole, part = gaussians(x, sides / sides.sum(0), y, shrinkage)
        weight[k], bias[k] = whole[1] - whole[0], part[1] - part[0]
    return weight, bias


@dataclass(frozen=True)
class Gda(Method):
    """Zero-shot logits + alpha x scale x (f'P m_k - m_k'P m_k / 2): classes as Gaussians of one covariance (Wang et al. 2024).

    P is the inverse of the shrunk covariance within classes: `ridge`, the paper's d ((n - 1) S + trace(S) I)^-1 (Kubokawa and
    Srivastava 2008), or `ledoit_wolf`. Its mean eigenvalue is brought to 1, so that alpha says how much images weigh beside the
    text whatever the covariance; at K = 1, where there is no spread within classes, P is the identity. Where every class has rows
    of two patients, alpha is the one of 17 with the least cross-entropy in folds of the support, every class with the same
    weight; else it is the setting, and the result says that it was not chosen by data.

    `prior`: uniform, or empirical (log of the share of rows, one added to each class). Classes without rows keep their text.
    Where several may hold, each candidate is a problem of two classes, and its zero-shot logit is cut midway between them.
    """

    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    trains = "class means and one covariance, in closed form"
    good_when = "4 images a class or more beside words that know the classes"
    poor_when = "classes of very different spread: it has one covariance"
    papers = ("arxiv:2402.04087", "Kubokawa and Srivastava 2008, Journal of Multivariate Analysis 99")
    alpha: Annotated[float, Field(ge=0)] = 0.3
    shrinkage: Shrinkage = "ridge"
    prior: Literal["uniform", "empirical"] = "uniform"
    folds: Annotated[int, Field(ge=2)] = 5

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        features, zero_shot = nn.functional.normalize(query.features(), dim=-1), zero_shot_logits(query)
        offset = midway(zero_shot, targets, exclusive=exclusive)
        chosen = leaves_one_out(targets, query.samples.groups[query.source], exclusive=exclusive)
        alpha = self.alpha
        if chosen:
            fold = dealt(query.samples.groups, hard(targets.nan_to_num(0)), query.source, self.folds, problem.seed)
            alpha = self._chosen(features, targets, zero_shot + offset, fold, query.encoder.scale, exclusive=exclusive)
        weight, bias = discriminant(features, targets, self.shrinkage, exclusive=exclusive)
        strength = alpha * query.encoder.scale
        bias = strength * bias + offset + self._log_prior(targets, exclusive=exclusive)
        return GdaAdapted(query.wanted.names, strength * weight, bias, alpha, chosen)

    def _chosen(self, features: Tensor, targets: Tensor, start: Tensor, fold: Array, scale: float, *, exclusive: bool) -> float:
        """Alpha with the least balanced cross-entropy of rows that the fit did not see."""
        held = torch.zeros(features.shape[0], targets.shape[1])
        for number in np.unique(fold):
            outside, inside = torch.as_tensor(fold == number), torch.as_tensor(fold != number)
            weight, bias = discriminant(features[inside], targets[inside], self.shrinkage, exclusive=exclusive)
            held[outside] = scale * (features[outside] @ weight.T + bias)
        weights = balance(targets, exclusive=exclusive)
        losses = torch.stack([balanced_loss(start + alpha * held, weights, exclusive=exclusive) for alpha in STRENGTHS])
        return float(STRENGTHS[losses.argmin()])

    def _log_prior(self, targets: Tensor, *, exclusive: bool) -> Tensor:
        """(C,) log of the share of rows; where several may hold, of yes against no. Every count is one more than seen."""
        yes = targets.nan_to_num(0).sum(0) + 1
        if self.prior == "uniform":
            return torch.zeros(len(yes))
        return (yes / yes.sum()).log() if exclusive else (yes / ((1 - targets).nan_to_num(0).sum(0) + 1)).log()
