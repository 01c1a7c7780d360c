"""The two halves of a text tower's pass: what enters a block, and the vector that is made from there.

Where only the last blocks change and the strings do not, what enters the first of them is computed once and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medtame.encoders.blocks import NEAR, NotCalledError, watched
from medtame.encoders.opened import exchanged

STRINGS_AT_ONCE = 16  # of about one length: what is padded is work for nothing
SHORT, LONG = "a scan", "a scan of the left lung with a mass, and an effusion on the right side"  # of two lengths, to try a half on


class _ReachedError(Exception):
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def entering(tower: Any, block: str, strings: Sequence[str]) -> list[Tensor]:
    """What enters the block of each string: (L, E) with its own number of tokens. Raises NotCalledError."""

    def stop(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        raise _ReachedError(first_of(given, named))

    stopped: Any = hooked(tower, block, stop)
    found: list[Tensor] = []
    for start in range(0, len(strings), STRINGS_AT_ONCE):
        ids, mask = tower.tokens(strings[start : start + STRINGS_AT_ONCE])
        try:
            stopped.encode(tower.embed(ids), mask)
        except _ReachedError as reached:
            lengths = mask.sum(1).tolist()
            found += [row[:length].clone() for row, length in zip(reached.tokens, lengths, strict=True)]
        else:
            raise NotCalledError
    return found


class Rest(nn.Module):
    """What enters the block (n, L, E), and which tokens there are (n, L) -> vectors (n, D): the rest of the tower, with its own weights.

    Parts that had ended before the block began are not run: they give NaN, so that a tower which reads them again is found out.
    """

    def __init__(self, tower: Any, block: str) -> None:
        super().__init__()
        self.given: Tensor | None = None
        ids, mask = tower.tokens([LONG])
        self.probe, self.width = tuple(mask.shape), tower.embed(ids).shape[2]
        blanks = ended(tower, block)

        def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if given:
                return (self.given, *given[1:]), named
            return given, {**named, "hidden_states": self.given}

        def blank(name: str, part: nn.Module) -> nn.Module | None:
            if name not in blanks:
                return None
            copied: Any = copy.copy(part)
            copied.forward = lambda *given, **named: self._nothing(blanks[name])
            return copied  # type: ignore[no-any-return]

        self.tower = exchanged(hooked(tower, block, enter), blank)

    def _nothing(self, shape: torch.Size) -> Tensor:
        assert self.given is not None
        sizes = [new if size == old else size for size, old, new in zip(shape[:2], self.probe, self.given.shape[:2], strict=False)]
        return torch.full((1,) * len(shape), float("nan"), dtype=self.given.dtype).expand(*sizes, *shape[2:])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tower: Any = self.tower
        self.given = tokens
        try:
            blank = torch.full((1, 1, 1), float("nan"), dtype=tokens.dtype).expand(*mask.shape, self.width)
            vectors: Tensor = tower.encode(blank, mask)
        finally:
            self.given = None
        return vectors


@dataclass(frozen=True)
class KeptTexts:
    """Strings with what enters a block of each; `rest` makes their vectors with the weights that the tower has now."""

    rest: Rest
    tokens: dict[str, Tensor]

    @classmethod
    def of(cls, tower: Any, block: str, strings: Sequence[str], limit_bytes: int) -> KeptTexts | None:
        """Of a tower whose weights before the block never change. None where it cannot be taken apart, or beyond the memory."""
        with torch.no_grad():
            try:
                trial = entering(tower, block, [SHORT, LONG])
                expected = tower.encode(*embedded(tower, [SHORT, LONG]))
                rest = Rest(tower, block)
                made = cls(rest, {SHORT: trial[0], LONG: trial[1]})
                if not bool(((made([SHORT, LONG]) - expected).abs().max() < NEAR).item()):
                    return None
                most = max(trial[1].nbytes, max(one.nbytes for one in entering(tower, block, [max(strings, key=len)])))
                if most * len(strings) > limit_bytes:
                    return None
                return cls(rest, dict(zip(strings, entering(tower, block, strings), strict=True)))
            except (NotCalledError, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
                return None  # a tower of another make: it is run whole

    def __call__(self, strings: Sequence[str]) -> Tensor:
        """(n, D), unit norm, differentiable in the weights from the block on. A string that occurs twice is made once."""
        unique = sorted(dict.fromkeys(strings), key=lambda one: len(self.tokens[one]))
        parts = [self._alike(unique[start : start + STRINGS_AT_ONCE]) for start in range(0, len(unique), STRINGS_AT_ONCE)]
        place = {one: number for number, one in enumerate(unique)}
        return torch.cat(parts)[torch.tensor([place[one] for one in strings])]

    def _alike(self, strings: Sequence[str]) -> Tensor:
        """(n, D) of strings of about one length, padded to the longest."""
        rows = [self.tokens[one] for one in strings]
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        found: Tensor = self.rest(nn.utils.rnn.pad_sequence(rows, batch_first=True), mask)
        return found


def embedded(tower: Any, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
    ids, mask = tower.tokens(strings)
    return tower.embed(ids), mask


def first_of(given: tuple[Tensor, ...], named: dict[str, Any]) -> Tensor:
    """The tokens that a block is called with."""
    found: Tensor = given[0] if given else named["hidden_states"]
    return found


def hooked(tower: nn.Module, block: str, hook: Any) -> nn.Module:
    """The tower with a look at what enters the block; the tower itself stays as it is."""

    def change(name: str, part: nn.Module) -> nn.Module | None:
        if name != block:
            return None
        copied = copy.copy(part)
        copied._forward_pre_hooks = part._forward_pre_hooks.copy()
        copied._forward_pre_hooks_with_kwargs = part._forward_pre_hooks_with_kwargs.copy()
        copied.register_forward_pre_hook(hook, with_kwargs=True)
        return copied

    return exchanged(tower, change)


def ended(tower: Any, block: str) -> dict[str, torch.Size]:
    """The outermost parts that were called once, ended before the block began and gave a tensor: their shapes for LONG."""
    found: dict[str, torch.Size] = {}
    with watched(tower, block, found) as calls:
        tower.encode(*embedded(tower, [LONG]))
    once = {name: shape for name, shape in found.items() if calls[name] == 1}
    return {name: shape for name, shape in once.items() if not any(name.startswith(f"{other}.") for other in once)}
