"""How a benchmark is timed: ours and the plain loop in turn, CPU seconds of this process, the minimum of each, results compared first.

CPU time of one thread repeats to a few percent on a machine that others use too; wall time does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two ways to one result. `check` runs both, compares, and says what it found; a failed one begins with `failed`."""

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    check: Callable[[], str]
    goal: float | None  # how many times as fast; None: only reported
    rounds: int = 5
    plain_share: float = 1.0  # the share of the work that `plain` does: its time is divided by it, and the check says so


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    ours_seconds: float
    plain_seconds: float
    ratio: float
    goal: float | None
    check: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(name: str, opened: AbstractContextManager[Case]) -> Result:
    """Check, which warms both up, then time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.no_grad(), opened as case:
            check, ours, plain = case.check(), [], []
            for _ in range(case.rounds):
                ours.append(cpu_seconds(case.ours))
                plain.append(cpu_seconds(case.plain) / case.plain_share)
            ratio = min(plain) / max(min(ours), 1e-9)
            return Result(name=name, ours_seconds=min(ours), plain_seconds=min(plain), ratio=ratio, goal=case.goal, check=check)
    finally:
        torch.set_num_threads(before)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def verdict(fits: bool, found: str) -> str:
    return f"{'ok' if fits else 'failed'}: {found}"


def smallest_cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(1).double(), second.flatten(1).double()).min())


def real_data() -> Path | None:
    """The folder of real images: MEDTAME_DATA, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("MEDTAME_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if folder.is_dir() else None


def jpegs(set_name: str, count: int, into: Path, *, grey: bool) -> list[Path]:
    """Real JPEG images of a set, colour or grey as asked; made ones where the real are not here."""
    data = real_data()
    found: list[Path] = []
    for path in sorted((data / set_name / "images").glob("*.jp*g")) if data is not None else ():
        with Image.open(path) as image:
            if (image.mode == "L") == grey:
                found.append(path)
        if len(found) == count:
            return found
    return [*found, *(_made(into / f"{number}.jpg", number, grey) for number in range(count - len(found)))]


def _made(path: Path, number: int, grey: bool) -> Path:
    """A smooth image with noise, of the size that the set usually has."""
    rng = np.random.default_rng(number)
    height, width = (265, 320) if grey else (480, 640)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 5, (height, width, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).convert("L" if grey else "RGB").save(path, quality=85)
    return path


def enlarged(paths: list[Path], width: int, height: int, into: Path) -> list[Path]:
    """The same images at another size, as JPEG."""

    def one(path: Path) -> Path:
        with Image.open(path) as image:
            image.resize((width, height), Image.Resampling.BICUBIC).save(into / f"large-{path.stem}.jpg", quality=85)
        return into / f"large-{path.stem}.jpg"

    return [one(path) for path in paths]
