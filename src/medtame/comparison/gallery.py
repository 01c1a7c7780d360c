"""Images of the test rows with what the best method said of them: the surest right answers, the worst, the surest mistakes.

A row is named by its number alone; the names of its files only where they are asked for.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torch.nn.functional import interpolate

from medtame.comparison.boxes import box_pictures
from medtame.comparison.grid import Grid
from medtame.comparison.questions import question_strips
from medtame.comparison.strips import strips
from medtame.data.slices import is_volume, whole
from medtame.metrics.segmentation import dice_of
from medtame.run import Run, fitted
from medtame.tasks.classification import FindingsFrame, truth_of
from medtame.tasks.image_text_retrieval import ImageTextRetrievalFrame
from medtame.tasks.segmentation import SegmentationFrame, at_size
from medtame.types import Array, Picture, Samples

SIDE, OVERLAY_SIDE = 160, 280  # pixels of a thumbnail, and of one with masks on it
LOOKED_AT = 32  # test rows, at most, of which masks are shown
SHOWN = 8


def pictures(grid: Grid, method: str, run: Run, *, names: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Of the best method on test rows of the first part: cases where rows have a label, masks or boxes where they have such, else examples.

    `names`: images by the name that the manifest gives them, instead of the number of their row.
    """
    part = grid.parts[0]
    test = grid.data.samples.take(part.test)
    column = "image" if "image" in test else "fixed"
    called = [picture.name for picture in test.pictures(column)] if names else [f"row {row + 1}" for row in part.test.tolist()]
    if len(grid.parts) > 1:
        run = fitted(grid.data.samples.take(part.train), grid.data.task, grid.method(method), grid.encoder, seed=grid.seed)
    if "normals" in grid.data.task.offers:
        return {"examples": heat_maps(run, test, called)}
    if "xmin" in grid.data.task.requires:
        return {"examples": box_pictures(run, test, called)}
    if "label" in grid.data.task.requires:
        return cases(judgements(run.predict(test).table, test.column("label")), test, called)
    if isinstance(run.frame, FindingsFrame):
        truth = truth_of(test, run.frame.names)
        return cases(judgements_of_findings(run.predict(test).table, run.frame.names, truth), test, called)
    if isinstance(run.frame, ImageTextRetrievalFrame):
        said = run.predict(test)
        return {"examples": strips(said, test, run.frame.right(said, test), called)}
    if "mask" in grid.data.task.requires:
        return {"examples": overlays(run, test, called)}
    if "question" in grid.data.task.requires:
        return {"examples": question_strips(run, test, called, thumbnail)}
    return {"examples": told(run, test, column, called)}


@dataclass(frozen=True)
class Judgement:
    """What was said of one row, or of one finding of a row. `sure`: the probability of what was said; `true`: of what is true."""

    row: int
    truth: str
    said: str
    sure: float
    true: float


