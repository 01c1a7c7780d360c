"""Cells of the encoder's aligned map that are nearest to a word, joined to boxes: detection without any training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from medtame.errors import PairError
from medtame.strategies.base import Method
from medtame.types import Adapted, Boxes, Problem, Query, sentence_means

BACKGROUND = ("background", "an empty area", "other tissue")


@dataclass(frozen=True)
class DenseZeroShotBoxesAdapted(Adapted):
    background: tuple[str, ...]
    least: float

    @torch.no_grad()
    def answer(self, query: Query) -> Boxes:
        if query.size is None:
            raise PairError("dense_zero_shot_boxes answers with boxes, and this query names no size for its maps")
        encoder, classes = query.encoder, len(query.wanted.names)
        texts = sentence_means(encoder, [*query.wanted.prompts, *[(sentence,) for sentence in self.background]])
        cells = normalize(encoder.grid(query.samples)[0], dim=1)
        found = []
        for row in query.source.tolist():
            logits = encoder.scale * torch.einsum("dhw,cd->chw", cells[row], texts)
            large = interpolate(logits[None], query.size, mode="bilinear")[0]
            rows = [box for kind in range(classes) for box in components(margin(large, kind), kind, self.least)]
            found.append(torch.tensor(np.array(rows, dtype=np.float32).reshape(-1, 6)))
        return Boxes(found)


def margin(logits: Tensor, kind: int) -> Tensor:
    """(H, W) how far the logit of a candidate is above that of the best other one, of (C, H, W)."""
    others = torch.cat([logits[:kind], logits[kind + 1 :]])
    return logits[kind] - others.amax(0)


def components(above: Tensor, kind: int, least: float) -> Iterator[tuple[float, ...]]:
    """x0 y0 x1 y1 score kind of each part of a map (H, W) above zero whose pixels touch by a side; smaller parts than `least` are left out.

    The score is the probability against the best rival, the mean over the part.
    """
    height, width = above.shape
    labels, count = ndimage.label(above.numpy() > 0)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        part = labels[rows, columns] == number
        if count and part.sum() >= least * height * width:
            score = float(above[rows, columns][torch.from_numpy(part)].sigmoid().mean())
            yield columns.start / width, rows.start / height, columns.stop / width, rows.stop / height, score, float(kind)


@dataclass(frozen=True)
class DenseZeroShotBoxes(Method):
    """Each pixel says which words it is nearest to (MaskCLIP: Zhou et al. 2022); what hangs together for one class is a box.

    Pixels are cells of the encoder's first map, interpolated; rivals are the other classes and some words for background. With
    `ENCODER@dense` the map is finer (CLIP Surgery: Li et al. 2023). Objects that touch are one box, and what is smaller than a cell is
    hardly seen: a lower bound, not a detector. Nothing is fitted, so zero is no chosen threshold. `least`: the smallest part that is a
    box, a share of the image.
    """

    gives = ("boxes",)
    needs = frozenset({"centres"})
    towers = frozenset({"text", "grid"})
    new_words = True
    reads = frozenset({"candidates"})
    good_when = "no box at all, and an encoder whose words know the objects"
    poor_when = "objects smaller than a cell, or that touch: they are missed or become one box"
    papers = ("arxiv:2112.01071", "arxiv:2304.05653")
    background: Annotated[tuple[str, ...], Field(min_length=1)] = BACKGROUND
    least: Annotated[float, Field(ge=0, lt=1)] = 0.0005

    def fit(self, problem: Problem) -> Adapted:
        return DenseZeroShotBoxesAdapted(self.background, self.least)
