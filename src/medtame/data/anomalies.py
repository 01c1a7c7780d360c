"""Made anomalies: pictures of normals with one change each and its mask, for tasks that have no abnormal rows to learn from.

cut_paste: a rectangle of the image lies in another place (Li et al. 2021, arXiv 2104.04015). blob: a soft-edged shape of one grey
level with texture. intensity: a soft-edged shape that is brighter or darker than it was. swirl: a disc whose inside is turned about
its centre. smear: a disc that is blurred. The last two are never learnt from: methods are chosen by them, so that none is judged by
its own exercise.

An anomaly depends on the image, the recipe and the number of the copy alone, not on the draw that the image is in: so its features
are made once. A made anomaly is no disease; what is learnt from it is measured on real ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from scipy import ndimage

from medtame.types import Array, Geometry, Picture, Rows, Samples

Kind: TypeAlias = Literal["cut_paste", "blob", "intensity", "swirl", "smear"]
Chosen = TypeVar("Chosen", bound=Samples)
LEARNT: tuple[Kind, ...] = ("cut_paste", "blob", "intensity")
TRIED: tuple[Kind, ...] = ("swirl", "smear")
VERSION = 1  # part of every digest: raise it when a recipe gives other pixels


@dataclass(frozen=True)
class Recipe:
    """What is put into a normal image. `sign`: -1 darker, 1 brighter, 0 either. `size`: least and largest diameter, of the shorter side."""

    kind: Kind
    sign: int = 0
    size: tuple[float, float] = (0.1, 0.4)
    roughness: float = 0.25  # of the outline: 0 is an ellipse
    texture: float = 0.05  # deviation of the grey level inside a blob
    strength: tuple[float, float] = (0.15, 0.5)  # how much brighter or darker


@dataclass(frozen=True)
class MadeAnomaly:
    """A picture with one made anomaly. `number` tells the copies of one image apart."""

    source: Picture
    recipe: Recipe
    number: int

    @property
    def name(self) -> str:
        return f"{self.source.name} with a made {self.recipe.kind} ({self.number})"

    def made(self) -> tuple[Array, Array]:
        """(H, W, C) float32 in 0..1, and (H, W) where it was changed."""
        return changed(self.source.array(), self.recipe, np.random.default_rng(list(bytes.fromhex(self.digest()[:32]))))

    def array(self) -> Array:
        return self.made()[0]

    def read(self) -> Array:
        return self.array()

    def frames(self) -> int:
        return 1

    def values(self) -> Array:
        return self.array()[..., 0]

    def digest(self) -> str:
        return hashlib.sha256(f"made anomaly {VERSION} {self.source.digest()} {self.recipe} {self.number}".encode()).hexdigest()

    def geometry(self) -> Geometry:
        return self.source.geometry()


@lru_cache(maxsize=2048)
def covered(one: MadeAnomaly, side: int) -> Array:
    """(side, side) the share of each cell that a made anomaly covers; worked out once a process."""
    mask = torch.from_numpy(one.made()[1]).float()[None]
    return np.asarray(torch.nn.functional.adaptive_avg_pool2d(mask, side)[0])


def balanced(shares: Array, rows: int, seed: int) -> tuple[Array, Array]:
    """Numbers of patches, in order, and which are abnormal: equally many of both kinds, at most rows / 2 of each.

    Abnormal are patches (n,) of which more than half is covered, or, where all anomalies are smaller, the most covered ones; normal those
    not covered at all. The rest is left out.
    """
    random = np.random.default_rng(seed)
    most = float(shares.max()) if len(shares) else 0.0
    abnormal = np.flatnonzero(shares > 0.5) if most > 0.5 else np.flatnonzero((shares > 0) & (shares >= most / 2))
    normal = np.flatnonzero(shares == 0)
    each = min(rows // 2, len(abnormal), len(normal))
    chosen = np.sort(np.concatenate([random.choice(side, each, replace=False) for side in (abnormal, normal)]))
    return chosen, shares[chosen] > 0


def with_anomalies(samples: Chosen, recipes: Sequence[Recipe], rows: Rows) -> tuple[Chosen, list[MadeAnomaly | None]]:
    """The samples, then one with each recipe of every chosen row; and what was made: None for the samples as they were."""
    pictures, chosen = samples.pictures(), np.repeat(np.asarray(rows, dtype=int), len(recipes))
    made = [MadeAnomaly(pictures[row], recipes[k % len(recipes)], k % len(recipes)) for k, row in enumerate(chosen)]
    whole = samples.take(np.concatenate([np.arange(len(samples)), chosen])).replaced(image=[*pictures, *made])
    return whole, [*([None] * len(samples)), *made]


def changed(pixels: Array, recipe: Recipe, random: np.random.Generator) -> tuple[Array, Array]:
    """One made anomaly in an image (H, W, C) in 0..1: the new image, and the mask (H, W) of it. Its middle lies inside the body."""
    height, width = pixels.shape[:2]
    diameter = random.uniform(*recipe.size) * min(height, width)
    row, column = middle(pixels, random)
    if recipe.kind == "cut_paste":
        return pasted(pixels, diameter, (row, column), random)
    reach = math.ceil(diameter)  # what lies farther from the middle is as it was
    window = (slice(max(0, row - reach), row + reach + 1), slice(max(0, column - reach), column + reach + 1))
    new, mask = pixels.astype(np.float32), np.zeros((height, width), dtype=bool)
    new[window], mask[window] = reshaped(pixels[window], (row - window[0].start, column - window[1].start), diameter, recipe, random)
    return new, mask


def reshaped(pixels: Array, centre: tuple[int, int], diameter: float, recipe: Recipe, random: np.random.Generator) -> tuple[Array, Array]:
    """All kinds but cut_paste, in the part of an image that holds the anomaly."""
    height, width = pixels.shape[:2]
    row, column = centre
    soft = shape((height, width), centre, diameter, 0.0 if recipe.kind in TRIED else recipe.roughness, random)
    mask = soft > 0.5
    if recipe.kind == "blob":
        sign = recipe.sign or random.choice([-1, 1])
        level = float(np.median(pixels[mask])) if mask.any() else 0.5
        level = np.clip(level + sign * random.uniform(*recipe.strength), 0.02, 0.98)
        grain = ndimage.gaussian_filter(random.standard_normal((height, width)), 1.5)
        inside = level + recipe.texture * grain / max(float(grain.std()), 1e-6)
        new = pixels + soft[..., None] * (inside[..., None] - pixels)
    elif recipe.kind == "intensity":
        sign = recipe.sign or random.choice([-1, 1])
        new = pixels + sign * random.uniform(*recipe.strength) * soft[..., None]
    elif recipe.kind == "swirl":
        new = pixels + soft[..., None] * (turned(pixels, (row, column), diameter, random) - pixels)
    else:
        blurred = ndimage.gaussian_filter(pixels, (diameter / 8, diameter / 8, 0))
        new = pixels + soft[..., None] * (blurred - pixels)
    return np.clip(new, 0, 1).astype(np.float32), mask


def middle(pixels: Array, random: np.random.Generator) -> tuple[int, int]:
    """A place inside the body: where the blurred image is not among its darkest parts."""
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // 32)
    coarse = pixels[::step, ::step].mean(2)
    smooth = ndimage.gaussian_filter(coarse, min(coarse.shape) / 16)
    row, column = np.unravel_index(int(random.choice(np.flatnonzero(smooth >= 0.5 * smooth.mean()))), smooth.shape)
    return min(height - 1, int(row) * step + int(random.integers(step))), min(width - 1, int(column) * step + int(random.integers(step)))


def shape(size: tuple[int, int], centre: tuple[int, int], diameter: float, roughness: float, random: np.random.Generator) -> Array:
    """(H, W) 1 inside a rough ellipse, falling to 0 over a soft edge."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    y, x = rows - centre[0], columns - centre[1]
    turn, long = random.uniform(0, np.pi), random.uniform(0.65, 1.0)
    a, b = np.cos(turn) * x + np.sin(turn) * y, (np.cos(turn) * y - np.sin(turn) * x) / long
    angle, reach = np.arctan2(b, a), np.ones_like(a)
    for wave in range(2, 7):
        reach += roughness / wave * random.uniform(-1, 1) * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    edge = max(1.0, 0.08 * diameter)
    soft = 1 / (1 + np.exp(np.clip((np.hypot(a, b) - diameter / 2 * reach) / (edge / 4), -50, 50)))
    return np.where(soft < 1e-3, 0, soft)


