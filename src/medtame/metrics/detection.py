"""Metrics of boxes that can be resampled by image: boxes are matched once, then every resample is a weighted sum.

Average precision and recall are those of COCO (Lin et al. 2014) and equal pycocotools: a class is matched by itself, highest score
first, to the free object of highest overlap; precision is read at 101 recalls; overlaps 0.50 to 0.95; the mean over classes of which
there is an object, so that boxes of a class without any are not counted. An image may hold up to 100 boxes of a class, as in COCO, or
twice the most objects of a class in an image where these are more than 100.

froc: of each class the share of objects found (overlap 0.5) at 1/8, 1/4, 1/2, 1, 2, 4, 8 wrong boxes an image, between thresholds by
a straight line (as MONAI), the mean over rates and classes. count_error: how many objects too many or too few are counted in an image
above a threshold of the score, the mean over classes and images. Objects that nobody marked count as wrong boxes in all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from medtame.errors import MedtameError
from medtame.metrics.bins import running_sums, share
from medtame.metrics.statistic import Mean, Statistic, mean_of_defined
from medtame.regions import DIGITS, in_pixels
from medtame.types import Array

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # an image
MOST = 100  # boxes of a class in an image
COUNTED_FROM = 0.5  # score, where no threshold was chosen on training images
SHOWN = 20  # classes, at most, that have a number of their own in tables
Held: TypeAlias = Array | Tensor
TABLES_AT_ONCE = 64
BOXES_AT_ONCE = 2**20  # of all resamples, as float: they stay near the processor


@dataclass(frozen=True, eq=False)
class Matched(Statistic):
    """Boxes of N images, matched to their objects; a row without an image of its own has NaN objects.

    `scores` (N, D), of each class by falling score, NaN where there is no box; `classes` (N, D); `found` (N, D): bit t is set where the
    box has an object at overlap number t; `objects` (N, C). `overlaps`: how many of these count, from 0.50 on.
    """

    ragged: ClassVar[frozenset[str]] = frozenset({"scores", "classes", "found"})

    scores: Array
    classes: Array
    found: Array
    objects: Array
    overlaps: int = 1

    @property
    def defined(self) -> int:
        return int(self.images.sum())

    @property
    def images(self) -> Array:
        """(N,) which rows are an image."""
        return np.asarray(~np.isnan(self.objects[:, 0]))

    def _at(self, weights: Array) -> Array:
        step = max(1, BOXES_AT_ONCE // max(1, int((~np.isnan(self.scores)).sum())))
        ranked = [self.ranked(kind) for kind in range(self.objects.shape[1])]
        blocks = [self._of_block(ranked, weights[start : start + step].T) for start in range(0, len(weights), step)]
        return np.concatenate([np.empty(0), *blocks])

    def _of_block(self, ranked: Sequence[tuple[Array, Array, Array]], counts: Array) -> Array:
        counts = np.ascontiguousarray(counts)
        objects = np.nan_to_num(self.objects).T @ counts
        images = self.images @ counts
        return mean_of_defined(np.stack([self.of_class(*one, counts, n, images) for one, n in zip(ranked, objects, strict=True)], 1))

    def ranked(self, kind: int) -> tuple[Array, Array, Array]:
        """The boxes of a class by falling score, equal ones in the order of their rows: row, bits of `found`, score, each (D,)."""
        rows, places = np.nonzero((self.classes == kind) & ~np.isnan(self.scores))
        scores = self.scores[rows, places]
        order = np.argsort(-scores, kind="stable")
        return rows[order], self.found[rows, places][order], scores[order]

    def curve(self, kind: int) -> tuple[Array, Array]:
        """Found objects and wrong boxes among the first 0 to D boxes of a class, at overlap 0.50: (D + 1,) each."""
        hit = self.ranked(kind)[1] & 1
        return np.concatenate([[0], hit.cumsum()]), np.concatenate([[0], (1 - hit).cumsum()])

    @abstractmethod
    def of_class(self, rows: Array, found: Array, scores: Array, counts: Array, objects: Array, images: Array) -> Array:
        """(B,) of ranked boxes where row n counts counts[n, b] times; `objects` and `images` (B,) are their sums. NaN without objects."""


@dataclass(frozen=True, eq=False)
class BoxPrecision(Matched):
    """Average precision, the mean over classes and overlaps. It is rising sums at the boxes that have an object: no other sets it."""

    def of_class(self, rows: Array, found: Array, scores: Array, counts: Array, objects: Array, images: Array) -> Array:
        hits = np.flatnonzero(found)
        rows, found = rows[: hits[-1] + 1 if len(hits) else 0], found[hits]
        said = running_sums(counts[rows])[hits + 1]
        needed = whole_of(RECALLS, objects)
        areas, none = np.zeros(len(objects)), np.zeros((1, len(objects)))
        for overlap in range(self.overlaps):
            here = np.flatnonzero(found >> overlap & 1)
            if len(here):
                right, all_said = running_sums(counts[rows[hits[here]]])[1:], said[here]
                precision = np.divide(right, all_said, out=np.zeros(right.shape), where=all_said > 0, dtype=float)
                highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
                areas += at(np.concatenate([highest, none]), below(right, needed)).mean(1)
        return np.where(objects > 0, areas / self.overlaps, np.nan)


@dataclass(frozen=True, eq=False)
class FreeResponse(Matched):
    """Mean sensitivity at FALSE_POSITIVES of a class an image; boxes of equal score enter together, between them a straight line."""

    def of_class(self, rows: Array, found: Array, scores: Array, counts: Array, objects: Array, images: Array) -> Array:
        ends = np.concatenate([[0], np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)]) + 1])
        hit = (found & 1).astype(bool)
        of_boxes = counts[rows]
        right, wrong = (running_sums(of_boxes * side[:, None])[ends].astype(float) for side in (hit, ~hit))
        rates = np.array(FALSE_POSITIVES)[:, None] * images
        after = below(wrong, rates, or_equal=True)
        before, after = after - 1, after.clip(max=len(ends) - 1)
        (x0, x1), (y0, y1) = ([at(side, place) for place in (before, after)] for side in (wrong, right))
        slope = np.divide(y1 - y0, x1 - x0, out=np.zeros(x0.shape), where=x1 > x0)
        return share((y0 + slope * (rates.T - x0)).mean(1), objects)


@dataclass(frozen=True, eq=False)
class BoxRecall(Statistic):
    """Average recall: `found` (N, C, T) and `objects` (N, C), NaN for a row that is no image; the mean over overlaps and classes."""

    found: Array
    objects: Array

    @property
    def defined(self) -> int:
        return int((~np.isnan(self.objects[:, 0])).sum())

    def _at(self, weights: Array) -> Array:
        found = (weights @ self.found.mean(2)).astype(float)
        return mean_of_defined(share(found, weights @ np.nan_to_num(self.objects)))


def whole_of(shares: Array, total: Array) -> Array:
    """(S, B) the least whole number whose share in a total (B,) is no less than each of some shares (S,), as division rounds it."""

    def reached(tried: Array) -> Array:
        return np.asarray(np.divide(tried, total, out=np.ones(tried.shape), where=total > 0) >= shares[:, None])

    least = np.ceil(shares[:, None] * total)
    least -= (least > 0) & reached(least - 1)
    return np.asarray(least + ~reached(least))


def below(rising: Array, wanted: Array, *, or_equal: bool = False) -> Array:
    """(B, S) how many entries of each rising column (P, B) are below (or equal to) the wanted numbers (S, B) of that column; none negative.

    One search in all columns laid end to end, each raised above the one before.
    """
    entries, columns = rising.shape
    far = float(max(rising.max(initial=0), wanted.max(initial=0))) + 1
    raised = np.arange(columns)[:, None] * far
    found = np.searchsorted((rising.T + raised).ravel(), (wanted.T + raised).ravel(), side="right" if or_equal else "left")
    return np.asarray(found.reshape(columns, -1) - np.arange(columns)[:, None] * entries)


def at(columns: Array, places: Array) -> Array:
    """(B, S) the entries of columns (P, B) at the places (B, S), from the first of each column."""
    held = np.ascontiguousarray(columns.T)
    return np.asarray(held.ravel()[places + np.arange(len(held))[:, None] * held.shape[1]])


def detection(
    predicted: Sequence[Held | None],
    truth: Sequence[Held | None],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    thresholds: Sequence[float] | None = None,
) -> dict[str, Statistic]:
    """ap, ap50, ar, froc, count_error and ap50.NAME of N rows.

    Args:
        predicted: (n, 6) x0 y0 x1 y1 in fractions of the image, score, class number. None (in both) for a row that is no image of its
            own, such as the second box of an image.
        truth: (m, 5) x0 y0 x1 y1 in fractions, class number.
        sizes: (height, width) in pixels.
        names: of the classes.
        thresholds: from which score on a box of a class is counted; COUNTED_FROM for all where they are absent.
    """
    if not len(predicted) == len(truth) == len(sizes):
        raise MedtameError(f"{len(predicted)} predictions, {len(truth)} truths, {len(sizes)} sizes: give one of each an image")
    ours = [None if one is None else _shaped(one, 6, "predicted boxes", len(names)) for one in predicted]
    theirs = [None if one is None else _shaped(one, 5, "true boxes", len(names)) for one in truth]
    most = most_boxes(truth, len(names))
    objects = np.array([np.full(len(names), np.nan) if one is None else _counts(one[:, 4], len(names)) for one in theirs])
    objects = objects.reshape(len(theirs), len(names)).astype(float)
    found = matched(ours, theirs, sizes, len(names), most)
    wide = max([1, *map(len, found)])
    held = np.full((len(found), wide, 3), np.nan)
    for row, one in enumerate(found):
        held[row, : len(one)] = one
    bits = np.nan_to_num(held[:, :, 2]).astype(np.uint16)
    kinds = np.nan_to_num(held[:, :, 1], nan=-1).astype(np.int32)
    arrays: dict[str, Any] = {"scores": held[:, :, 0], "classes": kinds, "found": bits, "objects": objects}
    rows, places = np.nonzero(bits)
    recalled = np.zeros((*objects.shape, len(OVERLAPS)))
    np.add.at(recalled, (rows, kinds[rows, places]), bits[rows, places, None] >> np.arange(len(OVERLAPS)) & 1)
    statistics: dict[str, Statistic] = {
        "ap": BoxPrecision(**arrays, overlaps=len(OVERLAPS)),
        "ap50": BoxPrecision(**arrays),
        "ar": BoxRecall(recalled, objects),
        "froc": FreeResponse(**arrays),
        "count_error": Mean(_count_errors(ours, objects, thresholds or [COUNTED_FROM] * len(names))),
    }
    if 1 < len(names) <= SHOWN:
        statistics |= {f"ap50.{name}": BoxPrecision(**_of_one(arrays, kind)) for kind, name in enumerate(names)}
    return statistics


def most_boxes(truth: Sequence[Held | None], classes: int) -> int:
    """How many boxes of a class an image may hold: 100, or twice the most objects of a class where these are more than 100."""
    held = [int(_counts(np.asarray(one)[:, 4], classes).max(initial=0)) for one in truth if one is not None and len(one)]
    most = max(held, default=0)
    return MOST if most <= MOST else 2 * most


def matched(
    predicted: Sequence[Array | None], truth: Sequence[Array | None], sizes: Sequence[tuple[int, int]], classes: int, most: int = MOST
) -> list[Array]:
    """(n, 3) of each image: score, class and bits of the overlaps at which a box has an object; by class, by falling score, `most` at most.

    No box where an image is not there.
    """
    kept: list[list[Array]] = [[] for _ in predicted]
    tables: list[Array] = []
    for of_image, ours, theirs, size in zip(kept, predicted, truth, sizes, strict=True):
        for kind in range(classes) if ours is not None and theirs is not None else ():
            assert ours is not None
            assert theirs is not None
            boxes, objects = ours[ours[:, 5] == kind], theirs[theirs[:, 4] == kind]
            of_image.append(boxes[np.argsort(-boxes[:, 4], kind="stable")][:most])
            tables.append(overlaps(in_pixels(of_image[-1][:, :4], *size), in_pixels(objects[:, :4], *size)))
    bits = iter(matches(tables))
    return [np.concatenate([np.zeros((0, 3)), *(np.column_stack([boxes[:, 4:], next(bits)]) for boxes in of_image)]) for of_image in kept]


def overlaps(ours: Array, theirs: Array) -> Array:
    """(n, m) intersection over union of corners in pixels (n, 4) and (m, 4), rounded as COCO's x, y, width, height are."""
    a, b = (np.concatenate([one[:, :2], np.round(one[:, 2:] - one[:, :2], DIGITS)], 1) for one in (ours, theirs))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    both = (high - low).clip(min=0).prod(2)
    whole = a[:, 2:].prod(1)[:, None] + b[:, 2:].prod(1)[None] - both
    return np.asarray(np.divide(both, whole, out=np.zeros(both.shape), where=whole > 0))


