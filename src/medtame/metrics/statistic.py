"""A metric of N rows that can be taken again on any resample of the rows, many resamples at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from medtame.errors import MedtameError, RunError
from medtame.metrics.bins import debiased_gap, equal_mass_bins, share, stacked
from medtame.metrics.ranks import Ranks, rows_first
from medtame.types import Array

NUMBERS_AT_ONCE = 2**17  # counts held as float64 at a time: they stay in the processor's cache
LEAST_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Statistic(ABC):
    """A metric of N rows. Fields: arrays with N rows each, and plain values; so one function stores them all."""

    ragged: ClassVar[frozenset[str]] = frozenset()  # arrays whose second axis is as wide as the row that needs most

    def __post_init__(self) -> None:
        sizes = {name: len(array) for name, array in self.arrays().items()}
        if len(set(sizes.values())) > 1:
            raise MedtameError(f"arrays of unequal length: {', '.join(f'{name} has {size}' for name, size in sizes.items())}")

    def arrays(self) -> dict[str, Array]:
        """The fields that have a value a row."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, np.ndarray)}

    @property
    def rows(self) -> int:
        """N, the number of rows."""
        return len(next(iter(self.arrays().values())))

    @property
    @abstractmethod
    def defined(self) -> int:
        """How many rows count towards it: the n of a table."""

    def value(self) -> float:
        """The metric of the rows as they are; NaN where it is undefined."""
        return float(self.at(np.ones((1, self.rows)))[0])

    def at(self, counts: Array) -> Array:
        """The metric where row n counts counts[b, n] times: (B, N) -> (B,), NaN where it is undefined."""
        if counts.ndim != 2 or counts.shape[1] != self.rows:
            raise MedtameError(f"counts of shape {counts.shape} for {self.rows} rows: they must be (resamples, rows)")
        step = max(LEAST_RESAMPLES_AT_ONCE, NUMBERS_AT_ONCE // max(self.rows, 1))
        blocks = [self._at(counts[start : start + step].astype(float)) for start in range(0, len(counts), step)]
        return np.concatenate([np.empty(0), *blocks])

    @abstractmethod
    def _at(self, weights: Array) -> Array:
        """The same for a block of resamples, as float64."""


def mean_of_defined(values: Array) -> Array:
    """(B, C) -> (B,): the mean over what is not NaN."""
    known = ~np.isnan(values)
    return share(np.where(known, values, 0).sum(1), known.sum(1))


@dataclass(frozen=True, eq=False)
class Mean(Statistic):
    """Mean of `values` (N,); a row of NaN is undefined and left out."""

    values: Array

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.isinf(self.values).any():
            raise MedtameError(f"{np.isinf(self.values).sum()} infinite value(s) in a mean: give a number, or NaN where it is undefined")

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.values)).sum())

    def _at(self, weights: Array) -> Array:
        known = ~np.isnan(self.values)
        return share(weights @ np.where(known, self.values, 0), weights @ known)


@dataclass(frozen=True, eq=False)
class Median(Statistic):
    """Median of `values` (N,); a row of NaN is left out. Counts are whole numbers."""

    values: Array

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.values)).sum())

    def _at(self, weights: Array) -> Array:
        order = np.argsort(self.values)[: self.defined]
        if not len(order):
            return np.full(len(weights), np.nan)
        ends = weights[:, order].cumsum(1)
        total = ends[:, -1]
        last = len(order) - 1
        lower, upper = ((ends <= np.floor(place)[:, None]).sum(1).clip(max=last) for place in ((total - 1) / 2, total / 2))
        middle = (self.values[order[lower]] + self.values[order[upper]]) / 2
        return np.where(total > 0, middle, np.nan)


@dataclass(frozen=True, eq=False)
class BalancedAccuracy(Statistic):
    """Mean recall over the classes that are present. `predicted` (N,): -1 is a refusal. `truth` (N,): -1 is unknown, left out."""

    predicted: Array
    truth: Array
    classes: int

    @property
    def defined(self) -> int:
        return int((self.truth >= 0).sum())

    def _at(self, weights: Array) -> Array:
        member = (self.truth[:, None] == np.arange(self.classes)).astype(float)
        hit = member * (self.predicted == self.truth)[:, None]
        return mean_of_defined(share(weights @ hit, weights @ member))


@dataclass(frozen=True, eq=False)
class Auroc(Statistic):
    """Area under the ROC curve: the chance that a positive row scores higher than a negative one, ties half.

    `scores` (N,) and `truth` (N,) in {0, 1}; a row with NaN in either is left out. NaN where one kind of row is absent.
    """

    scores: Array
    truth: Array

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.scores) & ~np.isnan(self.truth)).sum())

    def _at(self, weights: Array) -> Array:
        return np.full(len(weights), np.nan) if self._ranks is None else self._ranks.auroc(rows_first(weights))

    @cached_property
    def _ranks(self) -> Ranks | None:
        return Ranks.of(self.scores, self.truth)


