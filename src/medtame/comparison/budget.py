"""Which methods fit the minutes that the user gave, measured by fitting cells that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medtame.comparison.grid import Cell, Grid, Shots
from medtame.errors import MedtameError

LEAST_DRAWS = 3


@dataclass(frozen=True)
class Plan:
    """How many draws each method gets, and the minutes of those that are not run."""

    draws: dict[str, int]
    not_run: dict[str, float]
    refused: dict[str, str] = field(default_factory=dict)  # methods that cannot serve these data here, and why


def left_out(plan: Plan) -> list[dict[str, Any]]:
    """Methods that were not run: too slow for the minutes, or refusing these data."""
    slow = [{"method": name, "minutes": left, "reason": ""} for name, left in plan.not_run.items()]
    return slow + [{"method": name, "minutes": None, "reason": reason} for name, reason in plan.refused.items()]


def cells_of(method: str, shots: Sequence[Shots], draws: int) -> list[Cell]:
    """All cells of a method: all rows, and none, are one support each, so one cell."""
    return [Cell(method, k, number) for k in shots for number in range(1 if k in ("all", 0) else draws)]


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
    """Time the first draw of each method and deal out the minutes: cheap methods first, all draws where they fit.

    A method that cannot have all draws gets as many as fit, the same first ones, but at least three; below that it is not run.
    A learner whose first steps show that three draws cannot fit is not fitted at all. `always` are the task's references: they
    are run whatever they cost. A method that refuses these data is set aside with its reason. Without `minutes` everything is run.
    """
    every = list(dict.fromkeys([*always, *methods]))
    if minutes is None:
        return Plan(dict.fromkeys(every, draws), {})
    left = 60.0 * minutes
    seconds: dict[str, dict[Shots, float]] = {}
    not_run: dict[str, float] = {}
    refused: dict[str, str] = {}
    for method in every:
        watch(method)
        own = grid.asked(method, shots)
        try:
            glimpse = grid.glimpse(Cell(method, own[0], 0), clock) if method not in always else None
            least = None if glimpse is None else cost(dict.fromkeys(own, glimpse), min(draws, LEAST_DRAWS), folds)
            if least is not None and least > left:
                not_run[method] = least / 60
                continue
            seconds[method] = {k: grid.run(Cell(method, k, 0), clock).seconds for k in own}
        except MedtameError as error:
            if method in always:
                raise
            refused[method] = str(error)
    chosen: dict[str, int] = {}
    for method in sorted(seconds, key=lambda name: (name not in always, sum(seconds[name].values()))):
        affordable = next((n for n in range(draws, LEAST_DRAWS - 1, -1) if cost(seconds[method], n, folds) <= left), 0)
        if not affordable and method not in always:
            not_run[method] = cost(seconds[method], min(draws, LEAST_DRAWS), folds) / 60
            continue
        chosen[method] = affordable or min(draws, LEAST_DRAWS)
        left -= cost(seconds[method], chosen[method], folds)
    return Plan({method: chosen[method] for method in every if method in chosen}, not_run, refused)


def cost(seconds: Mapping[Shots, float], draws: int, folds: int) -> float:
    """Seconds of all cells, each number of shots as its first draw took, and of the cross-validation at the most shots."""
    return sum(found * (1 if k in ("all", 0) else draws) for k, found in seconds.items()) + folds * seconds[list(seconds)[-1]]
