"""LP++: a linear probe on images whose logits are blended, class by class, with those of the text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Step
from medtame.learning.slopes import of_mean
from medtame.learning.supports import balance, present, rows_a_class
from medtame.strategies.base import Learner, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

MOMENTUM = 0.9
EVERY = 10  # steps of the image weights between two of the blend


@dataclass(frozen=True)
class LpPlusPlusAdapted(Adapted):
    names: tuple[str, ...]
    weight: Tensor  # (C, F + 1), the last column is the bias
    alpha: Tensor  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return Scores(masked(with_constant(query) @ self.weight.T + self.alpha * text_cosine(query), query.allowed))


def with_constant(query: Query) -> Tensor:
    """(N, F + 1) unit-norm features and a 1."""
    return nn.functional.pad(nn.functional.normalize(query.features(), dim=-1), (0, 1), value=1.0)


def text_cosine(query: Query) -> Tensor:
    """(N, C) cosine of images and texts: without scale and bias."""
    vectors, texts = query.vectors(), query.texts()
    return vectors @ texts.T if texts.ndim == 2 else torch.einsum("nd,ncd->nc", vectors, texts)


def step_sizes(features: Tensor, cosine: Tensor) -> tuple[float, float]:
    """Of the image weights, 4 n / largest eigenvalue of F'F, and of the blend, n / (4 max over classes of the sum of cosine^2)."""
    gram = features.T @ features if features.shape[0] > features.shape[1] else features @ features.T
    largest = float(torch.linalg.eigvalsh(gram.double())[-1])
    return 4 * len(features) / largest, len(features) / (4 * max(float(cosine.square().sum(0).max()), 1e-6))


@dataclass(frozen=True)
class LpPlusPlus(Learner):
    """logits f.w_k + b_k + alpha_k f.t_k, all of it learnt with step sizes from the data (Huang et al. 2024; Shakeri et al. 2024).

    w starts at the class mean times the rows a class (the paper's class sums where classes are balanced; at most 16, the most
    that the paper has), alpha at 2.5 x the encoder's scale (250 for CLIP) x the mean over classes of the mean cosine of a class's
    rows with their own text, at least 0. Both use the true number of rows of each class, where the released code divides by the
    number of shots. Gradient descent with momentum on w and b; every tenth step one on alpha, with the gradient of that step
    alone, as in the formula (the released code never zeroes it, so it adds up over all steps before). 300 steps of the whole
    support, the last one kept, while the released code takes the best on a validation set. b counts as the weight of a constant
    feature when the step size is found, without which it diverges where features have no common direction.

    Classes without a support row take no part in the fit: their logit is the mean alpha times the cosine of their text, and the
    image part of the others is taken against its mean.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    trains = "a linear layer on frozen features and a blend with the text a class"
    cost = "a second on cached features"
    good_when = "4 images a class or more, with words of unknown use: it weighs them"
    poor_when = "1 image a class beside words that know the classes"
    papers = ("arxiv:2404.02285", "arxiv:2409.03868")
    steps: Annotated[int, Field(ge=0)] = 300

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        features, cosine, there = with_constant(query), text_cosine(query), present(targets, exclusive=exclusive)
        of_weight, of_alpha = step_sizes(features, cosine)
        values = self._started(problem, features, cosine, targets) if resume is None else {k: v.clone() for k, v in resume.items()}
        targets = targets if exclusive else targets.masked_fill(~there, torch.nan)
        missing = torch.zeros(len(there)).masked_fill(~there & exclusive, -1e30)

        def residual() -> tuple[Tensor, Tensor]:
            """The mean loss of a row, and its gradient to the logits (n, C)."""
            logits = masked((values["weight"] @ features.T).T + values["alpha"] * cosine, query.allowed) + missing
            if exclusive:
                return of_mean(logits, targets, exclusive=True)
            return of_mean(logits, targets, exclusive=False)[0], (logits.sigmoid() - targets).nan_to_num(0) / len(targets)

        for number in range(int(values["step"]) + 1, self.steps + 1):
            loss, slope = residual()
            values["momentum"] = MOMENTUM * values["momentum"] + slope.T @ features
            values["weight"] = values["weight"] - of_weight * values["momentum"]
            if number % EVERY == 0:
                values["alpha"] = values["alpha"] - of_alpha * (slope * cosine).sum(0)
            values["step"] = torch.tensor(number)
            yield Step(number, self.steps, float(loss), _kept(values))
        return self._finished(problem, values, there)

    def _started(self, problem: Problem, features: Tensor, cosine: Tensor, targets: Tensor) -> dict[str, Tensor]:
        exclusive = problem.query.wanted.exclusive
        there = present(targets, exclusive=exclusive)
        weight = rows_a_class(targets, exclusive=exclusive) * balance(targets, exclusive=exclusive).T @ features
        weight[:, -1] = 0
        own = (targets.nan_to_num(0) * cosine).sum(0) / targets.nansum(0).clamp(min=1e-12)
        alpha = 2.5 * problem.query.encoder.scale * float(own[there].mean().clamp(min=0))
        start = {"weight": weight, "alpha": torch.full((len(there),), alpha), "momentum": torch.zeros_like(weight)}
        return start | {"step": torch.tensor(0)}

    def _finished(self, problem: Problem, values: dict[str, Tensor], there: Tensor) -> Adapted:
        weight, alpha = values["weight"], values["alpha"].where(there, values["alpha"][there].mean())
        if problem.query.wanted.exclusive:
            weight = (weight - weight[there].mean(0)) * there[:, None]
        return LpPlusPlusAdapted(problem.query.wanted.names, weight, alpha)


def _kept(values: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """The state of a step; values are replaced, never changed in place, so a copy of the references will do."""
    now = dict(values)
    return lambda: {name: tensor.clone() for name, tensor in now.items()}
