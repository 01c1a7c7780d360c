"""A memory of patches: vectors of the cells of an encoder's maps, a spread-out choice of them, and the exact distance to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, normalize

from medtame.types import Query

AT_ONCE = 2**21  # distances, at most, of a block: they stay in the processor's cache
PROJECTED = 32  # numbers of a vector while a choice is made


def patch_vectors(query: Query, side: int) -> Tensor:
    """(N, side x side, F) of the image of each row: every map but the coarsest (where it has finer ones), each cell the mean of its
    3 x 3 neighbours, of unit norm, brought to `side`, joined.
    """
    scales = query.encoder.grid(query.samples)
    parts = [resized(normalize(avg_pool2d(scale, 3, 1, 1, count_include_pad=False), dim=1), side) for scale in scales[1:] or scales]
    return torch.cat(parts, 1)[torch.as_tensor(query.source)].flatten(2).transpose(1, 2).contiguous()


def resized(scale: Tensor, side: int) -> Tensor:
    """A map (N, F, G, G) with `side` cells a side: means of cells where it has more, drawn on between them where it has fewer."""
    if scale.shape[2] > side:
        return adaptive_avg_pool2d(scale, side)
    return interpolate(scale, (side, side), mode="bilinear")


def coreset(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Numbers (count,) of vectors (n, F), spread out: each next one is the farthest from those chosen (Sener and Savarese 2018).

    Distances are taken after a random projection, as PatchCore does. All of them, in order, where there are no more than `count`.
    """
    if len(vectors) <= count:
        return torch.arange(len(vectors))
    generator = torch.Generator().manual_seed(seed)
    if vectors.shape[1] > PROJECTED:
        vectors = vectors @ torch.randn(vectors.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    chosen = torch.empty(count, dtype=torch.long)
    chosen[0] = torch.randint(len(vectors), (1,), generator=generator)
    squares = vectors.square().sum(1)
    left = torch.full((len(vectors),), torch.inf)
    for k in range(1, count):
        last = vectors[chosen[k - 1]]
        left = torch.minimum(left, squares - 2 * (vectors @ last) + last @ last)
        chosen[k] = left.argmax()
    return chosen.sort().values


def nearest(vectors: Tensor, bank: Tensor) -> Tensor:
    """(n,) the Euclidean distance of each vector (n, F) to the nearest of the bank (m, F).

    By |a - b|^2 = |a|^2 + |b|^2 - 2 ab, where the smallest of |b|^2 - 2 ab is all that is looked for: one product of matrices a block. The
    winner's distance is then taken from the difference itself, so that it is exact where the two are nearly equal.
    """
    half = bank.square().sum(1) / 2
    found = torch.empty(len(vectors), dtype=torch.long)
    step = max(1, AT_ONCE // max(1, len(bank)))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step]
        found[start : start + step] = torch.addmm(half, block, bank.T, beta=1, alpha=-1).argmin(1)
    return torch.cat([(a - bank[rows]).norm(dim=1) for a, rows in zip(torch.split(vectors, step), torch.split(found, step), strict=True)])


def nearest_by_image(vectors: Tensor, images: Tensor) -> Tensor:
    """(n, M) the distance of each vector (n, F) to the nearest of each image's vectors (M, P, F), for leaving images out."""
    return torch.stack([nearest(vectors, image) for image in images], 1)
