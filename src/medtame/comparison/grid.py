"""The grid of cells: every method on the same supports. A finished cell is a file, so a killed run loses none."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from medtame import catalogue, state
from medtame.data.draws import Draw, draw
from medtame.data.samples import ManifestSamples
from medtame.errors import RunError
from medtame.learning.loop import Step
from medtame.metrics.statistic import Statistic, from_arrays, joined, to_arrays
from medtame.run import Data, Run, fitted
from medtame.strategies.base import Learner, Method
from medtame.types import Array, Encoder, Rows, Samples

Shots = int | Literal["all"]
GLIMPSED_STEPS = 2
LEARNT_FROM = frozenset({"labels", "normals"})  # needs that no support of no rows meets


class _Enough(Exception):  # noqa: N818
    """Ends a fit that was only begun to see how long a step takes."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps


@dataclass(frozen=True)
class Part:
    """One (training, test) pair of row numbers; a data set without a test part has a few of them, its folds."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Cell:
    """One method on one support (or, in folds, one of each fold)."""

    method: str
    shots: Shots
    draw: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.shots}-{self.draw}"


@dataclass(frozen=True)
class Outcome:
    """What a cell found: metrics that can be resampled, and what it cost."""

    statistics: dict[str, Statistic]
    cost: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.cost["seconds"]


@dataclass(frozen=True)
class Grid:
    """All that a cell depends on besides its own name: data, parts, encoder, seed, regime."""

    data: Data
    parts: tuple[Part, ...]
    encoder: Encoder
    seed: int
    regime: str
    settings: dict[str, dict[str, Any]]
    folder: Path
    draws: dict[tuple[int, Shots, int], Draw] = field(default_factory=dict, init=False, repr=False, compare=False)

    def method(self, name: str) -> Method:
        made: Method = catalogue.build(catalogue.METHODS, name, self.settings.get(name))
        return made

    def support(self, part: Part, shots: Shots, number: int) -> tuple[ManifestSamples, list[str]]:
        """The rows that every method learns from in this draw."""
        drawn = self.drawn(part, shots, number)
        return self.data.samples.take(part.train[drawn.rows]), drawn.notes

    def drawn(self, part: Part, shots: Shots, number: int) -> Draw:
        """Row numbers among the training rows of a part, drawn once for all methods; no shots are no rows."""
        if shots == 0:
            return Draw(np.zeros(0, dtype=np.intp))
        key = (next(place for place, one in enumerate(self.parts) if one is part), shots, number)
        if key not in self.draws:
            train = self.data.samples.take(part.train)
            self.draws[key] = draw(self.data.task.strata(train), train.groups, shots, seed=self.seed + number, regime=self.regime)
        return self.draws[key]

    def asked(self, method: str, shots: Sequence[Shots]) -> tuple[Shots, ...]:
        """The numbers of shots of a method: no shots only where it learns from no row."""
        return tuple(k for k in shots if k != 0 or not self.method(method).needs & LEARNT_FROM)

    def unlabelled(self, method: Method, part: Part, shots: Shots, number: int) -> ManifestSamples | None:
        """The training rows outside the support, for a method that learns from rows without labels; never a test row."""
        if not method.unlabelled:
            return None
        rest = np.setdiff1d(np.arange(len(part.train)), self.drawn(part, shots, number).rows)
        return self.data.samples.take(part.train[rest]) if len(rest) else None

    def fitted(self, method: Method, part: Part, shots: Shots, number: int, **more: Any) -> Run:
        """A method on a support, as every cell and control fits it."""
        support, _ = self.support(part, shots, number)
        rest = self.unlabelled(method, part, shots, number)
        return fitted(support, self.data.task, method, self.encoder, seed=self.seed + number, unlabelled=rest, **more)

    def run(self, cell: Cell, clock: Callable[[], float]) -> Outcome:
        """Fit and measure one cell, or read it from its file. Test rows reach only `measure`."""
        kept = self.kept(cell)
        if kept is not None:
            return kept
        started, found, costs, notes = clock(), [], [], []
        for part in self.parts:
            _, said = self.support(part, cell.shots, cell.draw)
            run = self.fitted(self.method(cell.method), part, cell.shots, cell.draw)
            statistics, refused = run.counted(self.data.samples.take(part.test))
            found.append(statistics)
            costs.append(run.about["cost"])
            notes += [*said, *told(cell, run), *([f"{cell.name}: {refused}."] if refused else [])]
        whole = {name: joined([statistics[name] for statistics in found]) for name in found[0]}
        cost = {
            "seconds": clock() - started,
            "fit_seconds": float(np.mean([cost["fit_seconds"] for cost in costs])),
            "trainable_parameters": float(max(cost["trainable_parameters"] for cost in costs)),
            "peak_megabytes": float(max(cost["peak_megabytes"] for cost in costs)),
        }
        outcome = Outcome(whole, cost, tuple(dict.fromkeys(notes)))
        self.keep(cell, outcome)
        return outcome

    def glimpse(self, cell: Cell, clock: Callable[[], float]) -> float | None:
        """About how many seconds a learner's fit takes, from its first steps, for all parts; None for what has no steps or is kept."""
        method = self.method(cell.method)
        if not isinstance(method, Learner) or self.kept(cell) is not None:
            return None
        times: list[float] = []

        def stop(step: Step) -> None:
            times.append(clock())
            if len(times) > GLIMPSED_STEPS:
                raise _Enough(step.of)

        try:
            self.fitted(method, self.parts[0], cell.shots, cell.draw, watch=stop)
        except _Enough as seen:
            return (times[-1] - times[0]) / GLIMPSED_STEPS * seen.steps * len(self.parts)
        return None

    def keep(self, cell: Cell, outcome: Outcome) -> None:
        config, arrays = to_arrays(outcome.statistics)
        settings = catalogue.settings_of(self.method(cell.method))
        about = json.dumps({"statistics": config, "cost": outcome.cost, "notes": outcome.notes, "settings": settings})
        named = {**arrays, "about": np.frombuffer(about.encode(), dtype=np.uint8)}

        def write(path: str) -> None:
            with Path(path).open("wb") as file:
                np.savez(file, allow_pickle=False, **named)

        state.write_whole(self.folder / f"{cell.name}.npz", write)

    def kept(self, cell: Cell) -> Outcome | None:
        """A finished cell; one made with other settings, or a file that cannot be read, is made again."""
        path = self.folder / f"{cell.name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            about = json.loads(arrays.pop("about").tobytes())
            if about["settings"] != json.loads(json.dumps(catalogue.settings_of(self.method(cell.method)))):
                return None
            return Outcome(from_arrays(about["statistics"], arrays), about["cost"], tuple(about["notes"]))
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error, RunError):
            path.unlink()
            return None

    def test_groups(self) -> Array:
        """(N,) the patient of each measured row, in the order of the statistics."""
        return np.concatenate([self.data.samples.groups[part.test] for part in self.parts])


