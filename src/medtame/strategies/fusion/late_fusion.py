"""A query of an image and words: what each finds by itself is added, by a weight that the support chooses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medtame.errors import DataError
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
)
from medtame.strategies.base import Method, masked
from medtame.types import Adapted, Encoder, Problem, Query, Scores

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the words


def by_words(encoder: Encoder, words: Sequence[str], texts: Tensor, mean: Tensor) -> Tensor:
    """(N, C) cosines of the rows' words and texts (C, D), both less `mean` (D,); 0 for a row without words."""
    asked = encoder.texts([word or "nothing" for word in words]).double()
    near = nn.functional.normalize(asked - mean, dim=-1) @ nn.functional.normalize(texts.double() - mean, dim=-1).T
    return near * torch.tensor([[float(bool(word.strip()))] for word in words], dtype=near.dtype)


def worded(query: Query) -> Sequence[str]:
    if query.words is None or not any(word.strip() for word in query.words):
        raise DataError("late_fusion joins an image with words of its row and there are none: name their column with --columns query=YOURS")
    return query.words


@dataclass(frozen=True)
class LateFusionAdapted(Adapted):
    maps: Maps
    mean: Tensor  # (D,) of the support's texts
    weight: float
    penalties: Penalties
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            texts = query.encoder.texts([prompts[0] for prompts in query.wanted.prompts])
            image = cosines(self.maps, query.vectors(), texts)
            words = by_words(query.encoder, worded(query), texts, self.mean.double())
            scores = query.encoder.scale * ((1 - self.weight) * image + self.weight * words)
            return Scores(masked(scores.float(), query.allowed))


@dataclass(frozen=True)
class LateFusion(Method):
    """(1 - w) x cosine of image and text by two linear maps + w x cosine of the row's words and text (sum rule: Kittler et al. 1998).

    For queries of an image with words, such as the history that came with the request. The words meet the texts in the encoder's
    own space, less the support's mean text. The weight w (0 to 1 in quarters) and the penalties are chosen by folds of cases
    inside the support: 0 says that the words do not help, 1 that the image does not. A query without words is refused.
    """

    learning = "fine_tuning"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "two linear maps in closed form, and a weight"
    cost = "seconds on cached features"
    good_when = "queries come with words, such as the history of a request"
    poor_when = "queries have no words: it refuses them"
    papers = ("doi:10.1109/34.667881",)

    def fit(self, problem: Problem) -> Adapted:
        share, query = shares(problem.targets), problem.query
        worded(query)
        with torch.no_grad():
            texts = query.encoder.texts([sentences[0] for sentences in query.wanted.prompts])
            found = best_by_folds(problem, lambda inside, outside: tried(inside, outside, texts))
            weight, penalties = (WEIGHTS[2], DEFAULT) if found is None else found[0]
            maps = fitted_maps(problem, query.vectors(), texts, penalties)
        return LateFusionAdapted(single(maps), mean_text(share, texts).float(), weight, penalties, found is not None)


def mean_text(share: Tensor, texts: Tensor) -> Tensor:
    return (share.sum(0) @ texts.double()) / share.sum()


def tried(inside: Problem, outside: Problem, texts: Tensor) -> Iterable[tuple[tuple[float, Penalties], Tensor]]:
    used, share = held_texts(inside), shares(inside.targets)
    words = by_words(outside.query.encoder, outside.query.words or (), texts, mean_text(share, texts))
    parts = decomposed(inside.query.vectors(), texts[used], share[:, used])
    for penalties, maps in every_maps(parts):
        image = cosines(maps, outside.query.vectors(), texts)
        for weight in WEIGHTS:
            yield (weight, penalties), (1 - weight) * image + weight * words
