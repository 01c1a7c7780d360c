"""Pairs of images and texts: two linear maps into one space in closed form, and how well a score ranks the right ones.

The maps are those of regularised canonical correlation analysis (Hotelling 1936; Vinod 1976): directions of image and of text
whose coordinates correlate most, each side whitened as far as its penalty lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from medtame.errors import DataError
from medtame.types import Problem

Maps: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # image mean (D,), map (D, K), text mean (E,), map (E, K)
Setting = TypeVar("Setting")

COMPONENTS = 256  # principal directions kept of each side: what is beyond them is noise with hundreds of pairs, and costs time
PENALTIES = (1.0, 10.0, 100.0)  # of a side, in units of its mean variance along a direction
POWERS = (0.5, 1.0, 2.0)  # of the correlation, by which a direction counts
FOLDS = 3
LEAST_GROUPS = 6  # with fewer cases nothing is held out


@dataclass(frozen=True)
class Decomposed:
    """Principal directions of both sides and how they go together: all that the maps of every penalty need."""

    image_mean: Tensor  # (D,)
    image_axes: Tensor  # (D, R)
    image_spread: Tensor  # (R,) singular values
    text_mean: Tensor  # (E,)
    text_axes: Tensor  # (E, S)
    text_spread: Tensor  # (S,)
    joint: Tensor  # (R, S)

    def maps(self, image_penalty: float, text_penalty: float, powers: Iterable[float]) -> list[Maps]:
        """A pair of maps for each power."""
        image, text = scaled(self.image_spread, image_penalty), scaled(self.text_spread, text_penalty)
        whitened = (self.image_spread / image)[:, None] * self.joint * (self.text_spread / text)
        left, correlation, right = torch.linalg.svd(whitened, full_matrices=False)
        image_map, text_map = (self.image_axes / image) @ left, (self.text_axes / text) @ right.T
        found = []
        for power in powers:
            weight = correlation.clamp(min=0) ** power
            found.append((self.image_mean, image_map * weight, self.text_mean, text_map * weight))
        return found


def scaled(spread: Tensor, penalty: float) -> Tensor:
    return (spread.square() + penalty * spread.square().mean()).sqrt().clamp(min=1e-12)


def decomposed(images: Tensor, texts: Tensor, share: Tensor, components: int = COMPONENTS) -> Decomposed:
    """Of images (n, D), texts (C, E) and the share (n, C), rows of sum 1, that each text has in what is right for a row."""
    images, texts, share = images.double(), texts.double(), share.double()
    weight = share.sum(0)
    image_mean, text_mean = images.mean(0), (weight @ texts) / weight.sum()
    root = weight.sqrt()
    left, image_spread, image_axes = principal(images - image_mean, components)
    right, text_spread, text_axes = principal(root[:, None] * (texts - text_mean), components)
    joint = left.T @ share @ (right / root.clamp(min=1e-12)[:, None])
    return Decomposed(image_mean, image_axes, image_spread, text_mean, text_axes, text_spread, joint)


def principal(rows: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """(n, R), (R,), (F, R): left vectors, singular values and axes of centred rows, without those of no size.

    Rows that are all alike (one sentence for all, as a control gives) have one direction of no size, so that maps score all the same.
    """
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    if not len(values) or float(values[0]) < 1e-9:
        return (
            torch.zeros(len(rows), 1, dtype=rows.dtype),
            torch.zeros(1, dtype=rows.dtype),
            torch.zeros(rows.shape[1], 1, dtype=rows.dtype),
        )
    kept = min(components, int((values > 1e-6 * values[0]).sum()))
    return left[:, :kept], values[:kept], right[:kept].T


def mapped(vectors: Tensor, mean: Tensor, change: Tensor) -> Tensor:
    """(N, K), unit norm, of vectors (N, D)."""
    return nn.functional.normalize((vectors.double() - mean.double()) @ change.double(), dim=-1)


def cosines(maps: Maps, images: Tensor, texts: Tensor) -> Tensor:
    """(N, C) cosines of images (N, D) and texts (C, E) in the space of the maps."""
    return mapped(images, maps[0], maps[1]) @ mapped(texts, maps[2], maps[3]).T


# ---- the share of a text in what is right ---------------------------------------------------------------------


def shares(targets: Tensor) -> Tensor:
    """(n, C) targets of pairs with rows of sum 1, unknown ones left out. Raises DataError where a row has none, or all have one."""
    share = targets.nan_to_num(0).double()
    if not bool((share.sum(1) > 0).all()):
        raise DataError(f"{int((share.sum(1) <= 0).sum())} of {len(share)} support rows have no text: fill the column, or leave them out")
    if int((share.sum(0) > 0).sum()) < 2:
        raise DataError(f"all {len(share)} support rows have the same text: give at least one row of two texts")
    return share / share.sum(1, keepdim=True)


def softened(share: Tensor, texts: Tensor, part: float, temperature: float) -> Tensor:
    """(n, C) (1 - part) x share + part x share of the texts like them: softmax of the texts' centred cosines / temperature."""
    share = share.double()
    centred = nn.functional.normalize(texts.double() - texts.double().mean(0), dim=-1)
    alike = (centred @ centred.T / temperature).softmax(1)
    return (1 - part) * share + part * share @ alike


