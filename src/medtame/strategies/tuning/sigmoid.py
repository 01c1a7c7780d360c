"""Sigmoid pretraining: each pair of image and text is right or wrong by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medtame.learning.contrast import LARGEST_SCALE, bounded
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer

FIRST_SCALE = 10.0
MOST_RIGHT = 0.99  # of all pairs of a batch, where nearly all texts are the same


def pairwise(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss of unit images (n, D) and texts (n, D), `same` (n, n) saying which pairs are right."""
    logits = scale * images @ texts.T + bias
    return -nn.functional.logsigmoid(torch.where(same, logits, -logits)).sum(1).mean()


def levelled(logits: Tensor, share: float) -> float:
    """The bias with which the mean of sigmoid(logits + bias) is `share`, in 0..1; by halving an interval that holds it."""
    low, high = (math.log(share / (1 - share)) - float(edge) for edge in (logits.max(), logits.min()))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float((logits.double() + middle).sigmoid().mean()) > share else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Sigmoid(Pretrainer):
    """Sum over all pairs of a batch of log(1 + exp(-z (scale x cosine + bias))), z = 1 where right, else -1, a row's mean
    (Zhai et al. 2023, SigLIP). Scale and bias are learnt, from the encoder's own where it has a bias. Else from the paper's scale of 10
    and the bias with which as many pairs of a first batch are called right as are: the paper's -10 is for towers from nothing in batches
    of tens of thousands, and a few dozen steps do not come back from it. Steps and rate were not searched; a start at the encoder's own
    scale did as well on training pairs kept aside.
    """

    good_when = "batches must be small, since each pair counts by itself"
    poor_when = "pairs are few: a closed-form map on frozen vectors (linear_maps) is safer and takes a second"
    papers = ("arxiv:2303.15343",)

    def part(self, pairs: Pairs) -> Part:
        named = self.start(pairs)

        def across(seen: Seen, draws: Tensor) -> Tensor:
            return pairwise(seen[IMAGES], seen[TEXTS], pairs.same(draws), bounded(named["log_scale"]), named["bias"])

        return Part(reads=frozenset({IMAGES, TEXTS}), across=across, named=named)

    def start(self, pairs: Pairs) -> dict[str, Tensor]:
        """Logarithm of the scale, and bias, before the first step."""
        scale, bias = (min(pairs.encoder.scale, LARGEST_SCALE), pairs.encoder.bias) if pairs.encoder.bias else (FIRST_SCALE, 0.0)
        if not bias:
            draws = torch.arange(min(self.batch, len(pairs)))
            with torch.no_grad():
                logits = scale * pairs.see_images(draws) @ pairs.see_texts(pairs.said(draws)).T
            bias = levelled(logits, min(float(pairs.same(draws).float().mean()), MOST_RIGHT))
        return {"log_scale": torch.tensor(math.log(scale)), "bias": torch.tensor(bias)}
