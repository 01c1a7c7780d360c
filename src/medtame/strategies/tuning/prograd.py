"""ProGrad: a learnt context that moves only where zero-shot does not object."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning import prompt_learning
from medtame.learning.loop import Descent, Some, Step, descend_slopes
from medtame.learning.prompt_learning import Precision, Prompted
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Problem


@dataclass(frozen=True)
class Prograd(Learner):
    """CoOp whose gradient loses what points against that of KL(zero-shot, learnt) (Zhu et al. 2023): where the two gradients have a
    negative product, `share` of the part along the second is taken out.

    Optimiser, steps and start are CoOp's, so that only the projection differs; the temperature of the KL is 1, as there.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt"
    cost = "seconds: passes through the text tower"
    good_when = "1 to 8 images a class beside words that know the classes"
    poor_when = "words that do not know the classes: it may not leave them"
    papers = ("arxiv:2205.14865",)
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    batch: Annotated[int, Field(gt=0)] = 64
    tokens: Annotated[int, Field(ge=0, le=64)] = 0
    template: str = "a medical image of {}"
    precision: Precision = "float32"

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        lesson = prompt_learning.lesson(problem.query.take(rows.numpy()), targets, self.template, self.precision)
        words, first = lesson.words, prompt_learning.first_context(lesson.words, self.tokens, problem.seed)
        spread, change = words.spread, torch.zeros_like(first)
        with torch.no_grad():
            everything = torch.arange(len(rows))
            taught = lesson.likely(lesson.logits(words.texts(words.beginning), everything))

        def slopes(some: Some) -> tuple[Tensor, Mapping[str, Tensor | None]]:
            batch = everything[some]
            moved = change.detach().requires_grad_(True)
            logits = lesson.logits(words.texts(first + spread * moved), batch)
            loss, general = (lesson.loss_of(logits, to[batch]) for to in (targets, taught))
            (own,) = torch.autograd.grad(loss, moved, retain_graph=True)
            (theirs,) = torch.autograd.grad(general, moved)
            return loss.detach(), {"change": agreeing(own, theirs, self.share)}

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend_slopes({"change": change}, slopes, how, n=len(rows), seed=problem.seed, resume=resume)
        return Prompted(first + spread * kept["change"], words.ids, words.template)


def agreeing(own: Tensor, theirs: Tensor, share: float) -> Tensor:
    """A gradient without `share` of what points against another one."""
    product = (own * theirs).sum()
    return own if product >= 0 else own - share * product / (theirs**2).sum() * theirs
