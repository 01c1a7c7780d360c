"""Compare: which adaptation works on these images. Cells, intervals, the best method, controls, a run, a report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medtame import catalogue
from medtame.comparison import budget, calibration, choice, controls, notes, seen, significance, table
from medtame.comparison.grid import Grid, Outcome, Shots, parts_of, settle_folder
from medtame.comparison.recommendation import on_test, recommended
from medtame.data import duplicates, quick_check, splits
from medtame.data.draws import REGIMES
from medtame.errors import DataError, LearningError, MedtameError, PairError, SettingsError, UnknownNameError
from medtame.metrics import LOWER_IS_BETTER
from medtame.metrics.intervals import resampled_groups
from medtame.report import html, record
from medtame.run import RESAMPLES, Data, Run, adapt, encoder, identity, meet, unmet
from medtame.strategies.base import Method
from medtame.tasks.base import Task
from medtame.trust import seen_images
from medtame.types import Array, Encoder

FOLDS = 5  # where there is no test part
CHOICE_FOLDS = 3  # inside a support, to choose the best method
SAFE = ("clap", "linear_probe", "ridge_probe")  # what is named where nothing can be chosen by data
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: the record (JSON), and the best method fitted on all training rows."""

    record: dict[str, Any]
    run: Run

    @property
    def best(self) -> str:
        return str(self.record["best"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.record["rows"]
        return rows

    def json(self) -> dict[str, Any]:
        return self.record


@dataclass(frozen=True)
class Asked:
    """What the user asked for, settled."""

    shots: tuple[Shots, ...]
    draws: int
    regime: str
    minutes: float | None
    seed: int
    settings: dict[str, dict[str, Any]]
    methods: tuple[str, ...]
    references: tuple[str, ...]
    named: bool = False  # the user named the methods, so one that refuses is an error
    best: str = ""  # the method that gets the controls and is saved, where the user says which


def compare(
    data: Data,
    encoders: str | Encoder | Sequence[str | Encoder] = "bundled",
    *,
    methods: str | Sequence[str] = "fast",
    shots: Sequence[Shots] | None = None,
    draws: int = 20,
    regime: str = "standard",
    minutes: float = 2,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path = "medtame-out",
    resume: bool = False,
    watch: Progress = lambda what, done, of: None,
    command: str = "medtame.compare(...)",
    names: bool = False,
    best: str = "",
) -> Comparison:
    """Every method on the same supports of the training rows, measured on the test rows with intervals over draws and patients.

    Args:
        methods: "fast" (all that fit `minutes`, measured), "all", a strategy, or names. The task's references are always run.
        shots: supports of K rows a stratum, or "all" training rows. Default: the task's.
        settings: method -> setting -> value.
        out: a new or empty folder, or one to `resume`. A finished cell of the grid is a file there and is kept when killed.
        watch: called with (what, done, of).
        names: show the names of images in the report; they may name patients.
        best: the method that gets the controls and is saved, in place of the one that cross-validation names.
    """
    started, folder = time.perf_counter(), Path(out)
    opened = opened_encoders(encoders, lambda done, of: watch("encoding images", done, of))
    asked = preferring(best, settled(data, opened[0], methods, shots, draws, regime, minutes, seed, settings or {}))
    looked, alike = looked_at(data, opened, watch)
    settle_folder(folder, question(data, opened, asked), resume=resume)
    grids = [grid_of(data, one, asked, folder / "cells" / slug(one.spec), alike) for one in opened]
    plans, found = zip(*(run_cells(grid, asked, watch) for grid in grids), strict=True)
    metric = next(iter(next(iter(found[0].values()))[0].statistics))
    choices = [chosen(grid, plan, metric, asked, watch) for grid, plan in zip(grids, plans, strict=True)]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    place = max(range(len(grids)), key=lambda k: sign * choices[k].scores.get(choices[k].method, -sign * np.inf))
    grid, picked = grids[place], choices[place]
    resampling = table.Resampling(resampled_groups(grid.test_groups(), RESAMPLES, seed), seed)
    rows = [row for one, outcomes in zip(grids, found, strict=True) for row in rows_of(one, outcomes, asked, resampling, metric)]
    rows = significance.adjusted(rows, data.task.references)
    arms = tested(grid, picked.method, found[place], asked, resampling, metric, watch)
    heat = calibration.fitted(grid, picked, found[place], asked.shots[-1], CHOICE_FOLDS, lambda what: watch(what, 0, 1))
    run = final(data, grid, picked.method, heat, folder / "run")
    warnings = [*notes.said(data, grid, found[place], run), *looked]
    taken = advised(grid, plans[place], metric, watch)
    seconds = time.perf_counter() - started
    details = seen.details(grid, asked.shots, picked, found[place], warnings, run, resampling, metric, command, seconds, names=names)
    details["recommendation"] = None if taken is None else on_test(taken, rows, grid.encoder.spec)
    calibration.tell(details, grid, run, heat, asked.shots[-1], resampling)
    details["encoder_gains"] = table.encoder_gains([one.spec for one in opened], found, resampling, metric)
    details["baseline_gains"] = table.baseline_gains(picked.method, found[place], asked.shots[-1], data.task, resampling)
    made = {
        "schema": 1,
        "task": catalogue.name_of(data.task),
        "data": counted(data, grid),
        "rows": rows,
        "not_run": [row for plan in plans for row in budget.left_out(plan)],
        "best": picked.method,
        "controls": arms,
        "run": str((folder / "run").absolute()),
        "report": str((folder / "report.html").absolute()),
        "details": details,
    }
    return Comparison(written(made, run, folder), run)


def advised(grid: Grid, plan: budget.Plan, metric: str, watch: Progress) -> dict[str, Any] | None:
    """What to take on these data, by a rule and what is measured on the training rows; None where the task has no classes."""
    found = recommended(grid, list(plan.draws), metric, lambda method: watch(f"weighing {method}", 0, 1))
    return None if found is None else found.record()


def looked_at(data: Data, opened: Sequence[Encoder], watch: Progress) -> tuple[list[str], Array]:
    """The quick part of `medtame check` as sentences, and (N,) a number a row: rows of nearly equal images share it. Raises DataError."""
    known = [sentence for one in opened for sentence in seen_images.told(one, data.samples, data.split)]
    found = quick_check.quick(
        data.samples, data.split, task=catalogue.name_of(data.task), watch=lambda done, of: watch("looking at the images", done, of)
    )
    broken = next((one for one in found.findings if one.code == "unreadable"), None)
    if broken is not None:
        raise DataError(f"{broken.message}: {', '.join(broken.images[:5])}; {broken.mend}")
    said = [f"{one.message} ({one.mend})" for one in found.findings if one.severity != "info"]
    numbers = dict(zip((picture.name for picture in found.images.pictures), duplicates.joined(found.looks.fingerprints), strict=True))
    column = "fixed" if "fixed" in data.samples else "image"
    return known + said, np.array([numbers[picture.name] for picture in data.samples.pictures(column)])


def opened_encoders(encoders: str | Encoder | Sequence[str | Encoder], watch: Callable[[int, int], None]) -> list[Encoder]:
    """One or several encoders, by name or as they are; `watch` is told how many images are encoded, of how many."""
    several = encoders if isinstance(encoders, Sequence) and not isinstance(encoders, str) else [encoders]
    opened = [encoder(one, watch=watch) if isinstance(one, str) else one for one in several]
    specs = [one.spec for one in opened]
    twice = next((spec for spec in specs if specs.count(spec) > 1), None)
    if twice is not None:
        raise SettingsError(f"the encoder {twice} is named twice: name each once")
    return opened


def settled(
    data: Data,
    encoder: Encoder,
    methods: str | Sequence[str],
    shots: Sequence[Shots] | None,
    draws: int,
    regime: str,
    minutes: float,
    seed: int,
    settings: Mapping[str, Mapping[str, Any]],
) -> Asked:
    """Names and numbers checked before anything is run."""
    named = False
    references = tuple(name for name in data.task.references if serves(data.task, built(name, settings), encoder))
    if methods in ("fast", "all"):
        names: Sequence[str] = [name for name in catalogue.names(catalogue.METHODS) if serves(data.task, built(name, settings), encoder)]
    elif isinstance(methods, str) or (
        len(methods) == 1 and methods[0] in {catalogue.strategy_of(n) for n in catalogue.names(catalogue.METHODS)}
    ):
        strategy = methods if isinstance(methods, str) else methods[0]
        names = [
            n
            for n in catalogue.names(catalogue.METHODS)
            if catalogue.strategy_of(n) == strategy and serves(data.task, built(n, settings), encoder)
        ]
        names = names or [strategy]
    else:
        names, named = methods, True
    for name in names:
        meet(data.task, built(name, settings), encoder)
    for name in settings:
        catalogue.settings_class(catalogue.METHODS, name)
    wanted = tuple(shots) if shots is not None else data.task.shots
    if not wanted or draws < 1 or minutes <= 0:
        raise SettingsError(f"shots, draws and minutes must be above zero (got {wanted!r}, {draws}, {minutes})")
    if regime not in REGIMES:
        raise UnknownNameError("regime", regime, REGIMES)
    if 0 in wanted and 0 not in data.task.shots:
        raise SettingsError(f"{catalogue.name_of(data.task)} is learnt from one shot or more, not from 0: correct --shots")
    limit = float(minutes) if methods == "fast" else None
    chosen = {name: dict(values) for name, values in settings.items()}
    return Asked(wanted, draws, regime, limit, seed, chosen, tuple(names), references, named)


def preferring(best: str, asked: Asked) -> Asked:
    """With the method that the user wants as the best one."""
    known = (*asked.references, *asked.methods)
    if best and best not in known:
        raise SettingsError(f"--best {best} is not compared ({', '.join(dict.fromkeys(known))} are): name one of them")
    return replace(asked, best=best)


def built(name: str, settings: Mapping[str, Mapping[str, Any]]) -> Method:
    made: Method = catalogue.build(catalogue.METHODS, name, settings.get(name))
    return made


def serves(task: Task, method: Method, encoder: Encoder) -> bool:
    with suppress(PairError):
        meet(task, method, encoder)
        return not unmet(task, method)
    return False


def question(data: Data, encoders: Sequence[Encoder], asked: Asked) -> dict[str, Any]:
    """What cells depend on: a folder is gone on with only where all of it is the same."""
    columns = json.dumps({name: [str(value) for value in data.samples.column(name)] for name in sorted(data.samples.columns)})
    return {
        "task": catalogue.name_of(data.task),
        "task_settings": json.loads(json.dumps(catalogue.settings_of(data.task))),
        "rows": hashlib.sha256(columns.encode()).hexdigest(),
        "window": data.samples.window,
        "encoders": [identity(one) for one in encoders],
        "regime": asked.regime,
        "seed": asked.seed,
        "settings": json.loads(json.dumps(asked.settings)),
    }


def grid_of(data: Data, encoder: Encoder, asked: Asked, folder: Path, alike: Array | None = None) -> Grid:
    """The grid of one encoder; folds keep rows that are alike on one side."""
    together = None if alike is None else alike[data.split.train]

    def parts(train: Any) -> Sequence[tuple[Any, Any]]:
        return splits.folds(train, list(data.task.strata(train)), FOLDS, seed=asked.seed, alike=together).parts

    return Grid(data, parts_of(data, parts), encoder, asked.seed, asked.regime, asked.settings, folder)


def run_cells(grid: Grid, asked: Asked, watch: Progress) -> tuple[budget.Plan, dict[tuple[str, Shots], list[Outcome]]]:
    """All cells, after the plan that the minutes allow; an interrupted call keeps what is finished."""
    every = list(dict.fromkeys([*asked.references, *asked.methods]))
    timed = iter(range(len(every)))
    warmed(grid)
    others = [name for name in asked.methods if name not in asked.references]
    plan = budget.planned(
        grid,
        others,
        asked.references,
        asked.shots,
        asked.draws,
        asked.minutes,
        CHOICE_FOLDS,
        time.perf_counter,
        lambda method: watch(f"timing {method}", next(timed), len(every)),
    )
    cells = [
        cell for name in every if name in plan.draws for cell in budget.cells_of(name, grid.asked(name, asked.shots), plan.draws[name])
    ]
    found: dict[tuple[str, Shots], list[Outcome]] = {}
    for done, cell in enumerate(cells):
        watch(f"{cell.method}, {cell.shots} shots", done, len(cells))
        if cell.method in plan.refused:
            continue
        try:
            found.setdefault((cell.method, cell.shots), []).append(grid.run(cell, time.perf_counter))
        except MedtameError as error:
            if cell.method in asked.references or (asked.named and not isinstance(error, LearningError)):
                raise
            plan.refused[cell.method] = str(error)
            del plan.draws[cell.method]
            found = {key: outcomes for key, outcomes in found.items() if key[0] != cell.method}
    watch("cells are done", len(cells), len(cells))
    return plan, found


def warmed(grid: Grid) -> None:
    """Features of every row, so that the first method timed does not pay for the encoder; grid tasks read what they need themselves."""
    task = grid.data.task
    if task.kinds[0] not in ("scores", "texts"):
        return
    given, words = task.given(grid.data.samples)
    frame = task.frame(grid.data.train, task.kinds[0])
    frame.query(given, grid.encoder, words).vectors()


def chosen(grid: Grid, plan: budget.Plan, metric: str, asked: Asked, watch: Progress) -> choice.Choice:
    """What the user named, else the best that was run; baselines, which use no encoder, are named only where nothing else was run."""
    if asked.best in plan.draws:
        return choice.Choice(asked.best, "the name after --best, not by data", {})
    names = [name for name in plan.draws if catalogue.strategy_of(name) != "none"] or list(plan.draws)
    safe = next((name for name in SAFE if name in names), names[0] if names else next(iter(plan.draws)))
    return choice.chosen(
        grid,
        names,
        metric,
        asked.shots,
        CHOICE_FOLDS,
        safe,
        lambda method: watch(f"cross-validation of {method}", names.index(method), len(names)),
    )


def rows_of(
    grid: Grid, found: Mapping[tuple[str, Shots], Sequence[Outcome]], asked: Asked, resampling: table.Resampling, metric: str
) -> list[dict[str, Any]]:
    methods = {name: grid.method(name) for name, _ in found}
    fixed = {"encoder": grid.encoder.spec, "regime": asked.regime}
    return table.rows_of(found, methods, resampling, metric, grid.data.task.start, grid.data.task.plain, fixed)


def tested(
    grid: Grid,
    method: str,
    found: Mapping[tuple[str, Shots], Sequence[Outcome]],
    asked: Asked,
    resampling: table.Resampling,
    metric: str,
    watch: Progress,
) -> list[dict[str, Any]]:
    """Controls at the most shots: a few draws where a fit is quick, else one."""
    shots = asked.shots[-1]
    quick = float(np.mean([outcome.cost["fit_seconds"] for outcome in found[method, shots]])) < 2
    draws = min(len(found[method, shots]), 5 if quick else 1)
    return controls.controlled(grid, method, shots, draws, resampling, metric, lambda arm: watch(f"control {arm}", 0, 1))


def final(data: Data, grid: Grid, method: str, heat: calibration.Temperature | None, folder: Path) -> Run:
    """The best method fitted on every training row, with its temperature, and saved."""
    run = adapt(data, grid.encoder, method=grid.method(method), seed=grid.seed)
    if heat is not None:
        run = replace(run, about={**run.about, "temperature": heat.value})
    run.save(folder)
    return run


def counted(data: Data, grid: Grid) -> dict[str, Any]:
    labels = [label for label in data.task.strata(data.samples).tolist() if label is not None]
    return {
        "n": len(data.samples),
        "classes": {label: labels.count(label) for label in sorted(set(labels))},
        "groups": len(set(data.samples.groups.tolist())),
        "split": {"train": len(data.split.train), "test": sum(len(part.test) for part in grid.parts)},
    }


def written(made: dict[str, Any], run: Run, folder: Path) -> dict[str, Any]:
    """result.json, report.html and the card of the run."""
    checked = record.checked(record.finite(made))
    record.write_json(checked, folder / "result.json")
    html.write(checked, folder / "report.html")
    plain: dict[str, Any] = checked.model_dump(mode="json", by_alias=True)
    seen.card(run, plain, folder / "run")
    return plain


def slug(spec: str) -> str:
    """A folder name from an encoder's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in spec)
