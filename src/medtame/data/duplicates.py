"""Images that are there twice: the same pixels, or nearly (flipped, turned, resized, saved again, made a little brighter).

The same: SHA-256 of the pixels that are read, whatever the file format. Nearly: a perceptual hash proposes pairs (signs of the
lowest cosine frequencies, as in Zauner 2010, in all eight orientations, for a flip only changes signs) and the thumbnails
decide: the correlation of what is left of them without their coarse shading, in which all chest X-rays look alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medtame.errors import ImageError
from medtame.types import Array, Picture

SIDE = 32  # of a thumbnail
FREQUENCIES = 8  # a side: 63 signs, the mean left out
SHADING = 2.0  # standard deviation, in pixels of a thumbnail, of the blur that is taken away
FLATTEST = 1e-3  # below this standard deviation of grey values nothing is left to compare
DISTANCE = 10  # signs that may differ in a pair that is looked at
ALIKE, ALIKE_SMALL = 0.975, 0.95  # least correlation of a near-duplicate; of one with a side below SMALL pixels
SMALL = 128
LOOK_FREQUENCIES = 24  # a side: 575 signs, the mean left out
ROWS_AT_ONCE, PAIRS_AT_ONCE = 256, 8192
ORIENTATIONS = (
    "as it is",
    "flipped left-right",
    "flipped up-down",
    "turned by 180 degrees",
    "transposed",
    "turned by 90 degrees",
    "turned by 270 degrees",
    "turned by 180 degrees and transposed",
)


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is kept of N images to find them again. An image that could not be read has the digest "" and matches nothing."""

    digests: tuple[str, ...]
    thumbnails: Array  # (N, 32, 32) float32, grey in 0..1
    sides: Array  # (N,) the smaller side in pixels

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def readable(self) -> Array:
        """(N,) bool."""
        return np.array([digest != "" for digest in self.digests], dtype=bool)


@dataclass(frozen=True)
class Pair:
    """Images `a` < `b` (numbers): the correlation of their thumbnails, the hash distance in signs of 63, and how `b` lies on `a`."""

    a: int
    b: int
    correlation: float
    distance: int
    how: str


def fingerprints(pictures: Sequence[Picture], watch: Callable[[int, int], None] = lambda done, of: None) -> Fingerprints:
    """Read each picture once. One that cannot be read matches nothing. `watch` is told how many are done, of how many."""
    read: list[tuple[str, Array, int]] = []
    for done, picture in enumerate(pictures):
        watch(done, len(pictures))
        try:
            pixels = picture.read()
            read.append((digest(pixels), thumbnail(pixels), min(pixels.shape[:2])))
        except ImageError:
            read.append(("", np.zeros((SIDE, SIDE), dtype=np.float32), 0))
    watch(len(pictures), len(pictures))
    thumbnails = np.array([small for _, small, _ in read], dtype=np.float32).reshape(-1, SIDE, SIDE)
    return Fingerprints(tuple(name for name, _, _ in read), thumbnails, np.array([side for _, _, side in read], dtype=int))


def plain(pixels: Array) -> Array:
    """(H, W, C): three equal channels become one."""
    equal = pixels.shape[2] == 3 and all((pixels[..., 0] == pixels[..., channel]).all() for channel in (1, 2))
    return pixels[..., :1] if equal else pixels


def grey(pixels: Array) -> Image.Image:
    """(H, W, C) to an image of grey values, floats in 0..255; colours are weighted by their luminance (ITU-R 601)."""
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("F")
    shown = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return Image.fromarray(np.ascontiguousarray(255 * shown, dtype=np.float32))


def digest(pixels: Array) -> str:
    """SHA-256, in hexadecimal, of pixels (H, W, C) and their shape; three equal channels count as one."""
    pixels = plain(pixels)
    hasher = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}\n".encode())
    hasher.update(np.ascontiguousarray(pixels).tobytes())
    return hasher.hexdigest()


def thumbnail(pixels: Array) -> Array:
    """(H, W, C) to (32, 32) float32, grey in 0..1; the filter is symmetric, so that a flip flips it exactly."""
    return np.asarray(grey(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / np.float32(255)


# ---- the same -------------------------------------------------------------------------------------------------


def exact_groups(found: Fingerprints) -> list[list[int]]:
    """Numbers of images with equal pixels, two or more together, by first appearance."""
    together: dict[str, list[int]] = {}
    for number, name in enumerate(found.digests):
        if name:
            together.setdefault(name, []).append(number)
    return [numbers for numbers in together.values() if len(numbers) > 1]


# ---- nearly the same ------------------------------------------------------------------------------------------


def near_pairs(found: Fingerprints) -> list[Pair]:
    """Pairs of images that are nearly the same and not the same, the most alike first.

    An image with nothing in it, constant or nearly, is in no pair; nor are two images with equal pixels.
    """
    detail = _detail(found.thumbnails)
    energy = np.sqrt((detail**2).mean((1, 2)))
    chosen = np.flatnonzero(found.readable & (energy > FLATTEST))
    unit_detail = detail[chosen] / np.sqrt((detail[chosen] ** 2).sum((1, 2), keepdims=True))
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for first, second, distances, orientation in _candidates(_frequencies(detail[chosen])):
        turned = _turned(unit_detail, orientation)
        correlations = np.einsum("nhw,nhw->n", unit_detail[first], turned[second])
        for row in np.flatnonzero(correlations >= ALIKE_SMALL).tolist():
            pair = (int(chosen[first[row]]), int(chosen[second[row]]))
            if correlations[row] > best.get(pair, (-1.0,))[0]:
                best[pair] = (float(correlations[row]), int(distances[row]), orientation)
    pairs = [
        Pair(a, b, min(correlation, 1.0), distance, ORIENTATIONS[orientation])
        for (a, b), (correlation, distance, orientation) in best.items()
        if correlation >= _least(found, a, b) and found.digests[a] != found.digests[b]
    ]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.a, pair.b))


