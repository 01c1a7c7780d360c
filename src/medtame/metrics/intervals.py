"""95 % intervals by a two-way bootstrap: patients and support draws are resampled, independently, the same for all methods.

Percentile intervals (Efron and Tibshirani 1993). A patient is resampled whole, with all rows (Field and Welsh 2007). The intervals of a
few-shot experiment are conditional on its pool of training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.bins import share
from medtame.metrics.statistic import Statistic, mean_of_defined
from medtame.types import Array

PERCENTILES = (2.5, 97.5)
DRAWS_STREAM = 1  # so that draws and patients do not share random numbers where they share a seed


@dataclass(frozen=True)
class Interval:
    """A value, its 95 % interval (NaN where nothing can be resampled) and the number of rows that it is of."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class TwoWay:
    """A metric over draws and patients; `resampled` (B,) is it on each resample, to be paired with that of another method."""

    interval: Interval
    resampled: Array


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
    return _interval(statistic.value(), _at(statistic, counts), statistic.defined)


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
    value = mean_of_defined(np.array([[statistic.value() for statistic in statistics]]))[0]
    return TwoWay(_interval(float(value), resampled, min(statistic.defined for statistic in statistics)), resampled)


def difference(a: TwoWay, b: TwoWay) -> Interval:
    """How much higher `a` is than `b`, paired: both were taken on the same resamples."""
    if a.resampled.shape != b.resampled.shape:
        raise MedtameError(f"{len(a.resampled)} and {len(b.resampled)} resamples do not pair: take both on the same ones")
    return _interval(a.interval.value - b.interval.value, a.resampled - b.resampled, min(a.interval.n, b.interval.n))


def harm_rate(values: Sequence[float], reference: Sequence[float]) -> float:
    """Share of draws whose value is below the reference's of the same draw; a single value stands for all draws."""
    if 1 not in (len(values), len(reference)) and len(values) != len(reference):
        raise MedtameError(f"{len(values)} draws against {len(reference)}: give the same draws of both, or a single value")
    gap = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    return float(mean_of_defined(np.where(np.isnan(gap), np.nan, gap < 0)[None])[0])


def _at(statistic: Statistic, counts: Array) -> Array:
    """The metric on each resample (B,); NaN throughout where all resamples are the same, as with one patient: nothing is known then."""
    return np.full(len(counts), np.nan) if (counts == counts[:1]).all() else statistic.at(counts)


def _interval(value: float, resampled: Array, n: int) -> Interval:
    known = resampled[~np.isnan(resampled)]
    low, high = np.percentile(known, PERCENTILES) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high), n)