def told(cell: Cell, run: Run) -> list[str]:
    """What a fitted method says of itself; of several draws the first one speaks."""
    said, note = [], getattr(run.adapted, "note", "")
    if cell.draw == 0 and note:
        said.append(f"{cell.method}: {note.rstrip('.')}.")
    if getattr(run.adapted, "chosen_by_data", True) is False:
        shots = "1 shot" if cell.shots == 1 else f"{cell.shots} shots"
        said.append(f"{cell.method} at {shots}: its hyper-parameters were not chosen by data (too few rows); fixed ones are used.")
    return said


def parts_of(data: Data, folds: Callable[[Samples], Sequence[tuple[Rows, Rows]]]) -> tuple[Part, ...]:
    """The given training and test rows, or folds of the training rows where no row is for the test."""
    if data.split.test is not None:
        return (Part(data.split.train, data.split.test),)
    train = data.split.train
    return tuple(Part(train[np.asarray(inside)], train[np.asarray(outside)]) for inside, outside in folds(data.train))


def settle_folder(folder: Path, question: dict[str, Any], *, resume: bool) -> None:
    """`folder` is new or empty, or holds the same question and is to be gone on with."""
    known = folder / "question.json"
    try:
        if folder.exists() and any(path != known for path in folder.iterdir()):  # a question without a cell holds nothing to lose
            if not resume:
                raise RunError(f"{folder} is not empty: give a new folder, or --resume to go on with what is there")
            if not known.is_file():
                raise RunError(f"{folder} holds no comparison to go on with: give a new folder")
            before = json.loads(known.read_text(encoding="utf-8"))
            changed = [key for key in question if before.get(key) != question[key]]
            if changed:
                raise RunError(f"{folder} was begun with another {changed[0]}, so its cells do not count here: give a new folder")
        state.write_text(known, json.dumps(question, indent=1))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}): give another folder with --out") from None
