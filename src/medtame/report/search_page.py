"""What `medtame search` found as one HTML file: pictures in their order, with what the manifest says of them."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtame.data import packed
from medtame.data.images import FilePicture
from medtame.errors import ImageError
from medtame.report.html import environment
from medtame.report.record import write_file

SIDE = 240  # pixels of a picture


def write(record: Mapping[str, Any], path: Path, window: str = "") -> None:
    """The page of a search, or of captions that do not belong. Names are those of the manifest; they may name patients."""
    write_file(path, page(record, window))


def page(record: Mapping[str, Any], window: str = "") -> str:
    found = record.get("hits", record.get("pairs", []))
    asked = record.get("asked", {})
    shown = [dict(one) | {"thumbnail": thumbnail(one["path"], one["image"], window)} for one in found]
    question = thumbnail(asked.get("image", ""), "the image that was asked", window)
    return (
        environment()
        .get_template("search.html.j2")
        .render(record=record, asked=asked, shown=shown, question=question, pairs="pairs" in record)
    )


def thumbnail(path: str, name: str, window: str) -> str:
    """PNG in base64, or nothing where the file is gone or cannot be read."""
    picture = packed.at(path, name) or (FilePicture(Path(path), name) if path and Path(path).is_file() else None)
    if picture is None:
        return ""
    try:
        pixels = (np.clip(replace(picture, window=window).array(), 0, 1) * 255).astype(np.uint8)
    except ImageError:
        return ""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return b64encode(buffer.getvalue()).decode()
