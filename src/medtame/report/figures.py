"""Figures of a classification as SVG strings: ROC, precision-recall, reliability, bars by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes

from medtame.report.figure_values import ClassScore, Curve, Reliability
from medtame.report.plots import INK, LINES, LOOK, OTHERS, PAPER, QUIET, canvas, label_inches, short, style, svg
from medtame.report.plots import Series as Named

DASHES = ("-", "--", ":")  # so that lines differ without their colour
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)
AXES = {"roc": ("false positive rate", "true positive rate"), "precision_recall": ("recall", "precision")}


def curves(drawn: Sequence[Curve], places: Mapping[str, int], prefix: str, *, width: float = 4.6) -> str:
    """Curves of one kind with their bands; the first lies on top. `places`: the number of a method's colour.

    The line of curve i has the id `PREFIX-line-i`. Dashed and grey: an answer that knows nothing.
    """
    kind = drawn[0].kind
    with matplotlib.style.context(["default", LOOK]):
        figure, axes = canvas(width, width - 0.5, left=0.66, right=0.14, bottom=0.6, top=0.12)
        square(axes, *AXES[kind])
        chance = drawn[0].chance
        if chance is not None:
            axes.plot([0, 1], [0, 1] if kind == "roc" else [chance, chance], color=QUIET, linewidth=1, dashes=(2, 3), zorder=1)
        for i in reversed(range(len(drawn))):
            one, colour = drawn[i], style(places[drawn[i].method])[0]
            x, y, low, high = (np.array(side, dtype=float) for side in (one.x, one.y, one.low, one.high))
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
            axes.plot(x, y, DASHES[min(i, 2)], color=colour, linewidth=2, zorder=3, gid=f"line-{i}", clip_on=False)
        return svg(figure, prefix)


def square(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks(TICKS)
    axes.set_yticks(TICKS)
    axes.grid(color=LINES, linewidth=0.8)
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def reliability(one: Reliability, place: int, prefix: str, *, several: bool = False) -> str:
    """Share right over confidence, a point a bin with its interval, and below how many judgements each bin holds, over its width.

    `several`: share that holds over the probability that it holds.
    """
    colour, marker = style(place)
    with matplotlib.style.context(["default", LOOK]):
        figure, axes = canvas(3.9, 4.5, left=0.66, right=0.14, bottom=1.5, top=0.12)
        square(axes, "", "share that holds" if several else "share that is right")
        axes.tick_params(axis="x", labelbottom=False)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(2, 3), zorder=1)
        points = [(bin.confidence, bin.right.value, bin.right.low, bin.right.high) for bin in one.bins if bin.right.value is not None]
        for x, _, low, high in points:
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.6, alpha=0.5, zorder=2, clip_on=False)
        dots: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": PAPER, "markeredgewidth": 0.7}
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            marker,
            color=colour,
            zorder=3,
            gid="line-0",
            clip_on=False,
            **dots,
        )
        box = axes.get_position()
        strip = figure.add_axes((box.x0, 0.6 / 4.5, box.width, 0.78 / 4.5))
        strip.spines[["top", "right", "left"]].set_visible(False)
        strip.tick_params(axis="both", length=0, pad=6)
        strip.set_axisbelow(True)
        most = max(bin.n for bin in one.bins)
        for bin in one.bins:
            strip.fill_between(
                [bin.low, max(bin.high, bin.low + 0.006)], 0, bin.n, color=colour, alpha=0.75, edgecolor=PAPER, linewidth=0.8
            )
        strip.set_xlim(0, 1)
        strip.set_ylim(0, 1.05 * most)
        strip.set_xticks(TICKS)
        strip.set_yticks([0, most])
        strip.set_xlabel("probability" if several else "confidence")
        strip.set_ylabel("count")
        return svg(figure, prefix)


def bars(classes: Sequence[ClassScore], place: int, prefix: str) -> str:
    """Recall and precision of each class with their intervals; the first class at the top. The recall bar of class k: `PREFIX-bar-k`."""
    inches = 0.52 * len(classes) + 0.75
    left = label_inches([Named(f"{one.label} ({one.n})", {}) for one in classes])
    with matplotlib.style.context(["default", LOOK]):
        figure, axes = canvas(9.0, inches, left=left, right=0.3, bottom=0.6, top=0.1)
        for k, one in enumerate(classes):
            top = len(classes) - 1 - k
            for name, measured, height, colour in (
                ("bar", one.recall, top + 0.19, style(place)[0]),
                ("precision", one.precision, top - 0.19, OTHERS[0]),
            ):
                if measured.value is None:
                    axes.text(0.008, height, "never said" if name == "precision" else "no row", color=QUIET, va="center", fontsize=8.5)
                    continue
                axes.barh(height, measured.value, 0.32, color=colour, gid=f"{name}-{k}")
                if measured.low is not None and measured.high is not None:
                    axes.plot([measured.low, measured.high], [height, height], color=INK, linewidth=1.3, solid_capstyle="butt")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.55, len(classes) - 0.45)
        axes.set_xticks(TICKS)
        axes.set_yticks(range(len(classes)), [f"{short(one.label)} ({one.n})" for one in reversed(classes)])
        axes.grid(axis="x", color=LINES, linewidth=0.8)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel("recall and precision")
        return svg(figure, prefix)
