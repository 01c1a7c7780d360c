"""Figures of the report as SVG strings: the same values give the same bytes, and nothing outside the string is needed.

Every colour is a variable of the page with itself as the fallback, so that the page may darken it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours (safe for colour-blind readers) without yellow, then two of Paul Tol's; a marker each.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#882255", "X"),
    ("#555555", "h"),
)
OTHERS = ("#a3adb8", "o")
INK, QUIET, LINES, PAPER = "#1f2933", "#5b6673", "#e3e7ec", "#ffffff"
COLOURS = {INK: "ink", QUIET: "quiet", LINES: "line", PAPER: "paper", OTHERS[0]: "others"} | {
    colour.lower(): f"c{i}" for i, (colour, _) in enumerate(STYLES)
}
WIDEST, NARROWEST = 100, 72  # pixels an inch, on a wide and on a narrow page
LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medtame",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}
LONGEST_LABEL = 34


@dataclass(frozen=True)
class Series:
    """A method's values: shots as they are shown -> (mean, low, high). `flat`: the same at any number of shots."""

    name: str
    points: Mapping[str, tuple[float, float | None, float | None]]
    flat: bool = False
    banded: bool = True  # whether the curve has a band: with many they hide one another


def few_shot_curves(series: Sequence[Series], shots: Sequence[str], metric: str) -> str:
    """Value over shots (evenly spaced, in the order given) with interval bands; a flat series is a dashed line.

    The first eight series have a colour, a marker and a label at the right; the others are grey. The line of series i has the
    id `curves-line-i`.
    """
    labelled = min(len(series), len(STYLES))
    width, height = 9.0, max(4.2, 0.26 * labelled + 1.4)
    with matplotlib.style.context(["default", LOOK]):
        figure, axes = canvas(width, height, left=0.75, right=label_inches(series[:labelled]), bottom=0.6, top=0.2)
        axes.set_xlim(-0.12, len(shots) - 0.96)
        ends: list[tuple[float, str, str]] = []
        for i in reversed(range(len(series))):
            end = draw_curve(axes, series[i], shots, i)
            if i < labelled and end is not None:
                ends.append((end, series[i].name, style(i)[0]))
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        axes.grid(axis="y", color=LINES, linewidth=0.8)
        axes.set_xticks(range(len(shots)), list(shots))
        axes.set_xlabel("labelled shots")
        axes.set_ylabel(words(metric))
        label_ends(axes, ends, width, height - 0.8)
        return svg(figure, "curves")


def draw_curve(axes: Axes, one: Series, shots: Sequence[str], i: int) -> float | None:
    """Draw one series; the height at which it ends at the right, or None where it has no value."""
    colour, marker = style(i)
    present = [(float(x), one.points[name]) for x, name in enumerate(shots) if name in one.points]
    if one.flat and one.points:
        mean, low, high = next(iter(one.points.values()))
        present = [(-0.12, (mean, low, high)), (len(shots) - 0.96, (mean, low, high))]
    if not present:
        return None
    x = [place for place, _ in present]
    means = [value[0] for _, value in present]
    named = i < len(STYLES)
    dashes, marker, over = ("--", "", 2.5) if one.flat else ("-", marker if named else "", 3.0)
    axes.plot(
        x,
        means,
        dashes,
        color=colour,
        marker=marker,
        markersize=5.5,
        linewidth=1.8 if named else 1,
        zorder=over if named else 2,
        gid=f"line-{i}",
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
    )
    band = [(place, value[1], value[2]) for place, value in present if value[1] is not None and value[2] is not None]
    if band and named and one.banded:
        axes.fill_between([b[0] for b in band], [b[1] for b in band], [b[2] for b in band], color=colour, alpha=0.13, linewidth=0, zorder=1)
    return means[-1]


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], width: float, height: float) -> None:
    """Names at the right end of their lines, moved apart where they would overlap, with a thin line to the end they belong to."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 0.21 / height
    ordered = sorted(ends, key=lambda end: (end[0], end[1]))
    places = apart([end[0] for end in ordered], gap, bottom, top)
    across = axes.get_yaxis_transform()  # x as a share of the axes, y in data
    reach = 0.22 / (axes.get_position().width * width)
    for (end, name, colour), place in zip(ordered, places, strict=True):
        axes.plot([1, 1 + reach], [end, place], color=colour, linewidth=1.4, clip_on=False, transform=across, scaley=False)
        axes.text(1 + 1.25 * reach, place, short(name), color=INK, va="center", clip_on=False, transform=across)


def apart(heights: Sequence[float], gap: float, bottom: float, top: float) -> list[float]:
    """Heights (ascending) at least `gap` from one another and, where they fit, between bottom and top."""
    places = list(heights)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places:
        places[-1] = min(places[-1], top)
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - gap)
    lift = max(0.0, bottom - places[0]) if places else 0.0
    return [place + lift for place in places]


def dot_plot(series: Sequence[Series], shots: str, metric: str, *, lower_is_better: bool = False) -> str:
    """The values at `shots` with their intervals, best at the top; the dot of series i has the id `dots-line-i`."""
    finals = [
        (i, one.name, next(iter(one.points.values())) if one.flat else one.points[shots])
        for i, one in enumerate(series)
        if one.flat or shots in one.points
    ]
    finals.sort(key=lambda final: (-final[2][0] if lower_is_better else final[2][0], final[1]))
    height = 0.3 * len(finals) + 0.8
    with matplotlib.style.context(["default", LOOK]):
        figure, axes = canvas(9.0, height, left=label_inches([series[i] for i, _, _ in finals]), right=0.3, bottom=0.6, top=0.1)
        for place, (i, _, (value, low, high)) in enumerate(finals):
            colour, marker = style(i)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
            axes.plot([value], [place], marker, color=colour, markersize=7, gid=f"line-{i}", markeredgecolor=PAPER, markeredgewidth=0.7)
        axes.set_yticks(range(len(finals)), [short(name) for _, name, _ in finals])
        axes.set_ylim(-0.6, len(finals) - 0.4)
        axes.margins(x=0.06)
        axes.grid(axis="x", color=LINES, linewidth=0.8)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(words(metric))
        return svg(figure, "dots")


def style(i: int) -> tuple[str, str]:
    return STYLES[i] if i < len(STYLES) else OTHERS


def words(metric: str) -> str:
    return metric.replace("_", " ")


def short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"


def label_inches(series: Sequence[Series]) -> float:
    """Room for the longest name at ten points, with its gap to the axes."""
    return 0.75 + 0.092 * max((len(short(one.name)) for one in series), default=4)


def canvas(width: float, height: float, *, left: float, right: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, all margins in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height))
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0, pad=6)
    return figure, axes


def svg(figure: Figure, prefix: str) -> str:
    """The `<svg>` element alone: no date, no outside address to load, every id with the prefix so that two fit one page."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].rstrip() + "\n"
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag.group()), text)
    width = figure.get_figwidth()
    sized = f'<svg style="min-width: {NARROWEST * width:.0f}px; max-width: {WIDEST * width:.0f}px"'
    return re.sub(r'\bstyle="[^"]*"', lambda style: re.sub("#[0-9a-f]{6}", themed, style.group()), text).replace("<svg", sized, 1)


def themed(colour: re.Match[str]) -> str:
    """The variable of the page for a colour, where it has one."""
    name = COLOURS.get(colour.group())
    return f"var(--{name}, {colour.group()})" if name else colour.group()
