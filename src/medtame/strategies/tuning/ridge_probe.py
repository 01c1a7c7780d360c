"""Ridge regression of the labels in closed form, its penalty by exact leave-one-out where the support allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.features.transforms import View, folded, rooted, spread
from medtame.strategies.base import REFUSED, Method, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

PENALTIES = torch.logspace(-4, 2, 20, dtype=torch.float64)


@dataclass(frozen=True)
class RidgeProbeAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)
    penalty: float
    chosen_by_data: bool
    power: bool = False  # whether the weights are of the rooted features

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = rooted(query.features()) if self.power else query.features()
        return Scores(masked(features @ self.weight.T + self.bias, query.allowed))


def leave_one_out(features: Tensor, targets: Tensor, penalties: Tensor) -> Tensor:
    """(P,) mean squared error of each row predicted by a ridge fit without it, features (n, F) and targets (n, C) centred.

    One eigendecomposition, of the smaller Gram matrix, serves all penalties: the residual of row i without row i is
    r_i / (1 - h_ii), with h the hat matrix (the constant's 1/n included).
    """
    n = len(features)
    if n <= features.shape[1]:
        values, vectors = torch.linalg.eigh(features @ features.T)
    else:
        values, directions = torch.linalg.eigh(features.T @ features)
        directions, values = directions[:, values > 1e-10 * values[-1]], values[values > 1e-10 * values[-1]]
        vectors = features @ directions / values.sqrt()
    rotated, squared = vectors.T @ targets, vectors.square()
    shrink = values.clamp(min=0) / (values.clamp(min=0) + penalties[:, None])  # (P, rank)
    shrunk = (shrink.T[:, :, None] * rotated[:, None]).flatten(1)  # (rank, P x C): all penalties in one product
    fitted = (vectors @ shrunk).unflatten(1, (len(penalties), -1))  # (n, P, C)
    leverage = squared @ shrink.T + 1 / n
    residual = (targets[:, None] - fitted) / (1 - leverage).clamp(min=1e-9)[..., None]
    errors: Tensor = residual.square().mean((0, 2))
    return errors


def solved(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """(F, C) ridge weights of centred features (n, F) and targets (n, C), by the smaller of both Gram matrices."""
    n, width = features.shape
    if n <= width:
        gram = features @ features.T + penalty * torch.eye(n, dtype=features.dtype)
        return features.T @ torch.as_tensor(torch.linalg.solve(gram, targets))
    gram = features.T @ features + penalty * torch.eye(width, dtype=features.dtype)
    return torch.as_tensor(torch.linalg.solve(gram, features.T @ targets))


@dataclass(frozen=True)
class RidgeProbe(Method):
    """Least squares to one-hot labels with a penalty on the weights (Hoerl and Kennard 1970), on centred features.

    The penalty is the one of 20 with the least leave-one-out error where each class has two support rows or more; else
    `penalty`, and the result says that it was not chosen by data. Logits are predicted targets times the encoder's scale; where
    several may hold, each candidate is fitted on its known rows and cut in the middle.
    `features`: plain, power (signed root, unit norm again), or standardised (each column to one mean and spread; both are of the
    support alone and are kept inside the weights).
    """

    needs = frozenset({"labels"})
    reads = frozenset({"rows"})
    trains = "a linear layer on frozen features, in closed form"
    good_when = "2 images a class or more, and the fastest fit with a chosen penalty"
    poor_when = "1 image a class: its penalty is then not chosen by data"
    papers = ("doi:10.1080/00401706.1970.10488634",)
    penalty: Annotated[float, Field(gt=0)] = 0.1
    features: View = "plain"

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        features = problem.query.features()[rows]
        if self.features == "power":
            return replace(self._probe(problem, rooted(features), targets), power=True)
        if self.features == "plain":
            return self._probe(problem, features, targets)
        mean, divisor = spread(features)
        probe = self._probe(problem, (features - mean) / divisor, targets)
        weight, bias = folded(probe.weight, probe.bias, mean, divisor)
        return replace(probe, weight=weight, bias=bias)

    def _probe(self, problem: Problem, features: Tensor, targets: Tensor) -> RidgeProbeAdapted:
        features = features.double()
        if problem.query.wanted.exclusive:
            return self._fitted(problem, features, targets.double())
        parts = [self._fitted(problem, features[~y.isnan()], y[~y.isnan(), None].double()) for y in targets.T]
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        middle = problem.query.encoder.scale / 2  # of targets 0 and 1: yes is above zero
        chosen = all(part.chosen_by_data for part in parts)
        return RidgeProbeAdapted(problem.query.wanted.names, weight, bias - middle, max(part.penalty for part in parts), chosen)

    def _fitted(self, problem: Problem, features: Tensor, targets: Tensor) -> RidgeProbeAdapted:
        if not len(features):
            nothing = torch.zeros(targets.shape[1], features.shape[1])
            return RidgeProbeAdapted(problem.query.wanted.names, nothing, torch.full((len(nothing),), REFUSED), self.penalty, False)
        mean_features, mean_targets = features.mean(0), targets.mean(0)
        x, y = features - mean_features, targets - mean_targets
        counts = targets.sum(0)
        enough = len(x) > 2 and bool((counts[counts > 0] >= 2).all())
        penalty = float(PENALTIES[leave_one_out(x, y, PENALTIES).argmin()]) if enough else self.penalty
        scale = problem.query.encoder.scale
        weight = scale * solved(x, y, penalty).T
        bias = scale * mean_targets - weight @ mean_features
        return RidgeProbeAdapted(problem.query.wanted.names, weight.float(), bias.float(), penalty, enough)
