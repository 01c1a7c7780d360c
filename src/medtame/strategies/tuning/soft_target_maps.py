"""Two linear maps whose targets are soft: a text that is like the right one counts as partly right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning.paired import (
    DEFAULT,
    Maps,
    Penalties,
    best_by_folds,
    cosines,
    decomposed,
    every_maps,
    fitted_maps,
    held_texts,
    shares,
    single,
    softened,
)
from medtame.strategies.base import Method, masked
from medtame.types import Adapted, Problem, Query, Scores

PARTS = (0.0, 0.25, 0.5)  # 0: only what the pairs say, as linear_maps


@dataclass(frozen=True)
class SoftTargetMapsAdapted(Adapted):
    maps: Maps
    part: float
    penalties: Penalties
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            texts = query.encoder.texts([sentences[0] for sentences in query.wanted.prompts])
            scores = query.encoder.scale * cosines(self.maps, query.vectors(), texts)
            return Scores(masked(scores.float(), query.allowed))


@dataclass(frozen=True)
class SoftTargetMaps(Method):
    """linear_maps with targets (1 - part) x pairs + part x softmax(centred cosine of texts / temperature).

    MedCLIP (Wang et al. 2022) takes such targets from labels of findings, in a contrastive loss; here they come from the texts
    alone and the maps stay in closed form. `part` is chosen with the penalties, by folds of cases inside the support, from 0
    (linear_maps itself), .25 and .5: where it is 0, soft targets do not help on these data, and the result says so.
    """

    learning = "fine_tuning"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates"})
    trains = "a linear map of images and one of texts, in closed form"
    cost = "seconds on cached features"
    good_when = "pairs whose texts say nearly the same of different cases"
    poor_when = "pairs that are told apart: no measurable gain over linear_maps here"
    papers = ("arxiv:2210.10163",)
    temperature: Annotated[float, Field(gt=0)] = 0.2

    def fit(self, problem: Problem) -> Adapted:
        shares(problem.targets)
        with torch.no_grad():
            texts = problem.query.encoder.texts([sentences[0] for sentences in problem.query.wanted.prompts])
            found = best_by_folds(problem, lambda inside, outside: self._tried(inside, outside, texts))
            part, penalties = (PARTS[1], DEFAULT) if found is None else found[0]
            share = softened(shares(problem.targets), texts, part, self.temperature)
            maps = fitted_maps(problem, problem.query.vectors(), texts, penalties, share)
        return SoftTargetMapsAdapted(single(maps), part, penalties, found is not None)

    def _tried(self, inside: Problem, outside: Problem, texts: Tensor) -> Iterable[tuple[tuple[float, Penalties], Tensor]]:
        used, vectors = held_texts(inside), outside.query.vectors()
        for part in PARTS:
            share = softened(shares(inside.targets)[:, used], texts[used], part, self.temperature)
            parts = decomposed(inside.query.vectors(), texts[used], share)
            for penalties, maps in every_maps(parts):
                yield (part, penalties), cosines(maps, vectors, texts)
