"""What to take on these data: by what zero-shot reaches on the user's own training rows, and by how many there are of a class.

The rule is what the literature's fair comparisons agree on (Silva-Rodriguez et al. 2024, Huang et al. 2024, Wang et al. 2024): with
words that know the classes, methods that start at the words are safe at few shots and closed forms win at many; with words
that do not, only the images can teach. A method is passed over where, in cross-validation inside the training rows, the interval of
its gain over zero-shot reaches below zero. No test row is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from medtame.comparison.grid import Grid
from medtame.data.samples import ManifestSamples
from medtame.data.splits import folds
from medtame.errors import MedtameError
from medtame.metrics import LOWER_IS_BETTER
from medtame.metrics.intervals import Interval, difference, resampled_groups, two_way
from medtame.metrics.statistic import Statistic, joined
from medtame.run import RESAMPLES, fitted
from medtame.types import Array

START = "zero_shot"
KNOWN: tuple[tuple[float, tuple[str, ...]], ...] = (  # rows a class at most, and what is taken then, best first
    (2, ("clap", "ss_text_unlabelled")),
    (8, ("text_initialised_probe", "gda")),
    (float("inf"), ("gda", "lp_plus_plus", "lora")),
)
UNKNOWN = ("linear_probe", "ridge_probe", "nearest_prototype")  # what reads no words
FOLDS = 3


@dataclass(frozen=True)
class Words:
    """Whether the encoder's words know these classes: the share of training rows that zero-shot names rightly, and chance."""

    right: float
    low: float
    high: float
    chance: float
    n: int

    @property
    def known(self) -> bool:
        """The whole interval lies above chance."""
        return self.low > self.chance


@dataclass(frozen=True)
class Recommendation:
    """The method, why, and which were passed over with their reasons; `gain` is over zero-shot, held out."""

    method: str
    why: str
    words: Words
    rows_a_class: int
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    passed_over: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "words": {**asdict(self.words), "known": self.words.known}}


def recommended(grid: Grid, methods: Sequence[str], metric: str, watch: Callable[[str], None]) -> Recommendation | None:
    """For a task of classes with zero-shot among the methods that were run, else None."""
    task = grid.data.task
    if START not in methods or "one_label" not in task.offers:
        return None
    train = grid.data.samples.take(grid.parts[0].train)
    labels = task.strata(train)
    train = train.take(np.flatnonzero([label is not None for label in labels]))
    labels = task.strata(train)
    words = words_know(fitted(train, task, grid.method(START), grid.encoder).predict(train).table, labels.tolist())
    rows = min(int((labels == label).sum()) for label in set(labels.tolist()))
    order = next(names for most, names in KNOWN if rows <= most) if words.known else UNKNOWN
    order = tuple(name for name in order if name in methods)
    if rows < 2 or len(set(train.groups)) < FOLDS:
        method = order[0] if order else START
        return Recommendation(method, f"by rule: with {rows} row(s) in the smallest class nothing can be held out", words, rows)
    plain = tuple(name for name in UNKNOWN if name in methods and name not in order)  # weighed after those of the rule
    return weighed(grid, train, labels.tolist(), (*order, *plain), metric, words, rows, watch)


def on_test(advice: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], spec: str) -> dict[str, Any]:
    """The advice with what its method gains over zero-shot on the test rows, after the choice: a warning where that is in doubt."""
    same = [row for row in rows if row["method"] == advice["method"] and row["encoder"] == spec]
    if advice["method"] == START or not same or same[-1]["gain"] is None:
        return dict(advice)
    row = same[-1]  # rows stand in the order of the shots
    gain, low, high = row["gain"], row["gain_low"], row["gain_high"]
    shots = "all training rows" if row["shots"] == "all" else f"{row['shots']} shots"
    measured = f"On the test rows, asked only after this choice, it gains {gain:+.3f} [{low:+.3f}, {high:+.3f}] over {START} with {shots}"
    doubt = f"; warning: the interval reaches below zero, so {START} may be the better choice." if not low >= 0 else "."
    found = {"test_shots": row["shots"], "test_gain": gain, "test_gain_low": low, "test_gain_high": high}
    return {**advice, **found, "on_test": measured + doubt}


def words_know(said: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Words:
    """The share named rightly with its 95 % interval (Wilson), and the share that as many of each answer would hit by chance."""
    names = [str(row["prediction"]) for row in said]
    right = sum(name == label for name, label in zip(names, labels, strict=True))
    interval = binomtest(right, len(names)).proportion_ci(method="wilson")
    chance = sum((names.count(name) / len(names)) * (labels.count(name) / len(labels)) for name in set(labels))
    return Words(right / len(names), float(interval.low), float(interval.high), chance, len(names))


def weighed(
    grid: Grid,
    train: ManifestSamples,
    labels: Sequence[str],
    order: Sequence[str],
    metric: str,
    words: Words,
    rows: int,
    watch: Callable[[str], None],
) -> Recommendation:
    """The first of the order whose held-out gain over zero-shot does not reach below zero."""
    parts = folds(train, labels, FOLDS, seed=grid.seed).parts
    groups = np.concatenate([train.groups[outside] for _, outside in parts])
    start, passed_over = held_out(grid, train, parts, START, metric), {}
    for name in order:
        watch(name)
        try:
            found = gain(held_out(grid, train, parts, name, metric), start, groups, grid.seed, metric)
        except MedtameError as error:
            passed_over[name] = str(error)
            continue
        if found.low >= 0:
            why = f"{reason(words, rows)}; held out it gains {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] over {START}"
            return Recommendation(name, why, words, rows, found.value, found.low, found.high, passed_over)
        passed_over[name] = f"its held-out gain reaches below zero: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return Recommendation(
        START,
        f"{reason(words, rows)}; of the methods that were run none of the rule is measurably no worse than {START}",
        words,
        rows,
        0.0,
        0.0,
        0.0,
        passed_over,
    )


def held_out(grid: Grid, train: ManifestSamples, parts: Sequence[tuple[Array, Array]], name: str, metric: str) -> Statistic:
    """The metric of rows that were not learnt from, all folds joined."""
    found = []
    for inside, outside in parts:
        run = fitted(train.take(inside), grid.data.task, grid.method(name), grid.encoder, seed=grid.seed)
        found.append(run.measure(train.take(outside))[metric])
    return joined(found)


def gain(ours: Statistic, start: Statistic, groups: Array, seed: int, metric: str) -> Interval:
    """How much better than the start, paired over the same resamples of patients."""
    counts, one = resampled_groups(groups, RESAMPLES, seed), np.ones((RESAMPLES, 1), dtype=int)
    sides = two_way([ours], counts, one), two_way([start], counts, one)
    return difference(*(sides[::-1] if metric in LOWER_IS_BETTER else sides))


def reason(words: Words, rows: int) -> str:
    """One sentence of what was measured."""
    interval = f"[{words.low:.0%}, {words.high:.0%}]"
    measured = f"zero-shot names {words.right:.0%} of {words.n} training rows rightly {interval}, chance {words.chance:.0%}"
    if words.known:
        return f"{measured}: the text knows these classes; {rows} rows in the smallest class"
    return f"{measured}: this encoder's text does not know these classes, so only the images can teach"
