"""Cells of the encoder's finest aligned map against words: a mask without any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from medtame.errors import PairError
from medtame.strategies.base import Method
from medtame.types import Adapted, Encoder, Grids, Problem, Query

BACKGROUND = ("background", "an empty area", "other tissue")


def margins(cells: Tensor, asked: Tensor, rivals: list[Tensor], encoder: Encoder) -> Tensor:
    """(N, 1, G, G) logit of a row's words less that of its best rival, from unit cells (N, D, G, G) and unit texts (N, D), (R, D)."""
    own = torch.einsum("ndhw,nd->nhw", cells, asked)
    best = torch.stack([torch.einsum("dhw,rd->rhw", row, others).amax(0) for row, others in zip(cells, rivals, strict=True)])
    return (encoder.scale * (own - best))[:, None]


@dataclass(frozen=True)
class DenseZeroShotAdapted(Adapted):
    known: tuple[str, ...]
    background: tuple[str, ...]

    @torch.no_grad()
    def answer(self, query: Query) -> Grids:
        if query.size is None or query.words is None:
            raise PairError("dense_zero_shot answers words with grids, and this query names no size or has no words")
        rows = torch.as_tensor(query.source)
        cells = normalize(query.encoder.grid(query.samples)[0], dim=1)
        everything = list(dict.fromkeys([*query.words, *self.known, *self.background]))
        text = dict(zip(everything, query.encoder.texts(everything), strict=True))
        others = {word: [name for name in (*self.known, *self.background) if name != word] for word in set(query.words)}
        rivals = {word: torch.stack([text[name] for name in names]) for word, names in others.items()}
        found = [torch.zeros(0, 1, *query.size)]
        for row, word in zip(rows, query.words, strict=True):
            margin = margins(cells[row][None], text[word][None], [rivals[word]], query.encoder)
            found.append(interpolate(margin, query.size, mode="bilinear"))
        return Grids(torch.cat(found))


@dataclass(frozen=True)
class DenseZeroShot(Method):
    """Each cell says which words it is nearest to: the prompt, another structure's, or one of `background` (MaskCLIP: Zhou et al. 2022).

    The first map of the encoder is read, each cell for itself. With `ENCODER@dense` it is made by value-value attention (CLIP Surgery:
    Li et al. 2023; ClearCLIP: Lan et al. 2024) at up to twice the grid; with a plain one it is what the encoder's pool gives a cell
    alone. Of the support only the names of its structures are used, as rivals. Nothing is fitted, so zero is no chosen threshold.
    """

    gives = ("grids",)
    needs = frozenset({"words"})
    towers = frozenset({"text", "grid"})
    new_words = True
    reads = frozenset({"rows"})
    good_when = "no mask at all, and an encoder whose words know the structures"
    poor_when = "small structures, and wherever a few masks can be drawn: decoders are far better"
    papers = ("arxiv:2112.01071", "arxiv:2304.05653", "arxiv:2407.12442")
    background: tuple[str, ...] = BACKGROUND

    def fit(self, problem: Problem) -> Adapted:
        if problem.query.words is None:
            raise PairError("dense_zero_shot is told by words what to mark, and these rows have none: give prompts")
        return DenseZeroShotAdapted(tuple(sorted(set(problem.query.words))), self.background)
