"""Two linear projections learnt by the symmetric contrastive loss, with every text of a case as a positive."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.learning.loop import Descent, Step, descend, finish
from medtame.learning.paired import Maps, best_by_folds, cosines, held_texts, principal, shares, single
from medtame.strategies.base import Learner, masked
from medtame.types import Adapted, Problem, Query, Scores

DECAYS = (1.0, 10.0)  # weight decay: how far the projections may go


@dataclass(frozen=True)
class ProjectionsAdapted(Adapted):
    maps: Maps
    weight_decay: float
    chosen_by_data: bool

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            texts = query.encoder.texts([sentences[0] for sentences in query.wanted.prompts])
            scores = query.encoder.scale * cosines(self.maps, query.vectors(), texts)
            return Scores(masked(scores.float(), query.allowed))


def contrastive(images: Tensor, texts: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Mean over both directions of the cross-entropy of softmax(cosine / temperature) and what is right.

    Unit images (n, K), unit texts (C, K), share (n, C) with rows of sum 1. A text without a right row is no query, but is ranked.
    """
    logits = images @ texts.T / temperature
    weight = share.sum(0)
    asked = weight > 0
    to_text = -(share * logits.log_softmax(1)).sum(1).mean()
    to_image = -((share / weight.clamp(min=1e-12)) * logits.log_softmax(0)).sum(0)[asked].mean()
    loss: Tensor = (to_text + to_image) / 2
    return loss


def placed(vectors: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), axes (D, R) that give each principal direction the same spread but for the last ones, and coordinates (n, R)."""
    mean = vectors.mean(0)
    _, values, axes = principal((vectors - mean).double(), components)
    axes = (axes / (values.square() + values.square().mean()).sqrt().clamp(min=1e-12) * len(vectors) ** 0.5).float()
    return mean, axes, (vectors - mean) @ axes


@dataclass(frozen=True)
class Projections(Learner):
    """InfoNCE over two linear projections of frozen features (Zhang et al. 2022, ConVIRT; Radford et al. 2021), all texts as negatives.

    Both sides are centred and whitened on 128 principal directions of the support, then projected to 64 dimensions; AdamW, cosine
    decay. Texts of the same case share the target, and equal texts are one, so none is a false negative. The weight decay is the
    better of two by mean reciprocal rank over three folds by case inside the support.
    """

    learning = "fine_tuning"
    needs = frozenset({"paired_texts"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates"})
    trains = "a linear projection of images and one of texts"
    cost = "seconds to a minute on cached features"
    good_when = "thousands of image-text pairs"
    poor_when = "hundreds of pairs: linear_maps is better and faster"
    papers = ("arxiv:2010.00747", "arxiv:2103.00020")
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    temperature: Annotated[float, Field(gt=0)] = 0.1
    components: Annotated[int, Field(ge=1)] = 128
    width: Annotated[int, Field(ge=1)] = 64
    batch: Annotated[int, Field(gt=0)] = 256

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        texts = problem.query.encoder.texts([sentences[0] for sentences in problem.query.wanted.prompts])

        def scored(inside: Problem, outside: Problem) -> list[tuple[float, Tensor]]:
            vectors = outside.query.vectors()
            return [(decay, cosines(finish(self._maps(inside, texts, decay)), vectors, texts)) for decay in DECAYS]

        shares(problem.targets)
        found = best_by_folds(problem, scored)
        decay = DECAYS[0] if found is None else found[0]
        maps = yield from self._maps(problem, texts, decay, resume)
        return ProjectionsAdapted(single(maps), decay, found is not None)

    def _maps(
        self, problem: Problem, texts: Tensor, decay: float, resume: Mapping[str, Tensor] | None = None
    ) -> Generator[Step, None, Maps]:
        used = held_texts(problem)
        share = shares(problem.targets)[:, used].float()
        image_mean, image_axes, images = placed(problem.query.vectors(), self.components)
        text_mean, text_axes, sentences = placed(texts[used], self.components)
        generator = torch.Generator().manual_seed(problem.seed)
        sizes = images.shape[1], sentences.shape[1]
        first, second = (torch.randn(size, self.width, generator=generator) / size**0.5 for size in sizes)

        def loss(batch: Tensor) -> Tensor:
            seen = nn.functional.normalize(images[batch] @ first, dim=-1)
            return contrastive(seen, nn.functional.normalize(sentences @ second, dim=-1), share[batch], self.temperature)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, weight_decay=decay, warm_up=self.steps // 10)
        kept = yield from descend({"image": first, "text": second}, loss, how, n=len(images), seed=problem.seed, resume=resume)
        return image_mean, image_axes @ kept["image"], text_mean, text_axes @ kept["text"]
