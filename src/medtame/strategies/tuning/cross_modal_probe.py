"""The cross-modal probe: sentences of a class are training rows beside its images."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Some, Step, descend_slopes
from medtame.learning.slopes import of_balanced, of_mean, to_prototypes, units
from medtame.strategies.base import Learner, allowed_of, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class CrossModalProbeAdapted(Adapted):
    names: tuple[str, ...]
    shift: Tensor  # (C, D) weights minus text vectors

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        weights = nn.functional.normalize(query.texts() + self.shift, dim=-1)
        return Scores(masked(cosine_logits(query.vectors(), weights, query.encoder), query.allowed))


def text_rows(query: Query) -> tuple[Tensor, Tensor]:
    """Sentences as rows: unit vectors (S, D) and targets (S, C).

    One of C: a sentence is of its own class. Several may hold: it says yes to its candidate, or no where it words its absence,
    and nothing (NaN) of the others.
    """
    wanted = query.wanted
    worded = [(sentence, k, 1.0) for k, sentences in enumerate(wanted.prompts) for sentence in sentences]
    worded += [(sentence, k, 0.0) for k, sentences in enumerate(wanted.negatives or ()) for sentence in sentences]
    targets = torch.full((len(worded), len(wanted.names)), 0.0 if wanted.exclusive else torch.nan)
    targets[range(len(worded)), [k for _, k, _ in worded]] = torch.tensor([holds for _, _, holds in worded])
    return query.encoder.texts([sentence for sentence, _, _ in worded]), targets


@dataclass(frozen=True)
class CrossModalProbe(Learner):
    """One linear probe on images and texts of the classes as rows of one training set (Lin et al. 2023).

    Half of the loss is of support images, half of the sentences of the prompts, each class with the same weight. Weights start at
    the text vectors and are of unit norm in the forward pass (as in the comparison of Silva-Rodriguez et al. 2024); the scale is
    the encoder's. AdamW, cosine decay, whole-support steps, the last one kept; the paper takes the step that is best on a
    validation set, which is not at hand. A class without a support row is learnt from its sentences alone.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "class prototypes in the text's space"
    cost = "a second on cached features"
    good_when = "1 to 4 images a class beside words of middling use"
    poor_when = "words that say nothing: half of the loss is theirs"
    papers = ("arxiv:2301.06267",)
    steps: Annotated[int, Field(ge=0)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        vectors, texts, plain = query.vectors(), query.texts(), replace(query, words=None).texts()
        sentences, said = text_rows(query)
        weight = (said if exclusive else 2 * said - 1).nan_to_num(0)  # yes counts for a candidate, no against it
        weight = weight / weight.abs().sum(0) / len(plain)
        shift = torch.zeros(targets.shape[1], vectors.shape[1])

        def loss(batch: Some) -> tuple[Tensor, dict[str, Tensor]]:
            allowed = allowed_of(query, batch)
            unit, norms = units((texts if texts.ndim == 2 else texts[batch]) + shift)
            of_images = masked(cosine_logits(vectors[batch], unit, query.encoder), allowed)
            images, slope = of_mean(of_images, targets[batch], exclusive=exclusive)
            pull = to_prototypes(slope, vectors[batch], unit, norms, query.encoder.scale, allowed)
            unit, norms = units(plain + shift)
            words, slope = of_balanced(cosine_logits(sentences, unit, query.encoder), weight, exclusive=exclusive)
            pull = pull + to_prototypes(slope, sentences, unit, norms, query.encoder.scale)
            return (images + words) / 2, {"shift": pull / 2}

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, weight_decay=0.01, warm_up=1)
        kept = yield from descend_slopes({"shift": shift}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return CrossModalProbeAdapted(problem.query.wanted.names, kept["shift"])
