"""Two linear maps, one for images and one for texts, into a space where what belongs together lies together; in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
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
)
from medtame.strategies.base import Method, masked
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class LinearMapsAdapted(Adapted):
    maps: Maps
    penalties: Penalties
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            texts = query.encoder.texts([sentences[0] for sentences in query.wanted.prompts])
            scores = query.encoder.scale * cosines(self.maps, query.vectors(), texts)
            return Scores(masked(scores.float(), query.allowed))


@dataclass(frozen=True)
class LinearMaps(Method):
    """Regularised canonical correlation (Hotelling 1936; Vinod 1976): the plain reference of image-text retrieval.

    Both sides are centred, cut to 256 principal directions and whitened as far as their penalties let them; a direction counts
    by a power of its correlation. Both penalties and the power are the ones of 27 with the best mean reciprocal rank, both
    directions together, over three folds by case inside the support; with fewer than six cases they are fixed, and the result
    says so. Several texts may be right for a row and share its weight. Words of rows are not read.
    """

    learning = "fine_tuning"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates"})
    trains = "a linear map of images and one of texts, in closed form"
    cost = "seconds on cached features"
    good_when = "fifty image-text pairs or more: the plain reference, in closed form"
    poor_when = "single words must be told apart: sentences are one vector each"
    papers = ("doi:10.1093/biomet/28.3-4.321", "doi:10.1016/0304-4076(76)90010-5")

    def fit(self, problem: Problem) -> Adapted:
        shares(problem.targets)
        with torch.no_grad():
            texts = problem.query.encoder.texts([sentences[0] for sentences in problem.query.wanted.prompts])
            found = best_by_folds(problem, lambda inside, outside: tried(inside, outside, texts))
            penalties = DEFAULT if found is None else found[0]
            maps = fitted_maps(problem, problem.query.vectors(), texts, penalties)
        return LinearMapsAdapted(single(maps), penalties, found is not None)


def tried(inside: Problem, outside: Problem, texts: Tensor) -> Iterable[tuple[Penalties, Tensor]]:
    used, vectors = held_texts(inside), outside.query.vectors()
    parts = decomposed(inside.query.vectors(), texts[used], shares(inside.targets)[:, used])
    for setting, maps in every_maps(parts):
        yield setting, cosines(maps, vectors, texts)
