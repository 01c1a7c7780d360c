"""The one path: samples -> frame -> problem -> fit -> query -> answer -> predictions -> metrics. Read it top to bottom.

Only this file, `compare` and the command line know both shelves.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from medtame import catalogue, resumed, state
from medtame.data import manifest, readable, splits
from medtame.data.given_images import opened_images
from medtame.data.samples import ManifestSamples
from medtame.encoders import card as encoder_card
from medtame.encoders import load as load_encoder
from medtame.errors import DataError, PairError, RunError
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store
from medtame.learning.loop import Step
from medtame.metrics.intervals import Interval, one_way, resampled_groups
from medtame.metrics.statistic import Statistic
from medtame.strategies.base import Learner, Method
from medtame.tasks.base import Frame, Task
from medtame.trust.seen_images import refuse_seen
from medtame.types import Adapted, Answer, Boxes, Encoder, Fitted, Grids, Kind, Predicted, Problem, Query, Samples, Scope, Scores, Texts

SAMPLES_AT_ONCE = 64  # how many samples a row-wise method answers in one go where they pass through a tower or a decoder
VECTORS_AT_ONCE = 4096  # the same where their vectors are all it takes
RESAMPLES = 1000
NO_ANSWER = "no answer"  # the warning of a row that a method refused
RESEARCH_USE = "research use only: not for clinical decisions"
Watch = Callable[[Step], None]


@dataclass(frozen=True)
class Data:
    """Samples with the task that is asked of them; `split` says which rows may be learnt from."""

    samples: ManifestSamples
    task: Task
    split: splits.Split

    @property
    def train(self) -> ManifestSamples:
        return self.samples.take(self.split.train)

    @property
    def test(self) -> ManifestSamples | None:
        return None if self.split.test is None else self.samples.take(self.split.test)


def load(
    path: str | Path,
    task: str | Task = "classification",
    *,
    columns: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    window: str = "",
    allow_leakage: bool = False,
    strict: bool = False,
) -> Data:
    """Read a manifest or a folder for a task, with its split. Truth is checked here, once.

    `window` is an intensity window by name (`lung`, `brain`, `40/400`, …) for images of more than 8 bits; a run keeps it.
    `strict` refuses shards that would be left out with a note.
    """
    asked = catalogue.build(catalogue.TASKS, task, settings) if isinstance(task, str) else task
    samples = manifest.read(path, columns=columns, root=None if root is None else Path(root), strict=strict).windowed(window)
    samples = asked.usable(samples)
    split = splits.split(samples, allow_leakage=allow_leakage)
    settled = asked.settled(samples.take(split.train))
    if split.test is not None:
        settled.servable(samples.take(split.test))
    remarks = settled.remarks(samples.take(split.train), None if split.test is None else samples.take(split.test))
    samples = replace(samples, notes=(*samples.notes, *remarks))
    return Data(samples, settled, split)


def encoder(spec: str = "bundled", *, watch: Callable[[int, int], None] | None = None) -> CachedEncoder:
    """An encoder by its name, with the cache on disk around it; weights are read when a feature is missing."""
    return CachedEncoder(encoder_card(spec), lambda: load_encoder(spec), Store(), watch=watch)


def meet(task: Task, method: Method, encoder: Encoder | None = None) -> Kind:
    """The kind of answer that both speak; a PairError says why not and who would fit."""
    reason = unmet(task, method)
    if reason:
        fitting = [name for name in catalogue.names(catalogue.METHODS) if not unmet(task, catalogue.build(catalogue.METHODS, name))]
        raise PairError(f"{catalogue.name_of(method)} does not serve {catalogue.name_of(task)}: {reason}. These do: {', '.join(fitting)}.")
    if encoder is not None and "text" in method.towers and not encoder.text_identity:
        raise PairError(f"{catalogue.name_of(method)} needs a text side, which the encoder {encoder.spec} does not have: use linear_probe")
    return next(kind for kind in task.kinds if kind in method.gives)


def unmet(task: Task, method: Method) -> str:
    """Why a method cannot serve a task, or nothing."""
    if not set(task.kinds) & set(method.gives):
        return f"the task asks for {' or '.join(task.kinds)} and the method gives {' or '.join(method.gives)}"
    missing = sorted(method.needs - task.offers)
    if missing:
        return f"the method needs {', '.join(missing)} of the task"
    if "unseen_words" in task.offers and not method.new_words:
        return "the task asks about words that fit never saw and the method answers its own classes only"
    return ""


def answer(adapted: Adapted, query: Query, scope: Scope, at_once: int = SAMPLES_AT_ONCE) -> Answer:
    """The answer to all rows: in batches where a row's answer depends on the row alone, else in one call."""
    if scope != "row" or len(query.samples) <= at_once:
        return adapted.answer(query)
    parts = [adapted.answer(part) for part in query.batches(at_once)]
    if isinstance(parts[0], Scores):
        return Scores(torch.cat([part.values for part in parts if isinstance(part, Scores)]))
    if isinstance(parts[0], Grids):
        return Grids(torch.cat([part.values for part in parts if isinstance(part, Grids)]))
    if isinstance(parts[0], Boxes):
        return Boxes([boxes for part in parts if isinstance(part, Boxes) for boxes in part.values])
    return Texts([text for part in parts if isinstance(part, Texts) for text in part.values])