def matches(tables: Sequence[Array]) -> list[Array]:
    """(n,) of each table of overlaps (n, m), boxes by falling score: bit t is set where a box gets an object at OVERLAPS[t].

    That is the free object of highest overlap. A box that no object can go to is not tried.
    """
    tried = [np.flatnonzero((table >= OVERLAPS[0]).any(1)) for table in tables]
    bits = [np.zeros(len(table), dtype=np.int64) for table in tables]
    order = sorted((k for k in range(len(tables)) if len(tried[k])), key=lambda k: len(tried[k]))
    for start in range(0, len(order), TABLES_AT_ONCE):
        block = order[start : start + TABLES_AT_ONCE]
        held = np.full((len(block), max(len(tried[k]) for k in block), max(tables[k].shape[1] for k in block)), -1.0)
        for place, k in enumerate(block):
            held[place, : len(tried[k]), : tables[k].shape[1]] = tables[k][tried[k]]
        for k, found in zip(block, _matches_of_block(held), strict=True):
            bits[k][tried[k]] = found[: len(tried[k])]
    return bits


def _matches_of_block(held: Array) -> Array:
    """(K, n) bits of tables (K, n, m) filled up with -1: box after box, all tables and overlaps at once."""
    least, steps = np.minimum(OVERLAPS, 1 - 1e-10), np.arange(len(OVERLAPS))
    tables, boxes, objects = held.shape
    free, bits = np.ones((tables, len(OVERLAPS), objects), dtype=bool), np.zeros((tables, boxes), dtype=np.int64)
    for box in range(boxes):
        still = np.where(free, held[:, None, box], -1.0)
        best = objects - 1 - still[:, :, ::-1].argmax(2)  # the last of equal ones, as pycocotools takes it
        won = np.take_along_axis(still, best[:, :, None], 2)[:, :, 0] >= least
        table, step = np.nonzero(won)
        free[table, step, best[table, step]] = False
        bits[:, box] = (won << steps).sum(1)
    return bits


