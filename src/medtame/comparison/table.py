"""From outcomes to the rows of a table: two-way intervals, paired gains, harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medtame import catalogue
from medtame.comparison.grid import Outcome, Shots
from medtame.metrics import LOWER_IS_BETTER
from medtame.metrics.intervals import Interval, TwoWay, harm_rate, paired, resampled_draws, two_way
from medtame.strategies.base import Method
from medtame.tasks.base import Task
from medtame.types import Array

Outcomes = Mapping[tuple[str, Shots], Sequence[Outcome]]  # of a method at a number of shots: one a draw, in order


@dataclass(frozen=True)
class Resampling:
    """The same resamples of patients and of draws for every method, so that differences are paired."""

    rows: Array  # (B, N) how often each measured row counts: patients are resampled whole
    seed: int

    def two_way(self, outcomes: Sequence[Outcome], metric: str) -> TwoWay:
        """A metric over draws and patients, each resampled on its own."""
        draws = resampled_draws(len(outcomes), len(self.rows), self.seed)
        return two_way([outcome.statistics[metric] for outcome in outcomes], self.rows, draws)

    def gain(self, outcomes: Sequence[Outcome], reference: Sequence[Outcome], metric: str) -> Interval:
        """How much better than the reference, on the draws that both have: positive is better, also where lower is better."""
        both = min(len(outcomes), len(reference))
        return better(self.two_way(outcomes[:both], metric), self.two_way(reference[:both], metric), metric).interval


def better(ours: TwoWay, theirs: TwoWay, metric: str) -> TwoWay:
    """How much better, paired: positive is better, also where lower is better."""
    return paired(theirs, ours) if metric in LOWER_IS_BETTER else paired(ours, theirs)


def rows_of(
    outcomes: Outcomes, methods: Mapping[str, Method], resampling: Resampling, metric: str, start: str, plain: str, fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row a method and number of shots. `start` and `plain` name the references of the two gains; `fixed` is told in every row."""
    rows, side = [], sides(outcomes, resampling, metric)
    for (name, shots), found in outcomes.items():
        value = side(name, shots, len(found)).interval
        rows.append(
            {
                "method": name,
                "strategy": catalogue.strategy_of(name),
                "learning": methods[name].learning,
                "shots": shots,
                "draws": len(found),
                "metric": metric,
                "mean": value.value,
                "low": value.low,
                "high": value.high,
                **tested("gain", side, name, start if (start, shots) in outcomes else "", shots, outcomes, metric),
                **tested("gain_over_probe", side, name, plain if (plain, shots) in outcomes else "", shots, outcomes, metric),
                "harm_rate": harm(found, outcomes[start, shots], metric) if (start, shots) in outcomes else None,
                "fit_seconds": float(np.mean([outcome.cost["fit_seconds"] for outcome in found])),
                "trainable_parameters": int(max(outcome.cost["trainable_parameters"] for outcome in found)),
                **fixed,
            }
        )
    return rows


Side = Callable[[str, Shots, int], TwoWay]


def sides(outcomes: Outcomes, resampling: Resampling, metric: str) -> Side:
    """(method, shots, first so many draws) -> its metric on all resamples, each taken once."""
    taken: dict[tuple[str, Shots, int], TwoWay] = {}

    def side(name: str, shots: Shots, draws: int) -> TwoWay:
        key = name, shots, draws
        if key not in taken:
            taken[key] = resampling.two_way(outcomes[name, shots][:draws], metric)
        return taken[key]

    return side


def tested(gain: str, side: Side, name: str, reference: str, shots: Shots, outcomes: Outcomes, metric: str) -> dict[str, float | None]:
    """The gain over a reference on the draws that both have, and its p-value; none of them where there is no reference."""
    if not reference:
        return {**named(gain, None), f"{gain}_p": None}
    both = min(len(outcomes[name, shots]), len(outcomes[reference, shots]))
    gap = better(side(name, shots, both), side(reference, shots, both), metric)
    return {**named(gain, gap.interval), f"{gain}_p": None if name == reference else gap.p_value()}


def encoder_gains(specs: Sequence[str], found: Sequence[Outcomes], resampling: Resampling, metric: str) -> list[dict[str, Any]]:
    """Every encoder after the first against it, a method and a number of shots at a time, on the same supports and patients."""
    rows = []
    for spec, outcomes in zip(specs[1:], found[1:], strict=True):
        for (name, shots), ours in outcomes.items():
            theirs = found[0].get((name, shots))
            if theirs is not None and catalogue.strategy_of(name) != "none":
                about = {"encoder": spec, "over": specs[0], "method": name, "shots": shots, "metric": metric}
                rows.append(about | named("gain", resampling.gain(ours, theirs, metric)))
    return rows


def baseline_gains(best: str, found: Outcomes, shots: Shots, task: Task, resampling: Resampling) -> list[dict[str, Any]]:
    """The best method against every baseline that was run beside it, each metric that both have, at one number of shots.

    The two references that every row of the table is compared with already are left out. Paired, on the same supports and patients;
    positive is better for the best method, also where lower is better.
    """
    rows = []
    for (name, at), theirs in found.items():
        if (
            at != shots
            or name == best
            or name in (task.start, task.plain)
            or catalogue.strategy_of(name) != "none"
            or (best, shots) not in found
        ):
            continue
        ours = found[best, shots]
        for metric in [metric for metric in ours[0].statistics if metric in theirs[0].statistics]:
            rows.append({"method": best, "over": name, "metric": metric} | named("gain", resampling.gain(ours, theirs, metric)))
    return rows


def named(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def harm(outcomes: Sequence[Outcome], reference: Sequence[Outcome], metric: str) -> float:
    """Share of draws in which the method does worse than the reference."""
    both = min(len(outcomes), len(reference))
    values = [[outcome.statistics[metric].value() for outcome in side[:both]] for side in (outcomes, reference)]
    return float(harm_rate(*(values[::-1] if metric in LOWER_IS_BETTER else values)))
