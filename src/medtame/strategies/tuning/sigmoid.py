"""Sigmoid pretraining: each pair of image and text is right or wrong by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer


def pairwise(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss of unit images (n, D) and texts (n, D), `same` (n, n) saying which pairs are right."""
    logits = scale * images @ texts.T + bias
    return -nn.functional.logsigmoid(torch.where(same, logits, -logits)).sum(1).mean()


@dataclass(frozen=True)
class Sigmoid(Pretrainer):
    """Sum over all pairs of a batch of log(1 + exp(-z (scale x cosine + bias))), z = 1 where right, else -1, a row's mean
    (Zhai et al. 2023, SigLIP). Scale and bias are learnt, from 10 and -10 as there. Steps and rate were not searched.
    """

    good_when = "batches must be small, since each pair counts by itself"
    poor_when = "pairs are few: a closed-form map on frozen vectors (linear_maps) is safer and takes a second"
    papers = ("arxiv:2303.15343",)

    def part(self, pairs: Pairs) -> Part:
        named = {"log_scale": torch.tensor(math.log(10.0)), "bias": torch.tensor(-10.0)}

        def across(seen: Seen, draws: Tensor) -> Tensor:
            return pairwise(seen[IMAGES], seen[TEXTS], pairs.same(draws), named["log_scale"].exp(), named["bias"])

        return Part(reads=frozenset({IMAGES, TEXTS}), across=across, named=named)
