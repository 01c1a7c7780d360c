"""CLAP: a probe that starts at the text vectors and is held near them, class by class, as far as they can be trusted."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Some, Step, descend_slopes
from medtame.learning.slopes import of_balanced, to_prototypes, units
from medtame.learning.supports import balance, midway, present
from medtame.strategies.base import Learner, allowed_of, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class ClapAdapted(Adapted):
    names: tuple[str, ...]
    prototypes: Tensor  # (C, D)
    offset: Tensor | None = None  # (C,) threshold where several may hold

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        logits = cosine_logits(query.vectors(), nn.functional.normalize(self.prototypes, dim=-1), query.encoder)
        return Scores(masked(logits if self.offset is None else logits + self.offset, query.allowed))


def trust(zero_shot: Tensor, targets: Tensor) -> Tensor:
    """(C,) the mean zero-shot probability of the true class over its support rows; the classes' mean for a missing class."""
    probability, targets = zero_shot.softmax(1), targets.nan_to_num(0)
    counts = targets.sum(0)
    mean = (targets * probability).sum(0) / counts.clamp(min=1)
    return mean.where(counts > 0, mean[counts > 0].mean())


@dataclass(frozen=True)
class Clap(Learner):
    """Cross-entropy + scale x mean over classes of trust_k |w_k - t_k|^2 (Silva-Rodriguez et al. 2024).

    Every class counts the same in the cross-entropy, however many rows it has: with the paper's balanced shots that is its mean over
    rows; with prevalence the held prototypes would otherwise be spent on the commonest class.

    Prototypes w start at the text vectors t; both sides are of unit norm in the forward pass; the scale is frozen. The weights
    of the constraint are the zero-shot probabilities of the true class on the support, computed once before training; a
    missing class takes their mean and so stays near its text. Where a row's own words change the texts, t is their mean.
    Whole-support steps: 300, SGD with momentum, cosine decay. The released code starts from text embeddings as the tower gives
    them, of norm about 10 for CLIP; for vectors of unit norm its penalty is 100 times as strong and its learning rate .1 a
    hundredth. Hence the scale beside the penalty and the learning rate 1e-3: at .1 unit vectors leave the text in one step. Where
    several may hold, zero-shot is cut midway between the rows with a candidate and those without.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "class prototypes in the text's space"
    cost = "a second on cached features"
    good_when = "1 to 16 images a class beside words that know the classes"
    poor_when = "words that do not know the classes: a plain probe is better from 4 images on"
    papers = ("arxiv:2312.12730",)
    steps: Annotated[int, Field(ge=0)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    constraint: Annotated[float, Field(ge=0)] = 1.0

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        vectors, texts = query.vectors(), query.texts()
        anchor = texts if texts.ndim == 2 else nn.functional.normalize(texts.mean(0), dim=-1)
        zero_shot, exclusive = masked(cosine_logits(vectors, anchor, query.encoder), query.allowed), query.wanted.exclusive
        weights = self.constraint * query.encoder.scale * trust(zero_shot, targets)
        counted = balance(targets, exclusive=exclusive) / (present(targets, exclusive=exclusive).sum() * (1 if exclusive else 2))
        spring = 2 / len(weights) * weights[:, None]  # the gradient of the constraint, for each unit of distance
        prototypes, offset = anchor.clone(), midway(zero_shot, targets, exclusive=exclusive)

        def loss(batch: Some) -> tuple[Tensor, dict[str, Tensor]]:
            allowed = allowed_of(query, batch)
            unit, norms = units(prototypes)
            shown = vectors[batch]
            logits = masked(cosine_logits(shown, unit, query.encoder) + offset, allowed)
            wrong, slope = of_balanced(logits, counted[batch] * (len(rows) / len(shown)), exclusive=exclusive)
            away = prototypes - anchor
            back = spring * away
            pull = to_prototypes(slope, shown, unit, norms, query.encoder.scale, allowed)
            return wrong + (back * away).sum() / 2, {"prototypes": pull + back}

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=256, optimiser="sgd", warm_up=1)
        kept = yield from descend_slopes({"prototypes": prototypes}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return ClapAdapted(problem.query.wanted.names, kept["prototypes"], None if exclusive else offset)
