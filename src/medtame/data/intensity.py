"""The intensity convention for numbers that have more than eight bits: from their 0.5 to their 99.5 percentile.

Works in blocks of rows, so that the largest image that is read needs little more memory than its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medtame.errors import ImageError

if TYPE_CHECKING:
    from medtame.types import Array

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
_BLOCK = 1 << 22  # numbers


def scaled(pixels: Array, *, inverted: bool = False) -> Array:
    """float32 in 0..1, same shape; `inverted` makes what is high dark. NaN counts as the lowest value and stays 0.

    8-bit numbers are divided by 255. Raises ImageError where no number is finite. A constant 16-bit or float image becomes zeros.
    """
    if pixels.dtype == np.bool_:
        return (pixels ^ inverted).astype(np.float32)
    if pixels.dtype == np.uint8:
        return ((255 - pixels if inverted else pixels) / np.float32(255)).astype(np.float32)
    low, high = levels(pixels)
    if low == high:
        return np.zeros(pixels.shape, dtype=np.float32)
    return between(pixels, high, low) if inverted else between(pixels, low, high)


def levels(pixels: Array) -> tuple[float, float]:
    """What becomes black and what white; equal where all finite numbers are. Raises ImageError where no number is finite."""
    known = pixels
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
        known = pixels[finite]
    if known.size == 0:
        raise ImageError("it holds no number, only NaN")
    low, high = percentiles(known)
    if low == high:  # almost constant: what little differs is kept
        low, high = float(known.min()), float(known.max())
    return low, high


def between(pixels: Array, black: float, white: float) -> Array:
    """float32 in 0..1, same shape: 0 at `black`, 1 at `white`, whichever is higher; NaN becomes 0."""
    seen = np.empty(pixels.shape, dtype=np.float32)
    for rows in _blocks(pixels):
        unit = np.clip((pixels[rows].astype(np.float64) - black) / (white - black), 0, 1)
        seen[rows] = np.nan_to_num(unit, copy=False)
    return seen


def percentiles(known: Array) -> tuple[float, float]:
    """The lower and the upper one, as `np.percentile` gives them for floats; whole numbers of 16 bits are counted instead of sorted."""
    if known.dtype.kind == "f" or known.dtype.itemsize > 2:
        numbers = known if known.dtype.kind == "f" else known.astype(np.float64)
        low, high = np.percentile(numbers, (LOW_PERCENT, HIGH_PERCENT))
        return float(low), float(high)
    least = int(known.min())
    counts = np.zeros(int(known.max()) - least + 1, dtype=np.int64)
    for rows in _blocks(known):
        counts += np.bincount(known[rows].ravel().astype(np.int64) - least, minlength=len(counts))
    ends = counts.cumsum()
    places = np.array([LOW_PERCENT, HIGH_PERCENT]) / 100 * (known.size - 1)
    below = places.astype(np.int64)
    lower = np.searchsorted(ends, below, side="right")
    upper = np.searchsorted(ends, np.minimum(below + 1, known.size - 1), side="right")
    low, high = least + lower + (upper - lower) * (places - below)
    return float(low), float(high)


def _blocks(pixels: Array) -> Iterator[slice]:
    """Slices of the first axis that hold about `_BLOCK` numbers each."""
    step = max(1, _BLOCK * len(pixels) // max(1, pixels.size))
    return (slice(start, start + step) for start in range(0, len(pixels), step))