@dataclass(frozen=True, eq=False)
class MacroAuroc(Statistic):
    """Mean AUROC, each class against the rest, over the classes of which positive and negative rows are present.

    `scores` (N, C) and `truth` (N, C) in {0, 1}; an entry with NaN in either is left out of its class.
    """

    scores: Array
    truth: Array

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.scores) & ~np.isnan(self.truth)).any(1).sum())

    def _at(self, weights: Array) -> Array:
        counts = rows_first(weights)
        each = [np.full(len(weights), np.nan) if ranks is None else ranks.auroc(counts) for ranks in self._ranks]
        return mean_of_defined(np.stack(each, 1)) if each else np.full(len(weights), np.nan)

    @cached_property
    def _ranks(self) -> list[Ranks | None]:
        return [Ranks.of(self.scores[:, k], self.truth[:, k]) for k in range(self.scores.shape[1])]


def _sorted_ties(scores: Array, truth: Array) -> tuple[Array, Array]:
    """The known rows by rising score, and where in that order each group of equal scores starts."""
    known = np.flatnonzero(~np.isnan(scores) & ~np.isnan(truth))
    order = known[np.argsort(scores[known], kind="stable")]
    new = np.ones(len(order), dtype=bool)
    new[1:] = scores[order[1:]] != scores[order[:-1]]
    return order, np.flatnonzero(new)


def _tied_sums(weights: Array, order: Array, starts: Array, truth: Array) -> tuple[Array, Array]:
    """Counts of positives and of negatives in each group of equal scores, by rising score: twice (B, groups)."""
    placed = weights[:, order]
    positive = placed * truth[order]
    placed -= positive
    if len(starts) == len(order):
        return positive, placed
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(placed, starts, axis=1)


@dataclass(frozen=True, eq=False)
class AveragePrecision(Statistic):
    """Area under the precision-recall steps, without interpolation; rows of equal score enter together.

    `scores` (N,) and `truth` (N,) in {0, 1}; a row with NaN in either is left out. NaN where no row is positive.
    """

    scores: Array
    truth: Array

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.scores) & ~np.isnan(self.truth)).sum())

    def _at(self, weights: Array) -> Array:
        order, starts = _sorted_ties(-self.scores, self.truth)
        if not len(order):
            return np.full(len(weights), np.nan)
        positive, negative = _tied_sums(weights, order, starts, self.truth)
        found, said = positive.cumsum(1), (positive + negative).cumsum(1)
        precision = np.divide(found, said, out=np.zeros_like(found), where=said > 0)
        return share((positive * precision).sum(1), found[:, -1])


@dataclass(frozen=True, eq=False)
class Calibration(Statistic):
    """Expected calibration error: |confidence - share correct| in 15 bins of equal mass, weighted by rows, debiased; never below 0.

    A bin of few rows shows a gap by chance alone. What a normal share correct with the bin's own variance would add to the gap is
    taken off (Kumar et al. 2019, arXiv 1909.10155, in closed form). Equal confidences share a bin; the bins are those of all rows.
    `confidence` (N,) or (N, C) in 0..1 and `correct` of the same shape in {0, 1}; with C judgements a row all are pooled and a row
    is still resampled whole. A judgement with NaN in either is left out.
    """

    confidence: Array
    correct: Array
    bins: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confidence.shape != self.correct.shape:
            raise MedtameError(
                f"confidence of shape {self.confidence.shape} for correctness of shape {self.correct.shape}: they must be equal"
            )
        if ((self.confidence < -1e-6) | (self.confidence > 1 + 1e-6)).any():
            raise MedtameError(
                f"a confidence of {np.nanmin(self.confidence):g} to {np.nanmax(self.confidence):g}: probabilities lie in 0..1"
            )

    @property
    def _known(self) -> Array:
        """(N, C) which judgements count."""
        return np.asarray(~np.isnan(self.confidence) & ~np.isnan(self.correct)).reshape(self.rows, -1)

    @property
    def defined(self) -> int:
        return int(self._known.any(1).sum())

    def _at(self, weights: Array) -> Array:
        known = self._known
        row, _ = np.nonzero(known)
        confidence, correct = (side.reshape(known.shape)[known] for side in (self.confidence, self.correct))
        bins = equal_mass_bins(confidence, self.bins)
        sums = np.zeros((3, self.rows, self.bins))
        for place, values in enumerate((np.ones(len(row)), confidence, correct)):
            np.add.at(sums[place], (row, bins), values)
        count, held, right = (weights @ part for part in sums)
        rate = share(right, count)
        gap = np.abs(share(held, count) - rate)
        variance = rate * (1 - rate) * share(np.square(weights) @ sums[0], np.square(count))  # a row twice is no new evidence
        return share(np.nansum(count * debiased_gap(gap, variance), 1), count.sum(1)).clip(min=0)


