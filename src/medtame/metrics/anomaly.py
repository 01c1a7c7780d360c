"""Metrics of anomaly maps that can be resampled by image: scores are counted in bins once, then every resample is a weighted sum.

pixel_ap: average precision over all pixels of all images, as scikit-learn defines it. pixel_pro: the mean share found of each connected
region (8 neighbours), over false-positive rates from 0 to 0.3, divided by 0.3 (Bergmann et al. 2020). Both see scores through at most
`BINS` thresholds, half of them spread over the abnormal pixels, so that they differ from the exact values by less than .002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medtame.errors import MedtameError
from medtame.metrics.bins import share
from medtame.metrics.statistic import Auroc, AveragePrecision, Mean, Statistic
from medtame.types import Array

BINS = 512
SEEN = 200_000  # pixels, evenly chosen, of which the bins are made
HIGHEST_RATE = 0.3  # of false positives, up to which regions are counted


@dataclass(frozen=True, eq=False)
class PixelAveragePrecision(Statistic):
    """`positive` and `negative` (N, B): pixels of each image in each bin of scores, the highest bin first; zero where unknown."""

    positive: Array
    negative: Array

    @property
    def defined(self) -> int:
        return int(((self.positive.sum(1) + self.negative.sum(1)) > 0).sum())

    def _at(self, weights: Array) -> Array:
        positive = weights @ self.positive
        found, wrong = positive.cumsum(1), (weights @ self.negative).cumsum(1)
        precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found > 0)
        return share((positive * precision).sum(1), found[:, -1])


@dataclass(frozen=True, eq=False)
class RegionOverlap(Statistic):
    """`overlap` (N, B): of each image the summed share of its regions in each bin, the highest first; `regions` (N,); `negative` (N, B)."""

    overlap: Array
    regions: Array
    negative: Array
    highest_rate: float = HIGHEST_RATE

    @property
    def defined(self) -> int:
        return int((self.regions + self.negative.sum(1) > 0).sum())

    def _at(self, weights: Array) -> Array:
        found, wrong = (weights @ self.overlap).cumsum(1), (weights @ self.negative).cumsum(1)
        found = share(found, np.broadcast_to((weights @ self.regions)[:, None], found.shape))
        rate = share(wrong, np.broadcast_to(wrong[:, -1:], wrong.shape))
        start = np.zeros((len(weights), 1))
        return area_below(np.concatenate([start, rate], 1), np.concatenate([start, found], 1), self.highest_rate)


def area_below(x: Array, y: Array, end: float) -> Array:
    """(B,) the area under curves (B, M), x rising, from 0 to `end`, cut there by a straight line, over `end`."""
    left, right = x[:, :-1].clip(max=end), x[:, 1:].clip(max=end)
    width = x[:, 1:] - x[:, :-1]
    slope = np.divide(y[:, 1:] - y[:, :-1], width, out=np.zeros_like(width), where=width > 0)
    last = y[:, :-1] + slope * (right - x[:, :-1])
    first = y[:, :-1] + slope * (left - x[:, :-1])
    return np.asarray(((right - left) * (first + last) / 2).sum(1) / end)


def anomaly(
    scores: Array, abnormal: Array, maps: Sequence[Array], masks: Sequence[Array | None], threshold: float | None
) -> dict[str, Statistic]:
    """All metrics of N images.

    Args:
        scores: (N,) the higher the less normal. abnormal: (N,) 1, 0, or NaN where unknown.
        maps: (H, W) a score a pixel. masks: (H, W) of the same size, True where abnormal; None where unknown.
        threshold: above it an image is called abnormal; None where none could be learnt.
    """
    positive, negative, overlap, regions = counted(maps, masks)
    said = np.full(len(scores), np.nan) if threshold is None else (scores > threshold).astype(float)
    return {
        "image_auroc": Auroc(scores, abnormal),
        "image_ap": AveragePrecision(scores, abnormal),
        "pixel_ap": PixelAveragePrecision(positive, negative),
        "pixel_pro": RegionOverlap(overlap, regions, negative),
        "false_positive_rate": Mean(np.where(abnormal == 0, said, np.nan)),
        "sensitivity": Mean(np.where(abnormal == 1, said, np.nan)),
    }


def counted(maps: Sequence[Array], masks: Sequence[Array | None]) -> tuple[Array, Array, Array, Array]:
    """Positive and negative pixels (N, B), summed shares of regions (N, B) and their number (N,) of each image, the highest bin first."""
    known = [k for k, mask in enumerate(masks) if mask is not None]
    wrong = next((k for k in known if masks[k].shape != maps[k].shape), None)  # type: ignore[union-attr]
    if wrong is not None:
        raise MedtameError(f"map {wrong} has the size {maps[wrong].shape}, its mask another: bring them to one size first")
    held = [masks[k] for k in known]
    if not any(mask is not None and mask.any() for mask in held):
        return np.zeros((len(maps), 1)), np.zeros((len(maps), 1)), np.zeros((len(maps), 1)), np.zeros(len(maps))
    edges = edges_of(np.concatenate([maps[k].ravel() for k in known]), np.concatenate([maps[k][masks[k]] for k in known]))
    positive, negative, overlap = (np.zeros((len(maps), len(edges) + 1)) for _ in range(3))
    regions = np.zeros(len(maps))
    for k, mask in zip(known, held, strict=True):
        assert mask is not None
        bins = len(edges) - np.searchsorted(edges, maps[k].astype(np.float32), side="right")
        positive[k] = np.bincount(bins[mask], minlength=len(edges) + 1)
        negative[k] = np.bincount(bins[~mask], minlength=len(edges) + 1)
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        overlap[k] = np.bincount(bins[mask], 1 / sizes[parts[mask]], minlength=len(edges) + 1)
        regions[k] = count
    return positive, negative, overlap, regions


def edges_of(scores: Array, positive: Array) -> Array:
    """Lower edges of all bins but the lowest: every distinct score where they are few, else quantiles of all and of the abnormal ones."""
    distinct = np.unique(scores[:: max(1, len(scores) // SEEN)].astype(np.float32))
    if len(distinct) <= BINS:
        return distinct[1:]
    shares = (np.arange(BINS // 2) + 0.5) / (BINS // 2)
    found = np.quantile(positive.astype(np.float32), shares, method="inverted_cdf")  # scores themselves: none below joins its bin
    return np.unique(np.concatenate([np.quantile(distinct, shares), found]).astype(np.float32))