# ---- choice inside the support --------------------------------------------------------------------------------


def reciprocal_rank(scores: Tensor, right: Tensor) -> float:
    """Mean over both directions of the mean reciprocal rank of the first right item; ties count as if the right one came last."""
    found = []
    for values, held in ((scores, right), (scores.T, right.T)):
        asked = held.any(1)
        best = values.masked_fill(~held, -torch.inf).amax(1, keepdim=True)
        rank = 1 + ((values >= best) & ~held).sum(1)
        found.append(float((1 / rank.double())[asked].mean()))
    return sum(found) / 2


def held_texts(problem: Problem) -> Tensor:
    """Numbers of the candidates that are right for some row: the gallery of a fold."""
    return torch.nonzero(problem.targets.nan_to_num(0).sum(0) > 0)[:, 0]


def best_by_folds(problem: Problem, scored: Callable[[Problem, Problem], Iterable[tuple[Setting, Tensor]]]) -> tuple[Setting, float] | None:
    """The setting with the best mean reciprocal rank on held-out cases of the support, and that rank; None with too few cases.

    `scored` fits on the first problem and yields each setting with scores (rows, all candidates) of the second.
    """
    if len(set(problem.query.samples.groups.tolist())) < LEAST_GROUPS:
        return None
    found: dict[Setting, list[float]] = {}
    for inside, outside in problem.folds(FOLDS):
        gallery = held_texts(outside)
        right = outside.targets[:, gallery].nan_to_num(0) > 0
        if len(gallery) < 2 or len(held_texts(inside)) < 2:
            continue
        for setting, scores in scored(inside, outside):
            found.setdefault(setting, []).append(reciprocal_rank(scores[:, gallery], right))
    if not found:
        return None
    ranked = {setting: sum(values) / len(values) for setting, values in found.items()}
    best = max(ranked, key=lambda setting: ranked[setting])
    return best, ranked[best]


Penalties: TypeAlias = tuple[float, float, float]  # of the image side, of the text side, power
DEFAULT: Penalties = (10.0, 10.0, 1.0)  # where there are too few cases to choose


def every_maps(parts: Decomposed) -> Iterable[tuple[Penalties, Maps]]:
    """The maps of every setting that is tried."""
    for image, text in product(PENALTIES, PENALTIES):
        for power, maps in zip(POWERS, parts.maps(image, text, POWERS), strict=True):
            yield (image, text, power), maps


def fitted_maps(problem: Problem, images: Tensor, texts: Tensor, chosen: Penalties, share: Tensor | None = None) -> Maps:
    """Maps of images (n, D) and texts (C, E) on all rows of a problem. Only texts that are right for a row are learnt from."""
    share = shares(problem.targets) if share is None else share
    used = torch.nonzero(share.sum(0) > 0)[:, 0]
    return decomposed(images, texts[used], share[:, used]).maps(chosen[0], chosen[1], (chosen[2],))[0]


def single(maps: Maps) -> Maps:
    """As they are kept: float32."""
    return maps[0].float(), maps[1].float(), maps[2].float(), maps[3].float()
