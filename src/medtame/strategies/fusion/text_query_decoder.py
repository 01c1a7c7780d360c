"""One network for many targets: the image is decoded to a grid, and the prompt says which."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.errors import PairError
from medtame.learning.decoding import decoded, learnt, seen
from medtame.learning.loop import Descent, Step
from medtame.networks.film_decoder import FilmDecoder
from medtame.strategies.base import Learner
from medtame.types import Adapted, Encoder, Grids, Problem, Query


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

    def answer(self, query: Query) -> Grids:
        if query.size is None:
            raise PairError("text_query_decoder answers with grids, and this query names no size")
        network = FilmDecoder.of(self.weights)
        return Grids(decoded(network, query, self.condition(prompts_of(query.words, query.encoder)), self.maps))


@dataclass(frozen=True)
class TextQueryDecoder(Learner):
    """Frozen maps and a pixel stem, modulated by the prompt, decoded to logits; only the decoder learns.

    After CLIPSeg (Lüddecke and Ecker 2022), with FiLM (Perez et al. 2018) by the frozen text vector and a dot product of pixels
    and text (CRIS: Wang et al. 2022), as in the CLIP-driven universal model (Liu et al. 2023), one network for all structures. A
    row is an image and a prompt, so a structure that was not annotated in an image is never asked of it and carries no loss. The
    task gives targets and loss. AdamW, cosine decay; half of the feature channels are left out at each step. No augmentation: sides
    matter. Defaults were chosen by three folds of patients inside the training part of 34 chest X-rays.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"words", "targets_on_grid"})
    towers = frozenset({"text", "grid"})
    new_words = True
    reads = frozenset({"rows"})
    trains = "an upsampling decoder with a pixel stem; encoder and text stay frozen"
    cost = "a minute on cached features"
    good_when = "ten masks or more, one network for many structures, and new prompts"
    poor_when = "known structures alone: a fixed code does as well"
    papers = ("arxiv:2112.10003", "arxiv:2111.15174", "arxiv:2301.00785", "arxiv:1709.07871")
    steps: Annotated[int, Field(ge=0)] = 400
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    width: Annotated[int, Field(gt=0, multiple_of=16)] = 64

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        if problem.loss is None:
            raise PairError("text_query_decoder learns by the task's loss, and this task gives none")
        query, targets = problem.query, problem.targets
        images, prompts = seen(query), prompts_of(query.words, query.encoder)
        distinct = prompts_of(sorted(set(query.words or ())), query.encoder)
        centre = distinct.mean(0)
        spread = float((distinct - centre).square().sum(1).mean().sqrt())
        condition = TextQueryDecoderAdapted({}, centre, spread if spread > 1e-6 else 1.0, targets.shape[1])
        network = FilmDecoder.drawn(images.scales, len(centre), targets.shape[1], self.width, problem.seed)
        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
        kept = yield from learnt(
            network,
            images,
            condition.condition(prompts),
            targets,
            problem.loss,
            how,
            dropout=self.feature_dropout,
            seed=problem.seed,
            resume=resume,
        )
        return TextQueryDecoderAdapted(kept, condition.centre, condition.spread, condition.maps)
