"""Texts are read twice, as sentences and as the concepts that they name: the words of the support that several cases use."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

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

WORD = re.compile(r"[^\W_]{2,}")
WEIGHTS = (0.0, 1.0, 2.0)  # of the concepts beside the sentence; 0: as linear_maps


@dataclass(frozen=True)
class Concepts:
    """Words and pairs of neighbouring words, with how much each says (inverse document frequency)."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(C, V) unit norm, or zero for a text that names none: (1 + log count) x weight."""
        place = {name: k for k, name in enumerate(self.names)}
        found = torch.zeros(len(texts), len(self.names), dtype=torch.float64)
        for row, text in enumerate(texts):
            for name, count in Counter(terms(text)).items():
                if name in place:
                    found[row, place[name]] = (1 + torch.log(torch.tensor(float(count)))) * self.weights[place[name]]
        return nn.functional.normalize(found, dim=-1)


def terms(text: str) -> list[str]:
    """The words of a text in lower case, and its pairs of neighbouring words."""
    words = WORD.findall(text.casefold())
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def concepts_of(texts: Sequence[str], least: int) -> Concepts:
    """The terms of at least `least` texts and of no more than half of them, each by log((1 + n) / (1 + texts with it)) + 1."""
    counts = Counter(term for text in texts for term in set(terms(text)))
    names = tuple(sorted(term for term, count in counts.items() if least <= count <= max(least, len(texts) / 2)))
    weights = [float(torch.log(torch.tensor((1 + len(texts)) / (1 + counts[name])))) + 1 for name in names]
    return Concepts(names, tuple(weights))


def read(encoder: Encoder, sentences: Sequence[str], concepts: Concepts, weight: float) -> Tensor:
    """(C, D + V): a text's unit vector and, by `weight`, its concepts."""
    vectors = encoder.texts(sentences).double()
    return vectors if weight == 0 else torch.cat([vectors, weight * concepts.vectors(sentences)], 1)


@dataclass(frozen=True)
class ConceptExpansionAdapted(Adapted):
    maps: Maps
    names: tuple[str, ...]
    weights: tuple[float, ...]
    weight: float
    penalties: Penalties
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            sentences = [prompts[0] for prompts in query.wanted.prompts]
            texts = read(query.encoder, sentences, Concepts(self.names, self.weights), self.weight)
            scores = query.encoder.scale * cosines(self.maps, query.vectors(), texts)
            return Scores(masked(scores.float(), query.allowed))


@dataclass(frozen=True)
class ConceptExpansion(Method):
    """linear_maps on sentences with their concepts beside them (words as concepts: Salton and Buckley 1988).

    A general sentence encoder puts all medical sentences close together; the words themselves do not. Concepts are words and
    pairs of words of at least `least` support texts, not of more than half of them, by tf-idf. Their weight beside the sentence
    (0, 1, 2) and the penalties of the maps are chosen by folds of cases inside the support, whose concepts come from the
    fold's own training texts; with weight 0 concepts do not help on these data, and the result says so.
    """

    learning = "fine_tuning"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates"})
    stores_support = True
    trains = "two linear maps in closed form; a vocabulary of the support texts"
    cost = "seconds on cached features"
    good_when = "hundreds of pairs whose texts are told apart by single words"
    poor_when = "few pairs; no measurable gain over linear_maps here"
    papers = ("doi:10.1016/0306-4573(88)90021-0",)
    least: Annotated[int, Field(ge=1)] = 3

    def fit(self, problem: Problem) -> Adapted:
        shares(problem.targets)
        sentences = [prompts[0] for prompts in problem.query.wanted.prompts]
        with torch.no_grad():
            found = best_by_folds(problem, lambda inside, outside: self._tried(inside, outside, sentences))
            weight, penalties = (WEIGHTS[1], DEFAULT) if found is None else found[0]
            concepts = self._concepts(problem, sentences)
            weight = weight if concepts.names else 0.0
            maps = fitted_maps(problem, problem.query.vectors(), read(problem.query.encoder, sentences, concepts, weight), penalties)
        return ConceptExpansionAdapted(single(maps), concepts.names, concepts.weights, weight, penalties, found is not None)

    def _concepts(self, problem: Problem, sentences: Sequence[str]) -> Concepts:
        return concepts_of([sentences[k] for k in held_texts(problem).tolist()], self.least)

    def _tried(self, inside: Problem, outside: Problem, sentences: Sequence[str]) -> Iterable[tuple[tuple[float, Penalties], Tensor]]:
        used, vectors, concepts = held_texts(inside), outside.query.vectors(), self._concepts(inside, sentences)
        for weight in WEIGHTS if concepts.names else WEIGHTS[:1]:
            texts = read(inside.query.encoder, sentences, concepts, weight)
            parts = decomposed(inside.query.vectors(), texts[used], shares(inside.targets)[:, used])
            for penalties, maps in every_maps(parts):
                yield (weight, penalties), cosines(maps, vectors, texts)
