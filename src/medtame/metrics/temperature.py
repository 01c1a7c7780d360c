"""One number that makes confident answers as often right as they say: the temperature of a softmax (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from medtame.errors import MedtameError
from medtame.types import Array

RANGE = (0.02, 50.0)


def temperature(logits: Array, truth: Array) -> float:
    """The temperature that divides logits (N, C) of rows that were not learnt from, so that their likelihood is highest; in `RANGE`.

    `truth` (N,) holds class numbers, -1 unknown. A row with NaN (a refusal) or without truth is left out; without any row it is 1.
    Above 1 makes answers less sure, below 1 surer; their order stays. Rows that are all right would ask for a temperature of 0, so the
    truth is taken to hold with (N + 1) / (N + 2) and the other classes to share the rest (Platt 1999).
    """
    if logits.ndim != 2 or truth.shape != logits.shape[:1]:
        raise MedtameError(f"logits of shape {logits.shape} for truth of shape {truth.shape}: they must be (rows, classes) and (rows,)")
    known = (truth >= 0) & ~np.isnan(logits).any(1)
    rows, classes = int(known.sum()), logits.shape[1]
    if not rows or classes < 2:
        return 1.0
    right = (rows + 1) / (rows + 2)
    targets = np.full((rows, classes), (1 - right) / (classes - 1))
    targets[np.arange(rows), truth[known]] = right

    def loss(logarithm: float) -> float:
        return -float((targets * log_softmax(logits[known] / np.exp(logarithm), axis=1)).sum()) / rows

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
