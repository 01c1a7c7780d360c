"""What `medtame pretrain` leaves in the folder of an encoder: the record, the card, and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined

from medtame.report.html import environment
from medtame.report.model_card import plain, yaml
from medtame.report.plots import QUIET, STYLES, canvas, svg
from medtame.report.record import bracket, number, write_file

RECORD, CARD, PAGE = "pretraining.json", "README.md", "report.html"


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Write pretraining.json, README.md and report.html. Raises RunError where a file cannot be written."""
    write_file(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False))
    write_file(folder / CARD, card(record))
    write_file(folder / PAGE, page(record))


def card(record: Mapping[str, Any]) -> str:
    """The card as Markdown, with the head that Hugging Face reads."""
    templates = Templates(
        loader=PackageLoader("medtame.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    templates.filters |= {"plain": plain, "yaml": yaml, "number": number}
    templates.globals |= {"bracket": bracket}
    return templates.get_template("encoder_card.md.j2").render(record=record)


def page(record: Mapping[str, Any]) -> str:
    """One HTML file: the verdict, the curve, what changed."""
    return environment().get_template("pretraining.html.j2").render(record=record, curve=curve(record["curve"]))


def curve(points: Sequence[Sequence[float | None]]) -> str:
    """Loss and running recall at 10 by step, as SVG; nothing where no step was made."""
    if not points:
        return ""
    figure, axes = canvas(6.4, 3.0, left=0.7, right=0.7, bottom=0.55, top=0.2)
    steps, losses = np.asarray([one[:2] for one in points], dtype=float).T
    axes.plot(steps, losses, color=STYLES[0][0], linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color=STYLES[0][0])
    seen = [(one[0], one[2]) for one in points if one[2] is not None]
    looked = [one for at, one in enumerate(seen) if at == 0 or one[1] != seen[at - 1][1] or at == len(seen) - 1]
    if looked:
        other = axes.twinx()
        other.plot(*zip(*looked, strict=True), color=STYLES[1][0], marker=STYLES[1][1], markersize=4, linewidth=1)
        other.set_ylim(0, 1)
        other.set_ylabel("recall at 10, pairs kept aside", color=STYLES[1][0])
        other.tick_params(colors=QUIET, length=0)
        other.spines[["top", "left", "right", "bottom"]].set_visible(False)
    return svg(figure, "pretraining")
