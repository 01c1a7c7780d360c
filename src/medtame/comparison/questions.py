"""What one looks at in question answering: an image with all that it was asked, what was answered and what is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medtame.features.scales import distinct
from medtame.metrics.answers import abstention, normalised
from medtame.run import Run
from medtame.types import Picture, Samples

STRIPS, IN_A_STRIP = 8, 6  # images, and questions of each, at most
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)


def question_strips(run: Run, test: Samples, called: Sequence[str], thumbnail: Callable[[Picture], str]) -> list[dict[str, Any]]:
    """Evenly chosen images of the test rows with their questions; under the first also the abstention curve of all test rows."""
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
        curve = ", ".join(f"{share:.0%} of the questions {right:.2f}" for share, right in abstention(exact, sure, SHARES))
        rows[0]["caption"] += f" (Accuracy of all test questions when only the surest are answered: {curve}.)"
    return rows


def line(row: dict[str, Any], true: str) -> str:
    """Is there a lesion? yes (right) or: no (true: yes)."""
    verdict = "right" if normalised(str(row["prediction"])) == normalised(true) else f"true: {true}"
    return f"{row['question']} {row['prediction']} ({verdict})"
