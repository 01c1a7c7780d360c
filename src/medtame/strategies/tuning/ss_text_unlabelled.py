"""SS-Text-U: unlabelled training images are dealt out to the classes by optimal transport and help to place the prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.supports import balance, midway, present
from medtame.strategies.base import Method, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class SsTextUnlabelledAdapted(Adapted):
    names: tuple[str, ...]
    shift: Tensor  # (C, D) what is added to the text vectors
    offset: Tensor  # (C,) threshold where several may hold, else 0
    unlabelled_rows: int

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        prototypes = nn.functional.normalize(query.texts() + self.shift, dim=-1)
        return Scores(masked(cosine_logits(query.vectors(), prototypes, query.encoder) + self.offset, query.allowed))


def transported(logits: Tensor, share: Tensor, iterations: int) -> Tensor:
    """(..., N, C) soft labels whose rows sum to 1 and whose columns sum to about N x share (..., C): Sinkhorn, by logarithms.

    Without logarithms exp(100 x cosine) overflows in half precision and loses small entries in single.
    """
    plan = logits
    for _ in range(iterations):
        plan = plan - plan.logsumexp(-2, keepdim=True) + share.log()[..., None, :]
        plan = plan - plan.logsumexp(-1, keepdim=True)
    return plan.softmax(-1)


def shares(targets: Tensor, *, exclusive: bool) -> Tensor:
    """(C,) the share of each class among support rows, a missing class taken as a quarter of the rarest; else (C, 2) of yes and no."""
    yes = targets.nan_to_num(0).sum(0)
    if exclusive:
        yes = yes.where(yes > 0, yes[yes > 0].min() / 4)
        return yes / yes.sum()
    no = (1 - targets).nan_to_num(0).sum(0)
    both = torch.stack([yes, no], 1).clamp(min=0.25)
    return both / both.sum(1, keepdim=True)


@dataclass(frozen=True)
class SsTextUnlabelled(Method):
    """SS-Text+ with a second sum over unlabelled training rows and their soft labels (Silva-Rodriguez and Konukoglu 2026).

    w_k = t_k + scale n_k / (2 N) x sum of the rows of class k + scale / U x sum of soft label k x unlabelled row. Soft labels come
    from the logits of w (at first the text alone) by optimal transport onto the shares of the classes in the support, a missing
    class taken as a quarter of the rarest: 3 rounds of dealing and placing, 10 Sinkhorn iterations each. The shares are never
    those of the test rows, and the unlabelled rows are training rows outside the support (`Problem.unlabelled`); without any it
    is SS-Text+ with half its weight on images. Nothing is chosen by data.

    Where several may hold, each candidate is dealt out between yes and no, and rows of no count against it.
    """

    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates", "rows"})
    unlabelled = True
    trains = "class prototypes, in closed form"
    good_when = "few labels beside many images without, and weak words"
    poor_when = "1 image a class beside words that know the classes: below zero-shot"
    papers = ("arxiv:2603.02959",)
    rounds: Annotated[int, Field(ge=1)] = 3
    sinkhorn_iterations: Annotated[int, Field(ge=1)] = 10

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query, exclusive = problem.query.take(rows.numpy()), problem.query.wanted.exclusive
        vectors, counts, known = query.vectors(), targets.nan_to_num(0).sum(0), (~targets.isnan()).sum(0).clamp(min=1)
        blend = query.encoder.scale * counts.square() / (2 * known)
        shift = seen = blend[:, None] * (balance(targets, exclusive=exclusive).T @ vectors)
        pool = problem.unlabelled
        if pool is not None and len(pool):
            same_candidates(query.wanted.names, pool)
            there, share = present(targets, exclusive=exclusive), shares(targets, exclusive=exclusive)
            shift = torch.zeros_like(seen)
            for _ in range(self.rounds):
                found = self._placed(pool, shift, share, exclusive=exclusive)
                shift = seen + (found if exclusive else found * there[:, None])
        logits = cosine_logits(vectors, nn.functional.normalize(query.texts() + shift, dim=-1), query.encoder)
        offset = midway(logits, targets, exclusive=exclusive)
        return SsTextUnlabelledAdapted(query.wanted.names, shift, offset, 0 if pool is None else len(pool))

    def _placed(self, pool: Query, shift: Tensor, share: Tensor, *, exclusive: bool) -> Tensor:
        """(C, D) scale / U x the sum of unlabelled rows by their soft labels under the prototypes of this round."""
        vectors, scale = pool.vectors(), pool.encoder.scale
        logits = cosine_logits(vectors, nn.functional.normalize(pool.texts() + shift, dim=-1), pool.encoder)
        if exclusive:
            codes = transported(masked(logits, pool.allowed), share, self.sinkhorn_iterations)
            if pool.allowed is not None:
                codes = codes * torch.as_tensor(pool.allowed)
            return scale / len(pool) * codes.T @ vectors
        two = torch.stack([logits.T, torch.zeros_like(logits.T)], -1)  # (C, U, 2)
        yes, no = transported(two, share, self.sinkhorn_iterations).unbind(-1)
        against = no * (yes.sum(1) / no.sum(1).clamp(min=1e-12))[:, None]
        return scale / len(pool) * (yes - against) @ vectors
