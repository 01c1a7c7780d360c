"""The best method by a cross-validated score on support rows; the test rows are never asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medtame.comparison.grid import Grid, Shots
from medtame.data.samples import ManifestSamples
from medtame.data.splits import folds
from medtame.errors import MedtameError
from medtame.metrics import LOWER_IS_BETTER
from medtame.metrics.statistic import Statistic
from medtame.run import fitted
from medtame.types import Array


@dataclass(frozen=True)
class Choice:
    """The method, a sentence that says how it was chosen, the scores it was chosen by, and what it said of the rows of each fold."""

    method: str
    how: str
    scores: dict[str, float]
    held: tuple[Mapping[str, Statistic], ...] = field(default=(), repr=False)


def chosen(
    grid: Grid, methods: Sequence[str], metric: str, shots: Sequence[Shots], count: int, safe: str, watch: Callable[[str], None]
) -> Choice:
    """Best mean held-out score over `count` folds of the first support with the most shots; `safe` where nothing can be held out."""
    largest = shots[-1]
    support, _ = grid.support(grid.parts[0], largest, 0)
    parts = parted(grid, support, count)
    if parts is None:
        few = fewest(grid, support)
        return Choice(
            safe, f"not chosen by data: with {few} image(s) a class nothing can be held out, so the safe default {safe} is named", {}
        )
    scores, held = {}, {}
    for method in methods:
        watch(method)
        found = held_out(grid, method, support, parts)
        values = [statistics[metric].value() for statistics in found or ()]
        if found and np.isfinite(values).all():
            scores[method], held[method] = float(np.mean(values)), tuple(found)
    if not scores:
        return Choice(safe, f"not chosen by data: no method could be cross-validated, so the safe default {safe} is named", {})
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(scores, key=lambda name: sign * scores[name])
    how = f"highest score in {len(parts)}-fold cross-validation inside the support at {largest} shots; no test row was asked"
    return Choice(best, how, scores, held[best])


def fewest(grid: Grid, support: ManifestSamples) -> int:
    """How many rows the smallest stratum has."""
    labels = grid.data.task.strata(support).tolist()
    return min((labels.count(label) for label in set(labels) if label is not None), default=0)


def parted(grid: Grid, support: ManifestSamples, count: int) -> list[tuple[Array, Array]] | None:
    """Folds by group, or None where nothing can be held out."""
    if fewest(grid, support) < 2 or len(set(support.groups)) < 2:
        return None
    return list(folds(support, grid.data.task.strata(support).tolist(), count, seed=grid.seed).parts)


def held_out(
    grid: Grid, method: str, support: ManifestSamples, parts: Sequence[tuple[Array, Array]]
) -> list[Mapping[str, Statistic]] | None:
    """The metrics of each fold's rows, which its run did not learn from; None where a fold cannot be fitted."""
    found = []
    for inside, outside in parts:
        try:
            run = fitted(support.take(inside), grid.data.task, grid.method(method), grid.encoder, seed=grid.seed)
            found.append(run.measure(grid.data.task.trial(support.take(outside))))
        except MedtameError:
            return None
    return found
