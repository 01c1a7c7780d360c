"""A tower's chain of blocks, and the two halves of a pass: what enters a block, and what the tower makes of it from there.

Where only the last blocks change and the pixels do not, what enters the first of them is computed once and kept.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medtame.encoders.opened import exchanged
from medtame.errors import PairError

Maps = tuple[Tensor, ...]
CHAINS = (nn.ModuleList, nn.Sequential)
NEAR = 1e-4  # how far two passes of the same numbers may lie apart


def blocks_of(tower: nn.Module) -> list[str]:
    """Names of a tower's blocks, first to last: a transformer's layers, or the stages of a convolutional network.

    They are the members of the chain (a list of parts of one class) with most weights; where several chains lie side by side, as
    the stages of a ResNet do, the chains. A tower without a chain gives its own parts. Raises PairError where there are none.
    """
    chains = [name for name, part in tower.named_modules() if isinstance(part, CHAINS) and _uniform(part)]
    outer = [name for name in chains if not any(name.startswith(f"{other}.") or other == "" for other in chains if other != name)]
    if outer:
        beside: dict[str, list[str]] = {}
        for name in outer:
            beside.setdefault(name.rpartition(".")[0], []).append(name)
        most = max(beside.values(), key=lambda names: sum(_numbers(tower.get_submodule(name)) for name in names))
        return most if len(most) > 1 else _children(tower, most[0])
    place = ""
    while len(inside := _children(tower, place)) == 1:
        place = inside[0]
    if not inside:
        raise PairError("the encoder's tower has no blocks that could be trained: use a method on frozen features, such as clap")
    return inside


def last_blocks_of(tower: nn.Module, count: int) -> list[str]:
    """The last `count` of `blocks_of`. Raises PairError where there are fewer."""
    names = blocks_of(tower)
    if count > len(names):
        raise PairError(f"blocks={count} were asked for and the encoder's tower has {len(names)}: give a number from 1 to {len(names)}")
    return names[-count:]


def depths_of(tower: nn.Module, pixels: Tensor) -> dict[str, int]:
    """How deep each parameter lies: 0 before the first of n blocks, k in the k-th, n + 1 behind the last.

    Before are those on which what enters the first block depends, for prepared pixels (N, 3, S, S). Parameters must ask for gradients.
    """
    blocks = blocks_of(tower)
    named = dict(tower.named_parameters())
    with torch.enable_grad():
        try:
            entering = Before(tower, blocks[0])(pixels)[0].sum()
            slopes = torch.autograd.grad(entering, list(named.values()), allow_unused=True) if entering.requires_grad else ()
        except NotCalledError:
            slopes = ()
    before = {name for name, slope in zip(named, slopes, strict=False) if slope is not None}
    inside = {name: k for k, block in enumerate(blocks, 1) for name in named if name.startswith(f"{block}.")}
    return {name: inside.get(name, 0 if name in before else len(blocks) + 1) for name in named}


def _uniform(part: nn.Module) -> bool:
    kinds = [type(child) for child in part.children() if _numbers(child)]
    return len(kinds) > 1 and len(set(kinds)) == 1 and len(kinds) == len(list(part.children()))


def _numbers(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _children(tower: nn.Module, name: str) -> list[str]:
    """Full names of a part's own parts that have weights."""
    return [f"{name}.{own}" if name else own for own, child in tower.get_submodule(name).named_children() if _numbers(child)]


class _ReachedError(Exception):
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


class NotCalledError(Exception):
    """A tower reads the parts of a block itself, without calling it."""


class Before(nn.Module):
    """Prepared pixels (N, 3, S, S) -> what enters the block (N, ...), twice, as a tower gives `whole` and maps; nothing later runs.

    Raises NotCalledError.
    """

    def __init__(self, tower: nn.Module, block: str) -> None:
        super().__init__()

        def stop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            raise _ReachedError(given[0])

        self.tower = _hooked(tower, block, stop)
        self.pixels: Tensor | None = None  # of the first images that were seen: `After` is tried on them

    def forward(self, prepared: Tensor) -> tuple[Tensor, Maps]:
        self.pixels = prepared[:3] if self.pixels is None else self.pixels
        try:
            self.tower(prepared)
        except _ReachedError as reached:
            return reached.tokens, (reached.tokens,)
        raise NotCalledError


