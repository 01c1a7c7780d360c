"""The commonest answer to each kind of question: what the wording alone gives away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medtame.data.questions import kind_of
from medtame.strategies.base import Method, labelled, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

LEAST = 1e-3  # of a count: an answer that a kind never had keeps a finite logit
PRIOR = 0.1  # rows that all kinds together lend each one, so that ties and unknown kinds are decided


@dataclass(frozen=True)
class MajorityByQuestionAdapted(Adapted):
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    counts: Tensor  # (kinds + 1, C): the last row is for a kind that was never asked

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        place = {kind: k for k, kind in enumerate(self.kinds)}
        rows = torch.tensor([place.get(kind_of(question), len(self.kinds)) for question in query.words or ()], dtype=torch.long)
        return Scores(masked((self.counts[rows] + LEAST).log(), query.allowed))


@dataclass(frozen=True)
class MajorityByQuestion(Method):
    """The commonest answer of the support to the same kind of question, the kind told by its words alone (Antol et al. 2015)."""

    needs = frozenset({"labels", "questions"})
    trains = "counts of answers"
    good_when = "as a control: what the kind of question alone gives away"
    poor_when = "answers that depend on the image"
    papers = ("arxiv:1505.00468",)

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        kinds = [kind_of((problem.query.words or ())[row]) for row in rows.tolist()]
        names = tuple(sorted(set(kinds)))
        owner = torch.tensor([names.index(kind) for kind in kinds])
        overall = targets.mean(0, keepdim=True)
        counts = torch.zeros(len(names) + 1, targets.shape[1]).index_add(0, owner, targets)
        return MajorityByQuestionAdapted(problem.query.wanted.names, names, counts + PRIOR * overall)
