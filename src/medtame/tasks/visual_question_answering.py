"""Visual question answering with a closed vocabulary: a row is an image with a question, candidates are the answers seen in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medtame.errors import DataError, PairError
from medtame.metrics.answers import answers, normalised
from medtame.metrics.statistic import Statistic
from medtame.tasks.base import Frame, Task, every
from medtame.types import Answer, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores, Texts

YES_NO = ("yes", "no")
AUXILIARIES = ("is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "would", "should")


def asks_yes_or_no(question: str) -> bool:
    """Whether the wording of a question asks for yes or no: it begins with an auxiliary verb and offers no choice."""
    words = normalised(question).split()
    return bool(words) and words[0] in AUXILIARIES and "or" not in words


@dataclass(frozen=True)
class VisualQuestionAnsweringFrame(Frame):
    answers: tuple[str, ...]  # normalised, in alphabetical order

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        truth = [normalised(str(answer)) for answer in support.column("answer")]
        query = self.query(support.only(("image", "question")), encoder)
        if self.wants == "texts":
            return Problem(query=query, targets=truth, seed=seed)
        number = {answer: k for k, answer in enumerate(self.answers)}
        targets = torch.nn.functional.one_hot(torch.tensor([number[answer] for answer in truth]), len(self.answers)).float()
        return Problem(query=query, targets=targets, seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """`words`: one question for all images, or one each; else the column `question`."""
        questions = [str(question) for question in (samples.column("question") if words is None else words)]
        if len(questions) == 1:
            questions = questions * len(samples)
        if len(questions) != len(samples):
            raise DataError(f"{len(questions)} questions for {len(samples)} images: give one question, or one an image")
        candidates = allowed = None
        if self.wants == "scores":
            candidates = Candidates(names=self.answers, prompts=tuple((answer or "nothing",) for answer in self.answers))
            allowed = np.stack([self._allowed(question) for question in questions])
        return Query(
            wants=self.wants,
            samples=samples,
            encoder=encoder,
            source=every(samples),
            words=tuple(questions),
            candidates=candidates,
            allowed=allowed,
        )

    def _allowed(self, question: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """(C,) yes and no where the wording asks for them and both were seen; else every answer."""
        closed = np.array([answer in YES_NO for answer in self.answers])
        return closed if asks_yes_or_no(question) and closed.sum() == len(YES_NO) else np.ones(len(self.answers), dtype=bool)

    def read(self, query: Query, answer: Answer) -> Predicted:
        if isinstance(answer, Texts):
            said = answer.values
        elif isinstance(answer, Scores):
            said = [self.answers[int(row.argmax())] if not bool(row.isnan().any()) else "refused" for row in answer.values]
        else:
            raise PairError("visual question answering reads scores or texts")
        rows = zip(query.samples.column("image"), query.words or (), said, strict=True)
        return Predicted(
            table=[{"image": image, "question": question, "prediction": text, "warning": ""} for image, question, text in rows]
        )

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        texts = [str(row["prediction"]) for row in said.table]
        kinds = truth.column("answer_type") if "answer_type" in truth else [None] * len(texts)
        true = [str(answer) for answer in truth.column("answer")]
        guessed = ["closed" if normalised(answer) in YES_NO else "open" for answer in true]
        return answers(texts, true, [kind or guess for kind, guess in zip(kinds, guessed, strict=True)])


@dataclass(frozen=True)
class VisualQuestionAnswering(Task):
    """The vocabulary is every answer of the support, normalised; a question that asks for yes or no may take only these."""

    kinds = ("scores", "texts")
    inputs = ("image", "question")
    requires = ("image", "question", "answer")
    offers = frozenset({"labels", "words", "answer_texts", "questions"})
    references = ("question_only", "zero_shot", "linear_probe")
    start, plain = "question_only", "linear_probe"
    shots = ("all",)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        return VisualQuestionAnsweringFrame(wants, tuple(sorted({normalised(str(answer)) for answer in support.column("answer")})))
