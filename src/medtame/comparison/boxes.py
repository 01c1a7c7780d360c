"""What one looks at in object detection: images with found and missed objects, best and worst, and two curves a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from medtame.comparison.strips import drawn, png
from medtame.metrics.detection import COUNTED_FROM, FALSE_POSITIVES, Matched, matches, overlaps
from medtame.metrics.statistic import Statistic
from medtame.regions import in_pixels
from medtame.report.plots import STYLES
from medtame.run import Run
from medtame.tasks.object_detection import ObjectDetectionFrame
from medtame.types import Array, Picture, Samples

SIDE, LINE, KEPT = 440, 16, 96  # pixels of the longer side of a picture; of a line of its legend; colours that an image keeps
BEST, WORST, MIDDLE = 3, 3, 2
TRUE, INK, QUIET = (255, 255, 255), (31, 41, 51), (91, 102, 115)
LETTERS = 24  # of a name in a legend
COLOURS = tuple(colour for colour, _ in STYLES)


@dataclass(frozen=True)
class Seen:
    """One image: the boxes that count (n, 6), the objects (m, 5), and for each whether it has its counterpart (IoU 0.5, same class)."""

    row: int
    boxes: Array
    objects: Array
    right: Array
    found: Array

    @property
    def f1(self) -> float:
        """Of boxes and objects; 1 where there is neither."""
        both = len(self.boxes) + len(self.objects)
        return 2 * int(self.right.sum()) / both if both else 1.0


def box_pictures(run: Run, test: Samples, called: Sequence[str]) -> list[dict[str, Any]]:
    """The best, the worst and middling test images by F1 of the boxes that count, then precision-recall and FROC curves."""
    if not isinstance(run.frame, ObjectDetectionFrame) or not len(test):
        return []
    frame, said = run.frame, run.predict(test)
    images, names = test.pictures(), frame.names
    least = np.array(frame.thresholds or [COUNTED_FROM] * len(names))
    seen = []
    for row, (picture, true) in enumerate(zip(images, frame.truth(test), strict=True)):
        size = picture.geometry()
        boxes, objects = np.asarray(said.arrays[f"boxes/{row}"], dtype=float), true.numpy().astype(float)
        seen.append(compared(row, boxes, objects, (size.height, size.width), least))
    examples = []
    for place, one in chosen(seen):
        sheet = labelled(images[one.row], one, names)
        examples.append({"image": called[one.row], "thumbnail": png(sheet), "caption": f"{place}: {told(one)}"})
    return [*examples, curves(frame.measure(said, test), names)]


def compared(row: int, boxes: Array, objects: Array, size: tuple[int, int], least: Array) -> Seen:
    """Which of the boxes (n, 6) that reach the score of their class, `least` (C,), have an object (m, 5), best first."""
    boxes = boxes[boxes[:, 5] < len(least)]
    boxes = boxes[boxes[:, 4] >= least[boxes[:, 5].astype(int)]]
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    objects = objects[objects[:, 4] >= 0]
    right, found = np.zeros(len(boxes), dtype=bool), np.zeros(len(objects), dtype=bool)
    for kind in np.unique(boxes[:, 5]):
        ours, theirs = np.flatnonzero(boxes[:, 5] == kind), np.flatnonzero(objects[:, 4] == kind)
        overlap = overlaps(in_pixels(boxes[ours, :4], *size), in_pixels(objects[theirs, :4], *size))
        for box, one in taken(overlap):
            right[ours[box]], found[theirs[one]] = True, True
    return Seen(row, boxes, objects, right, found)


def taken(overlap: Array) -> list[tuple[int, int]]:
    """(box, object) of each match at an overlap of one half: as `matches` finds them, the object's number too."""
    free, pairs = np.ones(overlap.shape[1], dtype=bool), []
    for box in np.flatnonzero(matches([overlap])[0] & 1):
        best = int(np.where(free, overlap[box], -1.0)[::-1].argmax())
        best = overlap.shape[1] - 1 - best
        free[best] = False
        pairs.append((int(box), best))
    return pairs


def chosen(seen: Sequence[Seen]) -> list[tuple[str, Seen]]:
    """Best, middling and worst, each image once, those with more objects first where they are as good."""
    order = sorted(seen, key=lambda one: (-one.f1, -len(one.objects), one.row))
    worst = order[max(BEST, len(order) - WORST) :]
    between = order[BEST : len(order) - len(worst)]
    middle = [between[k] for k in np.linspace(0, len(between) - 1, MIDDLE + 2).astype(int)[1:-1]] if len(between) > MIDDLE else between
    parts = (("best", order[:BEST]), ("middling", middle), ("worst", worst[::-1]))
    return [(name, one) for name, part in parts for one in part]


def told(one: Seen) -> str:
    """In words, without the names of the classes: these are in the picture."""
    found, wrong = int(one.found.sum()), int((~one.right).sum())
    return f"{found} of {len(one.objects)} marked objects found; boxes where no such object is marked: {wrong}"


