"""The numbers behind the figures of a classification, from what the cells measured on the test rows. Nothing is fitted again.

Bands and intervals come from the same resamples of patients and draws as the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtame.comparison import curves
from medtame.comparison.grid import Outcome, Shots
from medtame.comparison.table import Resampling
from medtame.metrics.bins import equal_mass_bins
from medtame.metrics.intervals import TwoWay, resampled_draws
from medtame.metrics.statistic import Auroc, AveragePrecision, BalancedAccuracy, Calibration, MacroAuroc, Ratio, Statistic
from medtame.types import Array

BINS, IN_A_BIN = 15, 5  # at most, at least
OF_EACH_CLASS, IN_A_MATRIX, IN_THE_LIST, WITH_CURVES = 6, 15, 50, 50  # classes, at most
CONFUSIONS = 20
WORK, LEAST_RESAMPLES = 3e7, 200  # rows x classes x draws x resamples of a curve
Areas = Mapping[int, tuple[TwoWay, TwoWay]]  # of a class: AUROC and average precision
DIGITS = 5  # of what is kept of a curve


def figures(
    found: Mapping[tuple[str, Shots], Sequence[Outcome]],
    best: str,
    others: Sequence[str],
    shots: Shots,
    names: Sequence[str],
    all_: Resampling,
) -> dict[str, Any] | None:
    """Curves and reliability of the best method and of `others`, classes and confusions of the best; None for a task without them."""
    outcomes = found[best, shots]
    first = outcomes[0].statistics.get("macro_auroc")
    if not isinstance(first, MacroAuroc):
        return None
    labels = list(names) if len(names) == first.scores.shape[1] else [f"class {k + 1}" for k in range(first.scores.shape[1])]
    methods = [name for name in dict.fromkeys([best, *others]) if (name, shots) in found]
    fewer = lessened(all_, outcomes, labels)
    areas = {k: areas_of(outcomes, k, all_) for k in listed(outcomes)}
    drawn: dict[str, list[dict[str, Any]]] = {}
    for name in methods if len(labels) <= WITH_CURVES else []:
        own = areas if name == best else {}
        drawn[name] = curves_of(name, found[name, shots], labels, own, all_, fewer)
    made: dict[str, Any] = {
        "method": best,
        "shots": shots,
        "draws": len(outcomes),
        "resamples": len(fewer.rows),
        "several": "balanced_accuracy" not in outcomes[0].statistics,
        "curves": [one for rows in drawn.values() for one in rows if not np.isnan(one["y"]).all()],
        "reliability": [row for name in methods if (row := reliability(name, found[name, shots], all_)) is not None],
        "classes": classes(outcomes, labels, areas, all_),
        **confusion([outcome.statistics.get("balanced_accuracy") for outcome in outcomes], labels),
    }
    if len(labels) > IN_THE_LIST:
        made["left_out"] = f"Of {len(labels)} classes the {IN_THE_LIST} with most test rows are listed; curves are not drawn for so many."
    return made


def lessened(all_: Resampling, outcomes: Sequence[Outcome], labels: Sequence[str]) -> Resampling:
    """The first resamples, so many that the curves take seconds."""
    work = all_.rows.shape[1] * len(labels) * len(outcomes)
    return Resampling(all_.rows[: max(LEAST_RESAMPLES, int(WORK / max(work, 1)))], all_.seed)


# ---- curves ---------------------------------------------------------------------------------------------------


def curves_of(
    method: str, outcomes: Sequence[Outcome], labels: Sequence[str], areas: Areas, all_: Resampling, resampling: Resampling
) -> list[dict[str, Any]]:
    """ROC and precision-recall: the mean over classes, and each class where its `areas` are given and classes are few.

    AUROC and the given areas rest on `all_` resamples, as the table does; bands and the rest on the fewer of `resampling`.
    """
    draws = resampled_draws(len(outcomes), len(resampling.rows), resampling.seed)
    plain, one = np.ones((1, resampling.rows.shape[1])), np.ones((1, len(outcomes)))
    value = [class_curves(outcomes, k, plain, one) for k in range(len(labels))]
    spread = [class_curves(outcomes, k, resampling.rows, draws) for k in range(len(labels))]
    precisions = [areas[k][1] if areas else average_precision(outcomes, k, resampling) for k in range(len(labels))]
    macro = measured(all_.two_way(outcomes, "macro_auroc")), mean_area(precisions, all_ if areas else resampling)
    found = []
    for side, kind in enumerate(("roc", "precision_recall")):
        chances = [0.5 if kind == "roc" else prevalence(outcomes, k) for k in range(len(labels))]
        middle = curves.over_classes([pair[side] for pair in value])
        around = curves.over_classes([pair[side] for pair in spread])
        found.append(curve(kind, method, None, middle, around, macro[side], float(np.mean(chances)), resampling))
        if areas and len(labels) <= OF_EACH_CLASS:
            for k, label in enumerate(labels):
                area = measured(areas[k][side])
                found.append(curve(kind, method, label, value[k][side], spread[k][side], area, chances[k], resampling))
    return found


def class_curves(outcomes: Sequence[Outcome], k: int, counts: Array, draws: Array) -> tuple[Array, Array]:
    """Both curves (B, 51) of one class against the rest, the mean over draws."""
    pairs = [curves.roc_and_precision(scores[:, k], truth[:, k], counts) for scores, truth in judged(outcomes)]
    return curves.over_draws([roc for roc, _ in pairs], draws), curves.over_draws([precision for _, precision in pairs], draws)


def judged(outcomes: Sequence[Outcome]) -> list[tuple[Array, Array]]:
    """(scores, truth) of each draw, both (N, C)."""
    kept = [outcome.statistics["macro_auroc"] for outcome in outcomes]
    return [(one.scores, one.truth) for one in kept if isinstance(one, MacroAuroc)]


def areas_of(outcomes: Sequence[Outcome], k: int, resampling: Resampling) -> tuple[TwoWay, TwoWay]:
    """AUROC and average precision of one class against the rest."""
    auroc = taken([Auroc(scores[:, k], truth[:, k]) for scores, truth in judged(outcomes)], resampling)
    return auroc, average_precision(outcomes, k, resampling)


def average_precision(outcomes: Sequence[Outcome], k: int, resampling: Resampling) -> TwoWay:
    return taken([AveragePrecision(scores[:, k], truth[:, k]) for scores, truth in judged(outcomes)], resampling)


def taken(statistics: Sequence[Statistic], resampling: Resampling) -> TwoWay:
    return resampling.two_way([Outcome({"": statistic}, {}) for statistic in statistics], "")


def measured(found: TwoWay) -> dict[str, Any]:
    interval = found.interval
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def mean_area(areas: Sequence[TwoWay], resampling: Resampling) -> dict[str, Any]:
    """The mean over the classes where it is defined."""
    around = curves.over_classes([area.resampled for area in areas])
    low, high = curves.band(around[:, None], resampling.rows)
    value = curves.over_classes([np.array([area.interval.value]) for area in areas])
    return {"value": float(value[0]), "low": float(low[0]), "high": float(high[0]), "n": max(area.interval.n for area in areas)}


def prevalence(outcomes: Sequence[Outcome], k: int) -> float:
    truth = judged(outcomes)[0][1][:, k]
    return float(truth[~np.isnan(truth)].mean()) if (~np.isnan(truth)).any() else 0.0


def curve(
    kind: str, method: str, label: str | None, value: Array, spread: Array, area: dict[str, Any], chance: float, resampling: Resampling
) -> dict[str, Any]:
    low, high = curves.band(spread, resampling.rows)
    sides = {"y": value[0], "low": low, "high": high}
    said = {"kind": kind, "method": method, "label": label, "area": area, "chance": chance, "x": curves.PLACES.round(DIGITS).tolist()}
    return said | {name: side.round(DIGITS).tolist() for name, side in sides.items()}


# ---- calibration ----------------------------------------------------------------------------------------------


def reliability(method: str, outcomes: Sequence[Outcome], resampling: Resampling) -> dict[str, Any] | None:
    """Share right by confidence in bins of equal mass over all draws; None where nothing has a confidence."""
    kept = [outcome.statistics.get("ece") for outcome in outcomes]
    pairs = [flat(one) for one in kept if isinstance(one, Calibration)]
    rows, confidence, right = (np.concatenate([pair[part] for pair in pairs]) if pairs else np.empty(0) for part in range(3))
    if not len(confidence):
        return None
    bins = np.unique(equal_mass_bins(confidence, min(BINS, max(1, len(confidence) // IN_A_BIN))), return_inverse=True)[1]
    draw = np.repeat(np.arange(len(pairs)), [len(pair[0]) for pair in pairs])
    draws = resampled_draws(len(pairs), len(resampling.rows), resampling.seed)
    found = []
    for number in range(bins.max() + 1):
        inside = bins == number
        sides = np.zeros((2, len(pairs), resampling.rows.shape[1]))
        for side, amount in zip(sides, (np.ones(len(right)), right), strict=True):
            np.add.at(side, (draw[inside], rows[inside]), amount[inside])
        held, hits = ((draws * (resampling.rows @ side.T)).sum(1) for side in sides)
        share = np.divide(hits, held, out=np.full(len(held), np.nan), where=held > 0)
        low, high = curves.band(share[:, None], resampling.rows)
        value = {"value": float(right[inside].mean()), "low": float(low[0]), "high": float(high[0]), "n": int(inside.sum())}
        ends = {"low": float(confidence[inside].min()), "high": float(confidence[inside].max())}
        found.append({**ends, "n": int(inside.sum()), "confidence": float(confidence[inside].mean()), "right": value})
    return {"method": method, "bins": found}


def flat(one: Calibration) -> tuple[Array, Array, Array]:
    """(row, confidence, right) of every judgement that counts."""
    confidence, correct = (side.reshape(one.rows, -1) for side in (one.confidence, one.correct))
    known = ~np.isnan(confidence) & ~np.isnan(correct)
    return np.nonzero(known)[0], confidence[known], correct[known]


# ---- classes --------------------------------------------------------------------------------------------------


def listed(outcomes: Sequence[Outcome]) -> list[int]:
    """The classes that are told: those with most test rows, in their own order."""
    rows = np.nansum(judged(outcomes)[0][1], 0)
    return sorted(np.argsort(-rows, kind="stable")[:IN_THE_LIST].tolist())


def classes(outcomes: Sequence[Outcome], labels: Sequence[str], areas: Areas, resampling: Resampling) -> list[dict[str, Any]]:
    """Each class: how many test rows, recall, precision, AUROC, average precision; those with most rows where there are many.

    Where several may hold, a class is said to hold above a probability of one half.
    """
    rows = np.nansum(judged(outcomes)[0][1], 0)
    answers = [one for outcome in outcomes if isinstance(one := outcome.statistics.get("balanced_accuracy"), BalancedAccuracy)]
    found = []
    for k, (auroc, precision) in areas.items():
        said = {"label": labels[k], "n": int(rows[k]), "auroc": measured(auroc), "average_precision": measured(precision)}
        parts = [(one.predicted == k, one.truth == k, one.truth >= 0) for one in answers]
        parts = parts or [(scores[:, k] > 0.5, truth[:, k] == 1, ~np.isnan(truth[:, k])) for scores, truth in judged(outcomes)]
        said["recall"] = measured(taken([ratio(hit & true, true) for hit, true, _ in parts], resampling))
        said["precision"] = measured(taken([ratio(hit & true, hit & known) for hit, true, known in parts], resampling))
        found.append(said)
    return found


def ratio(part: Array, whole: Array) -> Ratio:
    return Ratio(part.astype(float), whole.astype(float))


def confusion(kept: Sequence[Statistic | None], labels: Sequence[str]) -> dict[str, Any]:
    """The matrix where the classes are few enough to read it, else the commonest wrong answers; counts of all draws together."""
    answers = [one for one in kept if isinstance(one, BalancedAccuracy)]
    if not answers:
        return {}
    truth = np.concatenate([one.truth[one.truth >= 0] for one in answers])
    said = np.concatenate([one.predicted[one.truth >= 0] for one in answers])
    if len(labels) <= IN_A_MATRIX:
        counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
        np.add.at(counts, (truth, np.where(said < 0, len(labels), said)), 1)
        columns = [*labels, *(["refused"] if counts[:, -1].any() else [])]
        return {"confusion": {"labels": list(labels), "said": columns, "counts": counts[:, : len(columns)].tolist()}}
    wrong = np.stack([truth, said], 1)[truth != said]
    pairs, counted = np.unique(wrong, axis=0, return_counts=True)
    held = np.bincount(truth, minlength=len(labels))
    rows = [
        {"truth": labels[t], "said": "refused" if s < 0 else labels[s], "n": int(n), "share": float(n / held[t])}
        for (t, s), n in zip(pairs.tolist(), counted.tolist(), strict=True)
    ]
    return {"confusions": sorted(rows, key=lambda row: (-row["n"], -row["share"], str(row["truth"])))[:CONFUSIONS]}
