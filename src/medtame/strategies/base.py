"""The one contract of a method: fit(problem) gives an Adapted; an Adapted answers queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medtame.errors import DataError, PairError
from medtame.learning.contrast import heat_learnt
from medtame.learning.fine_tuning import Precision, with_values
from medtame.learning.loop import Descent, Step, finish
from medtame.learning.pairs import Augment, Moving, Pairs, Train
from medtame.learning.pretraining import Part, pretrained
from medtame.learning.scores import REFUSED as REFUSED
from medtame.learning.scores import classification_loss as classification_loss
from medtame.learning.scores import cosine_logits as cosine_logits
from medtame.learning.scores import masked as masked
from medtame.types import Adapted, Array, Encoder, Kind, Problem, Query, Scope, Scores

Learning = Literal["none", "pretraining", "fine_tuning", "prompt_learning"]


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method. One such class in strategies/<strategy>/<name>.py is all there is to adding one."""

    learning: ClassVar[Learning] = "none"
    gives: ClassVar[tuple[Kind, ...]] = ("scores",)
    needs: ClassVar[frozenset[str]] = frozenset()  # of the task: labels, pair, words, answer_texts …
    towers: ClassVar[frozenset[str]] = frozenset()  # of the encoder: text, image_modules, text_modules
    scope: ClassVar[Scope] = "row"  # set: all query rows in one call (transductive)
    new_words: ClassVar[bool] = False  # scores candidates that fit never saw
    reads: ClassVar[frozenset[str]] = frozenset()  # words that reach the answer: of candidates, rows, findings, owned_findings
    starts_at_zero_shot: ClassVar[bool] = False  # with no step made: zero_shot's answer (several labels: its order)
    unlabelled: ClassVar[bool] = False  # learns from `Problem.unlabelled`, where there is any: training rows outside the support
    stores_support: ClassVar[bool] = False  # the run holds features or texts of training rows
    trains: ClassVar[str] = "nothing"  # what is fitted, in a few words
    cost: ClassVar[str] = "milliseconds on cached features"
    good_when: ClassVar[str] = ""  # what speaks for it, in half a sentence; of a learner always there
    poor_when: ClassVar[str] = ""  # what speaks against it
    papers: ClassVar[tuple[str, ...]] = ()  # arxiv:…, doi:…, or a full reference

    @abstractmethod
    def fit(self, problem: Problem) -> Adapted: ...

    def fit_together(self, problems: Mapping[str, Problem]) -> Mapping[str, Adapted]:
        """Several problems on the same images; by default each alone, which is the baseline of multi_task."""
        return {name: self.fit(problem) for name, problem in problems.items()}


@dataclass(frozen=True)
class Learner(Method):
    """A method with steps: run.py drives `learn`; `fit` is `learn` to the end."""

    @abstractmethod
    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]: ...

    def fit(self, problem: Problem) -> Adapted:
        return finish(self.learn(problem))


@dataclass(frozen=True)
class Tuned(Adapted):
    """A changed encoder: the same rows, embedded again, scored by its own cosine. LoRA, prompts, full tuning."""

    @abstractmethod
    def encoder(self, base: Encoder) -> Encoder: ...

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            return Scores(zero_shot_logits(query, self.built(query.encoder)))

    def built(self, base: Encoder) -> Encoder:
        """`encoder`, made once for the base that was asked about last: an answer comes in batches."""
        kept: tuple[Encoder, Encoder] | None = self.__dict__.get("_built")
        if kept is None or kept[0] is not base:
            kept = self.__dict__["_built"] = (base, self.encoder(base))
        return kept[1]


@dataclass(frozen=True)
class Retrained(Tuned):
    """Towers with other weights, by name, and the scale and bias that were learnt with them."""

    image: dict[str, Tensor]
    text: dict[str, Tensor]
    how: str  # the method that made them
    scale: float
    bias: float

    def answer(self, query: Query) -> Scores:
        built = self.built(query.encoder)
        with torch.no_grad():
            cosines = (cosine_logits(query.vectors(built), query.texts(built), built) - built.bias) / built.scale
            return Scores(masked(self.scale * cosines + self.bias, query.allowed))

    def encoder(self, base: Encoder) -> Encoder:
        image = with_values(base.image_tower, self.image) if self.image else None
        text = with_values(base.text_tower, self.text) if self.text else None
        return base.changed(image=image, text=text, identity=self.how)


