"""A vector an image from every scale of the encoder's grid, the whole and its quarters: what and where, in one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medtame.types import Encoder, Query, Samples

IMAGES_AT_ONCE = 32
PARTS = (1, 2)  # cells a side: the whole image, and its quarters


def distinct(samples: Samples, column: str = "image") -> tuple[list[int], Tensor]:
    """The first sample of each distinct picture, and (N,) the picture of each sample."""
    number: dict[Any, int] = {}
    firsts, of_sample = [], []
    for place, value in enumerate(samples.column(column)):
        key = str(value) if not hasattr(value, "array") else id(value)
        if key not in number:
            number[key] = len(number)
            firsts.append(place)
        of_sample.append(number[key])
    return firsts, torch.tensor(of_sample, dtype=torch.long)


def pooled_scales(query: Query, encoder: Encoder | None = None) -> tuple[Tensor, ...]:
    """(N, F) of unit norm for each scale and part: the means of its cells over the whole, and over four quarters joined."""
    firsts, of_sample = distinct(query.samples)
    found: list[list[Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(firsts), IMAGES_AT_ONCE):
            maps = (encoder or query.encoder).grid(query.samples.take(firsts[start : start + IMAGES_AT_ONCE]))
            pooled = [nn.functional.adaptive_avg_pool2d(scale.float(), side).flatten(1) for scale in maps for side in PARTS]
            found.append([nn.functional.normalize(part, dim=-1) for part in pooled])
    rows = of_sample[torch.as_tensor(query.source)]
    return tuple(torch.cat(parts)[rows] for parts in zip(*found, strict=True))
