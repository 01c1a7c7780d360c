"""Simulated lesions: their place, outline and grey values.

An outline is a signed distance in mm, positive inside, with a wavy edge; all four kinds differ only in that distance
and in the grey values that are blended in. A lesion keeps to one side of the brain, white matter lesions too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from scipy.ndimage import distance_transform_edt

from medtame.data.phantom_anatomy import GREY, WHITE, Anatomy, pixel_centres_mm, smooth_field
from medtame.types import Array

Side: TypeAlias = Literal["left", "right"]
Size: TypeAlias = Literal["small", "large"]
KINDS = ("tumour", "haemorrhage", "white matter lesions", "infarct")
MIDLINE_MM = 5.0  # a lesion stays this far from the mid-line


@dataclass(frozen=True)
class Lesion:
    """What is drawn, all (H, W)."""

    mask: Array  # bool
    weight: Array  # 0..1, soft at the edge
    value: Array  # grey value in 0..1 that is blended in


def make_lesion(kind: str, side: Side, size: Size, anatomy: Anatomy, rng: np.random.Generator) -> Lesion:
    """A lesion of a kind in KINDS, on one side of the patient, inside the brain."""
    distance_mm, value = _DRAWN[kind](_Place(anatomy, side), size == "large", rng)
    own_side = _sided(anatomy, side) > 1
    weight = np.clip(0.5 + distance_mm / 2.5, 0, 1) * (anatomy.brain & own_side)
    speckle = smooth_field(rng.normal(0, 0.12, (48, 48)), len(weight))
    return Lesion(np.asarray(weight >= 0.5), weight, np.clip(value + speckle, 0.03, 1))


@dataclass(frozen=True)
class _Place:
    """Where a lesion may lie."""

    anatomy: Anatomy
    side: Side

    def grid_mm(self) -> tuple[Array, Array]:
        centres = pixel_centres_mm(len(self.anatomy.t1))
        return centres[None, :], centres[:, None]

    def centre_mm(self, allowed: Array, radius_mm: float, rng: np.random.Generator) -> Array:
        """(2,) x and y of an allowed pixel, clear of the mid-line by the radius; the pixel farthest out where there is none."""
        outward = _sided(self.anatomy, self.side)
        chosen = np.flatnonzero(allowed & (outward > radius_mm + MIDLINE_MM))
        pixel = rng.choice(chosen) if len(chosen) else np.argmax(np.where(allowed, outward, -1))
        row, column = np.unravel_index(pixel, allowed.shape)
        return np.array([column + 0.5, row + 0.5]) * self.anatomy.spacing_mm

    def depth_mm(self) -> Array:
        """(H, W) distance to the brain's edge."""
        return np.asarray(distance_transform_edt(self.anatomy.brain)) * self.anatomy.spacing_mm


def _sided(anatomy: Anatomy, side: Side) -> Array:
    return anatomy.left_mm if side == "left" else -anatomy.left_mm


def _blob(place: _Place, radius_mm: float, rng: np.random.Generator) -> Array:
    """Signed distance of a wavy ellipse in grey or white matter."""
    allowed = (place.depth_mm() > 0.8 * radius_mm) & (place.anatomy.tissue >= GREY)
    x0, y0 = place.centre_mm(allowed, radius_mm, rng)
    x, y = place.grid_mm()
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.25)
    along = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
    across = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)
    round_mm = radius_mm - np.hypot(along / stretch, across * stretch)
    return np.asarray(round_mm + _wave(0.1 * radius_mm, len(place.anatomy.t1), rng))


def _wave(height_mm: float, size: int, rng: np.random.Generator) -> Array:
    return smooth_field(rng.normal(0, 1.6 * height_mm, (21, 21)), size)


def _tumour(place: _Place, large: bool, rng: np.random.Generator) -> tuple[Array, Array]:
    """A bright ring around a dark core."""
    radius_mm = rng.uniform(19, 24) if large else rng.uniform(12, 15)
    distance = _blob(place, radius_mm, rng)
    ring_mm = rng.uniform(0.28, 0.36) * radius_mm
    return distance, 0.16 + 0.82 * np.clip((ring_mm - distance) / 2 + 0.5, 0, 1)


def _haemorrhage(place: _Place, large: bool, rng: np.random.Generator) -> tuple[Array, Array]:
    """A bright (older blood) or dark (fresh blood) blob; the bright one has a thin dark rim."""
    radius_mm = rng.uniform(19, 23) if large else rng.uniform(12, 15)
    distance = _blob(place, radius_mm, rng)
    if rng.random() < 0.5:
        return distance, np.full_like(distance, 0.08)
    return distance, 0.12 + 0.84 * np.clip(distance / 2 - 0.4, 0, 1)


def _white_matter_lesions(place: _Place, large: bool, rng: np.random.Generator) -> tuple[Array, Array]:
    """Several small bright spots in white matter."""
    count = rng.integers(8, 12) if large else rng.integers(4, 7)
    white = (place.anatomy.tissue == WHITE) & (place.depth_mm() > 8)
    x, y = place.grid_mm()
    smallest_mm = 0.8 * place.anatomy.spacing_mm
    distance = np.full(place.anatomy.t1.shape, -np.inf)
    for _ in range(count):
        radius_mm = max(smallest_mm, rng.uniform(3.4, 5.0) if large else rng.uniform(2.6, 3.6))
        x0, y0 = place.centre_mm(white, radius_mm, rng)
        distance = np.maximum(distance, radius_mm - np.hypot((x - x0) * rng.uniform(0.8, 1.25), (y - y0) * rng.uniform(0.8, 1.25)))
    return distance, np.full_like(distance, 0.96)


def _infarct(place: _Place, large: bool, rng: np.random.Generator) -> tuple[Array, Array]:
    """A darker wedge whose base is the cortex."""
    length_mm = rng.uniform(50, 58) if large else rng.uniform(36, 41)
    half_angle = np.radians(rng.uniform(38, 44) if large else rng.uniform(27, 32))
    edge = place.anatomy.brain & (place.depth_mm() < 4)
    base = place.centre_mm(edge, 20, rng)
    x, y = place.grid_mm()
    rows, columns = np.nonzero(place.anatomy.brain & (_sided(place.anatomy, place.side) > 0))
    inward = (np.array([columns.mean(), rows.mean()]) + 0.5) * place.anatomy.spacing_mm - base
    inward /= np.hypot(*inward)
    tip = base + length_mm * inward
    along = -(x - tip[0]) * inward[0] - (y - tip[1]) * inward[1]
    across = np.abs((x - tip[0]) * inward[1] - (y - tip[1]) * inward[0])
    to_side = along * np.sin(half_angle) - across * np.cos(half_angle)
    to_arc = 1.2 * length_mm - np.hypot(along, across)
    distance = np.minimum(to_side, to_arc) + _wave(1.6, len(place.anatomy.t1), rng)
    return distance, np.full_like(distance, 0.08)


_DRAWN: Mapping[str, Callable[[_Place, bool, np.random.Generator], tuple[Array, Array]]] = MappingProxyType(
    dict(zip(KINDS, (_tumour, _haemorrhage, _white_matter_lesions, _infarct), strict=True))
)
