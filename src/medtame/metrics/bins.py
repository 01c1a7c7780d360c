"""Bins of a calibration error, and shares."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from medtame.types import Array


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