def pasted(pixels: Array, diameter: float, centre: tuple[int, int], random: np.random.Generator) -> tuple[Array, Array]:
    """A rectangle from another place inside the body, its grey levels a little changed."""
    height, width = pixels.shape[:2]
    aspect = np.exp(random.uniform(-0.7, 0.7))
    tall = int(np.clip(diameter * aspect, 3, height - 1))
    wide = int(np.clip(diameter / aspect, 3, width - 1))
    top, left = np.clip(centre[0] - tall // 2, 0, height - tall), np.clip(centre[1] - wide // 2, 0, width - wide)
    other = middle(pixels, random)
    from_top, from_left = np.clip(other[0] - tall // 2, 0, height - tall), np.clip(other[1] - wide // 2, 0, width - wide)
    part = pixels[from_top : from_top + tall, from_left : from_left + wide].copy()
    part = part[:: random.choice([-1, 1]), :: random.choice([-1, 1])] * random.uniform(0.8, 1.25)
    new, mask = pixels.copy(), np.zeros((height, width), dtype=bool)
    new[top : top + tall, left : left + wide] = part
    mask[top : top + tall, left : left + wide] = True
    return np.clip(new, 0, 1).astype(np.float32), mask


def turned(pixels: Array, centre: tuple[int, int], diameter: float, random: np.random.Generator) -> Array:
    """The image turned about a place, the more the nearer to it."""
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(float)
    y, x = rows - centre[0], columns - centre[1]
    angle = random.choice([-1, 1]) * random.uniform(1.5, 3.0) * np.clip(1 - 2 * np.hypot(x, y) / diameter, 0, 1)
    where = [centre[0] + np.cos(angle) * y - np.sin(angle) * x, centre[1] + np.sin(angle) * y + np.cos(angle) * x]
    return np.stack([ndimage.map_coordinates(pixels[..., k], where, order=1, mode="nearest") for k in range(pixels.shape[2])], 2)
