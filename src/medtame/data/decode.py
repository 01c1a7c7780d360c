"""Plain JPEG files, decoded by torchvision: the same pixels as Pillow's in half the CPU time. All that is unusual is left to Pillow.

Plain is an 8-bit grey or YCbCr picture, upright and alone in its file. The header says so; it is read here, because a decoder
may quietly pass over what it does not know. PNG is left to Pillow: torchvision 0.29 saves a fifth of the time there, and a file
with a broken filter byte crashes the whole process.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from PIL import Image

from medtame.data.sources import Source, opened
from medtame.types import Array

MOST_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: Huffman-coded and lossy
_ORIENTATION = 0x0112


def plain(source: Source) -> Array | None:
    """(H, W, C) uint8, bit-equal to Pillow's, C being 1 or 3; None for a file that is unusual, damaged or no JPEG.

    Raises OSError for a file that cannot be opened.
    """
    with opened(source) as file:
        start = file.read(3)
        if start != b"\xff\xd8\xff":
            return None
        content = bytearray(start + file.read())
    if not is_plain(content):
        return None
    try:
        from torchvision.io import decode_jpeg  # deprecated in 0.29: where it is gone, Pillow decodes

        pixels = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8))
    except (ImportError, RuntimeError):
        return None  # Pillow says what is wrong with the file
    return np.asarray(pixels.permute(1, 2, 0))


def is_plain(content: bytes | bytearray) -> bool:
    """Whether a JPEG is 8-bit grey or YCbCr, upright, one picture, and ends as it should."""
    if not content.endswith(b"\xff\xd9"):
        return False  # cut short, or something follows
    at = 2
    framed = False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, (length,) = content[at + 1], struct.unpack_from(">H", content, at + 2)
        segment = content[at + 4 : at + 2 + length]
        if marker == 0xDA:
            return framed
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if framed or marker not in _FRAME_HEADERS or not _frame_is_plain(segment):
                return False
            framed = True
        elif not _segment_is_plain(marker, segment):
            return False
        at += 2 + length
    return False


def _frame_is_plain(segment: bytes | bytearray) -> bool:
    """Whether a frame header has 8 bits, a size within limits, and one component or the three of YCbCr."""
    if len(segment) < 6:
        return False
    depth, height, width, components = struct.unpack_from(">BHHB", segment)
    names = segment[6::3]
    return depth == 8 and 0 < width * height <= MOST_PIXELS and (components, names) in ((1, names[:1]), (3, b"\1\2\3"))


def _segment_is_plain(marker: int, segment: bytes | bytearray) -> bool:
    """Whether a segment leaves the picture as it is: no rotation, no further pictures, no other colours."""
    if marker == 0xE1 and segment.startswith(b"Exif"):
        try:
            exif = Image.Exif()
            exif.load(bytes(segment))
            return bool(exif.get(_ORIENTATION, 1) == 1)
        except (SyntaxError, ValueError, LookupError, TypeError, struct.error):
            return False
    if marker == 0xE1:
        return b"rientation" not in segment  # of XMP
    if marker == 0xE2:
        return not segment.startswith(b"MPF")
    if marker == 0xEE:
        return segment.startswith(b"Adobe") and segment[-1:] == b"\1"  # YCbCr
    return marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF
