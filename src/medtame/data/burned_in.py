"""Text in the pixels, perhaps: rows of small, sharp, equally bright shapes of one height on one line.

Simple on purpose and no guarantee either way: it names images that a person should look at. Measured on text rendered into nine
sets (two typefaces, at the upper or lower edge, saved as JPEG 90), letters of 14 to 18 points: found in .93 to 1.0 of chest
radiographs, skin, blood and simulated brains, in .88 to .97 of ultrasound, in .75 to .80 of chest CT, in .53 to .73 of brain MR; of 9
points: .57 to .82. False, looked at one by one: 2 of 499 chest CT, none of 240 skin lesions, 264 blood films, 411 thumbnails and 120
simulated brains. Handwriting, slanted text, fewer than three letters and letters beside bright anatomy are missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medtame.data.duplicates import grey
from medtame.types import Array

LONGEST = 1024  # pixels; larger images are reduced to it
STROKE = 9  # pixels: what is narrower may be a stroke of a letter
RISE = 76  # grey values, of 255, that a stroke stands out by
MOST_SHAPES = 3000  # more are a texture, not text


@dataclass(frozen=True)
class Shapes:
    """M bright shapes: their boxes and mean grey values, each (M,)."""

    top: Array
    bottom: Array
    left: Array
    right: Array
    grey: Array

    @property
    def height(self) -> Array:
        return self.bottom - self.top


def lines(pixels: Array) -> list[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) of what may be lines of text in pixels (H, W, C), bright or dark, of at most 1024 pixels a side."""
    image = grey(pixels).convert("L")
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR)
    shown = np.asarray(image)
    return [box for one in (shown, 255 - shown) for box in _bright_lines(one)]


def _bright_lines(shown: Array) -> Iterator[tuple[int, int, int, int]]:
    shapes = _letters(shown)
    if shapes is None:
        return
    for least, strict in ((4, False), (3, True)):
        links = _neighbours(shapes, strict=strict)
        if not len(links[0]):
            continue
        count = len(shapes.top)
        number = connected_components(coo_array((np.ones(len(links[0])), links), shape=(count, count)), directed=False)[1]
        for line in np.flatnonzero(np.bincount(number) >= least):
            of = number == line
            yield int(shapes.top[of].min()), int(shapes.bottom[of].max()), int(shapes.left[of].min()), int(shapes.right[of].max())


def _letters(shown: Array) -> Shapes | None:
    """Shapes of the size and proportions of letters in (H, W) uint8."""
    mask = shown - _opened(shown) > RISE
    numbers, count = label(mask, np.ones((3, 3)))
    if not 3 <= count <= MOST_SHAPES:
        return None
    places = [place for place in find_objects(numbers) if place is not None]
    top, bottom, left, right = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in places], float).T
    height, width, area = bottom - top, right - left, np.bincount(numbers.ravel())[1:]
    tall = (height >= 5) & (height <= 0.1 * shown.shape[0] + 4)
    good = tall & (width <= 1.7 * height) & (width >= 0.12 * height) & (area > 0.2 * height * width)
    greys = np.bincount(numbers.ravel(), shown.ravel())[1:] / area
    return Shapes(top[good], bottom[good], left[good], right[good], greys[good])


def _opened(shown: Array) -> Array:
    """(H, W) without what is bright and narrower than a stroke: the highest of the lowest values in a square of 9 x 9 pixels."""
    reach = STROKE // 2
    lowest = _extreme(np.minimum, np.pad(shown, reach, mode="edge"))
    return _extreme(np.maximum, np.pad(lowest, reach, mode="edge"))


def _extreme(choose: Any, shown: Array) -> Array:
    """Lowest or highest value of each full square of 9 x 9 pixels: windows of 2, 4, 8 and 9 in turn, along both axes."""
    for _ in range(2):
        window = shown
        for step in (1, 2, 4):
            window = choose(window[step:], window[:-step])
        shown = choose(window[1:], window[:-1]).T
    return np.asarray(shown)


def _neighbours(shapes: Shapes, *, strict: bool) -> tuple[Array, Array]:
    """Pairs of shapes (left, right) that may be letters side by side: one line, one height, one grey, a small gap."""
    a, b = np.nonzero(shapes.left[:, None] < shapes.left[None])
    height = np.maximum(shapes.height[a], shapes.height[b])
    slack_bottom, slack_top = (0.1 * height, 0.1 * height) if strict else (0.2 * height + 0.5, 0.35 * height + 0.5)
    gap = shapes.left[b] - shapes.right[a]
    near = (
        (np.abs(shapes.bottom[a] - shapes.bottom[b]) <= slack_bottom)
        & (np.abs(shapes.top[a] - shapes.top[b]) <= slack_top)
        & (gap <= (0.5 if strict else 0.9) * height)
        & (gap >= -0.1 * height - 1)
        & (np.abs(shapes.grey[a] - shapes.grey[b]) < (20 if strict else 30))
    )
    return a[near], b[near]
