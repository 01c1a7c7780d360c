"""Boxes of a manifest, a line each, folded to a row an image; what is wrong with them is told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from medtame.errors import DataError
from medtame.types import Picture, Samples

Rows = TypeVar("Rows", bound=Samples)
Box = tuple[str, float, float, float, float]  # label, xmin, ymin, xmax, ymax in pixels
CORNERS = ("xmin", "ymin", "xmax", "ymax")
BOXES = "boxes"  # the column of a row an image: a tuple of Box, empty for an image without object
SLACK = 1.0  # pixels that a corner may lie outside


def folded(samples: Rows) -> Rows:
    """A row an image, in the order of their first lines, with the column BOXES; a line without corners says that there is none.

    Corners that overhang by a pixel are cut. Raises DataError for boxes without a label, reversed ones and those that leave their image.
    """
    images = samples.column("image")
    lines: dict[Any, list[int]] = {}
    for line, image in enumerate(images):
        lines.setdefault(image, []).append(line)
    firsts = [own[0] for own in lines.values()]
    corners = list(zip(*(samples.column(name) for name in CORNERS), strict=True))
    labels, pictures = samples.column("label"), samples.take(firsts).pictures()
    found, faults = [], []
    for own, picture in zip(lines.values(), pictures, strict=True):
        size = picture.geometry()
        held = [line for line in own if None not in corners[line]]
        faults += [fault for line in held for fault in wrong(line, labels[line], corners[line], size.width, size.height)]
        found.append(tuple(cut(str(labels[line]), corners[line], size.width, size.height) for line in held))
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataError(f"{len(faults)} box(es) cannot be used: {'; '.join(faults[:3])}{more}. Correct the corners, in pixels")
    kept = [name for name in columns_of(samples) if name not in (*CORNERS, "label")]
    return samples.take(firsts).only(kept).replaced(**{BOXES: found})


def columns_of(samples: Samples) -> list[str]:
    held: Mapping[str, Sequence[Any]] = getattr(samples, "columns", {})
    return list(held)


def wrong(line: int, label: Any, corners: Sequence[float], width: int, height: int) -> list[str]:
    """What is wrong with one box, with the number of its row."""
    xmin, ymin, xmax, ymax = corners
    told = f"row {line + 1} (xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g})"
    if label is None or not str(label).strip():
        return [f"{told} has no label"]
    if not (xmin < xmax and ymin < ymax):
        return [f"{told} is reversed or has no area"]
    inside = xmin < width and ymin < height and xmax > 0 and ymax > 0
    if not inside or min(xmin, ymin) < -SLACK or xmax > width + SLACK or ymax > height + SLACK:
        return [f"{told} lies outside its image of {width} x {height} pixels"]
    return []


def cut(label: str, corners: Sequence[float], width: int, height: int) -> Box:
    xmin, ymin, xmax, ymax = corners
    return label, max(0.0, xmin), max(0.0, ymin), min(float(width), xmax), min(float(height), ymax)


def fractions(boxes: Sequence[Box], picture: Picture, names: Sequence[str]) -> Tensor:
    """(m, 5) x0 y0 x1 y1 in fractions of the image, and the number of the label among `names` (-1: not among them)."""
    size = picture.geometry()
    rows = [
        [xmin / size.width, ymin / size.height, xmax / size.width, ymax / size.height, names.index(label) if label in names else -1]
        for label, xmin, ymin, xmax, ymax in boxes
    ]
    return torch.tensor(np.array(rows, dtype=np.float32).reshape(-1, 5))