def tempered(found: Answer, query: Query, temperature: float) -> Answer:
    """Logits of exclusive candidates over the temperature of the run; every other answer as it is."""
    if temperature == 1.0 or not isinstance(found, Scores) or query.candidates is None or not query.candidates.exclusive:
        return found
    return Scores(found.values / temperature)


@dataclass(frozen=True)
class Run:
    """A fitted method with its task and encoder: what `adapt` gives, `save` writes and `open` reads.

    `about["temperature"]`, where `compare` fitted one on held-out training rows, divides the logits of exclusive candidates.
    """

    task: Task
    frame: Frame
    method: Method
    adapted: Adapted
    encoder: Encoder
    about: dict[str, Any] = field(default_factory=dict)

    def query(self, samples: Samples, words: Sequence[str] | None = None) -> Query:
        """The question about samples. Truth cannot pass: `Task.given` is the only way in."""
        if isinstance(samples, ManifestSamples):
            samples = samples.windowed(self.about.get("window", ""))
        given, asked = self.task.given(samples)
        return self.frame.query(given, self.encoder, words if words is not None else asked)

    def answer(self, query: Query) -> Answer:
        """The answer to its own rows, or as a helper to someone else's: always with its own encoder."""
        query = replace(query, encoder=self.encoder)
        if query.wants != "grids":
            query.vectors()  # what the cache lacks is encoded with all threads
        with threads(threads_of(self.method)):
            found = answer(self.adapted, query, self.method.scope, samples_at_once(self.method, query))
        return tempered(found, query, float(self.about.get("temperature", 1.0)))

    def predict(self, images: Samples | Sequence[str | Path] | str | Path, words: Sequence[str] | None = None) -> Predicted:
        """Predictions for samples, a manifest, a folder, or image files; files that cannot be read are rows at the end with a warning."""
        if not isinstance(images, ManifestSamples):
            opened = opened_images(images)  # type: ignore[arg-type]
            return readable.predicted(lambda some: self.predict(some, words), opened, in_space="mask" in self.task.requires)
        query = self.query(images, words)
        return self.frame.read(query, self.answer(query))

    def measure(self, samples: Samples) -> Mapping[str, Statistic]:
        return self.frame.measured(self.predict, samples)

    def counted(self, samples: Samples) -> tuple[Mapping[str, Statistic], str]:
        """`measure`, and a sentence that says how many rows got no answer; empty where all did."""
        first: list[Predicted] = []

        def predict(asked: Samples) -> Predicted:
            said = self.predict(asked)
            first.append(said)
            return said

        found = self.frame.measured(predict, samples)
        return found, refusals(first[0]) if first else ""

    def judged(self, samples: Samples, *, seed: int = 0) -> tuple[dict[str, Interval], str]:
        """`evaluate`, and the sentence of `counted`."""
        samples = self.task.usable(samples)
        refuse_seen(self.encoder, samples)
        counts = resampled_groups(samples.groups, RESAMPLES, seed)
        found, refused = self.counted(samples)
        return {name: one_way(statistic, counts) for name, statistic in found.items()}, refused

    def evaluate(self, samples: Samples, *, seed: int = 0) -> dict[str, Interval]:
        """Metrics with 95 % intervals over patients."""
        return self.judged(samples, seed=seed)[0]

    def save(self, folder: str | Path) -> None:
        """Write the run: config.json, weights.safetensors. The card and the report are written by who made it."""
        parts = {"task": self.task, "frame": self.frame, "adapted": self.adapted, "encoder": self.encoder}
        method = {"name": catalogue.name_of(self.method), "settings": catalogue.settings_of(self.method)}
        about = {**self.about, "medtame": version("medtame"), "method": method, "encoder": identity(self.encoder), "use": RESEARCH_USE}
        state.save(parts, Path(folder), about)


