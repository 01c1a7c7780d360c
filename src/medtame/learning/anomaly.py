"""What methods of anomaly detection share: the normals of a problem, and maps of how much words say abnormal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, normalize

from medtame.errors import DataError
from medtame.types import Array, Encoder, Problem, Query, sentence_means


def normal_rows(problem: Problem) -> Array:
    """Numbers of the rows without any abnormal cell. Raises DataError where there is none."""
    rows = np.flatnonzero((problem.targets.flatten(1) == 0).all(1).numpy())
    if not len(rows):
        raise DataError("no normal image to learn from: give at least one, or a method that needs none, such as zero_shot_states")
    return rows


def direction(encoder: Encoder, query: Query) -> Tensor:
    """(D,) from the mean of the normal sentences to the mean of the abnormal ones, in logits: scale x (abnormal - normal)."""
    with torch.no_grad():
        texts = sentence_means(encoder, query.wanted.prompts)
    return encoder.scale * (texts[1] - texts[0])


def word_maps(query: Query, towards: Tensor, windows: tuple[int, ...]) -> Tensor:
    """(N, G, G) the logit of abnormal against normal, the mean over windows of `windows` cells a side and the image as a whole.

    A window's vector is the mean of its cells' in the text's space, of unit norm; a cell has the mean of the windows around it
    (Jeong et al. 2023).
    """
    maps = normalize(query.encoder.grid(query.samples)[0], dim=1)[torch.as_tensor(query.source)]
    whole = query.encoder.whole(query.samples)[torch.as_tensor(query.source)] @ towards
    side, found = maps.shape[2], []
    for window in windows:
        width = min(window, side)
        means = normalize(avg_pool2d(maps, width, 1), dim=1)
        logits = torch.einsum("nfhw,f->nhw", means, towards)[:, None]
        spread = torch.nn.functional.pad(logits, [width - 1] * 4)
        counts = torch.nn.functional.pad(torch.ones_like(logits), [width - 1] * 4)
        found.append((avg_pool2d(spread, width, 1) / avg_pool2d(counts, width, 1))[:, 0])
    return torch.stack(found).mean(0) / 2 + whole[:, None, None] / 2


def at_size(maps: Tensor, query: Query) -> Tensor:
    """(N, 1, H, W) of maps (N, h, w), at the size that the query wants."""
    size = query.size or (maps.shape[1], maps.shape[2])
    return interpolate(maps[:, None], size, mode="bilinear")
