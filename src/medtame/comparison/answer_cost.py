"""What an answer costs where a method works when it is asked, not at its fit: measured beside zero_shot on the same images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from medtame import catalogue
from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import PIXEL_MEMORY_BYTES, Memory
from medtame.features.cached import CachedEncoder
from medtame.run import Run, unmet
from medtame.strategies.base import Method
from medtame.tasks.base import Task
from medtame.types import Encoder

IMAGES = 16
REPEATS = 3  # where vectors are kept and an answer is milliseconds: the least counts
REFERENCE = "zero_shot"


def works_when_asked(task: Task, method: Method) -> bool:
    """Whether nothing is learnt at fit and an answer is more than a comparison of a row with its candidates."""
    more = "image_modules" in method.towers or method.scope != "row"
    return method.learning == "none" and "text" in method.towers and more and not unmet(task, catalogue.build(catalogue.METHODS, REFERENCE))


def told(runs: Mapping[str, Run], samples: ManifestSamples) -> str:
    """A sentence with the CPU seconds that fitted runs, `zero_shot` among them, take for the first of the samples asked together.

    Where one of them passes images through the tower, all start with nothing kept; else all find the image vectors kept.
    """
    few = samples.take(range(min(len(samples), IMAGES)))
    passes = any("image_modules" in run.method.towers for run in runs.values())
    seconds = {name: _seconds(run, few, passes=passes) for name, run in runs.items()}
    start = seconds.pop(REFERENCE)
    others = ", ".join(f"{name} {_digits(taken)} s ({_digits(taken / max(start, 1e-9))} times)" for name, taken in seconds.items())
    state = "with the encoding, nothing kept" if passes else "beside the encoding"
    return f"To answer {len(few)} images together, {state}, {REFERENCE} takes {_digits(start)} s of CPU, {others}."


def _digits(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _seconds(run: Run, samples: ManifestSamples, *, passes: bool) -> float:
    """The CPU seconds of an answer."""
    taken = []
    for _ in range(1 if passes else REPEATS):
        asked = replace(run, encoder=_bare(run.encoder)) if passes else run
        started = time.process_time()
        asked.predict(samples)
        taken.append(time.process_time() - started)
    return min(taken)


def _bare(encoder: Encoder) -> Encoder:
    """A cached encoder as it is at the first use, its weights in memory: nothing kept, the plain tower. Any other as it is."""
    if not isinstance(encoder, CachedEncoder):
        return encoder
    opened = replace(encoder.opened, pixels=Memory(PIXEL_MEMORY_BYTES))
    return CachedEncoder(encoder.card, lambda: opened, engines=())
