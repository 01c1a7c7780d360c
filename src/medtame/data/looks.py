"""What is kept of every image of a check after one decode: its fingerprint, its frame, its histogram, what is odd about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medtame.data import burned_in, duplicates
from medtame.data.duplicates import Fingerprints
from medtame.errors import ImageError
from medtame.types import Array, Picture

REDUCED = 50  # pixels a side, of which the frame is cut
FRAME = 4  # pixels: 8 % of the side
BINS = 16


@dataclass(frozen=True, eq=False)
class Looks:
    """N images, each read once. Rows of images that could not be read are zeros; `unreadable` says why, by number.

    `sizes` (N, 2) height and width; `colour` (N,) whether channels differ; `constant` (N,) one value throughout; `text` (N,)
    lines that may be burned-in text; `frames` (N, 3 x 736) the outer 8 % of the image reduced to 50 x 50, in 0..1;
    `histograms` (N, 3 x 16) shares of 16 equal bins, a channel.
    """

    names: tuple[str, ...]
    fingerprints: Fingerprints
    sizes: Array
    colour: Array
    constant: Array
    text: Array
    frames: Array
    histograms: Array
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def readable(self) -> Array:
        """(N,) bool."""
        return self.fingerprints.readable


@dataclass(frozen=True, eq=False)
class _Look:
    digest: str
    thumbnail: Array
    size: tuple[int, int]
    colour: bool
    constant: bool
    text: int
    frame: Array
    histogram: Array


INNER = slice(FRAME, REDUCED - FRAME)
OUTSIDE = np.ones((REDUCED, REDUCED), dtype=bool)
OUTSIDE[INNER, INNER] = False
OUTSIDE.setflags(write=False)
NOTHING = _Look(
    "",
    np.zeros((duplicates.SIDE, duplicates.SIDE), np.float32),
    (0, 0),
    False,
    False,
    0,
    np.zeros(3 * int(OUTSIDE.sum()), np.float16),
    np.zeros(3 * BINS, np.float32),
)


def look(pictures: Sequence[Picture], watch: Callable[[int, int], None] = lambda done, of: None) -> Looks:
    """Read each picture once; `watch` is told how many are done, of how many. Never raises for an image that cannot be read."""
    seen, unreadable = [], {}
    for number, picture in enumerate(pictures):
        watch(number, len(pictures))
        try:
            seen.append(_look(picture.read()))
        except ImageError as error:
            seen.append(NOTHING)
            unreadable[number] = str(error)
    watch(len(pictures), len(pictures))
    sides = np.array([min(one.size) for one in seen], dtype=int)
    thumbnails = np.array([one.thumbnail for one in seen], np.float32).reshape(-1, duplicates.SIDE, duplicates.SIDE)
    return Looks(
        names=tuple(picture.name for picture in pictures),
        fingerprints=Fingerprints(tuple(one.digest for one in seen), thumbnails, sides),
        sizes=np.array([one.size for one in seen], dtype=int).reshape(-1, 2),
        colour=np.array([one.colour for one in seen], dtype=bool),
        constant=np.array([one.constant for one in seen], dtype=bool),
        text=np.array([one.text for one in seen], dtype=int),
        frames=np.array([one.frame for one in seen], np.float16).reshape(-1, len(NOTHING.frame)),
        histograms=np.array([one.histogram for one in seen], np.float32).reshape(-1, len(NOTHING.histogram)),
        unreadable=unreadable,
    )


def _look(pixels: Array) -> _Look:
    pixels = duplicates.plain(pixels)
    shown = pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)
    channels = [Image.fromarray(np.ascontiguousarray(shown[..., channel])) for channel in range(shown.shape[2])]
    repeat = 3 // len(channels)
    return _Look(
        digest=duplicates.digest(pixels),
        thumbnail=duplicates.thumbnail(pixels),
        size=(pixels.shape[0], pixels.shape[1]),
        colour=len(channels) == 3,
        constant=bool((pixels == pixels[:1, :1]).all()),
        text=len(burned_in.lines(pixels)),
        frame=np.concatenate([_frame(channel) for channel in channels] * repeat),
        histogram=np.concatenate([_histogram(channel) for channel in channels] * repeat),
    )


def _frame(channel: Image.Image) -> Array:
    """(736,) float16 in 0..1: the outer ring of the reduced image."""
    reduced = np.asarray(channel.resize((REDUCED, REDUCED), Image.Resampling.BILINEAR))
    return np.asarray(reduced[OUTSIDE] / np.float32(255), dtype=np.float16)


def _histogram(channel: Image.Image) -> Array:
    """(16,) float32: the shares of 16 equal bins."""
    counts = np.array(channel.histogram()).reshape(BINS, -1).sum(1)
    return np.asarray(counts / counts.sum(), dtype=np.float32)
