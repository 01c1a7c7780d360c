"""How much of what a probe knows do clues give away that are no anatomy: the border, the histogram, the metadata.

Each clue gets a classifier of its own, learnt and measured on the same rows as the probe (logistic regression on the encoder's
features). Its share is (its balanced accuracy - chance) / (the probe's - chance). Border and metadata should say nothing of a
disease, so they get the strongest simple classifier, extremely randomised trees (Geurts et al. 2006); the histogram also holds
honest signal, a bright lesion is bright, so it gets a linear one, as the probe is. What such clues do to a model of chest
radiographs: Zech et al. 2018, DeGrave et al. 2021.

A clue is flagged from one half. For border and metadata that is the share as measured, provided that the accuracy is above chance
by its whole 95 % interval, so that little is flagged by luck in small data. For the histogram it is the lower end of the share's
interval: on the phantom without a planted border its share is .3 to .4 honestly, and on few test rows it passes one half by luck.
Where the probe itself is not above chance by its interval, nothing can be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medtame.data.looks import Looks
from medtame.data.overview import Images
from medtame.errors import DataError
from medtame.metrics.intervals import PERCENTILES, Interval, one_way, resampled_groups
from medtame.metrics.statistic import BalancedAccuracy
from medtame.types import Array, Samples

FLAGGED_FROM = 0.5
HONEST = frozenset({"histogram"})  # clues that also hold signal of the disease: flagged only by the lower end of their share
RESAMPLES = 1000
TREES = 100
MOST_VALUES = 20  # of a column: more are names, not kinds
METADATA_COLUMNS = (
    *("site", "sex", "age", "scanner", "manufacturer", "model", "device", "hospital", "centre", "center", "institution", "country"),
    *("view", "position", "projection", "protocol", "stain", "magnification", "kvp", "year"),
)  # never the label, the patient or the split


@dataclass(frozen=True)
class Clue:
    """What a classifier that sees one clue only reaches. `share` is of the probe's gain over chance, NaN where nothing can be said."""

    accuracy: Interval
    share: Interval
    flagged: bool


@dataclass(frozen=True)
class Shortcuts:
    """Balanced accuracy of the probe and of each clue, over `n` measured images. `said` is empty, or why nothing can be said."""

    probe: Interval
    chance: float
    clues: Mapping[str, Clue]
    said: str = ""

    def json(self) -> dict[str, Any]:
        """Plain numbers; NaN is for the caller to replace."""
        return {"metric": "balanced_accuracy", **asdict(self)}


def clues(samples: Samples, images: Images, looks: Looks) -> dict[str, Array]:
    """Features of each clue, (M, any), a row an image: its border, its histogram, what is known without looking at it."""
    channels = 3 if looks.colour.any() else 1  # those of grey images are equal
    return {
        "border": looks.frames[:, : looks.frames.shape[1] * channels // 3].astype(np.float32),
        "histogram": np.sqrt(looks.histograms[:, : looks.histograms.shape[1] * channels // 3]),
        "metadata": metadata(samples, images, looks),
    }


def metadata(samples: Samples, images: Images, looks: Looks) -> Array:
    """(M, any) height, width, aspect, grey or colour, format, size of the file by powers of two, and columns such as site, sex, age.

    Kinds become columns of 0 and 1, an empty cell a kind of its own; numbers stay, an empty one is -1. A column with more than 20
    different texts is left out, and so is one that says nothing.
    """
    height, width = looks.sizes.T.astype(float)
    size = np.floor(np.log2(np.maximum(images.sizes_bytes, 1)))
    parts = [np.stack([height, width, height / np.maximum(width, 1), looks.colour.astype(float), size], 1), _kinds(images.formats)]
    for name in METADATA_COLUMNS:
        if name in samples:
            values = samples.column(name)
            parts.append(_column([values[rows[0]] for rows in images.rows]))
    return np.concatenate(parts, 1)


def _column(values: Sequence[Any]) -> Array:
    """(M, any): numbers as they are, kinds as 0 and 1, nothing where there are too many kinds."""
    try:
        return np.array([[-1.0 if value is None else float(value)] for value in values])
    except (TypeError, ValueError):
        return _kinds(["" if value is None else str(value) for value in values])


def _kinds(values: Sequence[str]) -> Array:
    known = sorted(set(values))
    if not 2 <= len(known) <= MOST_VALUES:
        return np.empty((len(values), 0))
    return np.array([[float(value == kind) for kind in known] for value in values])


def shortcuts(
    probe: Array, found: Mapping[str, Array], labels: Sequence[str], groups: Array, parts: Sequence[tuple[Array, Array]], *, seed: int = 0
) -> Shortcuts:
    """The share of each clue.

    Args:
        probe: (M, D) the encoder's features.
        found: features of each clue, as `clues` gives them.
        labels, groups: (M,) of each image; a group is resampled whole.
        parts: (train, test) image numbers of each fold, or of the one split; no image is tested twice.

    Raises DataError where the training images of a part have one label only.
    """
    names, truth = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    for train, _ in parts:
        if len(np.unique(truth[train])) < 2:
            raise DataError("all training images of a fold have one label: give more images of the other classes")
    tested = np.concatenate([test for _, test in parts])
    chance = 1 / len(np.unique(truth[tested]))
    counts = resampled_groups(groups[tested], RESAMPLES, seed)

    def measured(name: str, features: Array) -> BalancedAccuracy:
        predicted = np.concatenate([_predicted(name, features, truth, train, test, seed) for train, test in parts])
        return BalancedAccuracy(predicted, truth[tested], len(names))

    reached = measured("probe", probe)
    probed = one_way(reached, counts)
    said = "" if probed.low > chance else "the probe itself is not measurably above chance, so a share of its gain cannot be said"
    gain = reached.at(counts) - chance
    told = {name: _clue(name, measured(name, features), counts, chance, probed, gain, known=not said) for name, features in found.items()}
    return Shortcuts(probed, chance, told, said)


def _clue(name: str, reached: BalancedAccuracy, counts: Array, chance: float, probed: Interval, gain: Array, *, known: bool) -> Clue:
    """The share on each resample is of the probe's gain on the same one; where that is none, the resample says nothing."""
    accuracy = one_way(reached, counts)
    if not known:
        return Clue(accuracy, Interval(np.nan, np.nan, np.nan, accuracy.n), False)
    value = (accuracy.value - chance) / (probed.value - chance)
    shares = (reached.at(counts) - chance)[gain > 0] / gain[gain > 0]
    low, high = np.percentile(shares, PERCENTILES)
    deciding = float(low) if name in HONEST else value
    return Clue(accuracy, Interval(value, float(low), float(high), accuracy.n), deciding >= FLAGGED_FROM and accuracy.low > chance)


def _predicted(name: str, features: Array, truth: Array, train: Array, test: Array, seed: int) -> Array:
    """(T,) class numbers of the test images."""
    if name == "probe":
        model: Any = LogisticRegression(C=100, class_weight="balanced", max_iter=2000)
    elif name == "histogram":
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    else:
        model = ExtraTreesClassifier(TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed)
    return np.asarray(model.fit(features[train], truth[train]).predict(features[test]))
