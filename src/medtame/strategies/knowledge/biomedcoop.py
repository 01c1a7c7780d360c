"""BiomedCoOp: a learnt context held near an ensemble of sentences that describe the classes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from medtame.data.class_findings import chosen
from medtame.learning import prompt_learning
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.prompt_learning import Lesson, Precision, Prompted
from medtame.strategies.base import Learner, labelled
from medtame.types import Adapted, Candidates, Encoder, Problem

SHIPPED = Path(__file__).with_name("findings")
MAD_OF_NORMAL = 0.6745  # the median absolute deviation of a normal variable of deviation 1


@dataclass(frozen=True)
class Biomedcoop(Learner):
    """CoOp + closeness x mean squared difference of prompt and ensemble + teaching x KL(teacher, learnt) (Koleilat et al. 2025).

    The ensemble of a class is the mean of its prompts and of each of them with each finding ("..., which shows ..."), from
    `file` as the method descriptors takes it: the paper has 50 sentences of a language model. The teacher is the ensemble
    without sentences that stand out: the mean over the support of the highest logit that a sentence number gives, its distance
    from the median in median absolute deviations at most `outlier`; where all are alike, none is left out. A class with fewer
    sentences repeats them. Squares are summed over a vector here (the mean over D there, which makes the weight depend on D).
    One setting for all data; the released code has one for each set. Optimiser, steps and start are CoOp's.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows", "owned_findings"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt"
    cost = "seconds: passes through the text tower"
    good_when = "1 to 16 images a class and good descriptions of each class"
    poor_when = "an encoder whose words do not know the descriptions: they hold it back"
    papers = ("arxiv:2411.15232",)
    file: str = ""
    closeness: Annotated[float, Field(ge=0)] = 1.0
    teaching: Annotated[float, Field(ge=0)] = 1.0
    outlier: Annotated[float, Field(gt=0)] = 1.5
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
        sentences, note = ensemble(problem.query.wanted, self.file)
        with torch.no_grad():
            each = sentence_vectors(sentences, problem.query.encoder)
            written = normalize(each.mean(1), dim=-1)
            taught = lesson.likely(
                lesson.logits(normalize(each[:, kept_sentences(each, lesson, self.outlier)].mean(1), dim=-1), torch.arange(len(rows)))
            )

        def loss(batch: Tensor) -> Tensor:
            texts = words.texts(first + spread * change)
            logits = lesson.logits(texts, batch)
            apart = ((texts - written) ** 2).sum(1).mean()
            teaching = lesson.loss_of(logits, taught[batch]) / len(words.names)
            return lesson.loss_of(logits, targets[batch]) + self.closeness * apart + self.teaching * teaching

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"change": change}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return Prompted(first + spread * kept["change"], words.ids, words.template, note=note)


def ensemble(candidates: Candidates, file: str) -> tuple[list[list[str]], str]:
    """All sentences of each candidate, then of its absence where it has one, and what to say of the findings."""
    found, note = chosen(candidates.names, file, SHIPPED)
    sentences = []
    for name, prompts in zip(candidates.names, candidates.prompts, strict=True):
        findings = () if found is None else found.of(name)
        sentences.append([*prompts, *(f"{prompt}, which shows {finding}" for prompt in prompts for finding in findings)])
    return [*sentences, *map(list, candidates.negatives or ())], note


def sentence_vectors(sentences: Sequence[Sequence[str]], encoder: Encoder) -> Tensor:
    """(C, P, D) unit norm; P is the most sentences that a candidate has, and the others repeat theirs."""
    most = max(map(len, sentences))
    flat = [own[number % len(own)] for own in sentences for number in range(most)]
    return encoder.texts(flat).reshape(len(sentences), most, -1)


def kept_sentences(each: Tensor, lesson: Lesson, outlier: float) -> Tensor:
    """The numbers of the sentences whose score on the support does not stand out."""
    scores = torch.stack(
        [lesson.logits(each[:, number], torch.arange(len(lesson.vectors))).amax(1).mean() for number in range(each.shape[1])]
    )
    apart = (scores - scores.median()).abs()
    middle = apart.median()
    if middle == 0:
        return torch.arange(len(scores))
    return torch.nonzero(MAD_OF_NORMAL * apart / middle <= outlier)[:, 0]
