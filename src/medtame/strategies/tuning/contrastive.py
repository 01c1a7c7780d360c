"""Contrastive pretraining: pairs of images and texts draw each other's vectors near."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer

LARGEST_SCALE = 100.0


def info_nce(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of softmax(scale x cosine) and what is right, in equal shares (n, n)."""
    logits, right = scale * images @ texts.T, same.float()
    to_text = -(right / right.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_image = -(right / right.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (to_text + to_image) / 2


@dataclass(frozen=True)
class Contrastive(Pretrainer):
    """InfoNCE in both directions over a batch (Radford et al. 2021; Zhang et al. 2022, ConVIRT), with a learnt temperature.

    Texts of the same case and equal texts share what is right, so none is counted as a wrong answer of its own image. Steps and rate
    were not searched.
    """

    good_when = "there are hundreds of pairs of your own and the encoder's text does not know them"
    poor_when = "pairs are few: a closed-form map on frozen vectors (linear_maps) is safer and takes a second"
    papers = ("arxiv:2103.00020", "arxiv:2010.00747")

    def part(self, pairs: Pairs) -> Part:
        log_scale = torch.tensor(math.log(pairs.encoder.scale))

        def across(seen: Seen, draws: Tensor) -> Tensor:
            return info_nce(seen[IMAGES], seen[TEXTS], pairs.same(draws), log_scale.exp().clamp(max=LARGEST_SCALE))

        return Part(reads=frozenset({IMAGES, TEXTS}), across=across, named={"log_scale": log_scale})
