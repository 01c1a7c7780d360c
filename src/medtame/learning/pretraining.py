"""Pretraining on pairs of images and texts: both towers see a batch in chunks, the loss sees all of it (GradCache, Gao et al. 2021,
arxiv:2101.06983).

First every chunk is seen without a graph; the loss of all vectors gives each vector its gradient; then every chunk is seen again, with
a graph, and hands its vectors' gradients on. The gradient is that of the whole batch, and memory is bounded by the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtame.encoders.blocks import depths_of, last_blocks_of
from medtame.encoders.opened import opened
from medtame.errors import PairError
from medtame.learning.fine_tuning import copied, first_pixels, module_of
from medtame.learning.loop import Descent, Slopes, Some, Step, descend_slopes
from medtame.types import Problem, Query

See = Callable[[Tensor], Tensor]  # rows (n,) -> vectors (n, D), differentiable in the named weights
Objective = Callable[[Sequence[Tensor], Tensor], Tensor]  # vectors of each side (n, D), and the rows (n,) -> ()


def chunked_slopes(sides: Sequence[See], objective: Objective, named: Mapping[str, Tensor], *, rows: int, chunk: int) -> Slopes:
    """The loss and its gradient to the named weights, with the graph of at most `chunk` rows alive at once.

    Weights that the objective itself reads (a temperature) get their gradient from it; all others from the sides.
    """
    everything = torch.arange(rows)

    def slopes(some: Some) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        batch = everything[some]
        parts = torch.split(batch, chunk)
        total: dict[str, Tensor | None] = dict.fromkeys(named)
        if len(parts) == 1:
            loss = objective([see(batch) for see in sides], batch)
            return loss.detach(), _added(total, torch.autograd.grad(loss, list(named.values()), allow_unused=True))
        with torch.no_grad():
            vectors = [torch.cat([see(part) for part in parts]) for see in sides]
        leaves = [side.requires_grad_(True) for side in vectors]
        loss = objective(leaves, batch)
        found = torch.autograd.grad(loss, [*leaves, *named.values()], allow_unused=True)
        _added(total, found[len(leaves) :])
        for see, slope in zip(sides, found, strict=False):
            if slope is None:
                continue
            for part, own in zip(parts, torch.split(slope, chunk), strict=True):
                seen = see(part)
                if seen.requires_grad:
                    _added(total, torch.autograd.grad(seen, list(named.values()), own, allow_unused=True))
        return loss.detach(), total

    for tensor in named.values():
        tensor.requires_grad_(True)
    return slopes


def _added(total: dict[str, Tensor | None], more: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
    """The sums, with more added to them."""
    for name, slope in zip(total, more, strict=True):
        before = total[name]
        if slope is not None:
            total[name] = slope.detach() if before is None else before + slope
    return total


Train = Literal["projections", "last", "all"]


@dataclass(frozen=True)
class Pairs:
    """Rows of images with a text each, and the weights of both towers that move, by name."""

    query: Query
    texts: tuple[str, ...]  # (n,) of each row
    same: Tensor  # (n, n) bool: whether the text of row j is right for the image of row i
    image: nn.Module
    text: Any
    named: dict[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, train: Train, blocks: int, sides: Sequence[str]) -> Pairs:
        """The pairs of a retrieval problem, whose targets (n, C) say which texts are right for a row; its own is the first of these."""
        own = problem.targets.argmax(1)
        encoder = problem.query.encoder
        image, text = encoder.image_tower, encoder.text_tower
        named: dict[str, Tensor] = {}
        if "image" in sides:
            image, moving = copied(image, trained(image, train, blocks, first_pixels(problem.query)))
            named |= {f"image.{name}": tensor for name, tensor in moving.items()}
        if "text" in sides:
            text, moving = copied(text, trained(text, train, blocks, None))
            named |= {f"text.{name}": tensor for name, tensor in moving.items()}
        if not named:
            raise PairError(f"train={train} finds no weight to train in the towers of {encoder.spec}: give train=last or train=all")
        strings = tuple(problem.query.wanted.prompts[k][0] for k in own.tolist())
        return cls(problem.query, strings, problem.targets[:, own] > 0, image, text, named)

    def see_images(self, rows: Tensor) -> Tensor:
        part = self.query.take(rows.numpy())
        return part.vectors(part.encoder.changed(image=self.image, identity="pretraining"))

    def see_texts(self, rows: Tensor) -> Tensor:
        changed = self.query.encoder.changed(text=self.text, identity="pretraining")
        return changed.texts([self.texts[row] for row in rows.tolist()])


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


def pretrained(
    pairs: Pairs,
    objective: Objective,
    more: Mapping[str, Tensor],
    how: Descent,
    *,
    chunk: int,
    seed: int,
    resume: Mapping[str, Tensor] | None,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Descend an objective over the towers' moving weights, and over `more` that it reads itself; the weights it ends with."""
    named = {**pairs.named, **more}
    slopes = chunked_slopes([pairs.see_images, pairs.see_texts], objective, named, rows=len(pairs.texts), chunk=chunk)
    return (yield from descend_slopes(named, slopes, how, n=len(pairs.texts), seed=seed, resume=resume))
