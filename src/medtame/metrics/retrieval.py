"""Metrics of ranking: how early the right ones of a gallery come, for each query.

Items of equal score are taken in random order and the expectation is given, so constant scores are exactly at chance.
"""

from __future__ import annotations

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.statistic import Mean, Median, Statistic
from medtame.types import Array

CUTS = (1, 5, 10)
NAMES = (*(f"recall_at_{cut}" for cut in CUTS), "median_rank", "mrr", "ndcg", "precision_at_10")


def retrieval(scores: Array, relevant: Array, suffix: str = "") -> dict[str, Statistic]:
    """recall_at_1, _5, _10, median_rank, mrr, ndcg, precision_at_10, each name with `suffix`, of scores (N, M) and relevant (N, M) bool.

    A row is a query, resampled while the gallery stays. Several items may be right: recall_at_k asks whether any of them is among the
    first k, the ranks are of the first of them (1 is best), ndcg has binary gains over the whole gallery (Järvelin and Kekäläinen 2002),
    precision_at_10 is of the first ten, or of all where the gallery is smaller. An item of score NaN comes last. A query without a right
    item is undefined; a row of NaN is a refusal: rank M and 0 in all else.
    """
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise MedtameError(f"scores of shape {scores.shape} for right answers of shape {relevant.shape}: both must be (queries, gallery)")
    ranked = [_ranked(row, right) for row, right in zip(scores, np.asarray(relevant, dtype=bool), strict=True)]
    columns = np.array(ranked, dtype=float).reshape(len(ranked), len(NAMES)).T
    return {
        f"{name}{suffix}": Median(values) if name == "median_rank" else Mean(values) for name, values in zip(NAMES, columns, strict=True)
    }


def chance_recall(relevant: Array, cut: int) -> Array:
    """(N,) how likely a random order of the gallery has a right item among its first `cut`, for relevant (N, M) bool; NaN without one."""
    gallery, right = relevant.shape[1], np.asarray(relevant, dtype=bool).sum(1)
    places = np.arange(min(cut, gallery))
    wrong = np.clip((gallery - right)[:, None] - places, 0, None) / (gallery - places)
    return np.where(right > 0, 1 - wrong.prod(1), np.nan)


def first_ranks(scores: Array, relevant: Array) -> Array:
    """(N,) the expected rank of the first right item of each query, as in `retrieval`; NaN without one."""
    found = retrieval(scores, relevant)["median_rank"].arrays()
    return np.asarray(next(iter(found.values())))


def _ranked(scores: Array, relevant: Array) -> list[float]:
    """The values of one query, in the order of NAMES."""
    if not relevant.any():
        return [np.nan] * len(NAMES)
    if np.isnan(scores).all():
        return [float(len(scores)) if name == "median_rank" else 0.0 for name in NAMES]
    falling = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-falling, kind="stable")
    falling, right = falling[order], relevant[order].astype(float)
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    sizes, hits = np.diff(np.r_[starts, len(right)]), np.add.reduceat(right, starts)
    first = int(np.flatnonzero(hits)[0])
    ranks, chance = _first_rank(int(starts[first]), int(sizes[first]), int(hits[first]))
    expected = np.repeat(hits / sizes, sizes)  # at each place, how likely it holds a right item
    gain = 1 / np.log2(np.arange(2, len(right) + 2))
    return [
        *(float(chance[ranks <= cut].sum()) for cut in CUTS),
        float(chance @ ranks),
        float(chance @ (1 / ranks)),
        float(expected @ gain / gain[: int(hits.sum())].sum()),
        float(expected[:10].mean()),
    ]


def _first_rank(before: int, tied: int, right: int) -> tuple[Array, Array]:
    """Ranks that the first right item may take, and how likely each is, where `right` of `tied` items follow `before` others."""
    places = np.arange(tied - right + 1)
    none_yet = np.cumprod(np.r_[1.0, (tied - right - places) / (tied - places)])
    return before + 1 + places, none_yet[:-1] - none_yet[1:]
