"""Bins of a calibration error, shares, and sums and rows of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from medtame.types import Array

ROWS_A_BLOCK = 25  # rows whose counts are summed one after the other


def share(part: Array, whole: Array) -> Array:
    """Of each part in its whole (equal shapes), NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))


def equal_mass_bins(values: Array, bins: int) -> Array:
    """(N,) the bin of each value, 0 to bins - 1: as many values in each as ties allow."""
    if not len(values):
        return np.zeros(0, dtype=int)
    edges = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.asarray(np.searchsorted(np.unique(edges), values))


def debiased_gap(gap: Array, variance: Array) -> Array:
    """Gap - (E|gap + noise| - gap) for normal noise of this variance."""
    spread = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = gap / spread
        expected = spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * (1 - 2 * ndtr(-ratio))
    return np.where(spread > 0, 2 * gap - expected, gap)


def running_sums(counts: Array) -> Array:
    """(n + 1, B) sums of the first 0 to n rows of whole counts (n, B), by blocks of rows: rows are added, not number after number."""
    n, width = counts.shape
    exact = np.float32 if n * counts.max(initial=0) < 2**24 else np.float64
    sums = np.zeros((-(-n // ROWS_A_BLOCK), ROWS_A_BLOCK, width), dtype=exact)
    sums.reshape(-1, width)[:n] = counts
    for row in range(1, ROWS_A_BLOCK):
        sums[:, row] += sums[:, row - 1]
    sums[1:] += sums[:-1, -1].cumsum(0)[:, None]
    return np.concatenate([np.zeros((1, width), dtype=exact), sums.reshape(-1, width)[:n]])


def stacked(parts: Sequence[Array]) -> Array:
    """The rows of all; where their second axis differs, the narrower ones are filled with NaN, or 0 where they hold whole numbers."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return np.concatenate(parts)
    wide, fill = max(part.shape[1] for part in parts), np.nan if parts[0].dtype.kind == "f" else 0
    return np.concatenate([np.pad(part, ((0, 0), (0, wide - part.shape[1])), constant_values=fill) for part in parts])