def joined(found: Fingerprints, pairs: Sequence[Pair] | None = None) -> Array:
    """(N,) a group number an image: images that are the same or nearly the same, also by way of others, have one number."""
    near = near_pairs(found) if pairs is None else pairs
    edges = [(numbers[0], other) for numbers in exact_groups(found) for other in numbers[1:]] + [(pair.a, pair.b) for pair in near]
    ends = np.array(edges, dtype=np.intp).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(found), len(found)))
    return np.asarray(connected_components(links, directed=False)[1])


# ---- found again by signs alone -------------------------------------------------------------------------------


def look(thumbnail: Array) -> str:
    """What is kept of an image's looks where the image must not be kept: the signs of its 575 lowest cosine frequencies, as
    hexadecimal digits; "" for an image with nothing in it.
    """
    detail = _detail(thumbnail[None])
    if float(np.sqrt((detail**2).mean())) <= FLATTEST:
        return ""
    return np.packbits(_frequencies(detail, LOOK_FREQUENCIES).ravel() > 0).tobytes().hex()


def agreement(thumbnails: Array, looks: Sequence[str]) -> Array:
    """(N,) how well each image (N, 32, 32) agrees with the look that fits it best, in any of eight orientations: the share of the sum
    of its frequencies' sizes that have the sign kept, less the rest. 1 for the image itself, 0 for one with nothing in it.
    """
    detail = _detail(thumbnails)
    own = _frequencies(detail, LOOK_FREQUENCIES) * (np.sqrt((detail**2).mean((1, 2))) > FLATTEST)[:, None, None]
    own[:, 0, 0] = 0
    bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(looks)), dtype=np.uint8)).reshape(len(looks), -1)
    signs, best = 2 * bits.astype(np.float32) - 1, np.zeros(len(own), dtype=np.float32)
    for orientation in range(len(ORIENTATIONS)):
        turned = _turned_frequencies(own, orientation).reshape(len(own), -1).astype(np.float32)
        sizes = np.abs(turned).sum(1, keepdims=True)
        for start in range(0, len(looks), PAIRS_AT_ONCE):
            best = np.maximum(best, (turned @ signs[start : start + PAIRS_AT_ONCE].T / np.maximum(sizes, 1e-12)).max(1))
    return best


def _least(found: Fingerprints, a: int, b: int) -> float:
    """A small image loses more when it is saved again, so less is asked of it."""
    return ALIKE_SMALL if min(found.sides[a], found.sides[b]) < SMALL else ALIKE


def _detail(thumbnails: Array) -> Array:
    """(N, 32, 32) without coarse shading and mean."""
    rest = thumbnails - gaussian_filter(thumbnails, (0, SHADING, SHADING))
    return np.asarray(rest - rest.mean((1, 2), keepdims=True), dtype=np.float32)


def _turned(thumbnails: Array, orientation: int) -> Array:
    """(N, S, S) flipped (bit 1: left-right, bit 2: up-down), then transposed (bit 4)."""
    if orientation & 1:
        thumbnails = thumbnails[:, :, ::-1]
    if orientation & 2:
        thumbnails = thumbnails[:, ::-1]
    return thumbnails.transpose(0, 2, 1) if orientation & 4 else thumbnails


def _frequencies(detail: Array, count: int = FREQUENCIES) -> Array:
    """(N, count, count) the lowest cosine frequencies."""
    return np.asarray(dctn(detail, axes=(1, 2), norm="ortho")[:, :count, :count])


def _turned_frequencies(frequencies: Array, orientation: int) -> Array:
    """(N, F, F) of the turned images: a flip changes the sign of the odd frequencies, no image is turned."""
    odd = (-1.0) ** np.arange(frequencies.shape[1])
    if orientation & 1:
        frequencies = frequencies * odd
    if orientation & 2:
        frequencies = frequencies * odd[:, None]
    return frequencies.transpose(0, 2, 1) if orientation & 4 else frequencies


def _hashes(frequencies: Array, orientation: int) -> Array:
    """(N,) uint64 hashes of the turned images."""
    signs = _turned_frequencies(frequencies, orientation).reshape(-1, FREQUENCIES**2) > 0
    signs[:, 0] = False
    return np.ascontiguousarray(np.packbits(signs, axis=1)).view(np.uint64).ravel()


def _candidates(frequencies: Array) -> Iterator[tuple[Array, Array, Array, int]]:
    """Blocks of pairs first < second whose hashes differ in few signs: (first, second, distances, orientation of the second)."""
    own = _hashes(frequencies, 0)
    for orientation in range(len(ORIENTATIONS)):
        others = _hashes(frequencies, orientation)
        for start in range(0, len(own), ROWS_AT_ONCE):
            distances = np.bitwise_count(own[start : start + ROWS_AT_ONCE, None] ^ others[None, start:])
            first, second = np.nonzero(np.triu(distances <= DISTANCE, 1))
            for part in range(0, len(first), PAIRS_AT_ONCE):
                a, b = first[part : part + PAIRS_AT_ONCE], second[part : part + PAIRS_AT_ONCE]
                yield a + start, b + start, distances[a, b], orientation
