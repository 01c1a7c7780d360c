"""Ridge regression whose penalty is one of 20 by exact leave-one-out: `ridge_probe` against scikit-learn's RidgeClassifierCV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.linear_model import RidgeClassifierCV

from benchmarks.harness import Case, verdict
from benchmarks.made import made
from medtame.strategies.tuning.ridge_probe import PENALTIES, RidgeProbe, RidgeProbeAdapted

MOST_DIFFERENCE = 1e-3  # of a decision between -1 and 1: ours keeps its weights in single precision


@contextmanager
def leave_one_out(rows: int = 5000, classes: int = 8, dimension: int = 512, asked: int = 200) -> Iterator[Case]:
    """The fit alone is timed, on the same features in double precision; penalty and decisions on other rows are compared."""
    data = made(rows + asked, classes, dimension, noise=3.0)
    features, labels = data.images.double().numpy()[:rows], data.labels[:rows]
    problem = data.problem(np.arange(rows))

    def ours() -> RidgeProbeAdapted:
        fitted = RidgeProbe().fit(problem)
        assert isinstance(fitted, RidgeProbeAdapted)
        return fitted

    def plain() -> RidgeClassifierCV:
        return RidgeClassifierCV(alphas=PENALTIES.numpy()).fit(features, labels)

    def check() -> str:
        theirs, mine = plain(), ours()
        said = mine.answer(data.query(np.arange(rows, rows + asked))).values.numpy() * 2 / data.encoder.scale - 1  # of -1 and 1, as theirs
        gap = float(np.abs(said - theirs.decision_function(data.images.double().numpy()[rows:])).max())
        same = bool(np.isclose(mine.penalty, theirs.alpha_)) and gap <= MOST_DIFFERENCE
        return verdict(same, f"penalty {mine.penalty:.4g}, scikit-learn's {theirs.alpha_:.4g}; decisions differ by at most {gap:.1e}")

    yield Case(ours=ours, plain=plain, check=check, goal=5.0)
