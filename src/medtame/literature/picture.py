"""The matrix of counts as a picture: SVG, the same counts give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

INK, QUIET = "#1f2933", "#5b6673"
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medtame",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
}


def svg(counted: Mapping[str, Any], note: str) -> str:
    """A square a cell, darker where there are more papers, with its number; `counted` is what `choose.counts` gives."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows, columns, numbers = counted["rows"]["names"], counted["columns"]["names"], np.array(counted["counts"])
    with mpl.rc_context(LOOK):
        longest = max(len(str(name)) for name in rows)
        figure = Figure(figsize=(0.085 * longest + 0.95 * len(columns) + 0.6, 0.42 * len(rows) + 1.9), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.imshow(np.sqrt(numbers), cmap="Blues", vmin=0, vmax=1.15 * max(np.sqrt(numbers.max()), 1), aspect="auto")
        dark = np.sqrt(numbers) > 0.7 * np.sqrt(max(numbers.max(), 1))
        for i, j in np.ndindex(*numbers.shape):
            axes.text(j, i, str(numbers[i, j]), ha="center", va="center", color="white" if dark[i, j] else INK if numbers[i, j] else QUIET)
        axes.set_xticks(range(len(columns)), [words(name) for name in columns], rotation=25 if len(columns) > 4 else 0, ha="left")
        axes.set_yticks(range(len(rows)), [words(name) for name in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{counted['papers']} papers: {words(counted['rows']['field'])} by {words(counted['columns']['field'])}", loc="left")
        figure.supxlabel(note, fontsize=7.5, color=QUIET, x=0.01, ha="left", wrap=True)
        out = io.StringIO()
        drawn: Any = canvas
        drawn.print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def words(name: str) -> str:
    return str(name).replace("_", " ")
