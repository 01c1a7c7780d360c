"""All query rows at once: a Gaussian a class, held near what the text says and smooth over neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from medtame.features.neighbours import nearest
from medtame.strategies.base import Method, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class TransductiveAdapted(Adapted):
    names: tuple[str, ...]
    rounds: int
    steps: int
    confident: int
    text_weight: float
    likelihood_weight: float
    neighbours: int
    note: str

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            features = nn.functional.normalize(query.features(), dim=-1)
            near, weights = nearest(features, self.neighbours)
            centred = features - features.mean(0)
            said = self.solved(centred, zero_shot_logits(query), near, weights.clamp(min=0))
        return Scores(masked(said, query.allowed))

    def solved(self, features: Tensor, logits: Tensor, near: Tensor, weights: Tensor) -> Tensor:
        """(N, C) log probabilities from centred features (N, D), zero-shot logits (N, C) and neighbours (N, k)."""
        prior, between, squares = self.text_weight * logits.log_softmax(1), affinity(near, weights), features.square().sum(0)
        said, share = logits, logits.softmax(1)
        sure = share.topk(min(self.confident, len(features)), dim=0).indices  # (confident, C)
        means = features[sure].mean(0)
        variance = spread(squares, share.T @ features, share.sum(0), means, len(features))
        for _ in range(self.rounds):
            known = prior + self.likelihood_weight * likelihood(features, means, variance)
            for _ in range(self.steps):
                said = known + torch.from_numpy(between @ share.numpy())
                share = said.T.contiguous().softmax(0).T  # with classes first, so that long rows are added
            sums, total = share.T @ features, share.sum(0)
            means = torch.where(total[:, None] > 1e-6, sums / total[:, None].clamp(min=1e-6), means)
            variance = spread(squares, sums, total, means, len(features))
        return said.log_softmax(1)


def affinity(near: Tensor, weights: Tensor) -> csr_matrix:
    """(N, N) sparse (W + W^T) / 2k, with W the cosines of each row's k neighbours."""
    n, k = near.shape
    found = csr_matrix((weights.numpy().ravel(), near.numpy().ravel(), np.arange(n + 1) * k), shape=(n, n))
    return (found + found.T) * np.float32(1 / max(1, 2 * k))


def likelihood(features: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """(N, C) log of the Gaussian densities, less what all classes share."""
    scaled = means / variance
    return features @ scaled.T - 0.5 * (means * scaled).sum(1)


def spread(squares: Tensor, sums: Tensor, total: Tensor, means: Tensor, rows: int) -> Tensor:
    """(D,) the variance that all classes share; none below a thousandth of their mean.

    `squares` (D,) summed over rows, `sums` (C, D) of rows by their shares, `total` (C,) of shares, `means` (C, D).
    """
    moment = squares - 2 * (means * sums).sum(0) + (total[:, None] * means.square()).sum(0)
    variance = (moment / rows).clamp(min=0)
    return variance.clamp(min=max(1e-3 * float(variance.mean()), 1e-12))


def caution(problem: Problem) -> str:
    """How often zero-shot is right on the labelled support rows: what transduction builds on."""
    targets = problem.targets.nan_to_num(0)
    rows = torch.nonzero(targets.sum(1) > 0)[:, 0]
    if not len(rows):
        return ""
    with torch.no_grad():
        right = int((zero_shot_logits(problem.query.take(rows.numpy())).argmax(1) == targets[rows].argmax(1)).sum())
    weak = right < max(0.4, 1.5 / targets.shape[1]) * len(rows)
    return f"zero-shot is right on {right} of {len(rows)} support rows" + (
        ": transduction starts from it and may well do harm here" if weak else ""
    )


@dataclass(frozen=True)
class Transductive(Method):
    """A mixture of Gaussians over all query rows, with the text as prior and a term over neighbours (Zanella et al. 2024).

    Class shares z, means and one diagonal variance by turns: z is proportional to y^text_weight x exp(likelihood_weight x log
    density + (W + W^T) z / 2k), with y the zero-shot probabilities and W the cosines of each row's k nearest other rows. Means
    start at the rows of which zero-shot is surest. The weight 1/50 and 3 neighbours are the constants of the released code,
    chosen for natural images, not by data here. Written from the formulas; memory grows with N, not N^2.

    All query rows are answered together, so what a row is answered depends on the others: it is no fair row beside methods that
    see one image at a time. It sharpens what zero-shot believes: where zero-shot is poor (in published tables, right in less
    than about 35 %) it makes things worse; `note` says how often zero-shot is right on the support. With few query rows little
    can be learnt from them.
    """

    needs = frozenset({"one_label"})
    scope = "set"
    reads = frozenset({"candidates"})
    towers = frozenset({"text"})
    trains = "nothing at fit; means and a variance of the query rows at predict"
    cost = "seconds on cached features, at predict"
    good_when = "zero-shot is good, and hundreds of rows are asked together"
    poor_when = "zero-shot is right in less than about a third of rows, or rows come one by one"
    papers = ("arxiv:2406.01837",)
    rounds: Annotated[int, Field(ge=0)] = 10
    steps_inside: Annotated[int, Field(ge=1)] = 5
    confident: Annotated[int, Field(ge=1)] = 8
    text_weight: Annotated[float, Field(ge=0)] = 1.0
    likelihood_weight: Annotated[float, Field(ge=0)] = 0.02
    neighbours: Annotated[int, Field(ge=0)] = 3

    def fit(self, problem: Problem) -> Adapted:
        numbers = (self.rounds, self.steps_inside, self.confident, self.text_weight, self.likelihood_weight, self.neighbours)
        return TransductiveAdapted(problem.query.wanted.names, *numbers, note=caution(problem))