class After(nn.Module):
    """What enters the block (N, ...) -> whole (N, D), and the first map: the rest of the tower's pass, with the tower's own weights.

    What had ended before the block began is not run: parts give NaN of the right shape. So where a tower reads anything else of its
    first part later on, the result is no number, and `after` refuses it.
    """

    def __init__(self, tower: nn.Module, block: str, pixels: Tensor) -> None:
        super().__init__()
        blanks = _ended(tower, block, pixels)
        self.entering: Tensor | None = None

        def enter(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.entering, *given[1:])

        def blank(name: str, part: nn.Module) -> nn.Module | None:
            if name not in blanks:
                return None
            copied: Any = copy.copy(part)
            copied.forward = lambda *given, **named: self._nothing(blanks[name], len(pixels))
            return copied  # type: ignore[no-any-return]

        self.tower = exchanged(_hooked(tower, block, enter), blank)
        self.shape = tuple(pixels.shape[1:])

    def _nothing(self, shape: torch.Size, rows: int) -> Tensor:
        assert self.entering is not None
        first = len(self.entering) if shape[0] == rows else shape[0]
        return torch.full((1,) * len(shape), float("nan"), dtype=self.entering.dtype).expand(first, *shape[1:])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Maps]:
        self.entering = tokens
        try:
            whole, maps = self.tower(torch.full((1, 1, 1, 1), float("nan"), dtype=tokens.dtype).expand(len(tokens), *self.shape))
        finally:
            self.entering = None
        return whole, maps[:1]


def after(tower: nn.Module, block: str, pixels: Tensor) -> After | None:
    """`After`, where it gives on some prepared pixels (3, 3, S, S) what the tower gives; else None: the tower is run whole."""
    with torch.no_grad():
        expected = tower(pixels)
        try:
            tokens = Before(tower, block)(pixels)[0]
            made = After(tower, block, pixels)
            whole, maps = made(tokens)
        except (NotCalledError, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return None  # a tower of another make: it is run whole
    pairs = ((whole, expected[0]), (maps[0], expected[1][0]))
    same = all(a.shape == b.shape and bool(torch.isfinite(a).all()) and float((a - b).abs().max()) < NEAR * _size(b) for a, b in pairs)
    return made if same else None


def _size(values: Tensor) -> float:
    """Of numbers, in units of what their type can tell apart: 1 in single precision."""
    coarser: float = torch.finfo(values.dtype).eps / torch.finfo(torch.float32).eps
    return (1 + float(values.abs().max())) * math.sqrt(coarser)


def _hooked(tower: nn.Module, block: str, hook: Any) -> nn.Module:
    """The tower with a look at what enters the block; the tower itself stays as it is."""

    def change(name: str, part: nn.Module) -> nn.Module | None:
        if name != block:
            return None
        copied = copy.copy(part)
        copied._forward_pre_hooks = part._forward_pre_hooks.copy()
        copied.register_forward_pre_hook(hook)
        return copied

    return exchanged(tower, change)


def _ended(tower: nn.Module, block: str, pixels: Tensor) -> dict[str, torch.Size]:
    """The outermost parts that were called once, ended before the block began and gave a tensor: their shapes."""
    ended: dict[str, torch.Size] = {}
    with torch.no_grad(), watched(tower, block, ended) as calls:
        tower(pixels)
    once = {name: shape for name, shape in ended.items() if calls[name] == 1}
    return {name: shape for name, shape in once.items() if not any(name.startswith(f"{other}.") for other in once)}


@contextmanager
def watched(tower: nn.Module, block: str, ended: dict[str, torch.Size]) -> Iterator[Counter[str]]:
    """Fill `ended` with the shapes that parts give before the block begins, and count calls."""
    calls: Counter[str] = Counter()
    begun: list[str] = []
    handles = [tower.get_submodule(block).register_forward_pre_hook(lambda module, given: begun.append(block))]

    def watch(name: str) -> Any:
        def ends(module: nn.Module, given: Any, found: Any) -> None:
            calls[name] += 1
            if not begun and isinstance(found, Tensor):
                ended[name] = found.shape

        return ends

    handles += [part.register_forward_hook(watch(name)) for name, part in tower.named_modules() if name]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
