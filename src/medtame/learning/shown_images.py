"""Images as a generative model is shown them: 8 bits, grey or RGB, no longer than asked, and nothing else of their file."""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
from PIL import Image

from medtame.errors import PairError
from medtame.types import Array, Picture, Query

FORM = "shown-1"  # part of every key of a kept answer: raise it when `shown` changes for any image


def pictures_of(query: Query) -> list[Picture]:
    """The image of each row. Raises PairError where rows are regions, which nobody asks a generative model about one by one."""
    if query.regions is not None:
        raise PairError("a generative model is asked about whole images, not about regions: use zero_shot or linear_probe")
    pictures = query.samples.pictures()
    return [pictures[sample] for sample in query.source]


def shown(picture: Picture, longest_side: int) -> Array:
    """(H, W) or (H, W, 3) uint8 after the intensity convention; made smaller (antialiased), never larger. Raises ImageError."""
    pixels = np.round(picture.array() * 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    scale = longest_side / max(image.size)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
    return np.array(image)


def data_url(pixels: Array) -> str:
    """A PNG of uint8 pixels, without any metadata, as the address that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def digest(picture: Picture, longest_side: int) -> str:
    """What `shown` depends on, without decoding the image."""
    return f"{FORM} {longest_side} {picture.digest()}"


def digest_of(pixels: Array) -> str:
    """The same for pixels at hand."""
    return hashlib.sha256(f"{FORM} {pixels.shape}\n".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
