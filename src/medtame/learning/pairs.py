"""Pairs of images and texts as pretraining sees them: rows that are drawn again and again, both towers with the weights that move.

A draw is a number: the row it is of, and how often that row was drawn before. Everything random of it (which text, which sentences,
how the image is changed) comes from the seed and this number, so it is the same in every batch, process and resumed run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from medtame.data.report_text import cleaned
from medtame.data.report_text import sentences as sentences_of
from medtame.encoders.blocks import Maps, depths_of, last_blocks_of
from medtame.encoders.opened import opened
from medtame.encoders.text_blocks import KeptTexts
from medtame.errors import PairError
from medtame.learning.augmented import augmented, chances, changes
from medtame.learning.fine_tuning import KEPT_BYTES, Pass, Precision, Sight, adaptable, copied, first_pixels, module_of
from medtame.learning.low_rank import LowRank, side_of
from medtame.types import Array, Encoder, Problem, Query

Train = Literal["projections", "last", "all", "lora"]
Augment = Literal["safe", "none"]
Right = Callable[[Array, Array], Tensor]  # rows (n,) and the texts drawn for them (n,) -> (n, n) bool: whether text j is right for image i
LOW_RANK = LowRank(rank=8, alpha=16.0, rslora=False)


@dataclass(frozen=True, kw_only=True)
class Moving:
    """What of the towers moves, and how they are seen."""

    train: Train
    blocks: int
    sides: tuple[str, ...]
    augment: Augment
    sentences: int  # so many of a text's sentences at a draw; 0: the whole text
    precision: Precision
    seed: int


class Look(nn.Module):
    """In the place of an image tower: its prepared pixels."""

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        return prepared, ()


@dataclass(frozen=True)
class ImageSide:
    """The images of a query through a tower. `kept`: what enters its first changed block is computed once, where nothing is augmented."""

    query: Query
    tower: nn.Module
    look: Encoder
    augment: bool
    seed: int
    precision: Precision
    kept: Sight | None

    def rows(self, draws: Tensor) -> Array:
        return np.asarray(draws.numpy() % len(self.query))

    def pixels(self, draws: Tensor) -> Tensor:
        """Prepared pixels (n, 3, S, S) of some draws, as they are shown."""
        part = self.query.take(self.rows(draws))
        seen = self.look.whole(part.samples)[torch.as_tensor(part.source)]
        return augmented(seen, changes(self.seed, draws.tolist())) if self.augment else seen

    def __call__(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and the first map (n, D, G, G), differentiable in the weights that move."""
        if self.kept is not None and self.kept.rest is not None and self.kept.tokens is not None:
            samples = torch.as_tensor(self.query.source[self.rows(draws)])
            whole, maps = self.kept.rest(self.kept.tokens[samples])
        else:
            whole, maps = Pass(self.tower, self.precision)(self.pixels(draws))
        return whole, maps[0]