def refusals(said: Predicted) -> str:
    """How many rows of a table got no answer, as a sentence; empty where all did."""
    count = sum(row.get("warning") == NO_ANSWER for row in said.table)
    told = "wrong in every accuracy and recall, left out of AUROC and calibration"
    return f"{count} of {len(said.table)} rows got no answer: {told}" if count else ""


def identity(encoder: Encoder) -> dict[str, Any]:
    return {
        "spec": encoder.spec,
        "image_identity": encoder.image_identity,
        "text_identity": encoder.text_identity,
        "logit_scale": encoder.scale,
        "logit_bias": encoder.bias,
    }


def open(folder: str | Path, opener: Callable[[str], Encoder] = encoder) -> Run:
    """Open a run that `adapt`, `compare` or the command line wrote; its encoder must be the one it was fitted with."""
    parts, about = state.load(Path(folder), (Adapted, Frame, Task), opener)
    made_with, now = about["encoder"], identity(parts["encoder"])
    changed = next((key for key in made_with if made_with[key] != now[key]), None)
    if changed is not None:
        raise RunError(
            f"{folder} was fitted with another encoder ({changed} was {made_with[changed]!r}, is {now[changed]!r}): fit it again"
        )
    method = catalogue.build(catalogue.METHODS, about["method"]["name"], about["method"]["settings"])
    return Run(parts["task"], parts["frame"], method, parts["adapted"], parts["encoder"], about)


def fitted(
    support: Samples,
    task: Task,
    method: Method,
    encoder: Encoder,
    *,
    seed: int = 0,
    unlabelled: Samples | None = None,
    helpers: Mapping[str, Fitted] | None = None,
    resume: Mapping[str, torch.Tensor] | None = None,
    change: Callable[[Problem], Problem] = lambda problem: problem,
    watch: Watch = lambda step: None,
) -> Run:
    """Fit a method on support rows: the middle of the path, and all that a cell of a grid does. `change` is for controls."""
    frame = task.frame(support, meet(task, method, encoder)).prepared(support, encoder, seed)
    problem = replace(frame.problem(support, encoder, seed), helpers=helpers or {})
    if unlabelled is not None:
        given, words = task.given(unlabelled)
        problem = replace(problem, unlabelled=frame.query(given, encoder, words))
    problem = change(problem)
    if problem.query.wants != "grids" and len(problem.query):
        problem.query.vectors()  # what the cache lacks is encoded here, with all threads and outside the time of the fit
    started, cpu = time.perf_counter(), time.process_time()
    with threads(threads_of(method)):
        adapted = method.fit(problem) if not isinstance(method, Learner) else _watched(method.learn(problem, resume), watch)
    cost = {
        "fit_seconds": time.perf_counter() - started,
        "fit_cpu_seconds": time.process_time() - cpu,
        "peak_megabytes": peak_megabytes(),
        "trainable_parameters": 0 if method.learning == "none" else learnt_numbers(adapted),
        "support_rows": len(support),
        "seed": seed,
    }
    with threads(threads_of(method)):
        frame = frame.calibrated(problem, lambda part, query: answer(adapted if part is problem else method.fit(part), query, method.scope))
    return Run(task, frame, method, adapted, encoder, {"cost": cost, "window": getattr(support, "window", "")})


