"""Visual question answering by ranking: a row is an image with a question, candidates are answers as texts.

The candidates are the answers of the support and any others that the setting `answers` names; wording says which a row may take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from medtame.data.questions import YES_NO, asks_yes_or_no, kind_of, offered
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.metrics.answers import answers, by_type, consistency, normalised, surest_half
from medtame.metrics.statistic import Mean, Statistic
from medtame.tasks.base import Frame, Rows, Task, every
from medtame.types import Answer, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores, Texts

KNOWN_TYPES = ("open", "closed")
MOST_TYPES = 12  # question types that get a number of their own
TEXTS = ("question", "answer")
NEITHER = ("both", "neither", "none")  # always allowed beside what a question offers
EXCHANGES = 2  # times that every image is exchanged for another patient's, for visual reliance


@dataclass(frozen=True)
class VisualQuestionAnsweringFrame(Frame):
    answers: tuple[str, ...]  # normalised, in alphabetical order
    question_types: tuple[str, ...] = ()  # those that are measured for themselves

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
        if words is None and "question" not in samples:
            raise DataError("nothing is asked of these images: say it in words, such as --question 'Is it normal?'")
        questions = [str(question) for question in (samples.column("question") if words is None else words)]
        if len(questions) == 1:
            questions = questions * len(samples)
        if len(questions) != len(samples):
            raise DataError(f"{len(questions)} questions for {len(samples)} images: give one question, or one an image")
        empty = sum(not question.strip() for question in questions)
        if empty:
            raise DataError(f"{empty} of {len(questions)} questions are empty: write what is asked of the image")
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
        """(C,) yes and no where the wording asks for them and both are known; what it offers, where two or more are; else every answer."""
        closed = np.array([answer in YES_NO for answer in self.answers])
        if asks_yes_or_no(question) and closed.sum() == len(YES_NO):
            return closed
        choice = offered(question, self.answers)
        allowed = np.ones(len(self.answers), dtype=bool)
        if len(choice) > 1:
            allowed[:] = [k in choice or answer in NEITHER for k, answer in enumerate(self.answers)]
        return allowed

    def read(self, query: Query, answer: Answer) -> Predicted:
        if isinstance(answer, Texts):
            said, sure = answer.values, np.full(len(query), np.nan)
        elif isinstance(answer, Scores):
            refused = answer.values.isnan().any(1)
            said = [self.answers[int(row.argmax())] if not no else "refused" for row, no in zip(answer.values, refused, strict=True)]
            sure = answer.values.double().softmax(1).amax(1).numpy()
        else:
            raise PairError("visual question answering reads scores or texts")
        rows = zip(query.samples.column("image"), query.words or (), said, strict=True)
        table = [
            {
                "image": getattr(image, "name", image),
                "question": question,
                "prediction": text,
                "confidence": float(p),
                "warning": "no answer" if text == "refused" else "",
            }
            for (image, question, text), p in zip(rows, sure, strict=True)
        ]
        return Predicted(table=table, arrays={"confidence": sure})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """The named metrics, paraphrase consistency, accuracy of the surest half, and `accuracy/TYPE` a question type."""
        texts, true = [str(row["prediction"]) for row in said.table], [str(answer) for answer in truth.column("answer")]
        found = dict(answers(texts, true, answer_types(truth)))
        exact, questions = found["accuracy"].arrays()["values"], truth.column("question")
        linked = truth.column("linked_qid") if "linked_qid" in truth else [None] * len(texts)
        sure = np.asarray(said.arrays["confidence"], dtype=float) if "confidence" in said.arrays else np.full(len(texts), np.nan)
        refused = [row.get("warning") == "no answer" for row in said.table]
        apart = [f"{text} {row}" if refused[row] else text for row, text in enumerate(texts)]
        found["paraphrase_consistency"] = consistency(apart, linked, questions)  # two refusals are no same answer
        found["accuracy_of_surest_half"] = surest_half(exact, sure)
        return found | by_type(exact, types_of(truth), self.question_types)

    def measured(self, predict: Callable[[Samples], Predicted], samples: Samples) -> Mapping[str, Statistic]:
        """`measure`, and visual reliance: accuracy minus that with the images of other patients, a row."""
        found = dict(self.measure(predict(samples), samples))
        exact = found["accuracy"].arrays()["values"]
        others = [looked for number in range(EXCHANGES) if (looked := exchanged(samples, number)) is not None]
        changed = [self.measure(predict(looked), samples)["accuracy"].arrays()["values"] for looked in others]
        reliance = exact - np.mean(changed, axis=0) if changed else np.full(len(samples), np.nan)
        first = ("accuracy", "closed_accuracy", "open_exact_match", "token_f1")
        return {name: found[name] for name in first} | {"visual_reliance": Mean(reliance)} | found


def answer_types(truth: Samples) -> list[str]:
    """(N,) closed or open as the manifest says, else by the answer: yes and no are closed. Another word of the manifest stays."""
    given = truth.column("answer_type") if "answer_type" in truth else [None] * len(truth)
    true = [normalised(str(answer)) for answer in truth.column("answer")]
    return [str(kind or ("closed" if answer in YES_NO else "open")).strip().lower() for kind, answer in zip(given, true, strict=True)]


def types_of(samples: Samples) -> list[tuple[str, ...]]:
    """(N,) the types of each question: the column `question_type`, several by commas, else the kind that its words tell."""
    if "question_type" not in samples:
        return [(kind_of(str(question)),) for question in samples.column("question")]
    cells = zip(samples.column("question_type"), samples.column("question"), strict=True)
    said = [(tuple(sorted({one.strip() for one in str(cell or "").split(",")} - {""})), str(question)) for cell, question in cells]
    return [types or (kind_of(question),) for types, question in said]


def exchanged(samples: Samples, number: int) -> Samples | None:
    """The samples, each distinct image replaced by one of another group (the next in a shuffled circle); None where there is one group."""
    images, groups = samples.column("image"), np.asarray(samples.groups, dtype=str)
    keys: list[Any] = [str(image) if not hasattr(image, "array") else id(image) for image in images]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = np.random.default_rng([number, len(first)]).permutation(list(first.values()))
    if len(set(groups.tolist())) < 2:
        return None
    given: dict[Any, Any] = {}
    for turn, place in enumerate(order.tolist()):
        following = (order[(turn + step) % len(order)] for step in range(1, len(order)))
        given[keys[place]] = images[next(other for other in following if groups[other] != groups[place])]
    return samples.replaced(image=[given[key] for key in keys])


@dataclass(frozen=True)
class VisualQuestionAnswering(Task):
    """The vocabulary is every answer of the support, normalised, and `answers`, which no support row needs to have.

    A question that asks for yes or no may take only these; one that offers a choice, only what it offers (or both, neither).
    """

    kinds = ("scores", "texts")
    inputs = ("image", "question")
    requires = ("image", "question", "answer")
    offers = frozenset({"labels", "words", "answer_texts", "questions", "whole_images"})
    references = ("majority_by_question", "question_only", "image_only", "zero_shot", "linear_probe")
    start, plain = "question_only", "linear_probe"
    shots = ("all",)
    answers: tuple[str, ...] = ()
    question_types: tuple[str, ...] = ()

    def usable(self, samples: Rows) -> Rows:
        """Rows with image, question and answer; what is left out, and answer types that mean nothing, are told in the notes."""
        if "question" in samples and "answer" in samples:
            samples = told(samples)
        return super().usable(samples)

    def settled(self, train: Samples) -> Task:
        """With the commonest question types of all training rows, so that each fold measures the same ones."""
        counts = Counter(one for types in types_of(train) for one in types)
        common = sorted(counts, key=lambda one: (-counts[one], one))[:MOST_TYPES]
        return self if self.question_types else replace(self, question_types=tuple(common))

    def frame(self, support: Samples, wants: Kind) -> Frame:
        known = {normalised(str(answer)) for answer in support.column("answer")} | {normalised(answer) for answer in self.answers}
        return VisualQuestionAnsweringFrame(wants, tuple(sorted(known)), self.question_types)


def told(samples: Rows) -> Rows:
    """Empty questions and answers as missing ones, with a sentence in the notes for answer types that mean nothing."""
    blank = {name: [None if value is None or not str(value).strip() else value for value in samples.column(name)] for name in TEXTS}
    notes = []
    if "answer_type" in samples:
        kinds = [str(kind).strip() for kind in samples.column("answer_type") if kind is not None]
        strange = sorted({kind for kind in kinds if kind.lower() not in KNOWN_TYPES})
        if strange:
            count = sum(kind.lower() not in KNOWN_TYPES for kind in kinds)
            neither = f"answer_type is neither open nor closed in {count} rows (such as {strange[0]!r})"
            notes.append(f"{neither}: they count in accuracy and token_f1 only.")
    made = samples.replaced(**blank)
    return replace(made, notes=(*made.notes, *notes)) if notes and isinstance(made, ManifestSamples) else made
