"""The search of a patch memory: every patch of some images against every patch of the normals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from benchmarks.harness import Case, verdict
from medtame.features.patch_memory import nearest

WIDTHS = (112, 40, 24)  # of the finer maps of `bundled`, each of unit norm


def patches(images: int, side: int, seed: int) -> Tensor:
    """(images, side x side, 176) vectors that are as alike as patches of one kind of image are."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(1, 1, width, generator=generator) + torch.randn(images, side**2, width, generator=generator) for width in WIDTHS]
    return torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], -1)


@contextmanager
def search(images: int = 24, banked: int = 4000, side: int = 14) -> Iterator[Case]:
    """The distance of each patch to the nearest of the bank: one product of matrices a block, against SciPy's `cdist` image by image."""
    asked, bank = patches(images, side, 0), patches(-(-banked // side**2), side, 1).flatten(0, 1)[:banked]

    def ours() -> Tensor:
        return nearest(asked.flatten(0, 1), bank)

    def plain() -> Tensor:
        return torch.cat([torch.from_numpy(cdist(image.numpy(), bank.numpy()).min(1)) for image in asked])

    def check() -> str:
        apart = float(np.abs(ours().numpy() - plain().numpy()).max())
        return verdict(apart < 1e-5, f"{images * side**2} distances to {banked} patches differ by at most {apart:.1e}")

    yield Case(ours=ours, plain=plain, check=check, goal=10.0, rounds=3)
