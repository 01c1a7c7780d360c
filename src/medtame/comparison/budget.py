"""Which methods fit the minutes that the user gave, measured by fitting one cell of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medtame.comparison.grid import Cell, Grid, Shots

LEAST_DRAWS = 3


@dataclass(frozen=True)
class Plan:
    """The cells to run, a method after another, and the methods that do not fit with their minutes."""

    draws: dict[str, int]
    not_run: dict[str, float]


def cells_of(method: str, shots: Sequence[Shots], draws: int) -> list[Cell]:
    """All cells of a method: `all` is one support, so one cell."""
    return [Cell(method, k, number) for k in shots for number in range(1 if k == "all" else draws)]


def planned(
    grid: Grid,
    methods: Sequence[str],
    always: Sequence[str],
    shots: Sequence[Shots],
    draws: int,
    minutes: float | None,
    folds: int,
    clock: Callable[[], float],
    watch: Callable[[str], None],
) -> Plan:
    """Fit the largest cell of each method once (it is kept), then deal out the minutes: cheap ones first, all draws if they fit.

    A method that cannot have all draws gets as many as fit, the same first ones, but at least three; below that it is not run.
    `always` are the task's references: they are run whatever they cost. Without `minutes` everything is run.
    """
    if minutes is None:
        return Plan(dict.fromkeys([*always, *methods], draws), {})
    seconds = {}
    for method in dict.fromkeys([*always, *methods]):
        watch(method)
        seconds[method] = grid.run(Cell(method, shots[-1], 0), clock).seconds
    left = 60.0 * minutes
    chosen: dict[str, int] = {}
    not_run: dict[str, float] = {}
    for method in sorted(seconds, key=lambda name: (name not in always, seconds[name])):
        affordable = next((n for n in range(draws, LEAST_DRAWS - 1, -1) if cost(seconds[method], shots, n, folds) <= left), 0)
        if not affordable and method not in always:
            not_run[method] = cost(seconds[method], shots, min(draws, LEAST_DRAWS), folds) / 60
            continue
        chosen[method] = affordable or min(draws, LEAST_DRAWS)
        left -= cost(seconds[method], shots, chosen[method], folds)
    return Plan(chosen, not_run)


def cost(seconds: float, shots: Sequence[Shots], draws: int, folds: int) -> float:
    """Seconds for the cells that are left and the cross-validation, each taken to cost as much as the largest cell."""
    return seconds * (len(cells_of("", shots, draws)) - 1 + folds)
