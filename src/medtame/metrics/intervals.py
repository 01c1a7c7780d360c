"""95 % intervals by a two-way bootstrap: patients and support draws are resampled, independently, the same for all methods.

A patient is resampled whole, with all rows (Field and Welsh 2007). The ends are percentiles of the resamples (Efron and Tibshirani
1993) at levels that suit few patients and few draws (expanded percentiles, Hesterberg 2015): those of Student's t with the degrees
of freedom of Welch and Satterthwaite, for a variance without the biases of the plain two-way bootstrap. These are two: n resampled
patients or draws vary (n - 1) / n as much as they should, and what is peculiar to a patient in a draw is counted three times where
once is right (Owen 2007), so that few draws gave intervals that were too narrow and differences of methods ones that were too wide.

What is covered: the mean over all supports that could be drawn from this pool of training rows and over all patients like those of
the test. What is not: another pool of training rows, a shift of the patients, a bias of the metric. A class of very few test
patients is counted with the degrees of freedom of all of them; a metric whose resamples are all equal (every row right) has an
interval of no width; with two or three draws the ends stop at the outermost resamples. Measured coverage, by simulation with
clustered patients and supports from one pool: tests/metrics/test_coverage_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from medtame.errors import MedtameError
from medtame.metrics.bins import share
from medtame.metrics.statistic import Statistic, mean_of_defined
from medtame.types import Array

PERCENTILES = (2.5, 97.5)
TOLD_APART = 64  # resamples by which patients are told apart
DRAWS_STREAM = 1  # so that draws and patients do not share random numbers where they share a seed


@dataclass(frozen=True)
class Interval:
    """A value, its 95 % interval (NaN where nothing can be resampled) and the number of rows that it is of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Spread:
    """What an interval's width rests on, kept so that two methods can be subtracted.

    `taken` (B, D): each draw on each resample of patients. `values` (D,): each draw on the rows as they are. D is 1 where a single
    draw stands for all. `groups`: how many patients were resampled.
    """

    taken: Array
    values: Array
    groups: int

    def variance(self) -> tuple[float, float]:
        """The variance of the mean over draws, and its degrees of freedom (Welch and Satterthwaite).

        That over patients holds what is peculiar to a patient in a draw; so of that over draws the same part is taken off.
        """
        few = self.groups / max(self.groups - 1, 1)
        middle = mean_of_defined(self.taken)
        of_patients = few * variance_of(middle)
        draws = int((~np.isnan(self.values)).sum())
        if draws < 2:
            return of_patients, max(self.groups - 1, 1)
        apart = (self.taken - middle[:, None])[:, ~np.isnan(self.taken).all(0)]
        peculiar = few * float(np.nanvar(apart, axis=0).mean()) * draws / (draws - 1)
        whole = variance_of(self.values) / (draws - 1)
        total = of_patients + max(whole - peculiar / draws, 0.0)
        parts = of_patients**2 / max(self.groups - 1, 1) + whole**2 / (draws - 1)
        return total, max(total**2 / parts, 1.0) if parts > 0 else np.inf


@dataclass(frozen=True, eq=False)
class TwoWay:
    """A metric over draws and patients; `resampled` (B,) is it on each resample, to be paired with that of another method."""

    interval: Interval
    resampled: Array
    spread: Spread

    def scale(self) -> tuple[float, float]:
        """By how much the deviations of the resamples are to be stretched, and the degrees of freedom of their variance."""
        variance, freedom = self.spread.variance()
        resampled = variance_of(self.resampled)
        return (float(np.sqrt(variance / resampled)), freedom) if resampled > 0 and variance > 0 else (1.0, np.inf)

    def p_value(self) -> float:
        """Two-sided, that the metric (a paired difference) is 0: (1 + resamples as far from it as 0 is) / (B + 1).

        Resamples are centred on the metric (Davison and Hinkley 1997, section 4.4) and their deviations stretched as in the interval;
        each is divided by a root of chi-square over its degrees of freedom, so that the tails are Student's: a correction over many
        methods asks for tails that resamples of few patients do not have. NaN where nothing can be resampled.
        """
        known = self.resampled[~np.isnan(self.resampled)]
        if not len(known) or np.isnan(self.interval.value):
            return float("nan")
        scale, freedom = self.scale()
        quantiles = (np.arange(len(known)) + 0.5) / len(known)  # resamples stand in random order already
        tails = 1.0 if np.isinf(freedom) else np.sqrt(freedom / (2 * gammaincinv(freedom / 2, quantiles)))
        far = np.abs(scale * tails * (known - self.interval.value)) >= abs(self.interval.value) - 1e-12
        return float((1 + far.sum()) / (1 + len(known)))


def resampled_groups(groups: Array, resamples: int, seed: int) -> Array:
    """How often each row counts when patients are drawn with replacement: groups (N,) -> counts (B, N), whole numbers."""
    if len(groups) == 0:
        raise MedtameError("no row to resample: a metric needs at least one measured row")
    _, first, of_row = np.unique(np.asarray(groups).astype(str), return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))  # by first appearance, so that nothing depends on what patients are called
    drawn = np.random.default_rng(seed).integers(0, len(first), (resamples, len(first)))
    return _counted(drawn, len(first))[:, number[of_row]]