def cases(found: Sequence[Judgement], test: Samples, called: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The best, the worst, the most confident mistakes. Where the last two are the same, as with two classes, they are told once."""
    right = [one for one in found if one.said == one.truth]
    wrong = [one for one in found if one.said != one.truth]
    worst = sorted(wrong, key=lambda one: one.true)[:SHOWN]
    surest = sorted(wrong, key=lambda one: -one.sure)[:SHOWN]
    chosen = {"best_cases": best(right), "worst_cases": worst, "confident_mistakes": [] if set(surest) == set(worst) else surest}
    return {name: [case(one, called[one.row], test.take([one.row])) for one in taken] for name, taken in chosen.items()}


def judgements(rows: Sequence[Mapping[str, Any]], labels: Sequence[str | None]) -> list[Judgement]:
    """Of the table of a classification; rows without a label, and refusals, are left out."""
    known = [k for k, label in enumerate(labels) if label is not None and not np.isnan(rows[k]["max_score"])]
    return [
        Judgement(k, str(labels[k]), rows[k]["prediction"], rows[k]["max_score"], rows[k].get(f"score_{labels[k]}", 0.0)) for k in known
    ]


def judgements_of_findings(rows: Sequence[Mapping[str, Any]], names: Sequence[str], truth: Array) -> list[Judgement]:
    """Of the table of findings, each a yes or no for itself; truth (N, C), NaN unknown."""
    found = []
    for k, column in zip(*np.nonzero(~np.isnan(truth)), strict=True):
        yes = rows[k][f"score_{names[column]}"]
        words = f"no {names[column]}", names[column]
        true = int(truth[k, column])
        if not np.isnan(yes):
            found.append(Judgement(int(k), words[true], words[yes > 0.5], max(yes, 1 - yes), yes if true else 1 - yes))
    return found


def best(right: Sequence[Judgement]) -> list[Judgement]:
    """The surest right answers of each class in turn, so that a class that is easy does not fill the page."""
    turns: Counter[str] = Counter()
    placed: list[tuple[int, float, int, Judgement]] = []
    for one in sorted(right, key=lambda one: -one.true):
        placed.append((turns[one.truth], -one.true, len(placed), one))
        turns[one.truth] += 1
    return [one for *_, one in sorted(placed)[:SHOWN]]


def case(one: Judgement, name: str, sample: Samples) -> dict[str, Any]:
    said = {"truth": one.truth, "said": one.said, "confidence": one.sure, "truth_score": one.true}
    return {"image": name, "thumbnail": thumbnail(sample.pictures()[0]), **said}


def overlays(run: Run, test: Samples, called: Sequence[str]) -> list[dict[str, Any]]:
    """Masks on their images from the worst to the best Dice, evenly: predicted in orange, true outline in blue.

    Of a volume the slice is shown where most is marked. Of many rows some are looked at, evenly.
    """
    if not isinstance(run.frame, SegmentationFrame):
        return []
    looked = LOOKED_AT if not any(map(is_volume, test.pictures())) else SHOWN
    few = np.linspace(0, len(test) - 1, min(looked, len(test))).astype(int)
    pictures, masks, said = test.take(few).pictures(), test.take(few).pictures("mask"), run.predict(test.take(few))
    dices = []
    for k, mask in enumerate(masks):
        true = whole(mask) > 0
        dices.append(dice_of(at_size(np.asarray(said.arrays[f"{k}/mask"]), true.shape), true))
    order = [k for k in np.argsort(dices).tolist() if np.isfinite(dices[k])]  # a mask that is empty on both sides shows nothing
    rows = []
    for k in [order[place] for place in np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)).tolist()]:
        pixels, predicted, true = (small(part) for part in run.frame.shown(pictures[k], np.asarray(said.arrays[f"{k}/mask"]), masks[k]))
        caption = f"{said.table[k].get('structure', '')}: Dice {dices[k]:.2f}; predicted in orange, true in blue"
        rows.append({"image": called[few[k]], "thumbnail": encoded(overlay(pixels, predicted, true), OVERLAY_SIDE), "caption": caption})
    return rows


def small(pixels: Array) -> Array:
    """An image (H, W, C) or a mask (H, W) of at most OVERLAY_SIDE pixels a side, so that outlines drawn on it can be seen."""
    share = OVERLAY_SIDE / max(pixels.shape[:2])
    if share >= 1:
        return pixels
    size = [max(1, round(side * share)) for side in pixels.shape[:2]]
    channels = torch.from_numpy(np.atleast_3d(pixels).astype(np.float32)).permute(2, 0, 1)[None]
    resized = np.asarray(interpolate(channels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0))
    return resized if pixels.ndim == 3 else resized[..., 0] > 0.5


def heat_maps(run: Run, test: Samples, called: Sequence[str]) -> list[dict[str, Any]]:
    """Maps of abnormality over their images: what was found best, what was missed, the highest normals; true outline in blue."""
    said, labels = run.predict(test), test.column("label")
    scores = np.asarray(said.arrays["scores"])
    order = [row for row in np.argsort(-scores).tolist() if np.isfinite(scores[row])]
    normal = str(getattr(run.task, "normal", ""))
    ill, well = ([row for row in order if (labels[row] == normal) == kind] for kind in (False, True))
    chosen = list(dict.fromkeys([*ill[:3], *ill[-2:], *well[: SHOWN - 5]]))
    maps = [np.asarray(said.arrays[f"{row}/map"]) for row in order]
    low, high = (float(np.median([np.quantile(one, share) for one in maps])) for share in (0.75, 1.0)) if maps else (0.0, 1.0)
    rows = []
    for row in chosen:
        one = test.take([row])
        mask = one.pictures("mask")[0].values() > 0 if "mask" in one and one.column("mask")[0] is not None else None
        drawn = heated(one.pictures()[0].array(), (np.asarray(said.arrays[f"{row}/map"]) - low) / max(high - low, 1e-9), mask)
        caption = f"{labels[row]}: score {scores[row]:.2f}; {said.table[row]['prediction'] or 'no threshold'}"
        rows.append({"image": called[row], "thumbnail": encoded(drawn), "caption": caption})
    return rows


def heated(pixels: Array, heat: Array, mask: Array | None) -> Array:
    """(H, W, 3): the image with heat (0 none, 1 full) in orange, and the outline of a mask."""
    image = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    share = 0.6 * np.clip(heat, 0, 1)[..., None]
    nothing = np.zeros(heat.shape, dtype=bool)
    return overlay((1 - share) * image + share * np.array([1.0, 0.45, 0.0]), nothing, nothing if mask is None else mask)


def told(run: Run, test: Samples, column: str, called: Sequence[str]) -> list[dict[str, Any]]:
    """Images with what was said of them."""
    few = test.take(np.arange(min(SHOWN, len(test))))
    rows = run.predict(few).table
    skipped = ("image", "fixed", "moving", "warning")
    return [
        {
            "image": name,
            "thumbnail": thumbnail(picture),
            "caption": "; ".join(f"{k}: {short(v)}" for k, v in row.items() if k not in skipped),
        }
        for name, picture, row in zip(called, few.pictures(column), rows, strict=False)
    ]


def short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)[:160]


def overlay(pixels: Array, predicted: Array, true: Array) -> Array:
    """(H, W, 3): the image with a filled prediction and the outline of the truth."""
    image = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels.copy()
    image[predicted] = 0.6 * image[predicted] + 0.4 * np.array([1.0, 0.55, 0.0])
    if true.shape == predicted.shape:
        inner = binary_erosion(true, iterations=max(1, round(max(true.shape) / SIDE)))  # as wide as can be seen in a thumbnail
        image[true & ~inner] = np.array([0.1, 0.45, 1.0])
    return np.asarray(image)


def thumbnail(picture: Picture) -> str:
    return encoded(picture.array())


def encoded(pixels: Array, side: int = SIDE) -> str:
    """A small PNG, base64."""
    eight = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(eight[:, :, 0] if eight.shape[2] == 1 else eight)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