@dataclass(frozen=True)
class Pretrainer(Learner):
    """Continues the encoder on pairs of images and texts by one objective, which `part` gives; then it answers as zero-shot does.

    `train`: what lies behind the towers' blocks (projections), their last `blocks` blocks too (last), low-rank changes of every matrix
    (lora), or all; `sides` image, text or both by commas: a side that is not named is locked. `augment` safe turns, shifts, scales
    and changes contrast by little and never flips or crops; with none, what enters the first block that moves is computed once and
    kept. `sentences`: so many of a text's at a time, drawn anew each epoch; 0 takes all. Marks of de-identification are taken out.
    The gradient is that of the whole batch, seen in chunks, so memory grows with `chunk` alone. Batch norm stays as it is.
    """

    learning = "pretraining"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates"})
    starts_at_zero_shot = True
    trains = "both towers, from the part that `train` names"
    cost = "minutes: passes through both towers"
    train: Train = "last"
    blocks: Annotated[int, Field(gt=0)] = 1
    sides: tuple[Literal["image", "text"], ...] = ("image", "text")
    augment: Augment = "safe"
    sentences: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "float32"
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    batch: Annotated[int, Field(gt=1)] = 64
    chunk: Annotated[int, Field(gt=0)] = 64

    @abstractmethod
    def part(self, pairs: Pairs) -> Part:
        """The objective at work on these pairs."""

    def moving(self, seed: int) -> Moving:
        return Moving(
            train=self.train,
            blocks=self.blocks,
            sides=self.sides,
            augment=self.augment,
            sentences=self.sentences,
            precision=self.precision,
            seed=seed,
        )

    def descent(self) -> Descent:
        rate, decay, warm_up = self.learning_rate, self.weight_decay, min(self.steps // 4, max(5, self.steps // 20))
        return Descent(steps=self.steps, learning_rate=rate, batch=self.batch, weight_decay=decay, warm_up=warm_up)

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        pairs, name = Pairs.of_problem(problem, self.moving(problem.seed)), type(self).__module__.rpartition(".")[2]
        parts = {name: (1.0, self.part(pairs))}
        kept = yield from pretrained(pairs, parts, self.descent(), chunk=self.chunk, seed=problem.seed, resume=resume)
        return Retrained(*pairs.values(kept), name, *heat_learnt(kept, name, pairs.encoder))


def zero_shot_logits(query: Query, encoder: Encoder | None = None) -> Tensor:
    """(N, C) scale x cosine + bias of rows and candidates, as the checkpoint defines it."""
    encoder = encoder or query.encoder
    return masked(cosine_logits(query.vectors(encoder), query.texts(encoder), encoder), query.allowed)


def allowed_of(query: Query, rows: Tensor | slice) -> Array | None:
    """(n, C) the candidates that some rows may take."""
    return None if query.allowed is None else query.allowed[rows if isinstance(rows, slice) else rows.numpy()]


def same_candidates(names: tuple[str, ...], query: Query) -> None:
    """Refuse candidates that fit never saw."""
    if query.wanted.names != names:
        new = sorted(set(query.wanted.names) - set(names)) or list(query.wanted.names)
        asked = f"this run answers only {', '.join(names[:8])}; it was asked about {', '.join(new[:5])}"
        raise PairError(f"{asked}: fit a method that takes new words, such as zero_shot")


def labelled(problem: Problem) -> tuple[Tensor, Tensor]:
    """Row numbers (n,) with a label, and their targets (n, C).

    One of C: rows without any unknown target; one class alone is refused. Several may hold: rows with any known target, NaN
    where unknown.
    """
    exclusive = problem.query.wanted.exclusive
    unknown = problem.targets.isnan()
    rows = torch.nonzero(~(unknown.any(1) if exclusive else unknown.all(1)))[:, 0]
    targets = problem.targets[rows]
    if not len(rows):
        raise DataError(f"none of {len(problem.query)} support rows has a label: fill the column, or give more rows")
    if exclusive and int((targets.sum(0) > 0).sum()) < 2:
        seen = [name for name, found in zip(problem.query.wanted.names, (targets.sum(0) > 0).tolist(), strict=True) if found]
        raise DataError(f"all {len(rows)} support rows are of one class ({', '.join(seen)}): give at least one row of two classes")
    return rows, targets


def support_loss(query: Query, targets: Tensor, changed: Encoder | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """loss(vectors (n, D), rows (n,)) of labelled rows: `classification_loss` of scale x cosine + bias.

    `targets` (N, C) as `labelled` gives them. Texts are the encoder's own or, where its text side is `changed`, made at each call.
    """
    texts, encoder = query.texts() if changed is None else None, query.encoder

    def wording(rows: Tensor) -> Tensor:
        if texts is None:
            return query.take(rows.numpy()).texts(changed)
        return texts if texts.ndim == 2 else texts[rows]

    def loss(vectors: Tensor, rows: Tensor) -> Tensor:
        logits = masked(cosine_logits(vectors, wording(rows), encoder), allowed_of(query, rows))
        return classification_loss(logits, targets[rows], exclusive=query.wanted.exclusive)

    return loss


def hard(targets: Tensor) -> Array:
    """(n,) the likeliest class of targets (n, C)."""
    return np.asarray(targets.argmax(1))
