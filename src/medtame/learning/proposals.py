"""Where something is, whatever it is: a class-agnostic proposer, and the rows from which scorers learn to name what it finds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from medtame.learning.decoding import fixed_codes
from medtame.learning.detecting import lessons, located, taught
from medtame.learning.loop import Descent, finish
from medtame.networks.film_decoder import FilmDecoder
from medtame.types import Array, Query

CODE = 16  # length of the constant that the decoder is told instead of words
OBJECT = "object"
KEPT = 64  # proposers that a process remembers: methods that name regions share one a support
HIT, MISSED = 0.5, 0.3  # IoU from which a proposal is an object; below which it is none
EMPTY = 8  # random places an image, of the size of its objects, that are tried as background


@dataclass(frozen=True)
class Lesson:
    """All that a proposer depends on. Two lessons are equal where `key` is."""

    key: str
    query: Query = field(compare=False, repr=False)
    boxes: tuple[Tensor, ...] = field(compare=False, repr=False)
    how: Descent = field(compare=False, repr=False)
    dropout: float = field(compare=False)
    width: int = field(compare=False)
    seed: int = field(compare=False)


def lesson(query: Query, boxes: Sequence[Tensor], how: Descent, dropout: float, width: int, seed: int) -> Lesson:
    """The key names images by their contents, so that it never takes one for another."""
    digest = hashlib.sha256(repr((query.encoder.image_identity, query.size, how, dropout, width, seed, torch.get_num_threads())).encode())
    for picture, own in zip(query.samples.pictures(), boxes, strict=True):
        digest.update(picture.digest().encode() + own.numpy().tobytes())
    return Lesson(digest.hexdigest(), query, tuple(boxes), how, dropout, width, seed)


@lru_cache(maxsize=KEPT)
def proposer(asked: Lesson) -> dict[str, Tensor]:
    """The weights of a decoder that marks every object of images, boxes (m, 4 or more) each, learnt to the end."""
    taken = lessons(asked.query, [[own[:, :4] for own in asked.boxes]])
    steps = taught(taken, code(), asked.how, width=asked.width, dropout=asked.dropout, seed=asked.seed)
    return finish(steps)


def code() -> Tensor:
    return fixed_codes([OBJECT], CODE)


def proposed(weights: dict[str, Tensor], query: Query, most: int, least: float, overlap: float) -> list[Tensor]:
    """(n, 5) x0 y0 x1 y1 objectness for each row of a query, best first; at least one a row."""
    return [found[0] for found in located(FilmDecoder.of(weights), query, code(), most, least, overlap)]


def named(found: Sequence[Tensor], truth: Sequence[Tensor], classes: int, rows: int, seed: int) -> tuple[Array, Tensor, Tensor]:
    """Image (M,), region (M, 4) and target (M, classes + 1) of rows to learn names from; the last candidate is the background.

    Proposals of IoU 0.5 or more with an object have its class, those below 0.3 with every object are background, the others are
    left out; objects themselves, and random places of their size, stand beside them. An object of class -1 has no name: what lies on
    it is left out. At most rows / (classes + 1) of each candidate, chosen by the seed.
    """
    images: list[Array] = []
    regions, labels = [torch.zeros(0, 4)], [torch.zeros(0)]
    for image, (proposals, objects) in enumerate(zip(found, truth, strict=True)):
        random = np.random.default_rng([seed, image])
        tried = torch.cat([proposals[:, :4], objects[:, :4], elsewhere(objects[:, :4], random)])
        label = called(tried, objects, classes)
        known = label >= 0
        images.append(np.full(int(known.sum()), image))
        regions.append(tried[known])
        labels.append(label[known])
    image_of, label = np.concatenate([np.zeros(0, dtype=int), *images]).astype(int), torch.cat(labels).long()
    chosen = capped(label.numpy(), classes + 1, rows, seed)
    targets = torch.nn.functional.one_hot(label[chosen], classes + 1).float()
    return image_of[chosen], torch.cat(regions)[chosen], targets


def called(regions: Tensor, objects: Tensor, classes: int) -> Tensor:
    """(n,) the class of each region, `classes` for background, -1 where it is neither or has no name."""
    if not len(objects):
        return torch.full((len(regions),), float(classes))
    best, which = box_iou(regions, objects[:, :4]).max(1)
    label = objects[which, 4]
    return torch.where(best >= HIT, label, torch.where(best < MISSED, float(classes), -1.0))


def elsewhere(objects: Tensor, random: np.random.Generator) -> Tensor:
    """(EMPTY, 4) random places; of the sizes of the objects, or of a tenth to a half of the image where there are none."""
    sizes = (objects[:, 2:] - objects[:, :2]).numpy() if len(objects) else random.uniform(0.1, 0.5, (EMPTY, 2))
    size = sizes[random.integers(0, len(sizes), EMPTY)]
    corner = random.uniform(0, 1, (EMPTY, 2)) * (1 - size)
    return torch.from_numpy(np.concatenate([corner, corner + size], 1).astype(np.float32))


def capped(labels: Array, kinds: int, rows: int, seed: int) -> Array:
    """Numbers of at most rows / kinds of each kind, in order."""
    random = np.random.default_rng(seed)
    chosen: list[Any] = []
    for kind in range(kinds):
        own = np.flatnonzero(labels == kind)
        chosen.append(random.permutation(own)[: max(1, rows // kinds)])
    return np.sort(np.concatenate(chosen))
