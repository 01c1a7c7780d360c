"""Regions of maps and of images, by RoIAlign (He et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

Array = np.ndarray[Any, Any]
DIGITS = 3  # of a pixel: a written box and a measured one are the same numbers


def pooled(scale: Tensor, source: Array, regions: Tensor) -> Tensor:
    """Mean of a map (N, F, G, G) over regions (M, 4) of its images `source` (M,): (M, F), unit norm."""
    side = torch.tensor([scale.shape[3], scale.shape[2], scale.shape[3], scale.shape[2]])
    boxes = torch.cat([torch.as_tensor(source, dtype=scale.dtype)[:, None], regions.to(scale.dtype) * side], 1)
    mean: Tensor = roi_align(scale, boxes, output_size=1, sampling_ratio=2, aligned=True)
    return nn.functional.normalize(mean.flatten(1), dim=-1)


def cropped(pixels: Tensor, source: Array, regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Regions of images, each resized to `size`: (M, C, H, W)."""
    side = torch.tensor([pixels.shape[3], pixels.shape[2], pixels.shape[3], pixels.shape[2]])
    boxes = torch.cat([torch.as_tensor(source, dtype=pixels.dtype)[:, None], regions.to(pixels.dtype) * side], 1)
    crops: Tensor = roi_align(pixels, boxes, output_size=size, sampling_ratio=2, aligned=True)
    return crops


def patches(side: int) -> Tensor:
    """(side x side, 4) regions x0 y0 x1 y1 in 0..1 that tile an image, row by row."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / side


def in_pixels(boxes: Any, height: int, width: int) -> Array:
    """Corners x0 y0 x1 y1 in 0..1 (n, 4) in pixels of an image, to a thousandth: float64 of the same shape."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.asarray(np.round(corners * (width, height, width, height), DIGITS))


def in_fractions(boxes: Any, height: int, width: int) -> Array:
    """Corners in pixels of an image (n, 4) in 0..1, cut at its edge: float64 of the same shape."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.asarray((corners / (width, height, width, height)).clip(0, 1))