def count_thresholds(predicted: Sequence[Held], truth: Sequence[Held], classes: int) -> tuple[float, ...]:
    """For each class the score from which on boxes are counted, so that the counts of these training images err least.

    Between the two scores that bound it; above all scores where it is best to count none.
    """
    ours = [_shaped(one, 6, "predicted boxes", classes) for one in predicted]
    true = np.array([_counts(_shaped(one, 5, "true boxes", classes)[:, 4], classes) for one in truth]).reshape(-1, classes)
    chosen = []
    for kind in range(classes):
        scores = [one[one[:, 5] == kind, 4] for one in ours]
        steps = np.unique(np.concatenate([np.empty(0), *scores]))
        if not len(steps):
            chosen.append(COUNTED_FROM)
            continue
        edges = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:] + 1])
        counted = np.stack([len(one) - np.searchsorted(np.sort(one), edges) for one in scores])
        errors = np.abs(counted - true[:, kind, None]).sum(0)
        chosen.append(float(edges[len(edges) - 1 - errors[::-1].argmin()]))
    return tuple(chosen)


def _count_errors(predicted: Sequence[Array | None], objects: Array, thresholds: Sequence[float]) -> Array:
    """(N,) how far the counts are off, the mean over classes; NaN for a row that is no image."""
    least = np.array(thresholds)
    counted = [
        np.zeros(len(least)) if one is None else _counts(one[one[:, 4] >= least[one[:, 5].astype(int)], 5], len(least)) for one in predicted
    ]
    return np.asarray(np.abs(np.array(counted).reshape(objects.shape) - objects).mean(1))


