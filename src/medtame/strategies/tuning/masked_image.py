"""Masked image modelling: what was taken out of an image must be found from the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pixel_shuffle

from medtame.errors import PairError
from medtame.learning.augmented import chances
from medtame.learning.contrast import Contrast
from medtame.learning.fine_tuning import Pass
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer

PURPOSE = 3  # of the chances of a draw
LEAST = 1e-6
FINEST = 16  # pixels, a side, that are told of a cell of the map; finer ones are averaged


def patches_out(seed: int, draws: Tensor, patches: int, share: float) -> Tensor:
    """(n, 1, P, P) 1 where a patch is taken out: the same share of every image, which ones by chance of the draw."""
    count = patches * patches
    taken = min(count - 1, max(1, round(share * count)))
    out = torch.zeros(len(draws), count)
    for row, draw in zip(out, draws.tolist(), strict=True):
        row[torch.from_numpy(chances(seed, draw, PURPOSE).permutation(count)[:taken])] = 1.0
    return out.reshape(-1, 1, patches, patches)


def lost(found: Tensor, pixels: Tensor, out: Tensor) -> Tensor:
    """(n,) mean absolute difference of pixels (n, 3, S, S) and what was found (n, 3, T, T), over the patches out (n, 1, P, P)."""
    size = found.shape[-2:]
    wanted = pixels if pixels.shape[-2:] == size else interpolate(pixels, size, mode="bilinear", antialias=True)
    counted = interpolate(out, size, mode="nearest")
    away: Tensor = ((found - wanted).abs() * counted).sum((1, 2, 3))
    return away / (3 * counted.sum((1, 2, 3))).clamp(min=1)


@dataclass(frozen=True)
class MaskedImage(Pretrainer):
    """Mean absolute difference of the pixels of patches taken out and what a linear map finds of them in the tower's first map
    (Xie et al. 2022, SimMIM), plus `contrastive` x InfoNCE of the whole image.

    A share of a grid of `patches` x `patches` is taken out and filled with the image's mean in each channel: a convolutional tower
    has no token for what is masked, so none is learnt for a transformer either. Pixels are the prepared ones. The linear map is thrown
    away. With contrastive=0 no text is seen: image and text then drift apart, and zero-shot answers with them. Steps and rate were not
    searched.
    """

    good_when = "there are far more images than texts, and they look unlike the encoder's"
    poor_when = "the answer must come from words: it teaches pixels, not what they are called"
    cost = "minutes: passes through both towers, twice through the image tower"
    papers = ("arxiv:2111.09886",)
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patches: Annotated[int, Field(gt=1)] = 7
    masked: Annotated[float, Field(gt=0)] = 1.0
    contrastive: Annotated[float, Field(ge=0)] = 1.0

    def part(self, pairs: Pairs) -> Part:
        if "image" not in pairs.moving.sides:
            raise PairError("masked_image trains the image side, which is locked: give sides=image or sides=image,text")
        contrast, see = Contrast.of(pairs), Pass(pairs.image.tower, pairs.image.precision)
        with torch.no_grad():
            pixels = pairs.image.pixels(torch.tensor([0]))
            first = see(pixels)[1][0]
        side = min(FINEST, round(pixels.shape[-1] / first.shape[-1]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pairs.moving.seed)
            weight = 0.1 / math.sqrt(first.shape[1]) * torch.randn(3 * side * side, first.shape[1], 1, 1)
        named = {"decoder.weight": weight, "decoder.bias": torch.zeros(3 * side * side)}
        size = first.square().mean().sqrt().clamp(min=LEAST)  # what the map's numbers are divided by, so that any tower's are of size 1

        def within(draws: Tensor) -> Tensor:
            pixels = pairs.image.pixels(draws)
            out = patches_out(pairs.moving.seed, draws, self.patches, self.share)
            hidden = interpolate(out, pixels.shape[-2:], mode="nearest")
            first = see(pixels.lerp(pixels.mean((2, 3), keepdim=True).expand_as(pixels), hidden))[1][0]
            return self.masked * lost(
                pixel_shuffle(conv2d(first / size, named["decoder.weight"], named["decoder.bias"]), side), pixels, out
            )

        def across(seen: Seen, draws: Tensor) -> Tensor:
            return self.contrastive * contrast(seen[IMAGES], seen[TEXTS], draws)

        if not self.contrastive:
            return Part(within=within, named=named)
        named = {**named, "log_scale": contrast.log_scale}
        return Part(frozenset({IMAGES, TEXTS}), across=across, within=within, named=named)
