"""Random changes of images that are safe for medicine: small turns, shifts, scales and contrasts; never a flip, never a crop.

A flip would change a side, and a crop can lose the lesion: every pixel of the image but a rim of a few per cent stays in view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medtame.types import Array

DEGREES, SHIFT, SCALE = 8.0, 1 / 24, 0.05  # at most; of the side; of the size
CONTRAST, OFFSET = 0.2, 0.1  # at most; of the deviation of the image's own numbers


def chances(seed: int, draw: int, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one draw of a pair for a purpose: the same whatever batch, process or resumed run it falls into."""
    return np.random.default_rng((seed, draw, purpose))


def changes(seed: int, draws: Sequence[int]) -> Array:
    """(n, 6) in -1..1: turn, scale, shift right, shift down, contrast, offset of each draw."""
    return np.stack([chances(seed, draw).uniform(-1, 1, 6) for draw in draws])


def augmented(images: Tensor, amounts: Array) -> Tensor:
    """Prepared images (n, 3, S, S), each turned, scaled, shifted and set in contrast by its six numbers; the border is drawn on."""
    turn, zoom, right, down, contrast, offset = torch.as_tensor(amounts, dtype=images.dtype).T
    angle, size = turn * math.radians(DEGREES), 1 + zoom * SCALE
    cosine, sine = angle.cos() / size, angle.sin() / size
    rows = [torch.stack([cosine, -sine, 2 * SHIFT * right], 1), torch.stack([sine, cosine, 2 * SHIFT * down], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mean, deviation = moved.mean((1, 2, 3), keepdim=True), moved.flatten(1).std(1).reshape(-1, 1, 1, 1)
    more, shift = (amount.reshape(-1, 1, 1, 1) for amount in (1 + contrast * CONTRAST, offset * OFFSET))
    changed: Tensor = (moved - mean) * more + mean + shift * deviation
    return changed
