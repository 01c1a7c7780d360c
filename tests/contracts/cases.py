"""A method that meets a task, with their tiny data; its answers, and how two answers are compared."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny
from torch import Tensor

from doubles import ENCODERS
from medtame import catalogue, state
from medtame import run as path
from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import TowerEncoder
from medtame.learning.loop import Step
from medtame.run import Run
from medtame.strategies.base import Method
from medtame.tasks.base import Task
from medtame.types import Adapted, Answer, Array, Grids, Problem, Samples, Scores, Texts

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A method that meets a task. `run` is fitted once, when it is first asked for."""

    method: Method
    task: Task
    train: ManifestSamples
    test: ManifestSamples
    encoder: TowerEncoder

    @cached_property
    def run(self) -> Run:
        return self.fit()

    @cached_property
    def said(self) -> Answer:
        return ask(self.run, self.test)

    @property
    def name(self) -> str:
        return f"{catalogue.name_of(self.method)} on {catalogue.name_of(self.task)}"

    def fit(self, **changes: Any) -> Run:
        case = replace(self, **changes)
        return path.fitted(case.train, case.task, case.method, case.encoder, seed=3, watch=case.steady)

    def steady(self, step: Step) -> None:
        """Every step of every fit has a loss: none is taken on nothing."""
        assert math.isfinite(step.loss), f"{self.name}: the loss of step {step.number} is {step.loss}"

    def problem(self) -> Problem:
        frame = self.task.frame(self.train, path.meet(self.task, self.method)).prepared(self.train, self.encoder, 3)
        return frame.problem(self.train, self.encoder, 3)


def case(method: Method, task: Task, encoder: TowerEncoder) -> Case:
    """A pair on its tiny data, as `medtame.load` would prepare them; a method with steps makes three."""
    train, test = (task.usable(samples) for samples in tiny(catalogue.name_of(task)))
    return Case(with_steps(method, 3), task.settled(train), train, test, encoder)  # type: ignore[arg-type]


def with_steps(method: Method, steps: int) -> Method:
    return replace(method, steps=steps) if has(method, "steps") else method  # type: ignore[call-arg]


def has(value: Any, setting: str) -> bool:
    return setting in {field.name for field in fields(value)}


def ask(run: Run, samples: Samples) -> Answer:
    return path.answer(run.adapted, run.query(samples), run.method.scope)


def parts(answer: Answer) -> dict[str, Array]:
    """An answer as named arrays without objects."""
    if isinstance(answer, (Scores, Grids)):
        return {"values": answer.values.numpy()}
    if isinstance(answer, Texts):
        return {"texts": np.array(answer.values, dtype=str)}
    return {f"boxes-{i}": boxes.numpy() for i, boxes in enumerate(answer.values)}


def rows_of(answer: Answer, rows: Array) -> Answer:
    if isinstance(answer, (Scores, Grids)):
        return type(answer)(answer.values[torch.as_tensor(rows)])
    return type(answer)([answer.values[i] for i in rows])  # type: ignore[arg-type]


def joined(answers: list[Answer]) -> Answer:
    if isinstance(answers[0], (Scores, Grids)):
        return type(answers[0])(torch.cat([answer.values for answer in answers]))  # type: ignore[misc]
    return type(answers[0])([value for answer in answers for value in answer.values])  # type: ignore[arg-type]


def distance(a: Answer, b: Answer) -> float:
    """The largest difference of two answers, in units of 1 + |b|; infinite where they differ in shape, or a text differs."""
    first, second = parts(a), parts(b)
    if first.keys() != second.keys() or any(first[key].shape != second[key].shape for key in first):
        return float("inf")
    worst = 0.0
    for key, value in first.items():
        if value.dtype.kind == "U":
            worst = max(worst, 0.0 if (value == second[key]).all() else float("inf"))
        elif value.size and not np.array_equal(np.isnan(value), np.isnan(second[key])):
            worst = float("inf")
        elif value.size:
            worst = max(worst, float(np.nan_to_num(np.abs(value - second[key]) / (1 + np.abs(second[key]))).max()))
    return worst


def identical(a: Answer, b: Answer) -> bool:
    first, second = parts(a), parts(b)
    return first.keys() == second.keys() and all(same_array(first[key], second[key]) for key in first)


def same_array(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def finite(answer: Answer) -> bool:
    return all(value.dtype.kind == "U" or bool(np.isfinite(value).all()) for value in parts(answer).values())


def tensors(adapted: Adapted) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    state.split(adapted, "adapted", found)
    return found


def different(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit-equal."""
    return sorted(
        name for name in a.keys() | b.keys() if name not in a or name not in b or not same_array(a[name].numpy(), b[name].numpy())
    )


def answers_of_fresh_process(folders: Iterable[Path], out: Path, *, broken: bool = False) -> dict[str, dict[str, Array]]:
    """Folder name -> answer to the tiny test samples, by one new Python process that opens every folder."""
    listed = json.dumps([str(folder) for folder in folders])
    code = f"import cases; cases.write_answers({listed}, {str(out)!r}, broken={broken})"
    paths = [str(TESTS), str(TESTS / "contracts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"the fresh process failed:\n{done.stderr[-2000:]}"
    answers: dict[str, dict[str, Array]] = {}
    with np.load(out, allow_pickle=False) as read:
        for key in read.files:
            folder, _, part = key.partition("/")
            answers.setdefault(folder, {})[part] = read[key]
    return answers


def write_answers(folders: list[str], out: str, broken: bool = False) -> None:
    """What the fresh process does."""
    torch.set_num_threads(1)
    if broken:
        import broken as shelf

        shelf.shelve(pytest.MonkeyPatch())
    encoders, found = {spec: make() for spec, make in ENCODERS.items()}, {}
    for folder in map(Path, folders):
        try:
            run = path.open(folder, opener=encoders.__getitem__)
            answer = ask(run, run.task.usable(tiny(catalogue.name_of(run.task))[1]))
            found |= {f"{folder.name}/{part}": value for part, value in parts(answer).items()}
        except Exception as error:
            found[f"{folder.name}/error"] = np.array(f"{type(error).__name__}: {error}")
    np.savez(out, **found)  # type: ignore[arg-type]
