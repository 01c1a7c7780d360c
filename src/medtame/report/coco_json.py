"""Predicted boxes as COCO JSON: the file that a manifest of boxes can be, with a score an annotation.

pycocotools reads the file with `COCO(path)`, and its list `annotations` with `loadRes`. Corners are in pixels of the source to a
thousandth, as they are when they are measured, so that the average precision of the file is the one of the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medtame import state
from medtame.regions import DIGITS, in_pixels
from medtame.types import Array, Picture

USE = "research use only: not for clinical decisions"


def write(images: Sequence[Picture], boxes: Sequence[Array], names: Sequence[str], path: Path) -> None:
    """Write a file of all boxes of all images; an image without a box is listed too.

    Args:
        images: N pictures, each once.
        boxes: (n, 6) x0 y0 x1 y1 in fractions of the image, score, number among `names`.
        names: what boxes can be; category k + 1 of the file is name k.
    """
    listed, annotations = [], []
    for number, (picture, own) in enumerate(zip(images, boxes, strict=True), 1):
        size = picture.geometry()
        listed.append({"id": number, "file_name": picture.name, "width": size.width, "height": size.height})
        annotations += [annotation(number, box, size.height, size.width) for box in np.asarray(own, dtype=np.float64)]
    written = {
        "info": {"description": f"boxes predicted by medtame {version('medtame')}; {USE}"},
        "images": listed,
        "annotations": [{"id": place, **one} for place, one in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    state.write_text(path, json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def annotation(image: int, box: Array, height: int, width: int) -> dict[str, Any]:
    """One box (6,) of the image with this id."""
    x0, y0, x1, y1 = in_pixels(box[:4], height, width)[0].tolist()
    sides = round(x1 - x0, DIGITS), round(y1 - y0, DIGITS)
    return {
        "image_id": image,
        "category_id": int(box[5]) + 1,
        "bbox": [x0, y0, *sides],
        "area": sides[0] * sides[1],
        "iscrowd": 0,
        "score": float(box[4]),
    }
