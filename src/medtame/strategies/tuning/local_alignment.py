"""Local alignment: each word of a text looks for its regions of the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from medtame.learning.contrast import Contrast, both_ways
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, REGIONS, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer

WORDS, SAID = "local_alignment.words", "local_alignment.said"
NUMBERS_AT_ONCE = 2**24  # likenesses of words and regions that are held at a time
LEAST = 1e-8
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
STOP_WORDS = frozenset(
    WORD.findall("""
    a about after again all also am an and any are as at be because been before being between both but by can could did do does
    doing for from further had has have having he her here him his how i if in into is it its just may me might more most must my
    no non nor not of off on once only or other our out over own same shall she should so some such than that the their them then
    there these they this those to too under up us was we were what when where which while who whom why will with within without
    would you your
    """)
)


def content_words(text: str, most: int) -> list[str]:
    """The first distinct words of a text that say something, in lower case; of a text without any, the text."""
    words = dict.fromkeys(word for word in WORD.findall(text.lower()) if len(word) > 1 and word not in STOP_WORDS)
    return list(words)[:most] or [text]


def likeness(regions: Tensor, words: Tensor, said: Tensor, region_sharpness: float, word_sharpness: float) -> Tensor:
    """(n, m) how well images and texts fit: log of the mean over words of exp(word sharpness x cosine of the word and its regions).

    Regions (n, L, D) and words (m, W, D) are of unit norm; `said` (m, W) is 1 where there is a word. A word's regions are their mean by
    softmax(region sharpness x cosine); its norm comes from the regions' products with each other, so no mean is ever made.
    """
    cosines = (regions.flatten(0, 1) @ words.flatten(0, 1).T).reshape(*regions.shape[:2], -1)  # (n, L, m W)
    looks = (region_sharpness * cosines).softmax(1)
    lengths = (looks * (regions @ regions.mT @ looks)).sum(1).clamp(min=LEAST).sqrt()
    found = ((looks * cosines).sum(1) / lengths).reshape(-1, *said.shape)
    summed: Tensor = (word_sharpness * found).masked_fill(said == 0, -torch.inf).logsumexp(2)
    return summed - said.detach().sum(1).log()


def in_blocks(regions: Tensor, words: Tensor, said: Tensor, region_sharpness: float, word_sharpness: float) -> Tensor:
    """`likeness`, some texts at a time, made again for the gradient where they are several."""
    size = max(1, NUMBERS_AT_ONCE // (regions[..., 0].numel() * words.shape[1]))
    if size >= len(words):
        return likeness(regions, words, said, region_sharpness, word_sharpness)
    parts = [
        checkpoint(likeness, regions, *part, region_sharpness, word_sharpness, use_reentrant=False)
        for part in zip(torch.split(words, size), torch.split(said, size), strict=True)
    ]
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class LocalAlignment(Pretrainer):
    """InfoNCE with, for cosine, pair_sharpness x log mean over words exp(word_sharpness x cosine(word, its regions)), where a word's
    regions are their mean by softmax(region_sharpness x cosine) (Huang et al. 2021, GLoRIA), plus `contrastive` x InfoNCE of whole
    vectors.

    Regions are the cells of the encoder's first map. Words are the first `words` distinct ones of a text that are no stop words, each
    encoded as a string of its own: they are without context, so a finding that is denied looks for its region, too. Departures from the
    authors' code: the mean over words in the place of the sum, which favours long texts; the attention as in the paper's equation,
    not normalised over words before. The sharpnesses are theirs. Steps and rate were not searched.
    """

    good_when = "texts name small things that fill a few cells of the image"
    poor_when = "the image tower's map is coarse, or texts say mostly what is absent"
    cost = "minutes: passes through both towers, and each word through the text tower"
    papers = ("doi:10.1109/ICCV48922.2021.00391",)
    words: Annotated[int, Field(gt=0)] = 16
    region_sharpness: Annotated[float, Field(gt=0)] = 4.0
    word_sharpness: Annotated[float, Field(gt=0)] = 5.0
    pair_sharpness: Annotated[float, Field(gt=0)] = 10.0
    contrastive: Annotated[float, Field(ge=0)] = 1.0

    def part(self, pairs: Pairs) -> Part:
        contrast = Contrast.of(pairs)

        def see(draws: Tensor, seen: Seen) -> Seen:
            vectors, said = self.vectors_of(pairs, pairs.said(draws))
            return {WORDS: vectors, SAID: said}

        def across(seen: Seen, draws: Tensor) -> Tensor:
            regions = normalize(seen[REGIONS], dim=-1)
            fits = in_blocks(regions, seen[WORDS], seen[SAID], self.region_sharpness, self.word_sharpness)
            local = both_ways(self.pair_sharpness * fits, pairs.same(draws))
            return local + self.contrastive * contrast(seen[IMAGES], seen[TEXTS], draws) if self.contrastive else local

        reads = frozenset({REGIONS, IMAGES, TEXTS}) if self.contrastive else frozenset({REGIONS})
        return Part(reads, across=across, see=see, named={"log_scale": contrast.log_scale})

    def vectors_of(self, pairs: Pairs, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Words (n, W, D), zeros where a text has fewer, and whether there is one (n, W)."""
        words = [content_words(text, self.words) for text in texts]
        vectors = pairs.see_texts([word for row in words for word in row])
        said = torch.tensor([[1.0] * len(row) + [0.0] * (self.words - len(row)) for row in words])
        places = torch.nonzero(said.flatten())[:, 0]
        spread = vectors.new_zeros(said.numel(), vectors.shape[1]).index_copy(0, places, vectors)
        return spread.reshape(*said.shape, -1), said
