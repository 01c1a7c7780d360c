"""All query rows at once: zero-shot answers are moved until each class has the share that it has in the support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.strategies.base import Method, labelled, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


@dataclass(frozen=True)
class OptimalTransportAdapted(Adapted):
    names: tuple[str, ...]
    shares: Tensor  # (C,) of the support
    softness: float
    iterations: int

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            logits = zero_shot_logits(query).double()
            if query.allowed is not None:
                logits = logits.masked_fill(~torch.as_tensor(query.allowed), -torch.inf)
            said = sinkhorn(logits / self.softness, self.shares.double(), self.iterations)
        return Scores(masked(said.float(), query.allowed))


def sinkhorn(logits: Tensor, shares: Tensor, iterations: int) -> Tensor:
    """(N, C) log probabilities whose mean over the rows is `shares` (C,): the last step makes each row sum to 1.

    In the log domain, so that no scale overflows. A class that no row may take (-inf) has no share.
    """
    open_to = logits.isfinite().any(0)
    shares = shares.where(open_to, 0)
    wanted = (shares / shares.sum()).log()
    rows = torch.zeros(len(logits), 1, dtype=logits.dtype)
    columns = torch.zeros_like(wanted).masked_fill(~open_to, -torch.inf)
    for _ in range(iterations):
        rows = -(logits + columns).logsumexp(1, keepdim=True) - torch.log(torch.tensor(float(len(logits))))
        columns = (wanted - (logits + rows).logsumexp(0)).masked_fill(~open_to, -torch.inf)
    return (logits + columns).log_softmax(1)


def shares_of(targets: Tensor) -> Tensor:
    """(C,) shares of classes in targets (n, C). A class without a row gets a quarter of the least that is there."""
    counts = targets.sum(0)
    counts = counts.where(counts > 0, counts[counts > 0].min() / 4)
    return counts / counts.sum()


@dataclass(frozen=True)
class OptimalTransport(Method):
    """Entropic transport of rows to classes by Sinkhorn's iterations (Cuturi 2013), as Conf-OT does (Silva-Rodriguez et al. 2025).

    Cost is minus the zero-shot logit at the encoder's scale, `softness` 1. Rows have equal mass; a class has the share that it has
    in the support, never in the query rows; a class without a support row gets a quarter of the least share.

    It is as good as that prior. A balanced support says that all classes are equally common, which does harm where they are not:
    draw it by prevalence. All rows are answered together, and a single row is answered with the prior, whatever it shows.
    """

    scope = "set"
    needs = frozenset({"labels", "one_label"})
    reads = frozenset({"candidates"})
    towers = frozenset({"text"})
    trains = "class shares of the support"
    good_when = "the shares of the classes among the rows asked are known from the support"
    poor_when = "the support was balanced and the rows are not, or rows come one by one"
    papers = ("arxiv:1306.0895", "arxiv:2505.24693")
    softness: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=1)] = 100

    def fit(self, problem: Problem) -> Adapted:
        _, targets = labelled(problem)
        return OptimalTransportAdapted(problem.query.wanted.names, shares_of(targets), self.softness, self.iterations)
