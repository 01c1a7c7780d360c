"""Distillation: a larger encoder's likeness of images and texts is taught to a smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medtame import encoders
from medtame.errors import PairError
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store
from medtame.learning.contrast import Contrast
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, Seen
from medtame.strategies.base import Pretrainer
from medtame.types import Encoder


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """() sum over both directions of the mean Kullback-Leibler divergence of softmax(logits (n, n)) from softmax(taught (n, n))."""

    def one(found: Tensor, wanted: Tensor) -> Tensor:
        return (wanted.softmax(1) * (wanted.log_softmax(1) - found.log_softmax(1))).sum(1).mean()

    return one(logits, taught) + one(logits.T, taught.T)


def opened(spec: str) -> Encoder:
    """An encoder by its name, its features kept on disk. Raises PairError where it has no text side, and what opening an encoder raises."""
    card = encoders.card(spec)
    if not card.has_text:
        raise PairError(f"the teacher {spec} has no text side, so it knows no likeness of images and texts: give an encoder with one")
    return CachedEncoder(card, lambda: encoders.load(spec), Store())


@dataclass(frozen=True)
class Distillation(Pretrainer):
    """`distilled` x sum over both directions of KL(softmax(teacher's scale x cosine) || softmax(scale x cosine)) of a batch's images and
    texts, plus `contrastive` x InfoNCE (Wu et al. 2023, TinyCLIP: affinity mimicking).

    `teacher` is an encoder by its name, as after --encoder; it sees images as they are, once, and its vectors are kept. Without a
    teacher it is the encoder as it was: then nothing new is taught, and the divergence is a guard against forgetting beside the
    contrast. Only likeness is taught, so the teacher's vectors may be of another length. Steps and rate were not searched.
    """

    good_when = "a larger encoder knows your images and is too slow to use, or the contrast alone forgets too much"
    poor_when = "the teacher tells your captions apart no better than the encoder itself"
    cost = "minutes: passes through both towers, and once through the teacher's"
    papers = ("arxiv:2309.12314",)
    teacher: str = ""
    distilled: Annotated[float, Field(gt=0)] = 1.0
    contrastive: Annotated[float, Field(ge=0)] = 1.0

    def part(self, pairs: Pairs) -> Part:
        teacher, contrast = opened(self.teacher) if self.teacher else pairs.encoder, Contrast.of(pairs)

        def across(seen: Seen, draws: Tensor) -> Tensor:
            with torch.no_grad():
                images, texts = pairs.query.take(pairs.image.rows(draws)).vectors(teacher), teacher.texts(pairs.said(draws))
                taught = teacher.scale * images @ texts.T
            loss = self.distilled * divergence(contrast.scale * seen[IMAGES] @ seen[TEXTS].T, taught)
            return loss + self.contrastive * contrast(seen[IMAGES], seen[TEXTS], draws) if self.contrastive else loss

        return Part(frozenset({IMAGES, TEXTS}), across=across, named={"log_scale": contrast.log_scale})
