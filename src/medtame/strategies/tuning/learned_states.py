"""The words for normal and abnormal become free vectors, learnt on made anomalies; image and text towers stay frozen."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from medtame.errors import PairError
from medtame.learning.anomaly import at_size, normal_rows
from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner
from medtame.types import Adapted, Grids, Problem, Query


def cells(query: Query) -> Tensor:
    """(N, D, G, G) the map in the text's space, each cell of unit norm."""
    return normalize(query.encoder.grid(query.samples)[0], dim=1)[torch.as_tensor(query.source)]


def logits(maps: Tensor, texts: Tensor, scale: float, offset: Tensor) -> Tensor:
    """(N, G, G) scale x (cosine to abnormal - cosine to normal) + offset, of maps (N, D, G, G) and texts (2, D)."""
    return scale * torch.einsum("ndhw,d->nhw", maps, texts[1] - texts[0]) + offset


@dataclass(frozen=True)
class LearnedStatesAdapted(Adapted):
    embedded: Tensor  # (2, L, E) the words of normal and of abnormal
    mask: Tensor  # (2, L)
    offset: Tensor

    def answer(self, query: Query) -> Grids:
        with torch.no_grad():
            texts = query.encoder.text_tower.encode(self.embedded, self.mask)
            return Grids(at_size(logits(cells(query), texts, query.encoder.scale, self.offset), query))


@dataclass(frozen=True)
class LearnedStates(Learner):
    """Two prompts, one normal and one abnormal, whose word vectors are learnt (after AnomalyCLIP: Zhou et al. 2024).

    They start at the first sentence of each state; the special tokens at both ends stay. The loss is the task's, on masks of made
    anomalies. The paper learns on photographs of faulty products with true masks, adds tokens inside the text tower and changes the
    image tower's attention; here the towers are as they were, and only the coarsest map, which lies in the text's space, is asked. The
    wording at predict is not read: what was learnt has taken its place.
    """

    learning = "prompt_learning"
    gives = ("grids",)
    needs = frozenset({"normals", "states"})
    towers = frozenset({"text"})
    trains = "the word vectors of two prompts"
    cost = "seconds: passes of two sentences through the text tower"
    good_when = "normals, and an encoder whose words lie near its maps"
    poor_when = "an encoder of everyday words: a memory of normals is better"
    papers = ("arxiv:2310.18961",)
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    batch: Annotated[int, Field(gt=0)] = 64

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        normal_rows(problem)
        if problem.loss is None:
            raise PairError("learned_states learns by the task's loss, and this task gives none")
        query, compare, encoder = problem.query, problem.loss, problem.query.encoder
        tower: Any = encoder.text_tower
        ids, mask = tower.tokens([sentences[0] for sentences in query.wanted.prompts])
        maps = cells(query)
        with torch.no_grad():
            embedded = tower.embed(ids).clone()
        lengths = mask.sum(1)
        places = torch.arange(ids.shape[1])
        words = ((places > 0) & (places < lengths[:, None] - 1)).float()[..., None]
        change, offset = torch.zeros_like(embedded), torch.zeros(1)

        def loss(rows: Tensor) -> Tensor:
            texts = tower.encode(embedded + change * words, mask)
            return compare(at_size(logits(maps[rows], texts, encoder.scale, offset), query), problem.targets[rows])

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"change": change, "offset": offset}, loss, how, n=len(query), seed=problem.seed, resume=resume)
        return LearnedStatesAdapted(embedded + kept["change"] * words, mask, kept["offset"])