def labelled(picture: Picture, one: Seen, names: Sequence[str]) -> Image.Image:
    """Predicted boxes in the colour of their name with its score, dotted where wrong; missed objects dashed in white and theirs."""
    pixels = (np.clip(picture.array(), 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]).convert("RGB")
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    held = (image.quantize(KEPT).getpalette() or [])[: 3 * KEPT]  # a small file; what is drawn on it keeps its colours
    shown = sorted({int(kind) for kind in (*one.boxes[:, 5], *one.objects[:, 4])})
    sheet = Image.new("RGB", (image.width, image.height + LINE * (len(shown) + 1)), (255, 255, 255))
    sheet.paste(image, (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    corners = in_pixels(one.objects[:, :4], image.height, image.width)
    for box, kind in zip(corners[~one.found], one.objects[~one.found, 4], strict=True):
        outline(pen, box, rgb(COLOURS[int(kind) % len(COLOURS)]), dash=0, width=2)
        outline(pen, box, TRUE, dash=6, width=2)
    for box, right, (*_, score, kind) in zip(in_pixels(one.boxes[:, :4], image.height, image.width), one.right, one.boxes, strict=True):
        colour = rgb(COLOURS[int(kind) % len(COLOURS)])
        outline(pen, box, colour, dash=0 if right else 3, width=2)
        mark(pen, box, f"{score:.2f}"[1:] if score < 1 else "1.0", colour, font)
    for line, kind in enumerate(shown):
        top = image.height + LINE * line
        pen.rectangle((4, top + 3, 14, top + 13), fill=rgb(COLOURS[kind % len(COLOURS)]))
        pen.text((20, top + 1), names[kind][:LETTERS] + counts(one, kind), fill=INK, font=font)
    pen.text((4, image.height + LINE * len(shown) + 1), "solid: right; dotted: wrong; dashed with white: missed", fill=QUIET, font=font)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*held, *(part for colour in (*map(rgb, COLOURS), TRUE, INK, QUIET) for part in colour)])
    return sheet.quantize(palette=palette, dither=Image.Dither.NONE)


def counts(one: Seen, kind: int) -> str:
    """Such as ": 12 counted, 10 marked"."""
    return f": {int((one.boxes[:, 5] == kind).sum())} counted, {int((one.objects[:, 4] == kind).sum())} marked"


def mark(pen: ImageDraw.ImageDraw, box: Array, text: str, colour: tuple[int, int, int], font: Any) -> None:
    """A score at the upper left corner, inside the box, on its colour."""
    left, top = float(box[0]) + 1, float(box[1]) + 1
    width = pen.textlength(text, font=font)
    pen.rectangle((left, top, left + width + 2, top + 11), fill=colour)
    pen.text((left + 1, top - 1), text, fill=(255, 255, 255), font=font)


def outline(pen: ImageDraw.ImageDraw, box: Array, colour: tuple[int, int, int], *, dash: int, width: int) -> None:
    """A rectangle; `dash`: pixels of a stroke and of the gap after it, 0 for an unbroken line."""
    x0, y0, x1, y1 = box.tolist()
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        for at in np.arange(0, length, 2 * dash) if dash else [0.0]:
            shares = at / max(length, 1), min(at + dash, length) / max(length, 1) if dash else 1.0
            a, b = ((start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share) for share in shares)
            pen.line((*a, *b), fill=colour, width=width)


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def curves(found: Mapping[str, Statistic], names: Sequence[str]) -> dict[str, Any]:
    """Precision over recall and objects found over wrong boxes an image, a line a class that has objects, all at an overlap of one half."""
    held = found["ap50"]
    assert isinstance(held, Matched)
    figure = Figure(figsize=(4.6, 4.8), layout="tight")
    upper, lower = figure.subplots(2, 1)
    objects, images = np.nansum(held.objects, 0), max(1, held.defined)
    for kind, name in enumerate(names):
        if objects[kind]:
            right, wrong = (side.astype(float) for side in held.curve(kind))
            style: dict[str, Any] = {"color": COLOURS[kind % len(COLOURS)], "label": name[:LETTERS], "linewidth": 1.6}
            upper.plot(right[1:] / objects[kind], right[1:] / (right + wrong)[1:], **style)
            lower.plot(np.append(wrong / images, FALSE_POSITIVES[-1]), np.append(right, right[-1]) / objects[kind], **style)
    upper.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    lower.set(xlabel="wrong boxes an image", ylabel="objects found", ylim=(0, 1.02))
    lower.set_xscale("log", base=2)
    lower.set_xlim(FALSE_POSITIVES[0], FALSE_POSITIVES[-1])
    lower.set_xticks(FALSE_POSITIVES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    lower.legend(fontsize=8, loc="lower right")
    caption = (
        f"precision and recall of boxes as their score falls, and FROC, over {held.defined} test images at an overlap of one half; an "
        "object that nobody marked counts as a wrong box. A box is no finding: research use only"
    )
    return {"image": "curves", "thumbnail": drawn(figure), "caption": caption}
