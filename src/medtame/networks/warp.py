"""Displacements: warping by one, a smooth one from a few knots, and what a registration minimises.

A displacement (N, 2, H, W) lies on the grid of the fixed image and points to where in the moving image each pixel comes from
(pull-back). Its channels are (x, y) in fractions of width and height, so that it survives a resize. Pixel i of n lies at
(i + 1/2) / n: positions are pixel centres and 0 and 1 are the outer edges (`align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medtame.errors import MedtameError


def centres(n: int) -> Tensor:
    """(n,) positions of pixel centres in 0..1."""
    return (torch.arange(n, dtype=torch.float32) + 0.5) / n


def warp(images: Tensor, displacement: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Moving images (N, C, h, w), pulled back to the fixed grid: (N, C, H, W) for a displacement (N, 2, H, W).

    Use `nearest` for label maps: no new labels arise, and what lies outside the moving image is 0. `bilinear` repeats the border.
    """
    if displacement.ndim != 4 or displacement.shape[1] != 2 or len(displacement) != len(images):
        raise MedtameError(f"a displacement of shape {tuple(displacement.shape)} for {len(images)} images: it must be (images, 2, H, W)")
    y, x = torch.meshgrid(centres(displacement.shape[2]), centres(displacement.shape[3]), indexing="ij")
    position = torch.stack([x, y], -1).to(displacement) + displacement.movedim(1, -1)
    padding = "zeros" if mode == "nearest" else "border"
    return nn.functional.grid_sample(images.to(displacement), 2 * position - 1, mode=mode, padding_mode=padding, align_corners=False)


def resized_field(displacement: Tensor, size: Sequence[int]) -> Tensor:
    """The same displacement (N, 2, H, W) on a grid of another size: fractions need no scaling."""
    return nn.functional.interpolate(displacement, tuple(size), mode="bilinear", align_corners=False)


def in_pixels(displacement: Tensor) -> Tensor:
    """A displacement (N, 2, H, W) in fractions as one in pixels of its own grid."""
    height, width = displacement.shape[2:]
    return displacement * displacement.new_tensor([width, height])[:, None, None]


def smooth_field(knots: Tensor, size: Sequence[int]) -> Tensor:
    """The cubic B-spline field (N, 2, H, W) of control points (N, 2, h, w), h and w at least 4, at any size (Rueckert et al. 1999).

    The outermost knots lie one spacing outside the image, so constant and linear knots give constant and linear fields.
    """
    rows, columns = (spline_weights(n, k).to(knots) for n, k in zip(size, knots.shape[2:], strict=True))
    return rows @ knots @ columns.T


def spline_weights(pixels: int, knots: int) -> Tensor:
    """(pixels, knots) the weight of each control point at each pixel centre; every row sums to 1."""
    if knots < 4:
        raise MedtameError(f"a grid of {knots} control points: a cubic B-spline needs at least 4 a side")
    distance = (centres(pixels)[:, None] * (knots - 3) + 1 - torch.arange(knots)).abs()
    near, far = 2 / 3 - distance.square() + distance**3 / 2, (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def local_correlation(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """(N,) mean squared correlation of two images (N, 1, H, W), 0..1 in intensity, in square windows (odd side, pixels).

    In 0..1, 1 where both are the same up to brightness and contrast of each window (Avants et al. 2008). Windows flatter than a
    deviation of 0.01 count less; a larger floor would reward warps that raise the contrast.
    """

    def mean(values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values, window, stride=1, padding=window // 2, count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    cross = mean(a * b) - mean_a * mean_b
    variance = (mean(a * a) - mean_a**2).clamp(min=0) * (mean(b * b) - mean_b**2).clamp(min=0)
    return (cross.square() / (variance + 1e-8)).clamp(max=1).mean((1, 2, 3))


def bending(displacement: Tensor) -> Tensor:
    """(N,) mean bending energy xx^2 + yy^2 + 2 xy^2 of displacements (N, 2, H, W), at least 3 a side; 0 for all affine ones.

    Lengths are in units of the geometric mean of the sides, so the value depends neither on the resolution nor on the aspect.
    """
    pixels = in_pixels(displacement)
    xx = pixels.diff(n=2, dim=3)[:, :, 1:-1]
    yy = pixels.diff(n=2, dim=2)[..., 1:-1]
    xy = (pixels[:, :, 2:, 2:] - pixels[:, :, :-2, 2:] - pixels[:, :, 2:, :-2] + pixels[:, :, :-2, :-2]) / 4
    return displacement[0, 0].numel() * (xx.square() + yy.square() + 2 * xy.square()).sum(1).mean((1, 2))


def crowding(displacement: Tensor, least: float) -> Tensor:
    """(N,) mean of what the area of a mapped pixel lacks to `least`, at the four corners of each cell; with least = 0, of folds."""
    across, down = (in_pixels(displacement).diff(dim=dim) for dim in (3, 2))
    lacks = []
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            a, b = across[:, :, rows], down[..., columns]
            lacks.append((least - (1 + a[:, 0]) * (1 + b[:, 1]) + a[:, 1] * b[:, 0]).clamp(min=0))
    return torch.stack(lacks).mean((0, 2, 3))
