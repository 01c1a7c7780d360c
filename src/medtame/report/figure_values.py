"""The numbers behind the figures of a classification: every figure is drawn from these, and none from anything else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medtame.report.parts import Measured, Part, Shots, Text


class Curve(Part):
    """A curve at the places `x` with its pointwise 95 % band, of one class against the rest, or (`label` null) the mean over classes.

    roc: x is the false positive rate, y the true positive rate. precision_recall: x is recall, y precision.
    """

    kind: Literal["roc", "precision_recall"]
    method: Text
    label: Text | None = None
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]
    area: Measured
    chance: float | None = None  # the area of an answer that knows nothing


class Bin(Part):
    """Judgements whose confidence lies in low..high: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    right: Measured


class Reliability(Part):
    method: Text
    bins: list[Bin]


class ClassScore(Part):
    """One class of the chosen method: n test rows are truly of it. Where several may hold, it is said above one half."""

    label: Text
    n: int
    recall: Measured
    precision: Measured
    auroc: Measured
    average_precision: Measured


class Confusion(Part):
    """`counts[i][j]`: rows of the class `labels[i]` that were answered `said[j]`, the labels and, where there were any, refused."""

    labels: list[Text]
    said: list[Text]
    counts: list[list[int]]


class Confused(Part):
    """One wrong answer, where there are too many classes for a matrix; `share` of the rows of the true class."""

    truth: Text
    said: Text
    n: int
    share: float


class Figures(Part):
    """All at `shots`, over all draws; counts are pooled over draws, curves and shares are means over them."""

    method: Text
    shots: Shots
    draws: int
    resamples: int
    several: bool = False  # several classes may hold: confidence is then the probability that one holds
    curves: list[Curve] = Field(default_factory=list)
    reliability: list[Reliability] = Field(default_factory=list)
    classes: list[ClassScore] = Field(default_factory=list)
    confusion: Confusion | None = None
    confusions: list[Confused] = Field(default_factory=list)
    left_out: Text = ""  # what was too much to show