def resampled_draws(draws: int, resamples: int, seed: int) -> Array:
    """How often each support draw counts: (B, D) whole numbers, each row of them sums to D."""
    drawn = np.random.default_rng([seed, DRAWS_STREAM]).integers(0, draws, (resamples, draws))
    return _counted(drawn, draws)


def _counted(drawn: Array, names: int) -> Array:
    """(B, any) numbers below `names` -> (B, names) how often each was drawn."""
    flat = drawn + names * np.arange(len(drawn))[:, None]
    return np.bincount(flat.ravel(), minlength=len(drawn) * names).reshape(len(drawn), names).astype(np.int32)


def one_way(statistic: Statistic, counts: Array) -> Interval:
    """A metric with its interval over patients; counts (B, N) of `resampled_groups`."""
    return two_way([statistic], counts, np.ones((len(counts), 1), dtype=np.int32)).interval


def two_way(statistics: Sequence[Statistic], row_counts: Array, draw_counts: Array) -> TwoWay:
    """The mean of a metric over draws, with its interval over draws and patients.

    `statistics` holds one a draw, of the same rows; `row_counts` (B, N); `draw_counts` (B, D). A single draw stands for all D: what
    depends on no draw is paired with what does. A draw in which the metric is undefined is left out of the mean.
    """
    if len(statistics) not in (1, draw_counts.shape[1]):
        raise MedtameError(
            f"{len(statistics)} draws measured but {draw_counts.shape[1]} resampled: give one statistic a draw, or a single one"
        )
    if len(row_counts) != len(draw_counts):
        raise MedtameError(f"{len(row_counts)} resamples of rows but {len(draw_counts)} of draws: give as many of both")
    taken = np.stack([_at(statistic, row_counts) for statistic in statistics], 1)
    weights = draw_counts * ~np.isnan(taken)
    resampled = share((weights * np.nan_to_num(taken)).sum(1), weights.sum(1))
    values = np.array([statistic.value() for statistic in statistics])
    spread = Spread(taken, values, _groups(row_counts))
    return _expanded(float(mean_of_defined(values[None])[0]), resampled, spread, min(statistic.defined for statistic in statistics))


def paired(a: TwoWay, b: TwoWay) -> TwoWay:
    """How much higher `a` is than `b`, on the same resamples."""
    if a.resampled.shape != b.resampled.shape:
        raise MedtameError(f"{len(a.resampled)} and {len(b.resampled)} resamples do not pair: take both on the same ones")
    spread = Spread(a.spread.taken - b.spread.taken, a.spread.values - b.spread.values, max(a.spread.groups, b.spread.groups))
    return _expanded(a.interval.value - b.interval.value, a.resampled - b.resampled, spread, min(a.interval.n, b.interval.n))


def difference(a: TwoWay, b: TwoWay) -> Interval:
    """The interval of how much higher `a` is than `b`, paired: both were taken on the same resamples."""
    return paired(a, b).interval


def harm_rate(values: Sequence[float], reference: Sequence[float]) -> float:
    """Share of draws whose value is below the reference's of the same draw; a single value stands for all draws."""
    if 1 not in (len(values), len(reference)) and len(values) != len(reference):
        raise MedtameError(f"{len(values)} draws against {len(reference)}: give the same draws of both, or a single value")
    gap = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    return float(mean_of_defined(np.where(np.isnan(gap), np.nan, gap < 0)[None])[0])


def _at(statistic: Statistic, counts: Array) -> Array:
    """The metric on each resample (B,); NaN throughout where all resamples are the same, as with one patient: nothing is known then."""
    same = (counts[:2] == counts[:1]).all() and (counts == counts[:1]).all()  # the first two mostly tell
    return np.full(len(counts), np.nan) if same else statistic.at(counts)


def _groups(row_counts: Array) -> int:
    """How many patients there are: rows of one patient count the same in every resample."""
    counts = row_counts[:TOLD_APART].astype(np.int64)
    return len(np.unique(np.random.default_rng(0).integers(1, 2**40, len(counts)) @ counts))


def variance_of(values: Array) -> float:
    """Of what is not NaN, over as many; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.var()) if len(known) else float("nan")


def _expanded(value: float, resampled: Array, spread: Spread, n: int) -> TwoWay:
    """With the percentiles that suit few patients and few draws."""
    known = resampled[~np.isnan(resampled)]
    unsettled = TwoWay(Interval(value, float("nan"), float("nan"), n), resampled, spread)
    if not len(known):
        return unsettled
    scale, freedom = unsettled.scale()
    level = 100 * ndtr(-scale * stdtrit(freedom, PERCENTILES[1] / 100))
    low, high = np.percentile(known, (level, 100 - level))
    return TwoWay(Interval(value, float(low), float(high), n), resampled, spread)
