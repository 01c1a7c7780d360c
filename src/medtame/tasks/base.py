"""A task asks and reads the answer. What it learns from support rows (classes, vocabulary, threshold) is a Frame, saved with the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import numpy as np

from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.metrics.statistic import Statistic
from medtame.types import Answer, Array, Encoder, Kind, Predicted, Problem, Query, Samples

Rows = TypeVar("Rows", bound=Samples)
TOLD = ("image", "label", "mask")  # columns of which the manifest itself says how many are empty, or that may be


@dataclass(frozen=True)
class Frame(ABC):
    """What a task learnt from support rows."""

    wants: Kind

    def prepared(self, support: Samples, encoder: Encoder, seed: int) -> Frame:
        """The frame with what must be learnt before any question can be asked, such as a proposer of regions."""
        return self

    @abstractmethod
    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """The support as a problem; may balance, cap or synthesise rows (seeded, stated)."""

    @abstractmethod
    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """The question about samples that hold no truth."""

    def calibrated(self, problem: Problem, answers: Callable[[Problem, Query], Answer]) -> Frame:
        """The frame with what only held-out answers tell, such as a threshold: `answers` fits a problem and asks it a query."""
        return self

    @abstractmethod
    def read(self, query: Query, answer: Answer) -> Predicted: ...

    @abstractmethod
    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Metrics of design section 9; the first is the one that tables show."""

    def measured(self, predict: Callable[[Samples], Predicted], samples: Samples) -> Mapping[str, Statistic]:
        """`measure` of what is predicted for samples with truth; a task whose metrics need a second look predicts again."""
        return self.measure(predict(samples), samples)


@dataclass(frozen=True)
class Task(ABC):
    """Settings of a task. One such class in tasks/<name>.py is all there is to adding one."""

    kinds: ClassVar[tuple[Kind, ...]]  # what it can ask for, best first
    inputs: ClassVar[tuple[str, ...]] = ("image",)  # columns that a query may see; all others are truth
    requires: ClassVar[tuple[str, ...]] = ("image",)  # columns without which the task cannot be learnt
    offers: ClassVar[frozenset[str]] = frozenset()  # meets a method's needs
    references: ClassVar[tuple[str, ...]] = ()  # plain references and baselines that stand in every table
    plain: ClassVar[str] = ""  # the reference that `gain_over_probe` is taken against
    start: ClassVar[str] = ""  # the reference that `gain` is taken against: zero-shot where the task has it
    shots: ClassVar[tuple[int | Literal["all"], ...]] = (1, 4, 16, "all")  # what compare asks unless told

    def settled(self, train: Samples) -> Task:
        """The task with what must not depend on a draw (class names and their order) filled from all training rows."""
        return self

    def servable(self, test: Samples) -> None:  # noqa: B027
        """Raises DataError where test rows ask for what no training row holds; called once, when data are loaded."""

    def remarks(self, train: Samples, test: Samples | None) -> Sequence[str]:
        """Sentences for the notes about what the rows cannot teach or measure; asked once, when data are loaded."""
        return ()

    def given(self, samples: Samples) -> tuple[Samples, Sequence[str] | None]:
        """What a query is made from, without truth, and the words asked of all (a gallery). The one place that says so."""
        return samples.only([name for name in self.inputs if name in samples]), None

    def strata(self, samples: Samples) -> Array:
        """(N,) what a K-shot draw balances; None where a row is not drawn from."""
        return np.array(["all"] * len(samples), dtype=object)

    def usable(self, samples: Rows) -> Rows:
        """The rows that can be learnt from or measured; a column that is missing is named here."""
        missing = [name for name in self.requires if name not in samples]
        if missing:
            raise DataError(
                f"this task needs the column {missing[0]!r}, which the manifest does not have: name yours with --columns {missing[0]}=YOURS"
            )
        filled = np.ones(len(samples), dtype=bool)
        for name in self.requires:
            filled &= np.array([value is not None for value in samples.column(name)])
        if not filled.any():
            empty = next(name for name in self.requires if all(value is None for value in samples.column(name)))
            raise DataError(
                f"the column {empty!r} is empty in all {len(samples)} rows: fill it, or name another with --columns {empty}=YOURS"
            )
        return noted(samples, [name for name in self.requires if name not in TOLD]).take(np.flatnonzero(filled))

    def trial(self, samples: Rows) -> Rows:
        """Held-out support rows as a method can be judged by them: a task that learns from one kind of row adds made ones."""
        return samples

    @abstractmethod
    def frame(self, support: Samples, wants: Kind) -> Frame: ...


def noted(samples: Rows, names: Sequence[str]) -> Rows:
    """With a sentence in the notes for each of these columns that is empty in some rows, for such rows are left out."""
    empty = {name: sum(value is None for value in samples.column(name)) for name in names}
    of = len(samples)
    said = [f"{n} of {of} rows have no {name} and are left out: fill the column {name!r} to use them." for name, n in empty.items() if n]
    return replace(samples, notes=(*samples.notes, *said)) if said and isinstance(samples, ManifestSamples) else samples


def every(samples: Samples) -> Array:
    """A row a sample: (N,)."""
    return np.arange(len(samples))
