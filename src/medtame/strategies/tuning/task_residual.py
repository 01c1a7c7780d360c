"""TaskRes: the text vectors stay as they are; a residual of its own is learnt beside each."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Some, Step, descend_slopes
from medtame.learning.slopes import of_mean, to_prototypes, units
from medtame.learning.supports import present
from medtame.strategies.base import Learner, allowed_of, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class TaskResidualAdapted(Adapted):
    names: tuple[str, ...]
    alpha: float
    residual: Tensor  # (C, D)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        weights = nn.functional.normalize(query.texts() + self.alpha * self.residual, dim=-1)
        return Scores(masked(cosine_logits(query.vectors(), weights, query.encoder), query.allowed))


@dataclass(frozen=True)
class TaskResidual(Learner):
    """Class weights t + alpha x with the text vector t frozen and x learnt from zero (Yu et al. 2023).

    alpha is .5 for all data, as in the paper but for one set; Adam, learning rate 2e-3, cosine decay, whole-support steps, the
    last one kept. The sum is brought to unit norm. A row's own words change its texts t; x is the same for all rows. A class
    without a support row keeps its text.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "a residual beside each text vector"
    cost = "a second on cached features"
    good_when = "1 to 16 images a class, and a second to spend"
    poor_when = "1 image a class beside words that know the classes: a little is lost"
    papers = ("arxiv:2211.10277",)
    steps: Annotated[int, Field(ge=0)] = 200
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    alpha: Annotated[float, Field(gt=0)] = 0.5

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        vectors, texts = query.vectors(), query.texts()
        learnt = self.alpha * present(targets, exclusive=exclusive)[:, None]
        residual = torch.zeros(targets.shape[1], vectors.shape[1])

        def loss(batch: Some) -> tuple[Tensor, dict[str, Tensor]]:
            allowed = allowed_of(query, batch)
            unit, norms = units((texts if texts.ndim == 2 else texts[batch]) + learnt * residual)
            shown = vectors[batch]
            logits = masked(cosine_logits(shown, unit, query.encoder), allowed)
            value, slope = of_mean(logits, targets[batch], exclusive=exclusive)
            return value, {"residual": learnt * to_prototypes(slope, shown, unit, norms, query.encoder.scale, allowed)}

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, warm_up=1)
        kept = yield from descend_slopes({"residual": residual}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return TaskResidualAdapted(problem.query.wanted.names, self.alpha, kept["residual"])
