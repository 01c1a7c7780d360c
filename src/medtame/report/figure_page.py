"""What the page shows of the chosen method's figures: drawings, their keys, what a screen reader says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medtame.report import figures
from medtame.report.figure_values import Curve, Figures, Reliability
from medtame.report.parts import Measured
from medtame.report.record import bracket, number

TITLES = {"roc": "ROC", "precision_recall": "Precision and recall"}
AREAS = {"roc": "AUROC", "precision_recall": "average precision"}
DASHES = ("", "7 4", "2 3")  # of the keys, as the lines are drawn
SMALL = 3.1  # inches of a figure of one class
EVERY = 5  # place of a curve that stands in the table of its numbers


@dataclass(frozen=True)
class Key:
    """One line of a legend: its name, what is told of it, and how its line looks."""

    name: str
    text: str
    place: int
    dash: str


@dataclass(frozen=True)
class Drawn:
    """A figure with its title, its legend and what stands in for it where it cannot be seen."""

    title: str
    svg: Markup
    spoken: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """The numbers of all curves of one kind at every tenth of `x`."""

    title: str
    x_name: str
    x: tuple[float, ...]
    lines: tuple[tuple[str, tuple[tuple[float | None, str], ...]], ...]


@dataclass(frozen=True)
class Page:
    macro: tuple[Drawn, ...]
    by_class: tuple[tuple[str, tuple[Drawn, ...]], ...]
    numbers: tuple[Numbers, ...]
    reliability: tuple[Drawn, ...]
    bars: Drawn | None


def page(found: Figures, places: Mapping[str, int], ece: Mapping[str, Measured]) -> Page:
    """All figures of the record. `places`: the number of each method's colour; `ece`: its calibration error."""
    kinds = [[one for one in found.curves if one.kind == kind] for kind in TITLES]
    macro = [[one for one in curves if one.label is None] for curves in kinds]
    labels = dict.fromkeys(one.label for one in found.curves if one.label is not None)
    return Page(
        macro=tuple(drawn(curves, places, f"{curves[0].kind}-mean") for curves in macro if curves),
        by_class=tuple(
            (label, tuple(drawn([one], places, f"{one.kind}-{k}", SMALL) for one in found.curves if one.label == label))
            for k, label in enumerate(labels)
        ),
        numbers=tuple(numbers(curves) for curves in kinds if curves),
        reliability=tuple(
            reliable(one, places.get(one.method, k), k, ece, several=found.several) for k, one in enumerate(found.reliability)
        ),
        bars=bars(found, places.get(found.method, 0)),
    )


def drawn(curves: Sequence[Curve], places: Mapping[str, int], prefix: str, width: float = 4.6) -> Drawn:
    """Curves of one kind in one pair of axes."""
    known = {one.method: places.get(one.method, k) for k, one in enumerate(curves)}
    keys = [Key(one.method, f"{area(one)}", known[one.method], DASHES[min(k, 2)]) for k, one in enumerate(curves)]
    kind, label = curves[0].kind, curves[0].label
    of = "mean over classes, each against the rest" if label is None else f"{label} against the rest"
    spoken = f"{TITLES[kind]}, {of}: {'; '.join(f'{key.name} {key.text}' for key in keys)}. The numbers are in the table below."
    return Drawn(TITLES[kind], Markup(figures.curves(curves, known, prefix, width=width)), spoken, tuple(keys))


def area(one: Curve) -> str:
    """The area with its interval, in words."""
    return f"{AREAS[one.kind]} {number(one.area.value)} {bracket(one.area.low, one.area.high)}".rstrip()


def numbers(curves: Sequence[Curve]) -> Numbers:
    across, up = figures.AXES[curves[0].kind]
    lines = tuple(
        (
            f"{one.method}, {one.label or 'mean over classes'}",
            tuple((y, bracket(low, high, 2)) for y, low, high in list(zip(one.y, one.low, one.high, strict=True))[::EVERY]),
        )
        for one in curves
    )
    return Numbers(f"{TITLES[curves[0].kind]}: {up} at each {across}", across, tuple(curves[0].x[::EVERY]), lines)


def reliable(one: Reliability, place: int, k: int, ece: Mapping[str, Measured], *, several: bool) -> Drawn:
    error = ece.get(one.method)
    text = "" if error is None else f"calibration error {number(error.value)} {bracket(error.low, error.high)}".rstrip()
    spoken = f"Reliability of {one.method} in {len(one.bins)} bins of equal mass. {text}. The numbers are in the table below."
    return Drawn(
        one.method,
        Markup(figures.reliability(one, place, f"reliability-{k}", several=several)),
        spoken,
        (Key(one.method, text, place, ""),),
    )


def bars(found: Figures, place: int) -> Drawn | None:
    if not found.classes:
        return None
    spoken = f"Recall and precision of {found.method} by class with 95 % intervals. The numbers are in the table below."
    return Drawn("Recall and precision by class", Markup(figures.bars(found.classes, place, "bars")), spoken)
