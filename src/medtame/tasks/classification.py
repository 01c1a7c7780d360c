"""Classification: one label an image, chosen among the classes of the training rows.

A volume, a series or a multi-frame image is asked by its middle slice, or by several slices (`slices`): each is a row of the
query, and their logits are averaged before they are read. A shot stays one image, however many of its slices are seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medtame.data.class_names import alike, few, held, in_quotes, kept, unlearnt
from medtame.data.slices import frames_of
from medtame.errors import DataError, PairError
from medtame.metrics.classification import classification, multi_label
from medtame.metrics.statistic import Statistic
from medtame.tasks.base import Frame, Rows, Task, every
from medtame.types import Answer, Array, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores

OWNER = "sample of the row"  # a column of the query's own, beside those of the manifest
SHOWN = ("image", "sex", "age", "site")  # what a query may see: never a label or a text


@dataclass(frozen=True)
class ClassificationFrame(Frame):
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    slices: int = 1

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        number, labels = {name: k for k, name in enumerate(self.names)}, support.column("label")
        targets = torch.zeros(len(labels), len(self.names))
        for row, label in enumerate(labels):
            if label in number:
                targets[row, number[label]] = 1.0
        query = self.query(support.only(SHOWN), encoder)
        return Problem(query=query, targets=targets[owners(query.samples)], reports=reports(support, query), seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        candidates = Candidates(names=self.names, prompts=self.prompts)
        if words is not None:
            candidates = Candidates(names=tuple(words), prompts=tuple((word,) for word in words))
        if self.slices > 1:
            samples = by_slice(samples, self.slices)
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), candidates=candidates)

    def read(self, query: Query, answer: Answer) -> Predicted:
        if not isinstance(answer, Scores):
            raise PairError("classification reads scores")
        names, owner = query.wanted.names, owners(query.samples)
        probabilities = means(answer.values, owner).softmax(1).double().numpy()
        first = np.unique(owner, return_index=True)[1]
        images = query.samples.column("image")
        return Predicted(table=rows_of([images[row] for row in first], names, probabilities), arrays={"scores": probabilities})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        number = {name: k for k, name in enumerate(self.names)}
        new = sorted({str(label) for label in truth.column("label") if label is not None} - set(number))
        if new:
            raise DataError(f"{in_quotes(new)} is not among the classes that were learnt ({few(self.names)}): correct the labels")
        labels = np.array([-1 if label is None else number[label] for label in truth.column("label")])
        return classification(said.arrays["scores"], labels)


def by_slice(samples: Samples, slices: int) -> Samples:
    """A row a slice: the middles of `slices` equal parts of each image, fewer where it has fewer; OWNER is the sample of each."""
    pictures: list[Any] = samples.pictures()  # those that have frames are dataclasses
    counts = [frames_of(picture) if hasattr(picture, "frame") else 1 for picture in pictures]
    chosen = [spread(count, slices) for count in counts]
    owner = np.repeat(np.arange(len(samples)), [len(frames) for frames in chosen])
    shown = [
        picture if count == 1 else replace(picture, frame=frame)
        for picture, count, frames in zip(pictures, counts, chosen, strict=True)
        for frame in frames
    ]
    return samples.take(owner).replaced(image=shown, **{OWNER: owner.tolist()})


def spread(count: int, slices: int) -> list[int]:
    """Numbers of slices, from 0, evenly over `count`: the middle of each part, so that one slice is number count // 2."""
    return sorted({int((part + 0.5) * count / slices) for part in range(slices)})


def owners(samples: Samples) -> Array:
    """(N,) the sample of each row."""
    return np.array(samples.column(OWNER)) if OWNER in samples else np.arange(len(samples))


def reports(support: Samples, query: Query) -> list[str | None] | None:
    """What was written about the sample of each row, where the support has a column `text`: for fit alone."""
    texts = support.column("text") if "text" in support else None
    return None if texts is None else [texts[sample] for sample in owners(query.samples)]


def means(logits: Tensor, owner: Array) -> Tensor:
    """(N, C) logits of slices to (S, C), the mean of each sample's."""
    counts = torch.from_numpy(np.bincount(owner)).to(logits.dtype)
    summed = torch.zeros(len(counts), logits.shape[1], dtype=logits.dtype).index_add(0, torch.from_numpy(owner), logits)
    return summed / counts[:, None]


