"""The temperature of the final run: fitted on rows of the training part that were held out, and what it does on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medtame import catalogue
from medtame.comparison import choice
from medtame.comparison.figures import measured, reliability
from medtame.comparison.grid import Grid, Outcome, Shots
from medtame.comparison.table import Resampling, better
from medtame.metrics.statistic import BalancedAccuracy, MacroAuroc, Statistic
from medtame.metrics.temperature import temperature
from medtame.run import Run
from medtame.types import Array

LEAST = float(np.finfo(np.float32).tiny)  # below this a probability has lost its logit
SHOWN = ("ece", "brier")


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by, a sentence that says where it is from, and how many held-out rows it rests on."""

    value: float
    how: str
    rows: int = 0


def fitted(
    grid: Grid,
    best: choice.Choice,
    found: Mapping[tuple[str, Shots], Sequence[Outcome]],
    shots: Shots,
    count: int,
    watch: Callable[[str], None],
) -> Temperature | None:
    """From the folds of the choice where they are of all training rows, as the final run is; else from new ones of these.

    None for a task without exclusive classes. Fold models learn from fewer rows than the final run, so they tend to be less often right
    and the temperature to be a little high.
    """
    if not exclusive(found[best.method, shots][0].statistics):
        return None
    held = best.held if shots == "all" and len(grid.parts) == 1 else ()
    if not held:
        train = grid.data.train
        parts = choice.parted(grid, train, count)
        if parts is None:
            few = choice.fewest(grid, train)
            return Temperature(1.0, f"not chosen by data: with {few} training row(s) in the smallest class nothing can be held out")
        watch(f"temperature of {best.method}")
        held = tuple(choice.held_out(grid, best.method, train, parts) or ())
    if not held:
        return Temperature(1.0, f"not chosen by data: {best.method} could not be cross-validated")
    logits, truth = (np.concatenate(sides) for sides in zip(*map(judged, held), strict=True))
    rows = int(((truth >= 0) & ~np.isnan(logits).any(1)).sum())
    said = f"fitted on {rows} training rows that were held out in {len(held)} folds; no test row was asked"
    return Temperature(temperature(logits, truth), said, rows)


def exclusive(statistics: Mapping[str, Statistic]) -> bool:
    """Whether these are the metrics of a softmax over classes: one label a row."""
    return isinstance(statistics.get("balanced_accuracy"), BalancedAccuracy) and isinstance(statistics.get("macro_auroc"), MacroAuroc)


def judged(statistics: Mapping[str, Statistic]) -> tuple[Array, Array]:
    """Logits (N, C), up to a number a row, and the true class (N,) of what was measured."""
    area, hits = statistics["macro_auroc"], statistics["balanced_accuracy"]
    assert isinstance(area, MacroAuroc)
    assert isinstance(hits, BalancedAccuracy)
    return np.log(area.scores.clip(min=LEAST)), hits.truth


def tell(details: dict[str, Any], grid: Grid, run: Run, heat: Temperature | None, shots: Shots, resampling: Resampling) -> None:
    """Put into `details` of the record the temperature, and what it does on the test rows where they are no training rows too.

    The reliability of the run with its temperature joins the figures where the method's own is drawn of the same fit.
    """
    if heat is None:
        return
    said: dict[str, Any] = {"value": heat.value, "how": heat.how, "rows": heat.rows}
    details["temperature"] = said
    if grid.data.test is None or not heat.rows:
        return
    before, after = ([Outcome(dict(one.measure(grid.data.test)), {})] for one in (without(run), run))
    said["metrics"] = {name: effect(before, after, name, resampling) for name in SHOWN}
    drawn = reliability(f"{catalogue.name_of(run.method)}, temperature {heat.value:.2f}", after, resampling)
    if details.get("figures") and shots == "all" and drawn is not None:
        details["figures"]["reliability"].insert(1, drawn)


def without(run: Run) -> Run:
    """The same run with the logits as its method gives them."""
    return replace(run, about={**run.about, "temperature": 1.0})


def effect(before: Sequence[Outcome], after: Sequence[Outcome], metric: str, resampling: Resampling) -> dict[str, Any]:
    """Both values and the paired gain, with intervals over patients: there is one support."""
    plain, heated = resampling.two_way(before, metric), resampling.two_way(after, metric)
    gain = better(heated, plain, metric).interval
    return {
        "before": measured(plain),
        "after": measured(heated),
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }
