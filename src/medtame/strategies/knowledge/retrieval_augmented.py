"""The nearest cases of the support answer: by what was written about them, where something was, else by their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.strategies.base import REFUSED, Method, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

LEAST = 1e-3  # of a vote: what no neighbour says keeps a finite logit


@dataclass(frozen=True)
class RetrievalAugmentedAdapted(Adapted):
    names: tuple[str, ...]
    keys: Tensor  # (n, F) unit norm
    targets: Tensor  # (n, C), NaN unknown
    reports: Tensor  # (n, D) unit norm; (0, D) where labels vote
    neighbours: int
    exclusive: bool

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            rows, share = self.nearest(query)
            if len(self.reports):
                seen = (share[:, :, None] * self.reports[rows]).sum(1)  # (N, D) so that its cosines are the mean of theirs
                logits = cosine_logits(seen, query.texts(), query.encoder)
            else:
                logits = self.voted(rows, share)
        return Scores(masked(logits, query.allowed))

    def nearest(self, query: Query) -> tuple[Tensor, Tensor]:
        """Row numbers and shares (N, k) of the nearest support rows: softmax of scale x cosine."""
        cosine = nn.functional.normalize(query.features(), dim=-1) @ self.keys.T
        found = cosine.topk(min(self.neighbours, len(self.keys)), dim=1)
        return found.indices, (query.encoder.scale * found.values).softmax(1)

    def voted(self, rows: Tensor, share: Tensor) -> Tensor:
        """(N, C) log share of the vote; where several may hold, its log odds among the neighbours whose target is known."""
        targets = self.targets[rows]  # (N, k, C)
        known = share[:, :, None] * ~targets.isnan()
        yes, total = (known * targets.nan_to_num(0)).sum(1), known.sum(1)
        learnt = (self.targets.nan_to_num(0) > 0).any(0)
        if self.exclusive:
            return (yes + LEAST).log().masked_fill(~learnt, REFUSED)
        return ((yes + LEAST).log() - (total - yes + LEAST).log()).masked_fill(~learnt, REFUSED)


@dataclass(frozen=True)
class RetrievalAugmented(Method):
    """The k nearest support rows answer, each by softmax(scale x cosine), as in retrieval-augmented classification (Long et al. 2022).

    Where the support has texts (`Problem.reports`, from the column `text`), the score of a class is scale x the mean cosine of
    the neighbours' texts and the class's prompts: words are compared with words, and an image only finds its like. Rows
    without a text are not asked then. Without texts, or with `use_texts` off, the neighbours' labels vote; a class without a
    support row is then never answered. k is fixed, not chosen by data. The run stores features, and vectors of texts, of
    training rows. No text of a query row is ever read.
    """

    needs = frozenset({"labels"})
    reads = frozenset({"candidates", "rows"})
    stores_support = True
    trains = "nothing: support rows are kept"
    good_when = "training rows with texts, and an answer that must show its like"
    poor_when = "few rows a class, or training images that may not be stored"
    papers = ("arxiv:2202.11233",)
    neighbours: Annotated[int, Field(ge=1)] = 8
    use_texts: bool = True

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        written = [] if problem.reports is None else [problem.reports[row] for row in rows.tolist()]
        told = [place for place, text in enumerate(written) if text and text.strip()]
        if not (self.use_texts and query.encoder.text_identity):
            told = []
        with torch.no_grad():
            keys = nn.functional.normalize(query.features(), dim=-1)
            texts = query.encoder.texts([str(written[place]) for place in told]) if told else keys.new_zeros(0, 1)
        if told:
            keys, targets = keys[told], targets[told]
        return RetrievalAugmentedAdapted(query.wanted.names, keys, targets, texts, self.neighbours, query.wanted.exclusive)
