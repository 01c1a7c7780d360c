"""What words say of a patch and how far it lies from the normals, brought to one scale by the training normals and joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import interpolate

from medtame.features.patch_memory import coreset, nearest, nearest_by_image, patch_vectors
from medtame.learning.anomaly import at_size, direction, normal_rows, word_maps
from medtame.strategies.base import Method
from medtame.types import Adapted, Array, Grids, Problem, Query

KNOTS = 101  # of a scale of ranks
MOST = 32  # images, at most, that ranks and the weight are learnt from, of normals and of made anomalies each


def knots(values: Tensor) -> Tensor:
    """(101,) rising: the quantiles of what normals score."""
    return torch.quantile(values.flatten()[: 2**20], torch.linspace(0, 1, KNOTS))


def ranked(values: Tensor, scale: Tensor) -> Tensor:
    """The share of the normals' values below each value; beyond the highest normal it goes on as steeply as from the median to there."""
    place = torch.searchsorted(scale, values.contiguous()).clamp(1, KNOTS - 1)
    low, high = scale[place - 1], scale[place]
    inside = (place - 1 + ((values - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)) / (KNOTS - 1)
    step = (scale[-1] - scale[KNOTS // 2]).clamp(min=1e-9)
    return inside + ((values - scale[-1]) / step).clamp(min=0) / 2


def placed(ranks: Tensor, scale: Tensor) -> Tensor:
    """The value that has a rank on a scale: `ranked` undone."""
    place = (ranks * (KNOTS - 1)).clamp(0, KNOTS - 1)
    low = place.long().clamp(max=KNOTS - 2)
    step = (scale[-1] - scale[KNOTS // 2]).clamp(min=1e-9)
    inside = scale[low] + (place - low) * (scale[low + 1] - scale[low])
    return inside + (ranks - 1).clamp(min=0) * 2 * step


@dataclass(frozen=True)
class TextAndMemoryAdapted(Adapted):
    bank: Tensor  # (m, F)
    side: int
    windows: tuple[int, ...]
    memory_scale: Tensor  # (101,)
    words_scale: Tensor  # (101,)
    weight: float  # of the words

    def answer(self, query: Query) -> Grids:
        with torch.no_grad():
            vectors = patch_vectors(query, self.side)
            distances = nearest(vectors.flatten(0, 1), self.bank).reshape(len(vectors), self.side, self.side)
            said = words(query, self.side, self.windows)
            as_distances = placed(ranked(said, self.words_scale), self.memory_scale)
            return Grids(at_size((1 - self.weight) * distances + self.weight * as_distances, query))


def words(query: Query, side: int, windows: tuple[int, ...]) -> Tensor:
    """(N, side, side) what the sentences say."""
    maps = word_maps(query, direction(query.encoder, query), windows)
    return interpolate(maps[:, None], (side, side), mode="bilinear")[:, 0]


@dataclass(frozen=True)
class TextAndMemory(Method):
    """(1 - w) x the memory's distance + w x the distance that has, among training normals, the rank of the words' logit.

    The words as in WinCLIP, the memory as in PatchCore (Jeong et al. 2023 add the two as they are; by ranks they have one unit). A normal's
    distance is to the other normals only. w is the one of `weights` with the highest average precision of patches of made anomalies,
    each against normals of other patients; where nothing can be left out, the first. So words that say nothing get the weight zero.
    """

    gives = ("grids",)
    needs = frozenset({"normals", "states"})
    towers = frozenset({"text"})
    reads = frozenset({"candidates"})
    stores_support = True
    trains = "nothing: patches of normals are kept, one weight is chosen"
    cost = "seconds on cached features"
    good_when = "normals and sentences of what is abnormal; words that say nothing get no weight"
    poor_when = "too few normals to leave some out: the weight is then fixed"
    papers = ("arxiv:2303.14814", "arxiv:2106.08265")
    weights: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.25, 0.0, 0.5, 0.75)
    patches: Annotated[int, Field(gt=0)] = 2000
    side: Annotated[int, Field(gt=0)] = 14
    windows: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)

    def fit(self, problem: Problem) -> Adapted:
        rows = normal_rows(problem)
        normals = patch_vectors(problem.query.take(rows), self.side)
        flat = normals.flatten(0, 1)
        bank = flat[coreset(flat, self.patches, problem.seed)]
        abnormal = np.setdiff1d(np.arange(len(problem.query)), rows)
        random = np.random.default_rng(problem.seed)
        asked = np.concatenate([np.sort(random.permutation(side)[:MOST]) for side in (rows, abnormal)])
        groups = problem.query.samples.groups[problem.query.source]
        distances = self._left_out(problem.query.take(asked), normals, groups[asked], groups[rows])
        with torch.no_grad():
            said = words(problem.query.take(asked), self.side, self.windows)
        known = min(MOST, len(rows))
        if distances is None:  # one patient: every normal explains itself
            vectors = patch_vectors(problem.query.take(asked[:known]), self.side)
            plain = nearest(vectors.flatten(0, 1), bank)
            return TextAndMemoryAdapted(bank, self.side, self.windows, knots(plain), knots(said[:known]), self.weights[0])
        scales = knots(distances[:known]), knots(said[:known])
        truth = torch.nn.functional.adaptive_avg_pool2d(problem.targets[torch.as_tensor(asked)][:, 0], self.side) > 0.5
        maps = distances, placed(ranked(said, scales[1]), scales[0])
        return TextAndMemoryAdapted(bank, self.side, self.windows, *scales, self._weight(maps, truth))

    def _left_out(self, query: Query, normals: Tensor, groups: Array, known: Array) -> Tensor | None:
        """(N, side, side) the distance of each image's patches to normals (M, P, F) of other patients; None where there are no others."""
        if len(set(known.tolist())) < 2:
            return None
        vectors, found = patch_vectors(query, self.side), []
        by_image = nearest_by_image(vectors.flatten(0, 1), normals).reshape(len(vectors), -1, len(normals))
        for one, group in zip(by_image, groups, strict=True):
            found.append(one[:, torch.from_numpy(known != group)].amin(1))
        return torch.stack(found).reshape(-1, self.side, self.side)

    def _weight(self, maps: tuple[Tensor, Tensor], truth: Tensor) -> float:
        labels = truth.flatten().numpy()
        if not labels.any():
            return self.weights[0]
        scores = [average_precision_score(labels, ((1 - w) * maps[0] + w * maps[1]).flatten().numpy()) for w in self.weights]
        return self.weights[int(np.argmax(scores))]