def rows_of(images: Sequence[object], names: tuple[str, ...], probabilities: Array) -> list[dict[str, object]]:
    """A row of the table for each image; probabilities (N, C), NaN where nothing was answered."""
    keys = ("image", "prediction", *(f"score_{name}" for name in names), "max_score", "warning")
    refused, most = np.isnan(probabilities).any(1), probabilities.max(1)
    said = np.where(refused, "refused", np.array(names, dtype=object)[np.where(refused, 0, probabilities.argmax(1))])
    warned = np.where(refused, "no answer", "")
    rows = zip(images, said.tolist(), probabilities.tolist(), most.tolist(), warned.tolist(), strict=True)
    return [dict(zip(keys, (getattr(image, "name", image), name, *p, top, warning), strict=True)) for image, name, p, top, warning in rows]


@dataclass(frozen=True)
class Classification(Task):
    """`classes`: only rows of these, in this order (empty: all). `prompts`: sentences a class; else the templates are used.

    `slices`: how many slices of a volume are asked, evenly; their scores are averaged. `learnt` is filled from the training rows.
    """

    kinds = ("scores",)
    inputs = SHOWN
    requires = ("image", "label")
    offers = frozenset({"labels", "one_label", "metadata", "whole_images"})
    references = ("zero_shot", "nearest_prototype", "linear_probe")
    start, plain = "zero_shot", "linear_probe"
    classes: tuple[str, ...] = ()
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "an image of {}",
        "a medical image showing {}",
        "a scan of a patient with {}",
    )
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    slices: Annotated[int, Field(ge=1)] = 1
    learnt: tuple[str, ...] = ()

    def usable(self, samples: Rows) -> Rows:
        """Rows with an image and a label of the wanted classes, or with `labels` where there is no column `label`."""
        if "label" not in samples and "labels" in samples:
            return self.several().usable(samples)
        samples = super().usable(samples)
        if not self.classes:
            return samples
        rows, note = kept(samples.column("label"), self.classes)
        return samples.take(rows).noted(note)

    def several(self) -> Findings:
        """The same task where several labels may hold."""
        return Findings(classes=self.classes, prompts=self.prompts, slices=self.slices)

    def settled(self, train: Samples) -> Task:
        if "label" not in train and "labels" in train:
            return self.several().settled(train)
        labels = sorted({str(label) for label in train.column("label") if label is not None})
        classes = self.classes or tuple(labels)
        absent = sorted(set(classes) - set(labels)) + sorted(set(self.prompts) - set(classes))
        if absent:
            raise DataError(f"{in_quotes(absent)} is not a class of the training rows ({few(labels)}): correct the name")
        if len(classes) < 2:
            raise DataError(f"all {len(train)} training rows have the label {classes[0]!r}: classification needs two classes or more")
        alike(dict(zip(classes, self.sentences(classes), strict=True)))
        return replace(self, learnt=classes)

    def servable(self, test: Samples) -> None:
        unlearnt(test.column("label"), self.learnt)
        held(test.column("label"), self.learnt)

    def strata(self, samples: Samples) -> Array:
        return np.array(samples.column("label"), dtype=object)

    def sentences(self, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """What is said of each class."""
        return tuple(tuple(self.prompts.get(name) or [template.format(name) for template in self.templates]) for name in classes)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        classes = self.learnt or self.classes or tuple(sorted({str(label) for label in support.column("label")}))
        return ClassificationFrame(wants, classes, self.sentences(classes), self.slices)


# ---- several labels an image -------------------------------------------------------------------------------------

NONE_OF_THEM = ("no finding", "normal", "none", "healthy")  # words that say that no finding holds


@dataclass(frozen=True)
class FindingsFrame(Frame):
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    negatives: tuple[tuple[str, ...], ...]
    slices: int = 1

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        query = self.query(support.only(SHOWN), encoder)
        targets = torch.from_numpy(truth_of(support, self.names)).float()
        return Problem(query=query, targets=targets[owners(query.samples)], reports=reports(support, query), seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        candidates = Candidates(names=self.names, prompts=self.prompts, negatives=self.negatives, exclusive=False)
        if words is not None:
            absent = tuple((f"no {word}",) for word in words)
            candidates = Candidates(names=tuple(words), prompts=tuple((word,) for word in words), negatives=absent, exclusive=False)
        if self.slices > 1:
            samples = by_slice(samples, self.slices)
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), candidates=candidates)

    def read(self, query: Query, answer: Answer) -> Predicted:
        """Each finding for itself: the probability of yes; those above one half are said to hold."""
        if not isinstance(answer, Scores):
            raise PairError("classification reads scores")
        names, owner = query.wanted.names, owners(query.samples)
        probabilities = means(answer.values, owner).sigmoid().double().numpy()
        first = np.unique(owner, return_index=True)[1]
        images = [query.samples.column("image")[row] for row in first]
        table = [_findings_row(image, names, p) for image, p in zip(images, probabilities, strict=True)]
        return Predicted(table=table, arrays={"scores": probabilities})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        return multi_label(said.arrays["scores"], truth_of(truth, self.names))