def _watched(steps: Any, watch: Watch) -> Adapted:
    while True:
        try:
            watch(next(steps))
        except StopIteration as done:
            adapted: Adapted = done.value
            return adapted


def samples_at_once(method: Method, query: Query) -> int:
    """Many where vectors of whole images are all that the method reads, few where maps or pixels are made."""
    small = query.wants == "scores" and query.regions is None and not method.towers & {"image_modules", "grid"}
    return VECTORS_AT_ONCE if small else SAMPLES_AT_ONCE


def threads_of(method: Method) -> int:
    """All threads for what passes through a tower or a decoder, else one."""
    return torch.get_num_threads() if method.towers & {"image_modules", "grid"} else 1


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Small fits on cached features are fastest on one thread, and far faster where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with _pools(len(sys.modules)).limit(limits=count):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _pools(modules: int) -> ThreadpoolController:
    """The thread pools of the loaded libraries; looked for anew when a module was imported, which may have brought one."""
    return ThreadpoolController()


def learnt_numbers(adapted: Adapted) -> int:
    """How many numbers a fitted thing holds that a gradient may have made."""
    tensors: dict[str, torch.Tensor] = {}
    state.split(adapted, "adapted", tensors)
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def peak_megabytes() -> float:
    """The most memory that this process has held so far; NaN where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def adapt(
    data: Data,
    encoder: Encoder,
    *,
    method: str | Method,
    settings: Mapping[str, Any] | None = None,
    rows: str = "train",
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    watch: Watch = lambda step: None,
) -> Run:
    """One method fitted on the training rows (`rows="all"`: every row) and, where `out` is given, saved there.

    With `out` a learner that is stopped (Ctrl-C, a loss that is no number, the machine) leaves the state of a step there; `resume`
    goes on with it and ends, on a CPU, bit for bit where an uninterrupted fit ends.
    """
    if rows not in ("train", "all"):
        raise DataError(f"rows are 'train' or 'all', not {rows!r}")
    chosen = catalogue.build(catalogue.METHODS, method, settings) if isinstance(method, str) else method
    support = data.train if rows == "train" else data.samples
    told = {"n": len(support), "groups": len(set(support.groups)), "rows": rows, "split": data.split.how}
    if out is None:
        run = fitted(support, data.task, chosen, encoder, seed=seed, watch=watch)
        return replace(run, about={**run.about, "data": told})
    with resumed.kept(Path(out), belonging(support, data.task, chosen, encoder, seed), watch, resume=resume) as learning:
        run = fitted(support, data.task, chosen, encoder, seed=seed, resume=learning.start, watch=learning)
        run = replace(run, about={**run.about, "data": told, **({"resumed": learning.note} if learning.note else {})})
        run.save(out)
    return run


def belonging(support: ManifestSamples, task: Task, method: Method, encoder: Encoder, seed: int) -> dict[str, Any]:
    """All that a state of a learning depends on, as plain values: it is gone on with only where all of it is the same."""
    named = {"method": catalogue.name_of(method), "settings": catalogue.settings_of(method), "seed": seed, "task": catalogue.name_of(task)}
    rows = resumed.fingerprint(support) if isinstance(method, Learner) else ""
    more = {"task's settings": catalogue.settings_of(task), "encoder": identity(encoder), "rows": rows}
    return {**named, **more, "version of medtame": version("medtame")}
