"""Test-time entropy tuning: norm layers move so that the answers to the query rows at hand become surer, then all is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame.encoders.opened import opened
from medtame.errors import PairError
from medtame.learning.fine_tuning import Sight, copied, is_norm, module_of
from medtame.learning.loop import Descent, descend, finish
from medtame.strategies.base import Method, allowed_of, cosine_logits, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Problem, Query, Scores


def norm_weights(tower: object) -> list[str]:
    """Names, in `opened(tower)`, of the scales and shifts of norm layers; of biases where there are none, else PairError."""
    apart = opened(module_of(tower))
    norms = {id(parameter) for part in apart.modules() if is_norm(part) for parameter in part.parameters(recurse=False)}
    names = [name for name, parameter in apart.named_parameters() if id(parameter) in norms]
    names = names or [name for name, _ in apart.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not names:
        raise PairError("the encoder's image tower has neither norm layers nor biases, which entropy_tuning moves: use transductive")
    return names


def entropy(logits: Tensor, *, exclusive: bool) -> Tensor:
    """() the mean over rows of the entropy of probabilities (n, C); of each candidate's yes or no where several may hold."""
    if exclusive:
        shares = logits.log_softmax(1)
        return -(shares.exp() * shares).sum(1).mean()
    yes = logits.sigmoid()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, yes)


@dataclass(frozen=True)
class EntropyAdapted(Adapted):
    names: tuple[str, ...]
    steps: int
    learning_rate: float
    batch: int

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        if not len(query) or not self.steps:
            with torch.no_grad():
                return Scores(zero_shot_logits(query))
        with torch.enable_grad():
            return Scores(self.tuned(query))

    def tuned(self, query: Query) -> Tensor:
        """(N, C) logits after the descent, which starts from the encoder's own weights at each call."""
        tower, named = copied(query.encoder.image_tower, norm_weights(query.encoder.image_tower))
        see, texts, order = Sight.of(query, tower, None), query.texts(), in_order(query)

        def logits(rows: Tensor) -> Tensor:
            wording = texts if texts.ndim == 2 else texts[rows]
            return masked(cosine_logits(see(rows), wording, query.encoder), allowed_of(query, rows))

        def loss(places: Tensor) -> Tensor:
            return entropy(logits(order[places]), exclusive=query.wanted.exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch)
        finish(descend(named, loss, how, n=len(query), seed=0))
        with torch.no_grad():
            return torch.cat([logits(rows) for rows in torch.split(torch.arange(len(query)), self.batch)])


def in_order(query: Query) -> Tensor:
    """(N,) rows, the surest first, so that batches depend neither on the order in which rows were asked nor on that of classes."""
    with torch.no_grad():
        shares = zero_shot_logits(query).double().log_softmax(1)
    return torch.argsort(-(shares.exp() * shares).sum(1), stable=True)


@dataclass(frozen=True)
class EntropyTuning(Method):
    """Tent (Wang et al. 2021): the scales and shifts of norm layers descend the entropy of the answers to the query rows.

    Nothing is learnt at fit. At each call the image tower starts from the encoder's own weights (reset: whatever was asked before
    is forgotten), takes `steps` of AdamW on batches of the rows that are asked together, and answers them all with what it ends
    with. Batch norm keeps its running mean and variance, unlike the original, which takes those of the batch: a batch of medical
    images of one class would be taken for the whole. Layer norm has none.

    So a row's answer depends on the others, and it is no fair row beside methods that see one image at a time. It sharpens what
    zero-shot believes; where that is wrong, it grows surer of it. A tower without norm layers moves its biases. Cost: about
    3 (steps x batch / rows) + 1 passes through the image tower where zero-shot needs one. On `bundled` and held-out training patients
    of the phantom balanced accuracy goes from .17 to .20, which is no benefit. The rate is not chosen by data.
    """

    needs = frozenset({"one_label"})
    scope = "set"
    reads = frozenset({"candidates"})
    towers = frozenset({"text", "image_modules"})
    trains = "nothing at fit; norm layers of the image tower at predict, forgotten after it"
    cost = "at predict: three passes through the image tower for each row of a step, and one a row"
    good_when = "zero-shot is already good and all images come from one new scanner"
    poor_when = "zero-shot is poor (it grows surer of errors), or images come one by one"
    papers = ("arxiv:2006.10726",)
    steps: Annotated[int, Field(ge=0)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch: Annotated[int, Field(gt=0)] = 32

    def fit(self, problem: Problem) -> Adapted:
        return EntropyAdapted(problem.query.wanted.names, self.steps, self.learning_rate, self.batch)
