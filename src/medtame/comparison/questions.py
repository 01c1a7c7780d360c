"""What one looks at in question answering: an image with all that it was asked, what was answered and what is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medtame.comparison.strips import drawn
from medtame.features.scales import distinct
from medtame.metrics.answers import abstention, normalised
from medtame.run import Run
from medtame.types import Array, Picture, Samples

STRIPS, IN_A_STRIP = 8, 6  # images, and questions of each, at most
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)


def question_strips(run: Run, test: Samples, called: Sequence[str], thumbnail: Callable[[Picture], str]) -> list[dict[str, Any]]:
    """Evenly chosen images of the test rows with their questions, then the abstention curve of all test rows."""
    said, true = run.predict(test), test.column("answer")
    firsts, of_row = distinct(test)
    rows = []
    for image in sorted(set(np.linspace(0, len(firsts) - 1, min(STRIPS, len(firsts))).astype(int).tolist())):
        members = np.flatnonzero(of_row.numpy() == image)[:IN_A_STRIP]
        lines = [line(said.table[row], str(true[row])) for row in members.tolist()]
        rows.append(
            {"image": called[firsts[image]], "thumbnail": thumbnail(test.take([firsts[image]]).pictures()[0]), "caption": " · ".join(lines)}
        )
    exact = run.frame.measure(said, test)["accuracy"].arrays()["values"]
    sure = np.asarray(said.arrays.get("confidence", np.full(len(true), np.nan)), dtype=float)
    if rows and not np.isnan(sure).all():
        rows.append(abstention_curve(exact, sure))
    return rows


def abstention_curve(exact: Array, sure: Array) -> dict[str, Any]:
    """Accuracy where only the surest questions are answered, over the share that is; (N,) right or not, (N,) how sure, NaN unknown."""
    found = abstention(exact, sure, SHARES)
    figure = Figure(figsize=(4.2, 4.2), layout="tight")
    axes = figure.subplots()
    axes.plot([100 * share for share, _ in found], [right for _, right in found], marker="o", color="#0072B2")
    for share, right in found:
        axes.annotate(f"{right:.2f}", (100 * share, right), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    axes.set(xlabel="% of the questions that are answered, the surest first", ylabel="accuracy of these", xlim=(10, 106), ylim=(0, 1.08))
    caption = f"abstention: accuracy over all {len(exact)} test questions when only the surest are answered"
    return {"image": "abstention curve", "thumbnail": drawn(figure), "caption": caption}


def line(row: dict[str, Any], true: str) -> str:
    """Is there a lesion? yes (right) or: no (true: yes)."""
    verdict = "right" if normalised(str(row["prediction"])) == normalised(true) else f"true: {true}"
    return f"{row['question']} {row['prediction']} ({verdict})"
