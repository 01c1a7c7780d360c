"""Nearest rows by cosine, exactly, by blocked products of rows that are kept in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from medtame.features.neighbours import CHUNK, fast_16_bits
from medtame.types import Array

ROWS_AT_ONCE = 16_384
ASKED_AT_ONCE = 256
FEW = 12  # queries; with fewer a product in single precision is faster, of so few rows at once that they stay in the cache
FEW_ROWS = 512
MOST_CANDIDATES = 256  # a query and block; where 16 bits leave more, the block is worked out in single precision
ROUNDED = 2.0**-8 * 2 + 1e-3  # how far a cosine may be off where rows are rounded, small numbers clumsily, and the product, too


@dataclass(frozen=True)
class Found:
    """Row numbers (Q, k), nearest first, and their cosines (Q, k), float32."""

    rows: Array
    cosines: Array


def starts(count: int) -> range:
    return range(0, count, ROWS_AT_ONCE)


# ---- rows in parts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bank:
    """Unit vectors in parts (n, D) float16, which may lie in files, numbered through."""

    parts: Sequence[Array]
    edges: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", np.cumsum([0, *map(len, self.parts)]))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def rows(self, numbers: Array) -> Tensor:
        """(m, D) float32."""
        return torch.from_numpy(self.gathered(self.parts, numbers)).float()

    def gathered(self, parts: Sequence[Array], numbers: Array) -> Array:
        if len(parts) == 1:
            return np.asarray(parts[0][numbers])
        found = np.empty((len(numbers), parts[0].shape[1]), dtype=parts[0].dtype)
        for part, (start, end) in zip(parts, pairwise(self.edges), strict=True):
            here = np.flatnonzero((numbers >= start) & (numbers < end))
            found[here] = part[numbers[here] - start]
        return found

    def blocks(self, chosen: Array | None) -> Iterator[tuple[Array, Array]]:
        """Row numbers (n,), rising, and rows (n, D) float16; `chosen`: these numbers alone."""
        for part, (start, end) in zip(self.parts, pairwise(self.edges), strict=True):
            if chosen is None:
                for at in starts(len(part)):
                    block = np.asarray(part[at : at + ROWS_AT_ONCE])
                    yield np.arange(start + at, start + at + len(block)), block
                continue
            here = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)]
            for at in starts(len(here)):
                yield here[at : at + ROWS_AT_ONCE], np.asarray(part[here[at : at + ROWS_AT_ONCE] - start])


# ---- exactly --------------------------------------------------------------------------------------------------


def exact(bank: Bank, asked: Tensor, count: int, chosen: Array | None = None) -> Found:
    """The `count` rows of the largest products with each of `asked` (Q, D), unit norm; of equal ones the lower number is first.

    Where the processor multiplies 16-bit numbers faster, these find the candidates, with room for how far they may be off.
    """
    parts = [exactly(bank, part.contiguous(), count, chosen) for part in torch.split(asked.float(), ASKED_AT_ONCE)]
    return Found(np.concatenate([part.rows for part in parts]), np.concatenate([part.cosines for part in parts]))


def exactly(bank: Bank, asked: Tensor, count: int, chosen: Array | None) -> Found:
    count = min(count, len(bank) if chosen is None else len(chosen))
    best = Found(np.zeros((len(asked), 0), dtype=np.int64), np.zeros((len(asked), 0), dtype=np.float32))
    room = np.empty((ROWS_AT_ONCE, asked.shape[1]), dtype=np.int16)
    wanted, rounded = asked.bfloat16(), fast_16_bits() and len(asked) >= FEW
    off = ROUNDED + (asked - wanted.float()).norm(dim=1, keepdim=True)
    for numbers, rows in bank.blocks(chosen):
        least = reached(best, count)
        which, at = candidates(wanted @ brief(rows, room).T, count, least, off) if rounded else (np.zeros(0, dtype=np.int64),) * 2
        if not rounded or len(which) > MOST_CANDIDATES * len(asked):
            which, at = candidates(scored(asked, rows), count, least, torch.tensor(1e-5))
        best = merged(best, which, numbers[at], products(asked, rows, which, at), count)
    return best


def scored(asked: Tensor, rows: Array) -> Tensor:
    """(Q, n) products of `asked` (Q, D) with rows (n, D) float16, in single precision."""
    if len(asked) >= FEW:
        return asked @ torch.from_numpy(rows).float().T
    found, room = torch.empty(len(asked), len(rows)), torch.empty(FEW_ROWS, rows.shape[1])
    for start in range(0, len(rows), FEW_ROWS):
        block = torch.from_numpy(rows[start : start + FEW_ROWS])
        torch.mm(asked, room[: len(block)].copy_(block).T, out=found[:, start : start + len(block)])
    return found


def brief(rows: Array, room: Array) -> Tensor:
    """Rows (n, D) float16 with numbers below 2 as bfloat16, rounded, in `room`; numbers below 6e-5 are off by up to 3e-5.

    Both types have their sign first; three bits of the fraction go, and the exponent counts from another number.
    """
    for start in range(0, len(rows), 256):
        block = room[start : start + 256][: len(rows) - start]
        np.add(rows[start : start + 256].view(np.int16), np.int16(4), out=block)
        np.right_shift(block, 3, out=block)
        np.bitwise_and(block, np.int16(-0x7001), out=block)
        np.add(block, np.int16(112 << 7), out=block)
    return torch.from_numpy(room[: len(rows)]).view(torch.bfloat16)


def reached(best: Found, count: int) -> Tensor:
    """(Q, 1) the cosine that a row must have to be among the `count` best so far."""
    if best.cosines.shape[1] >= count:
        return torch.from_numpy(best.cosines[:, -1:])
    return torch.full((len(best.rows), 1), -torch.inf)


def candidates(scores: Tensor, count: int, least: Tensor, off: Tensor) -> tuple[Array, Array]:
    """Queries (m,), rising, and columns (m,) of all scores (Q, n) that may be among the `count` best, each off by at most `off` (Q, 1).

    Before anything is found, the count-th largest of the chunks' largest is no more than the count-th largest of all.
    """
    whole = scores.shape[1] // CHUNK * CHUNK
    if whole // CHUNK >= count and not bool(least.isfinite().all()):
        largest = scores[:, :whole].view(len(scores), -1, CHUNK).amax(2).float()
        least = torch.maximum(least, largest.topk(count, 1).values[:, -1:] - off)
    return np.nonzero(at_least(scores, least - off))  # type: ignore[return-value]


def at_least(scores: Tensor, least: Tensor) -> Array:
    """(Q, n) bool: where scores (Q, n) reach `least` (Q, 1), or nearly; positive 16-bit floats are in the order of their bits."""
    if scores.dtype != torch.bfloat16:
        return np.asarray(scores.numpy() >= least.numpy())
    bits = (least - least.abs() * 2.0**-8).bfloat16().view(torch.int16).numpy()
    return np.asarray(scores.view(torch.int16).numpy() >= np.where(least.numpy() > 0, bits, np.int16(-0x8000)))


def products(asked: Tensor, rows: Array, which: Array, at: Array) -> Array:
    """(m,) float32 of pairs of a query and a row, a query at a time."""
    found = np.empty(len(which), dtype=np.float32)
    ends = np.searchsorted(which, np.arange(len(asked) + 1))
    for query, (start, end) in enumerate(pairwise(ends.tolist())):
        if end > start:
            found[start:end] = (torch.from_numpy(rows[at[start:end]]).float() @ asked[query]).numpy()
    return found


def merged(best: Found, which: Array, numbers: Array, cosines: Array, count: int) -> Found:
    """The `count` best of those so far and new ones, of which a query has at least `count` together where so many rows were seen."""
    held = best.rows.shape[1]
    which = np.concatenate([np.repeat(np.arange(len(best.rows)), held), which])
    numbers, cosines = np.concatenate([best.rows.ravel(), numbers]), np.concatenate([best.cosines.ravel(), cosines])
    order = np.lexsort((numbers, -cosines, which))
    first = np.searchsorted(which[order], np.arange(len(best.rows) + 1))
    kept = min(count, int(np.diff(first).min())) if len(best.rows) else 0
    places = order[first[:-1, None] + np.arange(kept)]
    return Found(numbers[places], cosines[places])
