"""Fine-tuning: a copy of a tower in which chosen weights move, and the one loop that trains them through the support's images.

The method says which weights and compares vectors; all else is here: the copy shares what does not move, no image is augmented and
batch norm stays as it is, so what enters the first block that changes is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from medtame.encoders.blocks import Before, Maps, NotCalledError, after, last_blocks_of
from medtame.encoders.opened import copied as copied
from medtame.encoders.opened import module_of as module_of
from medtame.encoders.opened import opened
from medtame.encoders.opened import with_values as with_values
from medtame.errors import PairError
from medtame.learning.loop import Descent, Step, descend
from medtame.types import Encoder, Query, Samples

Precision = Literal["float32", "bfloat16"]
Loss = Callable[[Tensor, Tensor], Tensor]  # vectors (n, D) of rows, and the rows (n,) -> ()
KEPT_BYTES = 2 * 2**30  # what enters a block is kept up to here; beyond it images pass through the whole tower at each step
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def is_norm(part: nn.Module) -> bool:
    """One of torch's norm layers, or another library's that is called one."""
    return isinstance(part, NORMS) or (not any(True for _ in part.children()) and "Norm" in type(part).__name__)


def adaptable(tower: Any, blocks: int | None = None) -> list[str]:
    """Names of the layers of `opened(tower)` that are one matrix: linear layers and pointwise convolutions.

    Attention is in plain layers there, so that its weights are reached too. `blocks`: of the last so many blocks only.
    """
    apart = opened(module_of(tower))
    inside = [""] if blocks is None else [f"{name}." for name in last_blocks_of(apart, blocks)]
    names = [name for name, layer in apart.named_modules() if _matrix(layer) and any(f"{name}.".startswith(place) for place in inside)]
    if not names:
        raise PairError(
            "the encoder's tower has neither linear layers nor pointwise convolutions there: use a method on frozen features, such as clap"
        )
    return names


def _matrix(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1)


def halved(tower: nn.Module, moving: Iterable[Tensor]) -> None:
    """Weights that do not move in 16 bits, in a copy's own layers; norms, which are small, stay as they are."""
    kept = {id(tensor) for tensor in moving}
    for part in tower.modules():
        if is_norm(part):
            continue
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in kept and parameter.is_floating_point():
                part._parameters[name] = nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)


class Pass(nn.Module):
    """A module's pass in a precision: images or tokens in, `whole` and maps in single precision out."""

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.module, self.precision = module, precision

    def inner(self, given: Tensor) -> tuple[Tensor, Maps]:
        halves = self.precision == "bfloat16"
        with torch.autocast(given.device.type, torch.bfloat16, enabled=halves):  # weights that move are cast as they are read
            found: tuple[Tensor, Maps] = self.module(given.to(torch.bfloat16) if halves else given)
        return found

    def forward(self, given: Tensor) -> tuple[Tensor, Maps]:
        whole, maps = self.inner(given)
        return whole.float(), tuple(each.float() for each in maps)


class Entering(Pass):
    """The same for what enters a block, which stays in its precision."""

    def forward(self, given: Tensor) -> tuple[Tensor, Maps]:
        return self.inner(given)


@dataclass(frozen=True)
class Seen:
    """What a tower made of the samples of some rows, in the place of an encoder."""

    vectors: Tensor
    maps: Maps

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        return self.vectors

    def grid(self, samples: Samples, column: str = "image") -> Maps:
        return self.maps


@dataclass(frozen=True)
class Sight:
    """Rows of a query as a tower sees them whose weights move. `tokens`: what enters its first changed block, a sample each."""

    query: Query
    encoder: Encoder  # with the whole tower
    rest: nn.Module | None = None
    tokens: Tensor | None = None

    @classmethod
    def of(cls, query: Query, tower: nn.Module, block: str | None, precision: Precision = "float32") -> Sight:
        """Through the tower from its pixels or, where nothing before `block` changes and the rest can be run alone, from there."""
        encoder = query.encoder.changed(image=Pass(tower, precision), identity="tuned")
        whole = cls(query, encoder)
        if block is None:
            return whole
        entering = Entering(Before(tower, block), precision)
        some = query.encoder.changed(image=entering, identity=f"before {block}")
        ask = some.whole if query.regions is None else (lambda samples: some.grid(samples)[0])
        with torch.no_grad():
            try:
                first = ask(query.samples.take(np.arange(min(3, len(query.samples)))))
            except NotCalledError:
                return whole
            if first[0].nbytes * len(query.samples) > KEPT_BYTES:
                return whole
            pixels = cast(Before, entering.module).pixels
            assert pixels is not None
            if precision == "bfloat16":
                with torch.autocast(pixels.device.type, torch.bfloat16):
                    rest = after(tower, block, pixels.to(torch.bfloat16))
            else:
                rest = after(tower, block, pixels)
            return whole if rest is None else cls(query, encoder, Pass(rest, precision), ask(query.samples))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, D) of rows (n,), differentiable."""
        part = self.query.take(rows.numpy())
        if self.rest is None or self.tokens is None:
            return part.vectors(self.encoder)
        samples = np.unique(self.query.source[rows.numpy()])
        return part.vectors(cast(Encoder, Seen(*self.rest(self.tokens[torch.as_tensor(samples)]))))


def first_pixels(query: Query) -> Tensor:
    """Prepared pixels (1, 3, S, S) of a query's first image."""
    seen: list[Tensor] = []

    class Look(nn.Module):
        def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
            seen.append(prepared)
            return prepared.flatten(1), (prepared,)

    query.encoder.changed(image=Look(), identity="look").whole(query.samples.take([0]))
    return seen[0]


def fine_tuned(
    see: Callable[[Tensor], Tensor],
    named: Mapping[str, Tensor],
    loss: Loss,
    how: Descent,
    *,
    rows: int,
    seed: int,
    resume: Mapping[str, Tensor] | None = None,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Descend `loss(vectors, rows)` over named weights of what `see` sees with; the weights that it ends with."""
    return (yield from descend(named, lambda batch: loss(see(batch), batch), how, n=rows, seed=seed, resume=resume))
