"""ROC and precision-recall on many resamples of the same rows at once, without a loop over resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtame.metrics.intervals import PERCENTILES
from medtame.types import Array

PLACES = np.linspace(0, 1, 51)  # of false positive rate and of recall
NUMBERS_AT_ONCE = 2**18  # counts held at a time
NEARLY = 1e-6  # whole counts are compared with a place times their sum


def roc_and_precision(scores: Array, truth: Array, counts: Array) -> tuple[Array, Array]:
    """True positive rate at false positive rates PLACES, and precision at recalls PLACES, where row n counts counts[b, n] times.

    `scores` (N,) and `truth` (N,) in {0, 1}, NaN where unknown; `counts` (B, N) whole; two arrays (B, 51). Rows of equal score enter
    together: ROC goes straight between thresholds, so its area is the AUROC; precision is that of the first threshold that reaches the
    recall, so its area is the average precision. NaN where a resample has no positive row (ROC: or no negative one).
    """
    known = np.flatnonzero(~np.isnan(scores) & ~np.isnan(truth))
    if not len(known):
        return np.full((len(counts), len(PLACES)), np.nan), np.full((len(counts), len(PLACES)), np.nan)
    order = known[np.argsort(-scores[known], kind="stable")]
    starts = np.flatnonzero(np.r_[True, scores[order][1:] != scores[order][:-1]])
    step = max(1, NUMBERS_AT_ONCE // len(order))
    blocks = [_block(counts[start : start + step][:, order], truth[order], starts) for start in range(0, len(counts), step)]
    return np.concatenate([roc for roc, _ in blocks]), np.concatenate([precision for _, precision in blocks])


def _block(counts: Array, truth: Array, starts: Array) -> tuple[Array, Array]:
    """The same for rows in falling order of score, whose groups of equal score begin at `starts`."""
    weights = counts.astype(float)
    positive = weights * truth
    true, false = (_risen(side, starts) for side in (positive, weights - positive))
    positives, negatives = true[:, -1:], false[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = PLACES * negatives
        left = _last_at_most(false, wanted)
        right = np.minimum(left + 1, false.shape[1] - 1)
        rise = np.take_along_axis(false, right, 1) - np.take_along_axis(false, left, 1)
        part = np.divide(wanted - np.take_along_axis(false, left, 1), rise, out=np.zeros_like(wanted), where=rise > 0)
        at = np.take_along_axis(true, left, 1)
        roc = (at + part * (np.take_along_axis(true, right, 1) - at)) / positives
        first = np.minimum(_last_at_most(true, np.maximum(PLACES * positives, 1) - 2 * NEARLY) + 1, true.shape[1] - 1)
        found = np.take_along_axis(true, first, 1)
        precision = found / (found + np.take_along_axis(false, first, 1))
    none = positives == 0
    return np.where(none | (negatives == 0), np.nan, roc), np.where(none, np.nan, precision)


def _risen(weights: Array, starts: Array) -> Array:
    """(B, groups + 1) how much has entered after each group, from 0."""
    grouped = weights if len(starts) == weights.shape[1] else np.add.reduceat(weights, starts, axis=1)
    risen = np.zeros((len(grouped), grouped.shape[1] + 1))
    grouped.cumsum(1, out=risen[:, 1:])
    return risen


def _last_at_most(rising: Array, wanted: Array) -> Array:
    """(B, G) rising whole numbers from 0 and (B, F) wanted ones -> (B, F) the last place whose number is at most the wanted one.

    One search for all resamples: each lies above the one before it.
    """
    lift = np.arange(len(rising))[:, None] * (rising.max() + 1)
    found = np.searchsorted((rising + lift).ravel(), (wanted + NEARLY + lift).ravel(), side="right").reshape(wanted.shape)
    return np.asarray(found - 1 - np.arange(len(rising))[:, None] * rising.shape[1])


def over_draws(values: Sequence[Array], draw_counts: Array) -> Array:
    """Mean over draws, each (B, ...) of one draw, weighted with draw_counts (B, D); an undefined value is left out of the mean."""
    stacked = np.stack(values, 1)
    weights = draw_counts.reshape(*draw_counts.shape, *[1] * (stacked.ndim - 2)) * ~np.isnan(stacked)
    return mean_over(np.nan_to_num(stacked), weights)


def mean_over(values: Array, weights: Array) -> Array:
    """Weighted mean over axis 1; NaN where nothing has weight."""
    total = weights.sum(1)
    return np.asarray(np.divide((values * weights).sum(1), total, out=np.full(total.shape, np.nan), where=total > 0))


def over_classes(values: Sequence[Array]) -> Array:
    """Mean over classes, each of the same shape; a class that is undefined is left out of the mean."""
    stacked = np.stack(values, 1)
    return mean_over(np.nan_to_num(stacked), (~np.isnan(stacked)).astype(float))


def band(resampled: Array, counts: Array) -> tuple[Array, Array]:
    """Pointwise 95 % band of (B, ...); NaN where a point is undefined throughout, or where all resamples are the same."""
    low, high = np.full(resampled.shape[1:], np.nan), np.full(resampled.shape[1:], np.nan)
    known = ~np.isnan(resampled).all(0)
    if known.any() and not (counts == counts[:1]).all():
        low[known], high[known] = np.nanpercentile(resampled[:, known], PERCENTILES, axis=0)
    return low, high