def _counts(kinds: Array, classes: int) -> Array:
    return np.bincount(np.asarray(kinds).astype(np.int64), minlength=classes)


def _of_one(arrays: Mapping[str, Array], kind: int) -> dict[str, Any]:
    """The same arrays of one class alone."""
    there = arrays["classes"] == kind
    wide = max(1, int(there.sum(1).max(initial=0)))
    order = np.argsort(~there, axis=1, kind="stable")[:, :wide]
    there = np.take_along_axis(there, order, 1)
    scores, found = (np.take_along_axis(arrays[name], order, 1) for name in ("scores", "found"))
    return {
        "scores": np.where(there, scores, np.nan),
        "classes": np.where(there, 0, -1).astype(np.int32),
        "found": np.where(there, found, 0).astype(np.uint16),
        "objects": arrays["objects"][:, kind : kind + 1],
    }


def _shaped(boxes: Held, columns: int, what: str, classes: int) -> Array:
    """As float64, with class numbers that exist. Raises MedtameError."""
    held = np.asarray(boxes, dtype=np.float64)
    if held.ndim != 2 or held.shape[1] != columns:
        raise MedtameError(f"{what} of shape {held.shape}: they must be (n, {columns})")
    kinds = held[:, -1]
    if not np.isfinite(held).all() or not np.isin(kinds, np.arange(classes)).all():
        raise MedtameError(f"{what} hold no numbers or a class outside 0 to {classes - 1}: corners, scores and classes must be numbers")
    return held
