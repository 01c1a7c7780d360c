"""Soft-target pretraining: texts that say nearly the same are nearly right for each other's images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning.contrast import LARGEST_SCALE, bounded
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer


def softened(images: Tensor, texts: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """Mean over both directions of the cross-entropy of softmax(scale x cosine) and targets (n, n), rows of sum 1; they are symmetric
    but for that.
    """
    logits = scale * images @ texts.T
    return -((targets * logits.log_softmax(1)).sum(1).mean() + (targets * logits.T.log_softmax(1)).sum(1).mean()) / 2


@dataclass(frozen=True)
class SoftTarget(Pretrainer):
    """Cross-entropy, in both directions, with targets softmax(cosine of the frozen texts / temperature) (the idea of MedCLIP, Wang et al.
    2022, and UniCL, Yang et al. 2022), with a learnt scale. Steps and rate were not searched.
    """

    good_when = "captions repeat each other nearly, so that other images' texts are not wrong"
    poor_when = "the frozen text side does not tell your captions apart: its likeness is what is taught"
    papers = ("arxiv:2210.10163", "arxiv:2204.03610")
    temperature: Annotated[float, Field(gt=0)] = 0.1

    def part(self, pairs: Pairs) -> Part:
        log_scale = torch.tensor(math.log(min(pairs.encoder.scale, LARGEST_SCALE)))

        def across(seen: Seen, draws: Tensor) -> Tensor:
            with torch.no_grad():
                frozen = pairs.encoder.texts(pairs.said(draws))
            targets = (frozen @ frozen.T / self.temperature).softmax(1)
            return softened(seen[IMAGES], seen[TEXTS], targets, bounded(log_scale))

        return Part(reads=frozenset({IMAGES, TEXTS}), across=across, named={"log_scale": log_scale})
