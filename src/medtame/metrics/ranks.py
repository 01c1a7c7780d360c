"""The area under the ROC curve of many resamples: one sort, then sums of counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from medtame.metrics.bins import share
from medtame.types import Array

EXACT_IN_SINGLE = 2**24  # whole numbers below it are exact in 32 bits


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rows by rising score: negatives between two positives are one step, so that few sums are left however many they are."""

    positive: Array  # (P,) row numbers
    steps: csr_matrix  # (S, N) ones: the negatives of each step
    lower: Array  # (P,) how many steps lie below each positive
    upper: Array  # (P,) and how many do not lie above it

    @classmethod
    def of(cls, scores: Array, truth: Array) -> Ranks | None:
        """Of scores (N,) and truth (N,) in {0, 1}; NaN in either leaves a row out. None where one kind of row is absent."""
        known = ~np.isnan(scores) & ~np.isnan(truth)
        positive, negative = np.flatnonzero(known & (truth > 0.5)), np.flatnonzero(known & (truth <= 0.5))
        if not len(positive) or not len(negative):
            return None
        negative = negative[np.argsort(scores[negative])]
        lower, upper = (np.searchsorted(scores[negative], scores[positive], side=side) for side in ("left", "right"))
        edges = np.unique(np.concatenate([lower, upper, [0, len(negative)]]))
        steps = csr_matrix((np.ones(len(negative), dtype=np.float32), negative, edges), shape=(len(edges) - 1, len(scores)))
        return cls(positive, steps, np.searchsorted(edges, lower), np.searchsorted(edges, upper))

    def auroc(self, counts: Array) -> Array:
        """(B,) of `rows_first` counts (N, B): the chance that a positive row scores higher than a negative one, ties half."""
        below = np.zeros((self.steps.shape[0] + 1, counts.shape[1]), dtype=counts.dtype)
        np.cumsum(self.steps @ counts, axis=0, out=below[1:])
        twice_below = below[self.lower]
        twice_below += below[self.upper]
        positive = counts[self.positive].astype(float)
        return share((positive * twice_below).sum(0), 2 * positive.sum(0) * below[-1])


def rows_first(weights: Array) -> Array:
    """Whole counts (B, N) as (N, B), in 32 bits where sums over rows are exact in them."""
    exact = np.float32 if weights.shape[1] * weights.max(initial=0) < EXACT_IN_SINGLE else np.float64
    return np.ascontiguousarray(weights.T, dtype=exact)