@dataclass(frozen=True, eq=False)
class CorpusBleu(Statistic):
    """Corpus BLEU from counts a row, 0 to 100, smoothed as sacrebleu does by default (Papineni et al. 2002; Post 2018).

    `correct` and `total` (N, 4): matching and said n-grams, n = 1 to 4; lengths (N,) in tokens. NaN where no reference has a token.
    """

    correct: Array
    total: Array
    system_length: Array
    reference_length: Array

    @property
    def defined(self) -> int:
        return int((self.reference_length > 0).sum())

    def _at(self, weights: Array) -> Array:
        correct, total = weights @ self.correct, weights @ self.total
        system, reference = weights @ self.system_length, weights @ self.reference_length
        halved = 0.5 ** np.cumsum(correct == 0, axis=1)
        precision = np.where(correct > 0, correct, halved) / np.where(total > 0, total, 1)
        said = (total > 0).all(1) & (correct > 0).any(1)
        brevity = np.exp(np.minimum(0, 1 - reference / np.where(system > 0, system, 1)))
        score = np.where(said, 100 * brevity * np.exp(np.log(precision).mean(1)), 0)
        return np.where(reference > 0, score, np.nan)


@dataclass(frozen=True, eq=False)
class F1(Statistic):
    """F1 of counts pooled over rows, each (N,); NaN where all three are 0."""

    true_positive: Array
    false_positive: Array
    false_negative: Array

    @property
    def defined(self) -> int:
        return int(((self.true_positive > 0) | (self.false_positive > 0) | (self.false_negative > 0)).sum())

    def _at(self, weights: Array) -> Array:
        twice = 2 * (weights @ self.true_positive)
        return share(twice, twice + weights @ self.false_positive + weights @ self.false_negative)


@dataclass(frozen=True, eq=False)
class Ratio(Statistic):
    """Sum of `numerator` (N,) over sum of `denominator` (N,); a row with NaN in either is left out."""

    numerator: Array
    denominator: Array

    @property
    def _known(self) -> Array:
        return np.asarray(~np.isnan(self.numerator) & ~np.isnan(self.denominator))

    @property
    def defined(self) -> int:
        return int((self._known & (self.denominator > 0)).sum())

    def _at(self, weights: Array) -> Array:
        known = self._known
        return share(weights @ np.where(known, self.numerator, 0), weights @ np.where(known, self.denominator, 0))


def joined(statistics: Sequence[Statistic]) -> Statistic:
    """One statistic of the rows of all, in order: of the folds of a data set, say. Kind, classes and bins must be equal."""
    first = statistics[0]
    names = first.arrays()
    for other in statistics[1:]:
        same = type(other) is type(first) and all(
            name in first.ragged or other.arrays()[name].shape[1:] == value.shape[1:] if name in names else getattr(other, name) == value
            for name, value in ((field.name, getattr(first, field.name)) for field in fields(first))
        )
        if not same:
            raise MedtameError(
                f"{first.__class__.__name__} and {other.__class__.__name__} do not join: kind, classes and bins must be equal"
            )
    return replace(first, **{name: stacked([each.arrays()[name] for each in statistics]) for name in names})


def to_arrays(statistics: Mapping[str, Statistic]) -> tuple[dict[str, Any], dict[str, Array]]:
    """What JSON can hold and what arrays can hold of named statistics; `from_arrays` reads it."""
    config: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name, statistic in statistics.items():
        held = statistic.arrays()
        plain = {field.name: getattr(statistic, field.name) for field in fields(statistic) if field.name not in held}
        config[name] = {"statistic": type(statistic).__name__, "plain": plain}
        arrays |= {f"{name}.{key}": value for key, value in held.items()}
    return config, arrays


def from_arrays(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Statistic]:
    """The statistics that `to_arrays` took apart. Only classes of this package can arise; RunError where something is missing."""
    kinds, found = _kinds(), {}
    for name, stored in config.items():
        kind = kinds.get(str(stored["statistic"]))
        if kind is None:
            raise RunError(f"the stored metric {name!r} is of an unknown kind {stored['statistic']!r}: measure it again with this version")
        values = {
            **stored["plain"],
            **{field.name: arrays.get(f"{name}.{field.name}") for field in fields(kind) if field.name not in stored["plain"]},
        }
        missing = [key for key, value in values.items() if value is None] + sorted(values.keys() - {field.name for field in fields(kind)})
        if missing:
            raise RunError(f"the stored metric {name!r} does not fit its kind {kind.__name__} ({missing[0]}): measure it again")
        found[name] = kind(**values)
    return found


def _kinds() -> dict[str, type[Statistic]]:
    """Name -> class, among the subclasses of Statistic that modules of this package define."""
    package = __name__.rpartition(".")[0]
    found, left = {}, [*Statistic.__subclasses__()]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith(f"{package}."):
            found[kind.__name__] = kind
    return found