@dataclass(frozen=True)
class Pairs:
    """Rows of images with texts, and the weights of both towers that move, by name."""

    query: Query
    strings: tuple[str, ...]  # the distinct texts
    choices: tuple[tuple[int, ...], ...]  # of each row, the numbers of the texts that are its own
    right: Right
    moving: Moving
    image: ImageSide
    text: Any  # the text tower with the weights that move
    kept_texts: KeptTexts | None
    named: dict[str, Tensor]

    @classmethod
    def of(cls, query: Query, strings: Sequence[str], choices: Sequence[Sequence[int]], right: Right, moving: Moving) -> Pairs:
        """Pairs whose towers are copies: those of the query's encoder stay as they are. Raises PairError where nothing would move."""
        encoder, named, kept_texts = query.encoder, dict[str, Tensor](), None
        said = tuple(cleaned(one) or one for one in strings)
        image, text, first = encoder.image_tower, encoder.text_tower, None
        if "image" in moving.sides:
            image, found = movable(image, moving, first_pixels(query))
            named |= {f"image.{name}": tensor for name, tensor in found.items()}
            first = (
                last_blocks_of(image, moving.blocks if moving.train == "last" else 1)[0]
                if moving.train in ("last", "projections")
                else None
            )
        if "text" in moving.sides:
            text, found = movable(text, moving, None)
            named |= {f"text.{name}": tensor for name, tensor in found.items()}
            if moving.train in ("last", "projections") and not moving.sentences:
                kept_texts = KeptTexts.of(text, last_blocks_of(text, moving.blocks if moving.train == "last" else 1)[0], said, KEPT_BYTES)
        if not named:
            raise PairError(f"train={moving.train} finds no weight to train in the towers of {encoder.spec}: give train=last or train=all")
        look = encoder.changed(image=Look(), identity="look")
        kept = Sight.of(query, image, first, moving.precision) if moving.augment == "none" and first is not None else None
        side = ImageSide(query, image, look, moving.augment == "safe", moving.seed, moving.precision, kept)
        return cls(query, said, tuple(map(tuple, choices)), right, moving, side, text, kept_texts, named)

    @classmethod
    def of_problem(cls, problem: Problem, moving: Moving) -> Pairs:
        """The pairs of a retrieval problem, whose targets (N, C) say which texts are right for a row: one of them is drawn."""
        allowed = problem.targets > 0
        choices = [torch.nonzero(row)[:, 0].tolist() for row in allowed]

        def right(rows: Array, texts: Array) -> Tensor:
            return cast(Tensor, allowed[torch.as_tensor(rows)][:, torch.as_tensor(texts)])

        return cls.of(problem.query, [prompts[0] for prompts in problem.query.wanted.prompts], choices, right, moving)

    @cached_property
    def first_alike(self) -> Array:
        """(C,) of each text the number of the first with the same words: marks that differed are gone."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(one, number) for number, one in enumerate(self.strings)])

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def encoder(self) -> Encoder:
        """As it was."""
        return self.query.encoder

    def drawn(self, draws: Tensor) -> tuple[Array, Array]:
        """Rows (n,) and the numbers of the texts (n,) of some draws."""
        rows = np.asarray(draws.numpy() % len(self))
        several = [self.choices[row] for row in rows.tolist()]
        ids = [
            own[0] if len(own) == 1 else own[int(chances(self.moving.seed, draw, 1).integers(len(own)))]
            for own, draw in zip(several, draws.tolist(), strict=True)
        ]
        return rows, np.asarray(ids)

    def same(self, draws: Tensor) -> Tensor:
        """(n, n) bool: whether the text of draw j is right for the image of draw i."""
        rows, ids = self.drawn(draws)
        alike = torch.as_tensor(self.first_alike[ids])
        return self.right(rows, ids) | (alike[:, None] == alike[None])

    def said(self, draws: Tensor) -> list[str]:
        """The words of some draws: a text, or some of its sentences in their order."""
        texts = [self.strings[number] for number in self.drawn(draws)[1].tolist()]
        if not self.moving.sentences:
            return texts
        return [self._some(text, draw) for text, draw in zip(texts, draws.tolist(), strict=True)]

    def _some(self, text: str, draw: int) -> str:
        parts = sentences_of(text)
        if len(parts) <= self.moving.sentences:
            return text
        picked = chances(self.moving.seed, draw, 2).permutation(len(parts))[: self.moving.sentences]
        return " ".join(parts[i] for i in sorted(picked.tolist()))

    def see_images(self, draws: Tensor) -> Tensor:
        """Vectors (n, D) of some draws."""
        if self.still:
            return self.query.take(self.image.rows(draws)).vectors()
        return self.image(draws)[0]

    def see_regions(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and regions (n, G x G, D) of some draws."""
        if self.still:
            part = self.query.take(self.image.rows(draws))
            return part.vectors(), self.encoder.grid(part.samples)[0][torch.as_tensor(part.source)].flatten(2).mT
        whole, first = self.image(draws)
        return whole, first.flatten(2).mT

    @property
    def still(self) -> bool:
        """Whether images are always seen in the same way: by the encoder as it was, and none is augmented."""
        return "image" not in self.moving.sides and self.moving.augment == "none"

    def see_texts(self, strings: Sequence[str]) -> Tensor:
        """(n, D), unit norm, by the tower with the weights that move."""
        if "text" not in self.moving.sides:
            return self.encoder.texts(strings)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.moving.precision == "bfloat16"):
            if self.kept_texts is not None and all(one in self.kept_texts.tokens for one in strings):
                return self.kept_texts(strings).float()
            return self.encoder.changed(text=self.text, identity="pretraining").texts(strings).float()

    def values(self, kept: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights of the image side and of the text side as they are to stand in the towers, of what learning ended with."""
        sides = []
        for side, tower in (("image", self.encoder.image_tower), ("text", self.encoder.text_tower)):
            own = side_of(kept, f"{side}.")
            if own and self.moving.train == "lora":
                names = adaptable(tower)
                merged = LOW_RANK.merged(tower, names, own)
                own = {f"{name}.weight": merged.get_submodule(name).weight.detach().clone() for name in names}
            sides.append(own)
        return sides[0], sides[1]


def movable(tower: Any, moving: Moving, pixels: Tensor | None) -> tuple[Any, dict[str, Tensor]]:
    """The tower with copies of the weights that move, and these by name; `lora`: with low-rank changes of all its matrices."""
    if moving.train == "lora":
        return LOW_RANK.around(tower, adaptable(tower), moving.seed)
    return copied(tower, trained(tower, moving.train, moving.blocks, pixels))


def trained(tower: Any, train: Train, blocks: int, pixels: Tensor | None) -> list[str]:
    """Names of the weights of `opened(tower)` that move: what lies behind the blocks, the last so many blocks too, or all.

    Which parameters lie behind is seen from a pass of pixels; of a text tower, those in no block that are no embedding.
    """
    apart = opened(module_of(tower))
    names = [name for name, parameter in apart.named_parameters() if parameter.is_floating_point()]
    if train == "all":
        return names
    last = last_blocks_of(apart, blocks)
    if pixels is not None:
        copy, _ = copied(tower, names)
        depth = depths_of(copy, pixels)
        behind = [name for name in names if depth[name] > max(depth[inner] for inner in names if inner.startswith(f"{last[-1]}."))]
    else:
        chain = last[-1].rpartition(".")[0]
        tables = {f"{name}.weight" for name, part in apart.named_modules() if isinstance(part, nn.Embedding)}
        outside = [name for name in names if not name.startswith(f"{chain}.") and name not in tables and "embedding" not in name.lower()]
        behind = outside
    return behind if train == "projections" else [*(name for name in names if any(name.startswith(f"{block}.") for block in last)), *behind]
