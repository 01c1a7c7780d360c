"""The best method by a cross-validated score on support rows; the test rows are never asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medtame.comparison.grid import Grid, Shots
from medtame.data.samples import ManifestSamples
from medtame.data.splits import folds
from medtame.errors import MedtameError
from medtame.metrics import LOWER_IS_BETTER
from medtame.run import fitted
from medtame.types import Array


@dataclass(frozen=True)
class Choice:
    """The method, a sentence that says how it was chosen, and the scores it was chosen by."""

    method: str
    how: str
    scores: dict[str, float]


def chosen(
    grid: Grid, methods: Sequence[str], metric: str, shots: Sequence[Shots], count: int, safe: str, watch: Callable[[str], None]
) -> Choice:
    """Best mean held-out score over `count` folds of the first support with the most shots; `safe` where nothing can be held out."""
    largest = shots[-1]
    support, _ = grid.support(grid.parts[0], largest, 0)
    labels = grid.data.task.strata(support)
    fewest = min((int((labels == label).sum()) for label in set(labels.tolist()) if label is not None), default=0)
    if fewest < 2 or len(set(support.groups)) < 2:
        return Choice(
            safe, f"not chosen by data: with {fewest} image(s) a class nothing can be held out, so the safe default {safe} is named", {}
        )
    parts = folds(support, labels.tolist(), count, seed=grid.seed).parts
    scores = {}
    for method in methods:
        watch(method)
        score = held_out(grid, method, metric, support, parts)
        if score is not None:
            scores[method] = score
    if not scores:
        return Choice(safe, f"not chosen by data: no method could be cross-validated, so the safe default {safe} is named", {})
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(scores, key=lambda name: sign * scores[name])
    return Choice(
        best, f"highest score in {len(parts)}-fold cross-validation inside the support at {largest} shots; no test row was asked", scores
    )


def held_out(grid: Grid, method: str, metric: str, support: ManifestSamples, parts: Sequence[tuple[Array, Array]]) -> float | None:
    """Mean of the metric over held-out folds; None where a fold cannot be fitted."""
    values = []
    for inside, outside in parts:
        try:
            run = fitted(support.take(inside), grid.data.task, grid.method(method), grid.encoder, seed=grid.seed)
            statistics = run.measure(grid.data.task.trial(support.take(outside)))
        except MedtameError:
            return None
        values.append(statistics[metric].value())
    return float(np.mean(values)) if np.isfinite(values).all() else None
