"""The few-shot grid: 14 methods x 4 shots x 5 draws with intervals, against plain loops timed on some cells and scaled."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from benchmarks.bootstrap import in_a_loop
from benchmarks.harness import Case, cpu_seconds, verdict
from benchmarks.made import Made, made
from benchmarks.plain_methods import METHODS, Shot
from medtame.comparison.grid import Cell, Grid, Outcome, parts_of
from medtame.comparison.table import Resampling
from medtame.data.draws import draw
from medtame.metrics.intervals import resampled_groups
from medtame.types import Array

METRICS = ("macro_auroc", "balanced_accuracy")
MOST_DIFFERENCE = 0.02  # of probabilities: a plain loop in single precision and scikit-learn's lbfgs stop at slightly other places
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Asked:
    """The grid and its data."""

    data: Made
    train: int
    shots: tuple[int, ...]
    draws: int
    resamples: int

    @property
    def cells(self) -> list[Cell]:
        return [Cell(method, shots, number) for method in METHODS for shots in self.shots for number in range(self.draws)]

    def grid(self, folder: Path) -> Grid:
        given = self.data.data(self.train)
        return Grid(given, parts_of(given, lambda train: ()), self.data.encoder, 0, "standard", {}, folder)

    def shot(self, cell: Cell) -> Shot:
        """The support of a cell, as the grid draws it."""
        labels, names = self.data.labels[: self.train], np.array([str(row) for row in range(self.train)])
        strata = np.array([self.data.names[label] for label in labels])
        rows = draw(strata, names, cell.shots, seed=cell.draw).rows
        images, rest = self.data.images.numpy(), np.setdiff1d(np.arange(self.train), rows)
        return Shot(
            images[rows],
            labels[rows],
            self.data.texts.numpy(),
            images[rest],
            images[self.train :],
            self.data.encoder.scale,
            cell.draw,
            names[rows],
        )


@contextmanager
def fourteen_methods(
    shots: tuple[int, ...] = (1, 4, 16, 64),
    draws: int = 5,
    test: int = 800,
    classes: int = 8,
    dimension: int = 512,
    resamples: int = 1000,
    timed: int = 10,
) -> Iterator[Case]:
    """Ours: `Grid.run` of every cell, files and all, and two-way intervals of both metrics for each method and number of shots.

    Plain: for a cell the fit, and for each resample of the test rows both metrics by scikit-learn. `timed` cells, evenly over the
    list; its time is scaled to all cells. The check compares each method at each number of shots, and the resamples of one.
    """
    train = 2 * max(shots) * classes
    asked = Asked(made(train + test, classes, dimension, noise=4.0), train, shots, draws, resamples)
    truth = asked.data.labels[train:]
    every = asked.cells
    some = [every[place] for place in np.linspace(0, len(every) - 1, timed).round().astype(int)]

    def ours() -> dict[tuple[str, int], list[Array]]:
        with tempfile.TemporaryDirectory() as folder:
            return measured(asked, asked.grid(Path(folder) / "cells"), every)

    def plain() -> list[Array]:
        return [interval(asked, cell, truth) for cell in some]

    def check() -> str:
        with tempfile.TemporaryDirectory() as folder:
            grid = asked.grid(Path(folder) / "cells")
            gaps = {name: max(gap(asked, grid, Cell(name, k, draws - 1), truth) for k in shots) for name in METHODS}
        worst = max(gaps, key=lambda name: gaps[name])
        fits = sum(cpu_seconds(lambda cell=cell: METHODS[cell.method](asked.shot(cell))) for cell in some) / len(some)
        said = f"{len(some)} of {len(every)} plain cells timed and scaled; a plain fit takes {fits:.3f} s of a cell"
        return verdict(gaps[worst] <= MOST_DIFFERENCE, f"{said}; probabilities differ by {gaps[worst]:.1e} at most ({worst})")

    yield Case(ours=ours, plain=plain, check=check, goal=200.0, rounds=1, plain_share=len(some) / len(every))


def measured(asked: Asked, grid: Grid, cells: Sequence[Cell]) -> dict[tuple[str, int], list[Array]]:
    """Of each method and number of shots the interval of each metric over draws and rows."""
    found: dict[tuple[str, int], list[Outcome]] = {}
    for cell in cells:
        found.setdefault((cell.method, int(cell.shots)), []).append(grid.run(cell, time.perf_counter))
    resampling = Resampling(resampled_groups(grid.test_groups(), asked.resamples, 0), 0)
    intervals = {key: [resampling.two_way(outcomes, metric).interval for metric in METRICS] for key, outcomes in found.items()}
    return {key: [np.array([one.low, one.high]) for one in both] for key, both in intervals.items()}


def interval(asked: Asked, cell: Cell, truth: Array) -> Array:
    """(2, 2) low and high of both metrics of one cell by plain loops."""
    said = softmax(METHODS[cell.method](asked.shot(cell)).astype(float), axis=1)
    rng = np.random.default_rng(0)
    resampled = [in_a_loop(said, truth, rng.integers(0, len(truth), len(truth))) for _ in range(asked.resamples)]
    return np.percentile(np.array(resampled), PERCENTILES, axis=0)


def gap(asked: Asked, grid: Grid, cell: Cell, truth: Array) -> float:
    """The largest difference of a test probability."""
    run = grid.fitted(grid.method(cell.method), grid.parts[0], cell.shots, cell.draw)
    mine = run.predict(grid.data.samples.take(grid.parts[0].test)).arrays["scores"]
    return float(np.abs(mine - softmax(METHODS[cell.method](asked.shot(cell)).astype(float), axis=1)).max())