def _findings_row(image: object, names: tuple[str, ...], probability: Array) -> dict[str, object]:
    refused = bool(np.isnan(probability).any())
    held = "|".join(name for name, p in zip(names, probability, strict=True) if p > 0.5)
    scores = {f"score_{name}": float(p) for name, p in zip(names, probability, strict=True)}
    said = {"image": getattr(image, "name", image), "prediction": "refused" if refused else held}
    return {**said, **scores, "max_score": float(probability.max()), "warning": "no answer" if refused else ""}


def findings_of(cell: str | None) -> tuple[str, ...] | None:
    """The findings of a cell, joined by `|`; none of them for a word that says so, None where nothing is known."""
    if cell is None:
        return None
    parts = tuple(part.strip() for part in str(cell).split("|") if part.strip())
    return tuple(part for part in parts if part.casefold() not in NONE_OF_THEM)


def truth_of(samples: Samples, names: Sequence[str]) -> Array:
    """(N, C) 1 where a finding holds, 0 where it does not, NaN where nothing is known of the image."""
    said = [findings_of(cell) for cell in samples.column("labels")]
    new = sorted({part for parts in said for part in parts or ()} - set(names))
    if new:
        raise DataError(f"{in_quotes(new)} is not among the findings that were learnt ({few(names)}): correct the labels")
    return np.array([[np.nan if parts is None else float(name in parts) for name in names] for parts in said])


@dataclass(frozen=True)
class Findings(Task):
    """Classification where several labels may hold: the column `labels`, joined by `|`. Each finding is a yes-or-no problem.

    `prompts`: sentences a finding; the absence of each is worded by `absences`. A method that needs one label is refused.
    """

    kinds = ("scores",)
    inputs = SHOWN
    requires = ("image", "labels")
    offers = frozenset({"labels", "metadata", "whole_images"})
    references = ("zero_shot", "nearest_prototype", "linear_probe")
    start, plain = "zero_shot", "linear_probe"
    classes: tuple[str, ...] = ()
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {}", "a medical image showing {}")
    absences: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image without {}", "a medical image showing no {}")
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    slices: Annotated[int, Field(ge=1)] = 1
    learnt: tuple[str, ...] = ()

    def usable(self, samples: Rows) -> Rows:
        """All rows with `labels`; where `classes` are given, other findings are not looked at."""
        samples = super().usable(samples)
        if not self.classes:
            return samples
        said = [findings_of(cell) for cell in samples.column("labels")]
        others = sorted({part for parts in said for part in parts or ()} - set(self.classes))
        cells = [None if parts is None else "|".join(part for part in parts if part in self.classes) for parts in said]
        note = f"Findings that are not asked about: {few(others)}." if others else ""
        return samples.replaced(labels=cells).noted(note)

    def settled(self, train: Samples) -> Task:
        found = sorted({part for cell in train.column("labels") for part in findings_of(cell) or ()})
        classes = self.classes or tuple(found)
        absent = sorted(set(classes) - set(found)) + sorted(set(self.prompts) - set(classes))
        if absent:
            raise DataError(f"{in_quotes(absent)} is no finding of the training rows ({few(found)}): correct the name")
        if not classes:
            raise DataError(f"none of {len(train)} training rows has a finding in the column 'labels': fill it, such as effusion|nodule")
        alike(dict(zip(classes, self.sentences(classes), strict=True)))
        return replace(self, learnt=classes)

    def servable(self, test: Samples) -> None:
        unlearnt([part for cell in test.column("labels") for part in findings_of(cell) or ()], self.learnt, "finding")
        held(test.column("labels"), self.learnt)

    def sentences(self, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """What is said where a finding holds."""
        return tuple(tuple(self.prompts.get(name) or [template.format(name) for template in self.templates]) for name in classes)

    def strata(self, samples: Samples) -> Array:
        """A row is drawn for its rarest finding, or for having none."""
        said = [findings_of(cell) for cell in samples.column("labels")]
        counts = Counter(part for parts in said for part in parts or ())
        rarest = [None if parts is None else min(parts, key=lambda part: (counts[part], part), default="none") for parts in said]
        return np.array(rarest, dtype=object)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        if not self.learnt:
            return self.settled(support).frame(support, wants)
        negative = tuple(tuple(template.format(name) for template in self.absences) for name in self.learnt)
        return FindingsFrame(wants, self.learnt, self.sentences(self.learnt), negative, self.slices)
