"""KgCoOp: a learnt context whose prompts are held near those that the words alone give."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning import prompt_learning
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.prompt_learning import Precision, Prompted
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Problem


@dataclass(frozen=True)
class Kgcoop(Learner):
    """CoOp plus weight x mean over classes of 1 - cosine(prompt, the prompt as written) (Yao et al. 2023; weight 8 there and here).

    The held prompts are the first ones as given, so no step answers like zero-shot with them. Optimiser, steps and start are
    CoOp's, so that only the term differs.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt"
    cost = "seconds: passes through the text tower"
    good_when = "1 to 16 images a class, words that know them, and new classes later"
    poor_when = "words that do not know the classes: the term holds it near them"
    papers = ("arxiv:2303.13283",)
    weight: Annotated[float, Field(ge=0)] = 8.0
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
            written = words.texts(words.beginning)

        def loss(batch: Tensor) -> Tensor:
            texts = words.texts(first + spread * change)
            return lesson.loss(texts, batch) + self.weight * (1 - (texts * written).sum(1)).mean()

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"change": change}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return Prompted(first + spread * kept["change"], words.ids, words.template)
