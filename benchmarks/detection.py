"""Average precision of boxes: matching and all resamples by arrays, against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.harness import Case, verdict
from medtame.metrics.detection import OVERLAPS, RECALLS, detection
from medtame.metrics.intervals import resampled_groups
from medtame.regions import in_pixels
from medtame.types import Array

SIZE = (480, 640)
TIMED = 20  # resamples of which the plain loop is timed: its time is divided by their share
MOST_DIFFERENCE = 1e-9
Judged = list[tuple[float, bool]]  # score, and whether the box has an object


def made(images: int, objects: int, boxes: int, classes: int, seed: int = 0) -> tuple[list[Array], list[Array]]:
    """Objects anywhere, and boxes of which about half lie near one."""
    random, ours, theirs = np.random.default_rng(seed), [], []
    for _ in range(images):
        corner, side = random.uniform(0, 0.85, (objects, 2)), random.uniform(0.05, 0.15, (objects, 2))
        true = np.concatenate([corner, corner + side, random.integers(0, classes, (objects, 1))], 1)
        near = true[random.integers(0, objects, boxes)]
        moved = near[:, :4] + random.normal(0, random.choice([0.005, 0.05], (boxes, 1)), (boxes, 4))
        moved = np.sort(moved.reshape(-1, 2, 2), 1).reshape(-1, 4).clip(0, 1)
        ours.append(np.concatenate([moved, random.random((boxes, 1)), near[:, 4:]], 1))
        theirs.append(true)
    return ours, theirs


@contextmanager
def average_precision(images: int = 66, objects: int = 13, boxes: int = 60, classes: int = 3, resamples: int = 1000) -> Iterator[Case]:
    """AP over ten overlaps of all images, and of every resample of them: (1 + B,). No resample is the case `resamples=0`."""
    ours_boxes, theirs = made(images, objects, boxes, classes)
    counts = np.concatenate([np.ones((1, images), dtype=np.int32), resampled_groups(np.arange(images), resamples, 0)])
    timed = counts[: 1 + min(TIMED, resamples)]
    kept = judged_in_a_loop(ours_boxes, theirs, classes) if resamples else None  # once for all resamples: not in the plain loop's time

    def ours() -> Array:
        return detection(ours_boxes, theirs, [SIZE] * images, [f"class {k}" for k in range(classes)])["ap"].at(counts)

    def plain() -> Array:
        judged = kept or judged_in_a_loop(ours_boxes, theirs, classes)
        return np.array([in_a_loop(*judged, np.repeat(np.arange(images), taken)) for taken in timed])

    def check() -> str:
        gap = float(np.abs(ours()[: len(timed)] - plain()).max())
        said = f"{len(timed)} of {len(counts)} plain ones timed and scaled" if len(timed) < len(counts) else "all plain ones timed"
        return verdict(gap <= MOST_DIFFERENCE, f"largest difference {gap:.1e}; {said}")

    yield Case(ours=ours, plain=plain, check=check, goal=None, rounds=2, plain_share=len(timed) / len(counts))


def in_a_loop(judged: Sequence[Sequence[Sequence[Judged]]], objects: Sequence[Sequence[int]], chosen: Array) -> float:
    """AP of some images from what was judged of each: [class][overlap][image] and [class][image]."""
    areas = []
    for of_overlaps, held in zip(judged, objects, strict=True):
        total = sum(held[row] for row in chosen)
        if total:
            found = [area(sorted((one for row in chosen for one in images[row]), key=lambda one: -one[0]), total) for images in of_overlaps]
            areas.append(sum(found) / len(found))
    return sum(areas) / len(areas)


def judged_in_a_loop(ours: Sequence[Array], theirs: Sequence[Array], classes: int) -> tuple[list[list[list[Judged]]], list[list[int]]]:
    """Score and hit or not of each box, box by box, as the COCO evaluation defines it; and how many objects there are."""
    judged: list[list[list[Judged]]] = []
    objects: list[list[int]] = []
    for kind in range(classes):
        judged.append([[] for _ in OVERLAPS])
        objects.append([])
        for boxes, true in zip(ours, theirs, strict=True):
            said, held = (in_pixels(side[side[:, -1] == kind, :4], *SIZE).tolist() for side in (boxes, true))
            scores = boxes[boxes[:, 5] == kind, 4].tolist()
            order = sorted(range(len(scores)), key=lambda box: -scores[box])[:100]
            shared = [[overlap(said[box], one) for one in held] for box in order]
            objects[-1].append(len(held))
            for step, least in enumerate(OVERLAPS.tolist()):
                judged[-1][step].append(hits([scores[box] for box in order], shared, least))
    return judged, objects


def hits(scores: Sequence[float], shared: Sequence[Sequence[float]], least: float) -> Judged:
    """Each box gets the free object that it overlaps most."""
    free = [True] * (len(shared[0]) if shared else 0)
    found = []
    for score, overlaps in zip(scores, shared, strict=True):
        best, most = -1, least
        for place, value in enumerate(overlaps):
            if free[place] and value >= most:
                best, most = place, value
        if best >= 0:
            free[best] = False
        found.append((score, best >= 0))
    return found


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = width * height if width > 0 and height > 0 else 0.0
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / whole if whole > 0 else 0.0


def area(judged: Sequence[tuple[float, bool]], objects: int) -> float:
    """Mean over 101 recalls of the highest precision from there on."""
    recall, precision, right = [], [], 0
    for said, (_, hit) in enumerate(judged, 1):
        right += hit
        recall.append(right / objects)
        precision.append(right / said)
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    total, place = 0.0, 0
    for wanted in RECALLS.tolist():
        while place < len(recall) and recall[place] < wanted:
            place += 1
        total += precision[place] if place < len(precision) else 0.0
    return total / len(RECALLS)
