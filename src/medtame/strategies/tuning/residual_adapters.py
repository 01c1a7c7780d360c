"""Small adapters bring every map of the image tower into the text's space, where two texts tell normal from abnormal."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from medtame.errors import PairError
from medtame.learning.anomaly import at_size, normal_rows
from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner
from medtame.types import Adapted, Grids, Problem, Query, sentence_means

FINEST = 28  # cells a side, at most, of a map that is adapted


def maps_of(query: Query) -> list[Tensor]:
    """Each map (N, F, G, G) of the images, every cell of unit norm, at most 28 cells a side."""
    rows = torch.as_tensor(query.source)
    scales = (
        scale if scale.shape[2] <= FINEST else torch.nn.functional.adaptive_avg_pool2d(scale, FINEST)
        for scale in query.encoder.grid(query.samples)
    )
    return [normalize(scale, dim=1)[rows] for scale in scales]


def cosines(maps: Tensor, down: Tensor, up: Tensor, towards: Tensor, ratio: float) -> Tensor:
    """(N, G, G) the product of `towards` (D,) and the unit vector that a bottleneck makes of each cell of maps (N, F, G, G).

    Where the map lies in the text's space (F = D) the two are mixed. Else the vectors of D numbers are never made: their product and
    their length follow from the H numbers inside the bottleneck.
    """
    hidden = torch.relu(torch.einsum("hf,nfxy->nhxy", down, maps))
    if maps.shape[1] == len(towards):
        changed = ratio * normalize(torch.einsum("dh,nhxy->ndxy", up, hidden), dim=1) + (1 - ratio) * maps
        return torch.einsum("ndxy,d->nxy", normalize(changed, dim=1), towards)
    length = (hidden * torch.einsum("kh,nhxy->nkxy", up.T @ up, hidden)).sum(1).clamp(min=1e-12).sqrt()
    return torch.einsum("nhxy,h->nxy", hidden, up.T @ towards) / length


@dataclass(frozen=True)
class ResidualAdaptersAdapted(Adapted):
    weights: dict[str, Tensor]
    texts: Tensor  # (2, D) of normal and abnormal, as they were at fit
    ratio: float

    def logits(self, maps: list[Tensor], query: Query) -> Tensor:
        """(N, 1, H, W) the mean over maps of scale x (cosine to abnormal - cosine to normal) + offset."""
        towards, found = query.encoder.scale * (self.texts[1] - self.texts[0]), []
        for k, scale in enumerate(maps):
            cosine = cosines(scale, self.weights[f"down.{k}"], self.weights[f"up.{k}"], towards, self.ratio)
            found.append(at_size(cosine + self.weights["offset"][k], query))
        return torch.stack(found).mean(0)

    def answer(self, query: Query) -> Grids:
        with torch.no_grad():
            return Grids(self.logits(maps_of(query), query))


@dataclass(frozen=True)
class ResidualAdapters(Learner):
    """A bottleneck a map, mixed with what it was where that lies in the text's space, learnt on made anomalies (MVFA: Huang et al. 2024).

    The two texts are the means of the task's sentences and stay frozen. The paper learns two sets of adapters inside a ViT on real
    abnormal images with masks, and adds a memory of normals; here one set reads the frozen tower's maps, its anomalies are made, and the
    memory is left to text_and_memory. The task's loss (cross-entropy and Dice). AdamW, cosine decay.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"normals", "states"})
    towers = frozenset({"text", "grid"})
    reads = frozenset({"candidates"})
    trains = "a bottleneck network a map of the image tower"
    cost = "half a minute on cached features"
    good_when = "normals in number, and an encoder whose words lie near its maps"
    poor_when = "anomalies that look unlike made ones"
    papers = ("arxiv:2403.12570",)
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch: Annotated[int, Field(gt=0)] = 16
    hidden: Annotated[int, Field(gt=0)] = 32
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        normal_rows(problem)
        if problem.loss is None:
            raise PairError("residual_adapters learns by the task's loss, and this task gives none")
        query, compare = problem.query, problem.loss
        with torch.no_grad():
            maps, texts = [scale.half() for scale in maps_of(query)], sentence_means(query.encoder, query.wanted.prompts)
        generator = torch.Generator().manual_seed(problem.seed)
        weights = {"offset": torch.zeros(len(maps))}
        for k, scale in enumerate(maps):
            for name, shape in (("down", (self.hidden, scale.shape[1])), ("up", (texts.shape[1], self.hidden))):
                weights[f"{name}.{k}"] = torch.randn(*shape, generator=generator) / shape[1] ** 0.5
        network = ResidualAdaptersAdapted(weights, texts, self.ratio)

        def loss(rows: Tensor) -> Tensor:
            return compare(network.logits([scale[rows].float() for scale in maps], query), problem.targets[rows])

        how = Descent(
            steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, weight_decay=0.01, warm_up=min(5, self.steps // 4)
        )
        kept = yield from descend(weights, loss, how, n=len(query), seed=problem.seed, resume=resume)
        return ResidualAdaptersAdapted(kept, texts, self.ratio)
