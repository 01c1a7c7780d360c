"""The controls for the best method: refit with other words, and changed at predict only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medtame.comparison.grid import Cell, Grid, Outcome, Part, Shots
from medtame.comparison.table import Resampling
from medtame.metrics.statistic import Statistic, joined
from medtame.run import Run
from medtame.strategies.knowledge.descriptors import SHIPPED
from medtame.trust.controls import ARMS, Arm, applicable, reworded, reworded_problem, verdict, with_images
from medtame.trust.findings import OtherWords, other_findings
from medtame.types import Samples


def controlled(
    grid: Grid, method: str, shots: Shots, draws: int, resampling: Resampling, metric: str, watch: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row an arm: the metric as given, as changed, and the paired difference (given - changed) with its verdict."""
    reads = grid.method(method).reads
    found: dict[str, list[Mapping[str, Statistic]]] = {}
    for number in range(draws):
        for name, statistics in one_draw(grid, Cell(method, shots, number), reads, watch).items():
            found.setdefault(name, []).append(statistics)
    given = outcomes(found.pop("given"))
    rows = [row("as given", "", resampling, metric, given, given, "")]
    for arm in ARMS:
        if arm.name in found:
            changed = outcomes(found[arm.name])
            said = verdict(arm, resampling.gain(given, changed, metric))
            rows.append(row(arm.name, arm.when, resampling, metric, given, changed, said))
    if not any(arm.changes in ("words", "findings") and arm.name in found for arm in ARMS):
        rows.append({**rows[0], "arm": "words", "verdict": "the method reads no words: text cannot help it"})
    return rows


def one_draw(grid: Grid, cell: Cell, reads: frozenset[str], watch: Callable[[str], None]) -> dict[str, Mapping[str, Statistic]]:
    """Arm -> statistics of one draw, over all parts."""
    found: dict[str, list[Mapping[str, Statistic]]] = {}
    for part in grid.parts:
        test = grid.data.samples.take(part.test)
        run = grid.fitted(grid.method(cell.method), part, cell.shots, cell.draw)
        found.setdefault("given", []).append(run.measure(test))
        query = run.query(test)
        for arm in ARMS:
            if applicable(arm, query, reads):
                watch(arm.name)
                found.setdefault(arm.name, []).append(measured(grid, cell, run, part, test, arm))
    return {name: {key: joined([one[key] for one in parts]) for key in parts[0]} for name, parts in found.items()}


def measured(grid: Grid, cell: Cell, run: Run, part: Part, test: Samples, arm: Arm) -> Mapping[str, Statistic]:
    """The statistics of one arm."""
    if arm.changes == "image":
        looked = with_images(test, arm.name, ("image",), grid.seed)
        return run.frame.measure(run.predict(looked), test)
    if arm.changes == "findings":
        table = other_findings(arm.name, run.query(test).wanted.names, getattr(run.method, "file", ""), SHIPPED)
        other = replace(grid, encoder=OtherWords(grid.encoder, table))
        return other.fitted(run.method, part, cell.shots, cell.draw).measure(test)
    if arm.when == "refit":
        run = grid.fitted(run.method, part, cell.shots, cell.draw, change=lambda problem: reworded_problem(problem, arm.name))
    query = reworded(run.query(test), arm.name)
    return run.frame.measure(run.frame.read(query, run.answer(query)), test)


def outcomes(found: Sequence[Mapping[str, Statistic]]) -> list[Outcome]:
    return [Outcome(dict(statistics), {}) for statistics in found]


def row(
    arm: str, when: str, resampling: Resampling, metric: str, given: Sequence[Outcome], changed: Sequence[Outcome], said: str
) -> dict[str, Any]:
    value, gap = resampling.two_way(changed, metric).interval, resampling.gain(given, changed, metric)
    return {
        "arm": arm,
        "when": when,
        "metric": metric,
        "mean": value.value,
        "low": value.low,
        "high": value.high,
        "difference": gap.value if arm != "as given" else 0.0,
        "difference_low": gap.low if np.isfinite(gap.low) else gap.value,
        "difference_high": gap.high if np.isfinite(gap.high) else gap.value,
        "verdict": said,
    }
