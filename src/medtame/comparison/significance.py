"""Which methods may be said to beat a reference, when many are tried: p-values of paired gains, corrected by Holm (1979)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GAINS = ("gain", "gain_over_probe")


def adjusted(rows: Sequence[Mapping[str, Any]], references: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with `gain_p_holm` and `gain_over_probe_p_holm` beside their `gain_p` and `gain_over_probe_p`.

    A family is all methods (on all encoders) with one metric and one number of shots, without the task's `references`: they stand in
    every table whether or not they are asked for, so no claim is made about them and they have no corrected p-value. Within a
    family the chance that any method that is no better is said to be is at most the level that p is held to (5 % in the report);
    over several numbers of shots it is not.
    """
    made = [{**row, **{f"{gain}_p_holm": None for gain in GAINS}} for row in rows]
    families: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(made):
        if row["method"] not in references:
            families.setdefault((row["metric"], row["shots"]), []).append(number)
    for members in families.values():
        for gain in GAINS:
            tested = [number for number in members if known(made[number].get(f"{gain}_p"))]
            for number, corrected in zip(tested, holm([made[number][f"{gain}_p"] for number in tested]), strict=True):
                made[number][f"{gain}_p_holm"] = corrected
    return made


def known(p_value: float | None) -> bool:
    return p_value is not None and bool(np.isfinite(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down corrected p-values: the smallest of m times m, the next times m - 1, ..., never falling, at most 1."""
    order = np.argsort(np.asarray(p_values, dtype=float), kind="stable")
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return [float(one) for one in corrected]
