"""Contrastive pretraining: pairs of images and texts draw each other's vectors near."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medtame.learning.contrast import Contrast
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer


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
        contrast = Contrast.of(pairs)

        def across(seen: Seen, draws: Tensor) -> Tensor:
            return contrast(seen[IMAGES], seen[TEXTS], draws)

        return Part(reads=frozenset({IMAGES, TEXTS}), across=across, named={"log_scale": contrast.log_scale})
