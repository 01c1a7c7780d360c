"""Plain JPEG files: the same bits as Pillow's, and all that is unusual left to Pillow."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from medtame.data.decode import MOST_PIXELS, plain
from medtame.types import Array


def picture(mode: str = "RGB", width: int = 61, height: int = 45) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 9 + k) + np.cos(columns / (7 + k)) for k in range(3)], -1)
    colours = Image.fromarray(np.clip(128 + 50 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8))
    return colours if mode == "RGB" else colours.convert(mode)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    content = io.BytesIO()
    picture(mode).save(content, "JPEG", **options)
    return content.getvalue()


def by_pillow(content: bytes) -> Array:
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


USUAL: dict[str, Callable[[], bytes]] = {
    "grey": lambda: jpeg("L"),
    "colour": jpeg,
    "one pixel": lambda: jpeg_of(picture("L", 1, 1)),
    "low quality": lambda: jpeg(quality=20),
    "full colour resolution": lambda: jpeg(subsampling=0),
    "half colour resolution": lambda: jpeg(subsampling=1),
    "progressive": lambda: jpeg(progressive=True),
    "own Huffman tables": lambda: jpeg(optimize=True),
    "restart markers": lambda: jpeg(restart_marker_rows=1),
    "comment, profile, density": lambda: jpeg(comment=b"nothing", icc_profile=b"no profile at all", dpi=(72, 72)),
    "an upright camera": lambda: jpeg(exif=oriented(1)),
}


def jpeg_of(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize("name", USUAL)
def test_usual_files_have_pillows_bits(name: str, tmp_path: Path):
    content = USUAL[name]()
    (tmp_path / "a.jpg").write_bytes(content)
    found, wanted = plain(tmp_path / "a.jpg"), by_pillow(content)
    assert found is not None
    assert (found.dtype, found.shape) == (np.uint8, wanted.shape)
    assert np.array_equal(found, wanted)


def png() -> bytes:
    content = io.BytesIO()
    picture().save(content, "PNG", pnginfo=PngImagePlugin.PngInfo())
    return content.getvalue()


def several() -> bytes:
    content = io.BytesIO()
    picture().save(content, "MPO", save_all=True, append_images=[picture()])
    return content.getvalue()


def with_segment(marker: int, segment: bytes) -> bytes:
    content = jpeg()
    return content[:2] + bytes([0xFF, marker]) + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]


def resized(height: int, width: int, depth: int = 8) -> bytes:
    """The frame header states another size or depth."""
    content = bytearray(jpeg("L"))
    at = content.index(b"\xff\xc0") + 4
    content[at : at + 5] = bytes([depth]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


UNUSUAL: dict[str, Callable[[], bytes]] = {
    "PNG": png,
    "empty": lambda: b"",
    "text": lambda: b"this is no picture",
    "CMYK": lambda: jpeg("CMYK"),
    "RGB without YCbCr": lambda: jpeg(keep_rgb=True),
    "several pictures": several,
    "rotated by EXIF": lambda: jpeg(exif=oriented(6)),
    "damaged EXIF": lambda: with_segment(0xE1, b"Exif\0\0nonsense"),
    "rotated by XMP": lambda: with_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
    "Adobe's own RGB": lambda: with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "arithmetic coding": lambda: jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1),
    "12 bits": lambda: resized(45, 61, 12),
    "no rows": lambda: resized(0, 61),
    "too large": lambda: resized(65000, 65000),
    "cut": lambda: jpeg()[:-40],
    "without an end": lambda: jpeg()[:-2],
    "followed by something": lambda: jpeg() + b"\0" * 8,
    "no picture in it": lambda: b"\xff\xd8\xff\xd9",
    "a length beyond its end": lambda: b"\xff\xd8\xff\xe0\xff\xff\0\0\xff\xd9",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_left_to_pillow(name: str, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(UNUSUAL[name]())
    assert plain(tmp_path / "a.jpg") is None


def test_a_missing_file_is_an_error_and_the_limit_is_pillows(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        plain(tmp_path / "absent.jpg")
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes put in or taken out, mostly in the header, and the end sometimes put back."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(made) if rng.random() < 0.5 else min(700, len(made)))
        kind = rng.randrange(4)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.randrange(256)
        elif kind == 2:
            del made[at : at + rng.choice([1, 2, 30])]
        else:
            made[at:at] = rng.randbytes(rng.choice([1, 2, 10]))
    return bytes(made) + (b"\xff\xd9" if rng.random() < 0.3 else b"")


def test_a_damaged_file_has_pillows_bits_or_is_left_to_pillow(tmp_path: Path):
    rng, seeds, path, same = random.Random(0), [make() for make in USUAL.values()], tmp_path / "a.jpg", 0
    for _ in range(600):
        content = mutant(rng.choice(seeds), rng)
        path.write_bytes(content)
        found = plain(path)
        if found is not None:
            assert np.array_equal(found, by_pillow(content))  # Pillow refuses none of them
            same += 1
    assert 100 < same < 500


def test_real_images(real_data: Path):
    for folder, channels in (("chest_xray", (1, 3)), ("blood_cells", (3,))):
        found = [(plain(path), path) for path in sorted((real_data / folder / "images").glob("*.jp*g"))[:15]]
        assert sum(pixels is not None for pixels, _ in found) > 10
        for pixels, path in found:
            if pixels is not None:
                assert pixels.shape[2] in channels
                assert np.array_equal(pixels, by_pillow(path.read_bytes()))
