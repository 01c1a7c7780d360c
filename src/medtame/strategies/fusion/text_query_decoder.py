"""One network for many targets: the image is decoded to a grid, and the prompt says which."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from medtame.errors import PairError
from medtame.learning.loop import Descent, Step, descend
from medtame.networks.film_decoder import FilmDecoder
from medtame.strategies.base import Learner
from medtame.types import Adapted, Encoder, Grids, Problem, Query

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Images:
    """What the decoder sees of each distinct image, and the image of each row."""

    scales: tuple[Tensor, ...]  # each (images, F, G, G), in half precision, as the pixels are
    pixels: Tensor  # (images, 3, H, W)
    source: Tensor  # (N,)

    def rows(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        images = self.source[rows]
        return [scale[images].float() for scale in self.scales], self.pixels[images].float()


def seen(query: Query) -> Images:
    """The encoder's maps and the pixels of the images that rows ask about, each image once, in little memory.

    The coarsest map, of 7 x 7 cells say, is left out where there are finer ones: it tells what is shown, hardly where.
    """
    query = query.take(np.arange(len(query)))
    grid = query.encoder.grid(query.samples)
    scales = tuple(scale.half() for scale in grid[1:] or grid)
    return Images(scales, query.samples.pixels(size=query.size).expand(-1, 3, -1, -1).half(), torch.as_tensor(query.source))


def prompts_of(words: Sequence[str] | None, encoder: Encoder) -> Tensor:
    """(N, D) the encoder's vector of each row's words; each distinct sentence is embedded once."""
    if words is None:
        raise PairError("text_query_decoder is told by words what to mark, and these rows have none: give prompts")
    distinct = sorted(set(words))
    number = {sentence: k for k, sentence in enumerate(distinct)}
    return encoder.texts(distinct)[torch.tensor([number[sentence] for sentence in words])]


@dataclass(frozen=True)
class TextQueryDecoderAdapted(Adapted):
    weights: dict[str, Tensor]
    centre: Tensor  # (D,) the mean of the support's distinct prompts
    spread: float  # their root mean square distance from it
    maps: int

    def condition(self, prompts: Tensor) -> Tensor:
        """Centred and rescaled to about unit variance: raw prompts of one field are nearly parallel."""
        conditioned: Tensor = (prompts - self.centre) / self.spread * len(self.centre) ** 0.5
        return conditioned

    def network(self) -> FilmDecoder:
        layers = [self.weights[f"projections.{k}.weight"] for k in range(sum(name.startswith("projections") for name in self.weights) // 2)]
        return FilmDecoder([layer.shape[1] for layer in layers], len(self.centre), self.maps, layers[0].shape[0])

    @torch.no_grad()
    def answer(self, query: Query) -> Grids:
        if query.size is None:
            raise PairError("text_query_decoder answers with grids, and this query names no size")
        network = self.network()
        network.load_state_dict(self.weights)
        found = [torch.zeros(0, self.maps, *query.size)]
        for start in range(0, len(query), ROWS_AT_ONCE):
            part = query.take(np.arange(start, min(start + ROWS_AT_ONCE, len(query))))
            prompts = self.condition(prompts_of(part.words, part.encoder))
            found.append(network(*seen(part).rows(torch.arange(len(part))), prompts))
        return Grids(torch.cat(found))


def thinned(scale: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Maps (N, F, G, G) without a share of their channels, drawn a row, the others larger by as much."""
    kept = torch.rand(*scale.shape[:2], 1, 1, generator=generator) >= share
    return scale * kept / (1 - share)


@dataclass(frozen=True)
class TextQueryDecoder(Learner):
    """Frozen maps and a pixel stem, modulated by the prompt, decoded to logits; only the decoder learns.

    After CLIPSeg (Lüddecke and Ecker 2022), with FiLM (Perez et al. 2018) by the frozen text vector, as in the CLIP-driven
    universal model (Liu et al. 2023), one network for all structures. The task gives targets and loss. AdamW, cosine decay; half
    of the feature channels are left out at each step. No augmentation: sides matter. Defaults were chosen by three folds of
    patients inside the training part of 34 chest X-rays.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"words", "targets_on_grid"})
    towers = frozenset({"text", "grid"})
    new_words = True
    reads = frozenset({"rows"})
    trains = "an upsampling decoder with a pixel stem; encoder and text stay frozen"
    cost = "a minute on cached features"
    papers = ("arxiv:2112.10003", "arxiv:2301.00785", "arxiv:1709.07871")
    steps: Annotated[int, Field(ge=0)] = 400
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    width: Annotated[int, Field(gt=0, multiple_of=16)] = 64

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        if problem.loss is None:
            raise PairError("text_query_decoder learns by the task's loss, and this task gives none")
        query, compare, targets = problem.query, problem.loss, problem.targets
        images, prompts = seen(query), prompts_of(query.words, query.encoder)
        distinct = prompts_of(sorted(set(query.words or ())), query.encoder)
        centre = distinct.mean(0)
        spread = float((distinct - centre).square().sum(1).mean().sqrt())
        condition = TextQueryDecoderAdapted({}, centre, spread if spread > 1e-6 else 1.0, targets.shape[1])
        prompts = condition.condition(prompts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            network = FilmDecoder([scale.shape[1] for scale in images.scales], len(centre), targets.shape[1], self.width)
        weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

        made = count(0 if resume is None else int(resume["step"]))

        def loss(rows: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(problem.seed * 1_000_003 + next(made))
            scales, pixels = images.rows(rows)
            scales = [thinned(scale, self.feature_dropout, generator) for scale in scales]
            return compare(functional_call(network, weights, (scales, pixels, prompts[rows])), targets[rows])

        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
        kept = yield from descend(weights, loss, how, n=len(query), seed=problem.seed, resume=resume)
        return TextQueryDecoderAdapted(kept, condition.centre, condition.spread, condition.maps)
