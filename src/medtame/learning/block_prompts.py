"""Prompts inside transformers: free tokens that stand beside those of an image or in the place of a context, anew in each of the first
blocks (deep prompts: Jia et al. 2022, arxiv:2203.12119). They are layers around blocks, so the tower itself runs as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medtame.encoders.dense import DenseTower
from medtame.encoders.opened import exchanged
from medtame.errors import PairError
from medtame.learning.prompt_learning import Wording, scores_of, wording
from medtame.types import Adapted, Encoder, Query, Scores, sentence_means

ATTENTION = re.compile("attn|attention|qkv")


def attention_blocks(tower: nn.Module) -> list[str]:
    """The names of a tower's transformer blocks, first to last: the longest row of alike parts with attention; none in other networks."""
    longest: list[str] = []
    for name, part in tower.named_modules():
        children = list(part.named_children()) if isinstance(part, (nn.ModuleList, nn.Sequential)) else []
        alike = len({type(child) for _, child in children}) == 1
        if alike and len(children) > len(longest) and all(_attends(child) for _, child in children):
            longest = [f"{name}.{own}" if name else own for own, _ in children]
    return longest


def _attends(block: nn.Module) -> bool:
    return any(ATTENTION.search(name) for name, _ in block.named_modules())


def width_of(tower: nn.Module, blocks: list[str]) -> int:
    """E, the length of the tokens that pass through the blocks: that of their first norm."""
    first = tower.get_submodule(blocks[0])
    return next(int(part.normalized_shape[0]) for part in first.modules() if isinstance(part, nn.LayerNorm))


class Around(nn.Module):
    """A block with tokens put in before it, put in the place of others, or taken out after it."""

    def __init__(self, block: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.before, self.after = block, before, after

    def __getattr__(self, name: str) -> Any:
        """What a tower asks of its blocks besides calling them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, tokens: Tensor, *given: Any, **named: Any) -> Any:
        found = self.block(self.before(tokens), *given, **named)
        return (self.after(found[0]), *found[1:]) if isinstance(found, tuple) else self.after(found)


def same(tokens: Tensor) -> Tensor:
    return tokens


def image_prompted(tower: nn.Module, prompts: Tensor) -> nn.Module:
    """An image tower whose first J blocks each see prompts (J, M, E) after the image's tokens, which leave after the last block."""
    blocks, count = attention_blocks(tower), prompts.shape[1]

    def wrapped(name: str, part: nn.Module) -> nn.Module | None:
        if name not in blocks:
            return None
        number = blocks.index(name)

        def before(tokens: Tensor) -> Tensor:
            if number >= len(prompts):
                return tokens
            kept = tokens if number == 0 else tokens[:, :-count]
            return torch.cat([kept, prompts[number].to(tokens.dtype).expand(len(tokens), -1, -1)], 1)

        return Around(part, before, (lambda tokens: tokens[:, :-count]) if number == len(blocks) - 1 else same)

    return exchanged(tower, wrapped)


def text_prompted(words: Wording, prompts: Tensor) -> Wording:
    """A wording whose context is replaced by prompts (J, M, E) in the blocks after the first."""
    blocks, start, count = attention_blocks(words.tower), len(words.start), prompts.shape[1]
    if words.padding is not None and words.padding.first:
        raise PairError("this text tower has its padding first, so deep prompts have no fixed place: use coop, which has none")

    def wrapped(name: str, part: nn.Module) -> nn.Module | None:
        number = blocks.index(name) - 1 if name in blocks else -1
        if not 0 <= number < len(prompts):
            return None

        def before(tokens: Tensor) -> Tensor:
            new = prompts[number].to(tokens.dtype).expand(len(tokens), -1, -1)
            return torch.cat([tokens[:, :start], new, tokens[:, start + count :]], 1)

        return Around(part, before, same)

    return replace(words, tower=exchanged(words.tower, wrapped))


def image_blocks(encoder: Encoder) -> list[str]:
    """The blocks of an encoder's image tower. Raises PairError where it has none that prompts can enter."""
    if isinstance(encoder.image_tower, DenseTower):
        raise PairError(f"{encoder.spec} reads maps between its blocks, where prompts would stand: leave @dense out")
    blocks = attention_blocks(encoder.image_tower)
    if not blocks:
        raise PairError(f"the image side of {encoder.spec} is no transformer, so it has no tokens for prompts: use coop or lora")
    return blocks


@dataclass(frozen=True)
class DeepPrompted(Adapted):
    """Prompts in both towers: `image` (J, M, E); a context (M, E) and `text` (J, M, E) after the first block, or none at all."""

    image: Tensor
    context: Tensor  # (0, 0): the prompts stay as they are written
    text: Tensor
    ids: Tensor
    template: str

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            encoder = query.encoder.changed(image=image_prompted(query.encoder.image_tower, self.image), identity="prompts")
            return Scores(scores_of(self.texts(query), query, query.vectors(encoder), query.encoder))

    def texts(self, query: Query) -> Tensor:
        """(C, D), of candidates alone: `scores_of` adds a row's words."""
        if not len(self.context):
            return plain_texts(query)
        words = wording(query.encoder.text_tower, query.wanted, self.template, self.ids)
        return text_prompted(words, self.text).texts(self.context)


def plain_texts(query: Query) -> Tensor:
    """(C, D), or (2C, D) with negatives: what the prompts say before a row's words are added."""
    wanted = query.wanted
    return torch.cat([sentence_means(query.encoder, prompts) for prompts in (wanted.prompts, wanted.negatives) if prompts is not None])


def drawn(shape: tuple[int, ...], seed: int, number: int) -> Tensor:
    """First values of prompts, of deviation .02, the same for a seed."""
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + number))


def image_vectors(query: Query, rows: Tensor, tower: nn.Module) -> Tensor:
    """(B, D) of some rows, through a changed image tower, with its graph."""
    part = query.take(rows.numpy())
    return part.vectors(query.encoder.changed(image=tower, identity="prompts"))
