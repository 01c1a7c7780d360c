"""Answers from what is known besides the pixels: sex, age, site, and the size and format of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.errors import DataError
from medtame.learning.readout import logistic
from medtame.strategies.base import REFUSED, Method, labelled, masked, same_candidates
from medtame.types import Adapted, Array, Problem, Query, Scores

COLUMNS = ("sex", "age", "site")  # what a task may show of a person; nothing else is ever asked for
FORMAT = "format"
SIZES = ("log height", "log width")


@dataclass(frozen=True)
class MetadataOnlyAdapted(Adapted):
    names: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]  # column -> the values that were learnt
    numbers: dict[str, tuple[float, float]]  # column -> mean and deviation on the support
    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        features = encoded(metadata(query), self.kinds, self.numbers)
        return Scores(masked(self.weight.new_tensor(features) @ self.weight.T + self.bias, query.allowed))


def metadata(query: Query) -> dict[str, list[Any]]:
    """Column -> N values: those of COLUMNS that the query shows, the size of the image, the ending of its file's name.

    The rest of the name is not used: it often tells the label.
    """
    samples = query.samples
    pictures = samples.pictures()
    shapes = [picture.geometry() for picture in pictures]
    found: dict[str, list[Any]] = {name: samples.column(name) for name in COLUMNS if name in samples}
    found[FORMAT] = [PurePath(picture.name).suffix.lower() or None for picture in pictures]
    found[SIZES[0]] = [float(np.log(shape.height)) for shape in shapes]
    found[SIZES[1]] = [float(np.log(shape.width)) for shape in shapes]
    return {name: [values[sample] for sample in query.source.tolist()] for name, values in found.items()}


def encoded(values: dict[str, list[Any]], kinds: dict[str, tuple[str, ...]], numbers: dict[str, tuple[float, float]]) -> Array:
    """(N, F): a column a value that was learnt, a standardised number, and a column that says that the number is missing."""
    n = len(values[FORMAT])
    columns = [
        np.array([value is not None and str(value) == kind for value in values.get(name, [None] * n)])
        for name, known in kinds.items()
        for kind in known
    ]
    for name, (mean, deviation) in numbers.items():
        given = values.get(name, [None] * n)
        columns.append(np.array([0.0 if value is None else (float(value) - mean) / deviation for value in given]))
        columns.append(np.array([value is None for value in given]))
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], 1)


@dataclass(frozen=True)
class MetadataOnly(Method):
    """Logistic regression on sex, age, site, image size and file format; no pixel and no word is read (after Zech et al. 2018).

    What it reaches above chance is a shortcut that an image method may have taken too: a class that comes from another site or
    another scanner is known by its format. Sex, age and site are used where the manifest has them; a missing value is a value of
    its own. The penalty is fixed, not chosen by data. The run stores which values occurred, no row.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels", "metadata"})
    trains = "a linear layer on metadata"
    cost = "seconds: the head of every file is read"
    good_when = "as a control: does a class follow from scanner, site, sex or age"
    poor_when = "as a classifier: it reads no pixel"
    papers = ("doi:10.1371/journal.pmed.1002683",)
    inverse_penalty: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(gt=0)] = 1000

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        values = metadata(query)
        kinds = {
            name: tuple(sorted({str(value) for value in column if value is not None})) for name, column in values.items() if textual(name)
        }
        numbers = {name: moments(column) for name, column in values.items() if not textual(name)}
        features = encoded(values, kinds, numbers)
        model = lambda: LogisticRegression(C=self.inverse_penalty, max_iter=self.iterations)  # noqa: E731
        weight, bias = logistic(features, targets, model, exclusive=query.wanted.exclusive, never=REFUSED)
        return MetadataOnlyAdapted(query.wanted.names, kinds, numbers, weight, bias)


def textual(name: str) -> bool:
    return name in ("sex", "site", FORMAT)


def moments(column: list[Any]) -> tuple[float, float]:
    """Mean and deviation of what is given; a deviation of 1 where all are alike. Raises DataError for what is no number."""
    try:
        given = np.array([float(value) for value in column if value is not None])
    except (TypeError, ValueError):
        raise DataError("the column 'age' holds what is no number: give years, or leave the cell empty") from None
    if not len(given):
        return 0.0, 1.0
    deviation = float(given.std())
    return float(given.mean()), deviation if deviation > 1e-9 else 1.0
