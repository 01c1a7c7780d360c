"""Captioning: a small language model that is shown the image must find its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize

from medtame.learning.contrast import Contrast
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, REGIONS, TEXTS, Part, Seen
from medtame.learning.vocabulary import END, SPEAK, UNKNOWN, UNSAID, ids_of, sequences, split_words, vocabulary_of
from medtame.networks.prefix_decoder import PrefixDecoder
from medtame.strategies.base import Pretrainer

LOSSES = "captioning.losses"
SIDE = 4  # cells of the image that the decoder sees, a side, at most
IMAGES_TO_CENTRE = 256  # whose vectors give the mean and spread that the decoder's are set against


def shown(vectors: Tensor, regions: Tensor) -> Tensor:
    """(n, 1 + k x k, D) of unit norm: whole vectors (n, D) and regions (n, G x G, D), pooled to k = at most `SIDE` cells a side."""
    side = math.isqrt(regions.shape[1])
    cells = regions.mT.reshape(len(regions), -1, side, side)
    pooled = adaptive_avg_pool2d(cells, min(SIDE, side)).flatten(2).mT
    return torch.cat([normalize(vectors, dim=-1)[:, None], normalize(pooled, dim=-1)], 1)


@dataclass(frozen=True)
class Captioner:
    """A decoder with weights by name, and the words that it knows."""

    network: PrefixDecoder
    named: dict[str, Tensor]
    number: dict[str, int]  # word -> id
    centre: Tensor  # (V, D) of what is shown of the images, by the encoder as it was
    spread: Tensor  # (V, 1)
    longest: int

    @classmethod
    def of(cls, pairs: Pairs, words: int, longest: int, width: int, layers: int) -> Captioner:
        known = vocabulary_of(pairs.strings, words)
        some = pairs.query.take(range(min(len(pairs), IMAGES_TO_CENTRE)))
        with torch.no_grad():
            grid = pairs.encoder.grid(some.samples)[0][torch.as_tensor(some.source)]
            seen = shown(some.vectors(), grid.flatten(2).mT)
        centre = seen.mean(0)
        spread = (seen - centre).square().mean((0, 2))[:, None].sqrt()
        longest = min(longest, max(len(split_words(text)) for text in pairs.strings) + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pairs.moving.seed)
            network = PrefixDecoder(seen.shape[2], seen.shape[1], len(known), 1 + longest, width, layers)
        named = {name: value.detach().clone() for name, value in network.state_dict().items()}
        number = {word: k for k, word in enumerate(known)}
        return cls(network, named, number, centre, spread.where(spread > 0, 1.0), longest)

    def losses(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) mean cross-entropy of the words of each text and its end, of images (n, V, D) as `shown`; unknown words are passed over."""
        answers = [[*ids_of(text, self.number), END][: self.longest] for text in texts]
        ids, said = sequences([[SPEAK]] * len(texts), answers)
        targets = ids[:, 1:].where(said & (ids[:, 1:] != UNKNOWN), UNSAID)
        logits = functional_call(self.network, self.named, ((image - self.centre) / self.spread, ids[:, :-1]))
        lost = cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=UNSAID)
        return lost.sum(1) / (targets != UNSAID).sum(1).clamp(min=1)


@dataclass(frozen=True)
class Captioning(Pretrainer):
    """`contrastive` x InfoNCE + `captioning` x mean cross-entropy of a text's words, each from the words before it and the image
    (Yu et al. 2022, CoCa; their weights, 1 and 2).

    The decoder is a small causal transformer, trained from nothing and thrown away at the end; it begins with the image, as the whole
    vector and at most 4 x 4 cells of the first map, where CoCa's looks at the image by cross-attention. Without `contrastive` the text
    side learns nothing and zero-shot answers drift. Steps and rate were not searched.
    """

    good_when = "texts tell more of an image than is needed to tell it from others, and repeat their phrases"
    poor_when = "texts are few or short: the decoder learns them by heart and the image has nothing to add"
    cost = "minutes: passes through both towers and a small decoder"
    papers = ("arxiv:2205.01917",)
    contrastive: Annotated[float, Field(ge=0)] = 1.0
    captioning: Annotated[float, Field(gt=0)] = 2.0
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 128
    layers: Annotated[int, Field(gt=0)] = 2
    vocabulary: Annotated[int, Field(gt=0)] = 4000
    longest: Annotated[int, Field(gt=1)] = 64

    def part(self, pairs: Pairs) -> Part:
        contrast = Contrast.of(pairs)
        captioner = Captioner.of(pairs, self.vocabulary, self.longest, self.width, self.layers)

        def see(draws: Tensor, seen: Seen) -> Seen:
            return {LOSSES: captioner.losses(shown(seen[IMAGES], seen[REGIONS]), pairs.said(draws))}

        def across(seen: Seen, draws: Tensor) -> Tensor:
            told = self.captioning * seen[LOSSES].mean()
            return told + self.contrastive * contrast(seen[IMAGES], seen[TEXTS], draws) if self.contrastive else told

        reads = frozenset({IMAGES, REGIONS, *([TEXTS] if self.contrastive else [])})
        return Part(reads, across=across, see=see, named={"log_scale": contrast.log_scale, **captioner.named})
