"""Modality, plane and organ are answered first, from the image; what is asked is then answered with them and the image at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from medtame.features.scales import distinct, pooled_scales
from medtame.features.transforms import rooted
from medtame.learning.question_product import ProductFit, View, fitted
from medtame.metrics.answers import normalised
from medtame.strategies.base import Method, labelled, masked, same_candidates
from medtame.types import Adapted, Array, Problem, Query, Scores

# What is looked for in the questions and answers of support rows: concept -> value -> words.
CONCEPTS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "organ": {
            "head": ("brain", "head", "skull", "ventricle", "ventricles", "cerebral", "cerebellum", "intracranial", "sulci", "midline"),
            "chest": ("chest", "lung", "lungs", "heart", "cardiac", "pneumothorax", "pleural", "rib", "ribs", "diaphragm", "aortic"),
            "abdomen": ("abdomen", "abdominal", "liver", "kidney", "kidneys", "spleen", "bowel", "colon", "pancreas", "appendix"),
            "spine": ("spine", "vertebra", "vertebrae", "vertebral", "lumbar", "cervical", "disc"),
        },
        "modality": {
            "ct": ("ct", "computed tomography"),
            "mr": ("mr", "mri", "magnetic resonance", "t1", "t2", "flair", "dwi"),
            "x ray": ("x ray", "xray", "radiograph", "plain film"),
            "ultrasound": ("ultrasound", "sonogram"),
        },
        "plane": {
            "axial": ("axial", "transverse"),
            "sagittal": ("sagittal",),
            "coronal": ("coronal",),
            "frontal": ("pa", "ap", "frontal"),
            "lateral": ("lateral",),
        },
    }
)
ALWAYS_TELLING = "organ"  # asking about the lungs shows a chest, whatever the answer; the others must be affirmed
INVERSE_PENALTY, FOLDS = 30.0, 5


def told(concept: str, question: str, answer: str) -> list[str]:
    """The values of a concept that a question with its answer tells of."""
    said = f" {normalised(answer)} "
    if concept == ALWAYS_TELLING or said == " yes ":
        said += f"{normalised(question)} "
    if concept != ALWAYS_TELLING and " not " in f" {normalised(question)} ":
        return []
    return [value for value, words in CONCEPTS[concept].items() if any(f" {word} " in said for word in words)]


def values_of(concept: str, questions: Sequence[str], answers: Sequence[str], image: Sequence[int], images: int) -> list[str | None]:
    """A value an image: what most of its rows tell of; None where none does, or two values are told as often."""
    votes: list[Counter[str]] = [Counter() for _ in range(images)]
    for question, answer, place in zip(questions, answers, image, strict=True):
        votes[place].update(told(concept, question, answer))
    tops = [vote.most_common(2) for vote in votes]
    return [top[0][0] if top and (len(top) == 1 or top[0][1] > top[1][1]) else None for top in tops]


@dataclass(frozen=True)
class Probe:
    """Logistic regression of a concept on image vectors, as plain numbers."""

    weight: Tensor  # (V, F)
    bias: Tensor  # (V,)

    def probabilities(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.weight.T + self.bias).softmax(1)


def probed(vectors: Tensor, values: Array) -> Probe | None:
    """From images with a value (V distinct ones, numbered 0 to V - 1); -1 is unknown. None where fewer than two values are seen."""
    known = values >= 0
    if len(set(values[known].tolist())) < 2:
        return None
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=500).fit(vectors[torch.as_tensor(known)].numpy(), values[known])
    count = int(values.max()) + 1
    weight, bias = np.zeros((count, vectors.shape[1]), dtype=np.float32), np.full(count, -1e4, dtype=np.float32)
    two = len(model.classes_) == 2  # scikit-learn keeps one row of weights for two classes
    weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
    bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
    return Probe(torch.from_numpy(weight), torch.from_numpy(bias))


def held_out(vectors: Tensor, values: Array, groups: Array, whole: Probe) -> Tensor:
    """(n, V) probabilities of each image by a probe that learnt without its group, as a new image will have them."""
    found = whole.probabilities(vectors)
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    for number in range(FOLDS):
        outside = torch.as_tensor(np.flatnonzero(fold == number))
        inside = np.where(fold == number, -1, values)
        probe = probed(vectors, inside)
        if len(outside) and probe is not None and len(probe.bias) == found.shape[1]:
            found[outside] = probe.probabilities(vectors[outside])
    return found


@dataclass(frozen=True)
class IntermediateAnswersAdapted(Adapted):
    names: tuple[str, ...]
    probes: dict[str, list[Tensor]]  # concept -> weight and bias
    values: dict[str, list[str]]  # concept -> what its columns mean
    centre: Tensor
    divisor: Tensor
    kept: dict[str, Any]  # a ProductFit

    def concepts(self, query: Query) -> dict[str, Tensor]:
        """Concept -> probabilities (N, V) of its values: the intermediate answers, to be looked at."""
        vectors = rooted(query.vectors())
        return {concept: Probe(*probe).probabilities(vectors) for concept, probe in self.probes.items()}

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            views = [View(self.centre, self.divisor).placed(looked(query))]
            if self.probes:
                views.append(joined(list(self.concepts(query).values())))
            scores = ProductFit(**self.kept).scores(query.encoder.texts(query.words or ()), views)
        return Scores(masked(query.encoder.scale * scores, query.allowed))


def looked(query: Query) -> tuple[Tensor, ...]:
    return (rooted(query.vectors()), *pooled_scales(query))


def joined(probabilities: Sequence[Tensor]) -> Tensor:
    """(N, V) unit norm: each concept counts the same."""
    return nn.functional.normalize(torch.cat([nn.functional.normalize(one, dim=-1) for one in probabilities], 1), dim=-1)


@dataclass(frozen=True)
class IntermediateAnswers(Method):
    """Probes name modality, plane and organ of the image; then kernel ridge regression on question x (image, named concepts).

    What the probes learn is read from support questions and answers by words ("are the lungs clear?" shows a chest; "is this an
    MRI?", yes). Support rows get the probabilities of probes that did not see their group. Of the image and the concepts, each
    counts as much as answers best without a row's group, inside the support, or not at all (a concept bottleneck with a way around
    it; Koh et al. 2020).
    """

    needs = frozenset({"labels", "questions"})
    towers = frozenset({"text"})
    reads = frozenset({"rows"})
    stores_support = True
    trains = "linear probes of modality, plane and organ, then a kernel ridge regression"
    cost = "seconds on cached features"
    good_when = "questions that turn on modality, plane or organ"
    poor_when = "questions about findings alone, or few of them"
    papers = ("arxiv:2007.04612",)
    width: Annotated[float, Field(gt=0)] = 1.0

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        names, questions = query.wanted.names, query.words or ()
        answers = [names[k] for k in targets.argmax(1).tolist()]
        groups = np.asarray(query.samples.groups, dtype=str)[query.source]
        firsts, of_sample = distinct(query.samples)
        image = of_sample[torch.as_tensor(query.source)]
        vectors = rooted(query.encoder.whole(query.samples.take(firsts)))
        owners = np.asarray(query.samples.groups, dtype=str)[firsts]
        probes, found, meanings = {}, [], {}
        for concept in CONCEPTS:
            told_of = values_of(concept, questions, answers, image.tolist(), len(firsts))
            known = sorted({value for value in told_of if value is not None})
            numbers = np.array([-1 if value is None else known.index(value) for value in told_of])
            probe = probed(vectors, numbers)
            if probe is not None:
                probes[concept], meanings[concept] = [probe.weight, probe.bias], known
                found.append(held_out(vectors, numbers, owners, probe)[image])
        parts = looked(query)
        view = View.of(parts)
        views = [view.placed(parts), *([joined(found)] if found else [])]
        fit = fitted(query.encoder.texts(questions), views, targets, groups, self.width, query.allowed)
        kept = {field: getattr(fit, field) for field in ProductFit.__dataclass_fields__}
        return IntermediateAnswersAdapted(names, probes, meanings, view.centre, view.divisor, kept)
