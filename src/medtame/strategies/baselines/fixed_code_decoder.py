"""The decoder of text_query_decoder told by a number what to mark: the same network and the same steps, without language."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.errors import PairError
from medtame.learning.decoding import decoded, fixed_codes, learnt, seen
from medtame.learning.loop import Descent, Step
from medtame.networks.film_decoder import FilmDecoder
from medtame.strategies.base import REFUSED, Learner
from medtame.types import Adapted, Grids, Problem, Query


@dataclass(frozen=True)
class FixedCodeDecoderAdapted(Adapted):
    weights: dict[str, Tensor]
    names: tuple[str, ...]
    length: int
    maps: int

    def answer(self, query: Query) -> Grids:
        """Of words that fit never saw nothing is marked."""
        if query.size is None or query.words is None:
            raise PairError("fixed_code_decoder answers with grids, and this query names no size or no structures")
        found = decoded(FilmDecoder.of(self.weights), query, fixed_codes(query.words, self.length), self.maps)
        unknown = torch.tensor([word not in self.names for word in query.words], dtype=torch.bool)
        found[unknown] = REFUSED
        return Grids(found)


@dataclass(frozen=True)
class FixedCodeDecoder(Learner):
    """The image-only reference of the same size: FiLM (Perez et al. 2018) by one fixed random code a structure, no words.

    What text_query_decoder has to beat before its language can be said to help; it cannot be asked for anything new. As the
    switch between random and word codes in the CLIP-driven universal model (Liu et al. 2023). Maps of the encoder's image side,
    pixels, steps and settings are those of text_query_decoder.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"words", "targets_on_grid"})
    towers = frozenset({"grid"})
    trains = "an upsampling decoder with a pixel stem; the encoder stays frozen"
    cost = "a minute on cached features"
    good_when = "known structures, and as the bar that prompted segmentation has to pass"
    poor_when = "a structure without training masks: it cannot be asked for a new word"
    papers = ("arxiv:1709.07871", "arxiv:2301.00785")
    steps: Annotated[int, Field(ge=0)] = 400
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    width: Annotated[int, Field(gt=0, multiple_of=16)] = 64
    length: Annotated[int, Field(gt=0)] = 1280

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        if problem.loss is None or problem.query.words is None:
            raise PairError("fixed_code_decoder learns by the task's loss from named structures, and this task gives none")
        query, targets = problem.query, problem.targets
        words, images = problem.query.words, seen(query)
        network = FilmDecoder.drawn(images.scales, self.length, targets.shape[1], self.width, problem.seed)
        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
        codes = fixed_codes(words, self.length)
        kept = yield from learnt(
            network, images, codes, targets, problem.loss, how, dropout=self.feature_dropout, seed=problem.seed, resume=resume
        )
        return FixedCodeDecoderAdapted(kept, tuple(sorted(set(words))), self.length, targets.shape[1])
