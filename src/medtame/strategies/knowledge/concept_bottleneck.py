"""The image is first scored for findings, then the class is read from these scores alone: so they can be looked at, and set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.data.class_findings import Findings, chosen, listed, read, says
from medtame.errors import SettingsError, UnknownNameError
from medtame.learning.readout import logistic
from medtame.strategies.base import REFUSED, Method, hard, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

SHIPPED = Path(__file__).with_name("findings")


@dataclass(frozen=True)
class ConceptBottleneckAdapted(Adapted):
    names: tuple[str, ...]
    concepts: tuple[str, ...]
    template: str
    mean: Tensor  # (P,) cosine of each concept on the support
    deviation: Tensor  # (P,)
    weight: Tensor  # (C, P) mostly zero
    bias: Tensor  # (C,)
    note: str

    def concept_scores(self, query: Query) -> Tensor:
        """(N, P) cosines of images and concepts, in deviations of the support from its mean: 0 is an average image."""
        with torch.no_grad():
            texts = query.encoder.texts([sentence(self.template, concept) for concept in self.concepts])
            return (query.vectors() @ texts.T - self.mean) / self.deviation

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return self._read(query, self.concept_scores(query))

    def intervene(self, query: Query, concept: str, value: float) -> Scores:
        """The answer if the score of one concept were `value` (deviations from the support's mean) in every row."""
        same_candidates(self.names, query)
        if concept not in self.concepts:
            raise UnknownNameError("concept", concept, self.concepts)
        scores = self.concept_scores(query)
        scores[:, self.concepts.index(concept)] = value
        return self._read(query, scores)

    def _read(self, query: Query, scores: Tensor) -> Scores:
        return Scores(masked(scores @ self.weight.T + self.bias, query.allowed))


def sentence(template: str, concept: str) -> str:
    return template.replace("{finding}", concept)


def concepts_of(files: list[Findings], names: tuple[str, ...]) -> tuple[str, ...]:
    """All findings of the files, each once, but for those that name a class: the answer must not come in by its name."""
    called = {one for file in files for name in names for one in file.called(name)}
    every = dict.fromkeys(finding for file in files for findings in file.classes.values() for finding in findings)
    kept = tuple(finding for finding in every if not any(says(finding, one) for one in called))
    if not kept:
        raise SettingsError(f"every finding names a class ({listed(names)}): write findings that say what is seen, without these names")
    return kept


@dataclass(frozen=True)
class ConceptBottleneck(Method):
    """Cosines to findings, then an L1-penalised logistic readout a class (Koh et al. 2020; with texts as concepts Yang et al. 2023).

    Concepts are the findings of `file` (a JSON file, or the name of a shipped one; of the asked classes and all others in it);
    without one, those of the shipped file that speaks of all classes, else every shipped finding. A finding that names a class is
    left out. Scores are standardised on the support; the readout is scikit-learn's liblinear, one model a class (one against
    the rest), so a class without a support row is never answered. The penalty is fixed, not chosen by data. Sparse weights are
    no proof that the image shows the finding: with an encoder that does not know the words, concepts are only directions.

    `Adapted.intervene(query, concept, value)` sets a concept; `Adapted.concept_scores(query)` shows all of them. The question
    of a row, where it has one, is not read.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    reads = frozenset({"findings"})
    towers = frozenset({"text"})
    trains = "a sparse linear layer on concept scores"
    cost = "seconds on cached features"
    good_when = "a reader must see which findings led to the answer"
    poor_when = "an encoder that does not know the findings' words: below a plain probe here"
    papers = ("arxiv:2007.04612", "arxiv:2211.11158")
    file: str = ""
    template: Annotated[str, Field(min_length=1)] = "an image that shows {finding}"
    inverse_penalty: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(gt=0)] = 200

    def fit(self, problem: Problem) -> Adapted:
        if "{finding}" not in self.template:
            raise SettingsError(f"the template {self.template!r} has no place for the finding: write {{finding}} in it")
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        found, note = chosen(query.wanted.names, self.file, SHIPPED)
        files = [found] if found is not None else [read(path) for path in sorted(SHIPPED.glob("*.json"))]
        concepts = concepts_of(files, query.wanted.names)
        with torch.no_grad():
            cosine = query.vectors() @ query.encoder.texts([sentence(self.template, concept) for concept in concepts]).T
        mean, deviation = cosine.mean(0), cosine.std(0, correction=0).clamp(min=1e-4)
        if query.wanted.exclusive:
            targets = torch.nn.functional.one_hot(torch.from_numpy(hard(targets)), targets.shape[1]).float()
        scores = ((cosine - mean) / deviation).double().numpy()
        weight, bias = logistic(scores, targets, lambda: self._model(problem.seed), exclusive=False, never=REFUSED)
        if not weight.any():
            note += "; the penalty leaves no concept on these rows, so every image gets the same answer: raise inverse_penalty"
        return ConceptBottleneckAdapted(query.wanted.names, concepts, self.template, mean, deviation, weight, bias, note)

    def _model(self, seed: int) -> LogisticRegression:
        return LogisticRegression(
            C=self.inverse_penalty, l1_ratio=1.0, solver="liblinear", intercept_scaling=10.0, max_iter=self.iterations, random_state=seed
        )
