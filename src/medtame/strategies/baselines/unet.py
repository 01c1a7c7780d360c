"""MONAI's U-Net from scratch on the pixels: what the same images and steps give without any encoder."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.errors import PairError
from medtame.learning.decoding import decoded, learnt, seen
from medtame.learning.loop import Descent, Step
from medtame.strategies.base import REFUSED, Learner
from medtame.types import Adapted, Grids, Problem, Query

STRIDE = 16  # of the deepest of five levels


class ChosenMaps(nn.Module):
    """A U-Net with K maps a structure; the number of a structure (N, 1) says which K of them are the answer."""

    def __init__(self, maps: int, structures: int, width: int) -> None:
        super().__init__()
        from monai.networks.nets import UNet  # here, because MONAI takes seconds to import

        self.maps = maps
        self.network = UNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=maps * structures,
            channels=[width * 2**level for level in range(5)],
            strides=(2, 2, 2, 2),
            num_res_units=2,
        )

    def forward(self, scales: object, pixels: Tensor, codes: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in 0..1, codes (N, 1): (N, K, H, W). Sides that are no multiple of 16 are filled by mirroring."""
        height, width = pixels.shape[2:]
        whole = nn.functional.pad((pixels - 0.5) * 4, (0, -width % STRIDE, 0, -height % STRIDE), mode="reflect")
        every: Any = self.network(whole)[:, :, :height, :width].reshape(len(pixels), -1, self.maps, height, width)
        chosen: Tensor = every[torch.arange(len(pixels)), codes[:, 0].long()]
        return chosen


@dataclass(frozen=True)
class UnetAdapted(Adapted):
    weights: dict[str, Tensor]
    names: tuple[str, ...]
    width: int
    maps: int

    def answer(self, query: Query) -> Grids:
        """Of words that fit never saw nothing is marked."""
        if query.size is None or query.words is None:
            raise PairError("unet answers with grids, and this query names no size or no structures")
        network = ChosenMaps(self.maps, len(self.names), self.width)
        network.load_state_dict(self.weights)
        numbers = [self.names.index(word) if word in self.names else -1 for word in query.words]
        codes = torch.tensor(numbers, dtype=torch.float32)[:, None]
        found = decoded(network.eval(), query, codes.clamp(min=0), self.maps, maps_wanted=False)
        found[codes[:, 0] < 0] = REFUSED
        return Grids(found)


@dataclass(frozen=True)
class Unet(Learner):
    """MONAI's U-Net with residual units (Ronneberger et al. 2015; Kerfoot et al. 2019), five levels, from random weights.

    One output a structure; the same steps, batches, loss and working size as text_query_decoder, AdamW, cosine decay, no
    augmentation; MONAI's own instance norm, so that a row does not depend on its batch. It reads no word but the name, and no encoder.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"words", "targets_on_grid"})
    towers = frozenset({"grid"})
    trains = "a U-Net on the pixels, from random weights"
    cost = "a few minutes"
    good_when = "dozens of masks or more, and as the bar for frozen encoders"
    poor_when = "a handful of masks, or structures that are only named"
    papers = ("arxiv:1505.04597", "doi:10.1007/978-3-030-12029-0_40")
    steps: Annotated[int, Field(ge=0)] = 400
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        if problem.loss is None or problem.query.words is None:
            raise PairError("unet learns by the task's loss from named structures, and this task gives none")
        query, targets, words = problem.query, problem.targets, problem.query.words
        names = tuple(sorted(set(words)))
        codes = torch.tensor([names.index(word) for word in words], dtype=torch.float32)[:, None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            network = ChosenMaps(targets.shape[1], len(names), self.width)
        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
        kept = yield from learnt(
            network, seen(query, maps=False), codes, targets, problem.loss, how, dropout=0.0, seed=problem.seed, resume=resume
        )
        return UnetAdapted(kept, names, self.width, targets.shape[1])
