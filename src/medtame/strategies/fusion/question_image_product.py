"""The product of question and image, by kernel ridge regression in closed form: the question says what the image is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.features.scales import pooled_scales
from medtame.learning.question_product import ProductFit, View, fitted
from medtame.strategies.base import Method, labelled, masked
from medtame.types import Adapted, Encoder, Problem, Query, Scores, sentence_means

Look = Literal["nothing", "whole", "grid"]
ROWS = 3000  # at most, for the kernel: more are drawn, whole groups at a time
NEAR = 20.0  # of a cosine of two answers, in the softmax that gives an unseen answer its neighbours
DISCOUNT = 0.5  # an answer that was never seen scores at most half of what its nearest seen ones do


@dataclass(frozen=True)
class QuestionImageProductAdapted(Adapted):
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    look: Look
    centre: Tensor
    divisor: Tensor
    kept: dict[str, Any]  # a ProductFit
    learnt: Tensor  # (C,) whether a support row has this answer
    answer_side: float

    def answer(self, query: Query) -> Scores:
        fit = ProductFit(**self.kept)
        with torch.no_grad():
            views = [] if self.look == "nothing" else [View(self.centre, self.divisor).placed(seen(query, self.look))]
            scores = fit.scores(query.encoder.texts(query.words or ()), views)
            known = scores[:, self.learnt]
            prompts = [sentences for sentences, learnt in zip(self.prompts, self.learnt.tolist(), strict=True) if learnt]
            names = [name for name, learnt in zip(self.names, self.learnt.tolist(), strict=True) if learnt]
            spoken = self.spoken(known, names, prompts, query)
        return Scores(masked(query.encoder.scale * spoken, query.allowed))

    def spoken(self, known: Tensor, names: list[str], prompts: list[tuple[str, ...]], query: Query) -> Tensor:
        """(N, C') scores of the query's candidates from those of the seen answers (N, C): unseen ones by their nearest seen ones."""
        wanted = query.wanted
        near = nearness(wanted.prompts, prompts, query.encoder)  # (C', C)
        place = {name: k for k, name in enumerate(names)}
        own = torch.zeros_like(near)
        for row, name in enumerate(wanted.names):
            if name in place:
                own[row, place[name]] = 1
        seen_before = own.any(1)[:, None]
        mix = torch.where(seen_before, (1 - self.answer_side) * own + self.answer_side * near, DISCOUNT * near)
        return known @ mix.T


def nearness(of: Any, among: Any, encoder: Encoder) -> Tensor:
    """(C', C) softmax over the seen answers of the likeness of their texts."""
    a, b = sentence_means(encoder, of), sentence_means(encoder, among)
    return (NEAR * a @ b.T).softmax(1)


def seen(query: Query, look: Look) -> tuple[Tensor, ...]:
    """The image's vectors in parts: the whole, its signed root, or every scale of the grid besides."""
    whole = query.vectors()
    if look == "whole":
        return (whole,)
    return (nn.functional.normalize(whole.sign() * whole.abs().sqrt(), dim=-1), *pooled_scales(query))


@dataclass(frozen=True)
class QuestionImageProduct(Method):
    """Kernel ridge regression to one-hot answers on k = q (1 + w v): q of questions, v of images, so that both meet in a product.

    The kernel form of bilinear fusion (Kim et al. 2018), solved exactly. w (0 allowed: then the image is not read) and the penalty
    answer best when a row's group is left out, inside the support. `look`: `whole` the encoder's vector; `grid` also means of all
    grid scales over the image and its quarters; `nothing` leaves the question alone (for the table of what each part adds).
    An answer that no support row has is scored by the seen answers whose texts are near to it, at half of their score;
    `answer_side` lets seen answers borrow from their neighbours too. Of more than 3000 rows some are drawn, by group.
    """

    needs = frozenset({"labels", "questions"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    new_words = True
    stores_support = True
    trains = "a kernel ridge regression on questions x images, in closed form"
    cost = "seconds on cached features"
    good_when = "a few hundred questions with answers, of which many come again"
    poor_when = "answers in free words that no support row has"
    papers = ("arxiv:1805.07932", "doi:10.1080/00401706.1970.10488634")
    look: Look = "grid"
    width: Annotated[float, Field(gt=0)] = 1.0
    answer_side: Annotated[float, Field(ge=0, le=1)] = 0.0

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        rows = few(rows, problem)
        targets, query = problem.targets[rows], problem.query.take(rows.numpy())
        with torch.no_grad():
            parts = () if self.look == "nothing" else seen(query, self.look)
            view = View.of(parts) if parts else View(torch.zeros(0), torch.zeros(0))
            questions = query.encoder.texts(query.words or ())
            groups = np.asarray(query.samples.groups, dtype=str)[query.source]
            fit = fitted(questions, [view.placed(parts)] if parts else [], targets, groups, self.width, query.allowed)
        kept = {field: getattr(fit, field) for field in ProductFit.__dataclass_fields__}
        wanted = query.wanted
        learnt = targets.sum(0) > 0
        names, prompts = wanted.names, wanted.prompts
        return QuestionImageProductAdapted(names, prompts, self.look, view.centre, view.divisor, kept, learnt, self.answer_side)


def few(rows: Tensor, problem: Problem) -> Tensor:
    """At most ROWS of them, whole groups at a time, in their order."""
    if len(rows) <= ROWS:
        return rows
    groups = np.asarray(problem.query.samples.groups, dtype=str)[problem.query.source][rows.numpy()]
    names = np.random.default_rng(problem.seed).permutation(np.unique(groups))
    sizes = np.cumsum([(groups == name).sum() for name in names])
    return rows[torch.as_tensor(np.isin(groups, names[sizes <= ROWS]))]
