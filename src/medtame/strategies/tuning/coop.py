"""CoOp: the first words of the prompts become free vectors; the image side stays cached."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning import prompt_learning
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.prompt_learning import Place, Precision, Prompted
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Problem


@dataclass(frozen=True)
class Coop(Learner):
    """Context optimisation (Zhou et al. 2022): cross-entropy over scale x cosine, only the context vectors are learnt.

    The context takes the place of the words that all first prompts begin with ("chest X-ray of"), starts at their own
    embeddings, and so answers like zero-shot with that prompt before the first step; with `tokens` it is so many random vectors
    instead (the paper: 16, or 4 from "a photo of a"). Prompts that share no beginning are put into `template`. `place` is
    where the class's own words stand; `class_specific` gives each class a context, and then no new word can be asked about.
    Position and type embeddings are added once, by the tower. No augmentation, so image features stay cached. AdamW instead of
    SGD; `learning_rate` is in units of the deviation of the words' numbers, so that one value serves every tower. Steps and
    learning rate were chosen on held-out training rows of the phantom and chest_xray.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt"
    cost = "seconds: passes through the text tower"
    good_when = "4 images a class or more, and a text tower that knows the classes"
    poor_when = "1 or 2 images a class, or words that do not know them: use clap or a probe"
    papers = ("arxiv:2109.01134",)
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    batch: Annotated[int, Field(gt=0)] = 64
    tokens: Annotated[int, Field(ge=0, le=64)] = 0
    place: Place = "end"
    class_specific: bool = False
    template: str = "a medical image of {}"
    precision: Precision = "float32"

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        lesson = prompt_learning.lesson(problem.query.take(rows.numpy()), targets, self.template, self.precision)
        first = prompt_learning.first_context(lesson.words, self.tokens, problem.seed, each=self.class_specific)
        spread, change = lesson.words.spread, torch.zeros_like(first)

        def loss(batch: Tensor) -> Tensor:
            return lesson.loss(lesson.words.texts(first + spread * change, self.place), batch)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"change": change}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        words, names = lesson.words, problem.query.wanted.names if self.class_specific else ()
        return Prompted(first + spread * kept["change"], words.ids, words.template, self.place, names)
