"""Classification: one label an image, chosen among the classes of the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from medtame.errors import DataError, PairError
from medtame.metrics.classification import classification
from medtame.metrics.statistic import Statistic
from medtame.tasks.base import Frame, Task, every
from medtame.types import Answer, Array, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores


@dataclass(frozen=True)
class ClassificationFrame(Frame):
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        targets = torch.tensor([[float(name == label) for name in self.names] for label in support.column("label")])
        return Problem(query=self.query(support.only(("image",)), encoder), targets=targets, seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        candidates = Candidates(names=self.names, prompts=self.prompts)
        if words is not None:
            candidates = Candidates(names=tuple(words), prompts=tuple((word,) for word in words))
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), candidates=candidates)

    def read(self, query: Query, answer: Answer) -> Predicted:
        if not isinstance(answer, Scores):
            raise PairError("classification reads scores")
        names, probabilities = query.wanted.names, answer.values.softmax(1).double().numpy()
        rows = zip(query.samples.column("image"), probabilities, strict=True)
        return Predicted(table=[_row(image, names, p) for image, p in rows], arrays={"scores": probabilities})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        number = {name: k for k, name in enumerate(self.names)}
        new = sorted({str(label) for label in truth.column("label") if label is not None} - set(number))
        if new:
            raise DataError(
                f"{', '.join(map(repr, new[:5]))} is not among the classes that were learnt ({', '.join(self.names)}): correct the labels"
            )
        labels = np.array([-1 if label is None else number[label] for label in truth.column("label")])
        return classification(said.arrays["scores"], labels)


def _row(image: str, names: tuple[str, ...], probability: Array) -> dict[str, object]:
    refused = bool(np.isnan(probability).any())
    best = 0 if refused else int(probability.argmax())
    scores = {f"score_{name}": float(p) for name, p in zip(names, probability, strict=True)}
    said = {"image": image, "prediction": "refused" if refused else names[best]}
    return {**said, **scores, "max_score": float(probability[best]), "warning": "no answer" if refused else ""}


@dataclass(frozen=True)
class Classification(Task):
    """`classes`: their order, filled from the training rows. `prompts`: sentences a class; else the templates are used."""

    kinds = ("scores",)
    requires = ("image", "label")
    offers = frozenset({"labels"})
    references = ("zero_shot", "nearest_prototype", "linear_probe")
    start, plain = "zero_shot", "linear_probe"
    classes: tuple[str, ...] = ()
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "an image of {}",
        "a medical image showing {}",
        "a scan of a patient with {}",
    )
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def settled(self, train: Samples) -> Task:
        labels = sorted({str(label) for label in train.column("label") if label is not None})
        classes = self.classes or tuple(labels)
        unknown = sorted(set(labels) - set(classes)) + sorted(set(self.prompts) - set(classes))
        if unknown:
            raise DataError(
                f"{', '.join(map(repr, unknown[:5]))} is not a class of the training rows ({', '.join(classes)}): correct the name"
            )
        if len(classes) < 2:
            raise DataError(f"all {len(train)} training rows have the label {classes[0]!r}: classification needs two classes or more")
        return replace(self, classes=classes)

    def strata(self, samples: Samples) -> Array:
        return np.array(samples.column("label"), dtype=object)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        classes = self.classes or tuple(sorted({str(label) for label in support.column("label")}))
        prompts = tuple(self.prompts.get(name) or tuple(template.format(name) for template in self.templates) for name in classes)
        return ClassificationFrame(wants, classes, tuple(tuple(sentences) for sentences in prompts))
