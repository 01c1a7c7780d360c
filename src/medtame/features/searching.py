"""Nearest rows by cosine: exactly by blocked products, or by sign bits with a second look in single precision.

A sign bit says on which side of the mean a vector lies along one direction of a random rotation (Charikar 2002); the share of
unequal bits grows with the angle. The first 128 bits of all rows are looked at, the other bits of those that are near by them, and the
16-bit rows of the nearest by all bits. Distances of bits are the same by XOR and popcount (one query) and by a product of +1 and -1 (many).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from medtame.features.neighbours import CHUNK, fast_16_bits
from medtame.types import Array

ROWS_AT_ONCE = 16_384
ASKED_AT_ONCE = 256
FIRST_WORDS = 2  # of 64 bits: looked at for every row
FEW = 4  # queries; from so many on a product is faster than counting bits
SAMPLED = 16_384  # rows by which the distance is guessed within which the wanted share lies
MOST_CANDIDATES = 256  # a query and block; where 16 bits leave more, the block is worked out in single precision
ROUNDED = 2.0**-8 * 2 + 1e-3  # how far a cosine may be off where rows are rounded, small numbers clumsily, and the product, too


@dataclass(frozen=True)
class Found:
    """Row numbers (Q, k), nearest first, and their cosines (Q, k), float32."""

    rows: Array
    cosines: Array


@dataclass(frozen=True)
class Bits:
    """Sign bits of n vectors: the first words (F, n), and the others (n, W - F), uint64."""

    first: Array
    rest: Array


@dataclass(frozen=True)
class Frame:
    """Where sign bits are taken: the mean (D,) of the rows, and a rotation (D, D), float32."""

    mean: Array
    rotation: Array

    @classmethod
    def of(cls, parts: Sequence[Array], seed: int = 0) -> Frame:
        total, dimension = sum(map(len, parts)), parts[0].shape[1]
        summed = sum(
            (
                part[start : start + ROWS_AT_ONCE].astype(np.float32).sum(0, dtype=np.float64)
                for part in parts
                for start in starts(len(part))
            ),
            np.zeros(dimension),
        )
        random = np.random.default_rng(seed).standard_normal((dimension, dimension))
        return cls((summed / total).astype(np.float32), np.linalg.qr(random)[0].astype(np.float32))

    def words(self, vectors: Tensor) -> Array:
        """(n, W) uint64 of vectors (n, D) float32; bits beyond D are zero."""
        turned = (vectors - torch.from_numpy(self.mean)) @ torch.from_numpy(self.rotation)
        signs = np.zeros((len(vectors), -(-turned.shape[1] // 64) * 64), dtype=bool)
        signs[:, : turned.shape[1]] = (turned > 0).numpy()
        return np.packbits(signs, 1, bitorder="little").view("<u8")

    def bits(self, rows: Array) -> Bits:
        """Of rows (n, D) float16."""
        made = [self.words(torch.from_numpy(rows[start : start + ROWS_AT_ONCE]).float()) for start in starts(len(rows))]
        words = np.concatenate(made) if made else np.zeros((0, -(-rows.shape[1] // 64)), dtype=np.uint64)
        return Bits(np.ascontiguousarray(words[:, :FIRST_WORDS].T), np.ascontiguousarray(words[:, FIRST_WORDS:]))


@dataclass(frozen=True)
class Depth:
    """How many rows are looked at: by all their bits, and then in single precision."""

    by_bits: int
    by_rows: int


def starts(count: int) -> range:
    return range(0, count, ROWS_AT_ONCE)


# ---- rows in parts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bank:
    """Unit vectors in parts (n, D) float16, which may lie in files, numbered through; with their sign bits where there are any."""

    parts: Sequence[Array]
    bits: Sequence[Bits] = ()
    frame: Frame | None = None
    edges: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", np.cumsum([0, *map(len, self.parts)]))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def rows(self, numbers: Array) -> Tensor:
        """(m, D) float32."""
        return torch.from_numpy(self.gathered(self.parts, numbers)).float()

    def first(self, numbers: Array) -> Array:
        """(m, F) the first words of bits."""
        return self.gathered([bits.first.T for bits in self.bits], numbers)

    def rest(self, numbers: Array) -> Array:
        """(m, W - F) the later words of bits."""
        return self.gathered([bits.rest for bits in self.bits], numbers)

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
    wanted, rounded = asked.bfloat16(), fast_16_bits()
    off = ROUNDED + (asked - wanted.float()).norm(dim=1, keepdim=True)
    for numbers, rows in bank.blocks(chosen):
        least = reached(best, count)
        which, at = candidates(wanted @ brief(rows, room).T, count, least, off) if rounded else (np.zeros(0, dtype=np.int64),) * 2
        if not rounded or len(which) > MOST_CANDIDATES * len(asked):
            which, at = candidates(asked @ torch.from_numpy(rows).float().T, count, least, torch.tensor(1e-5))
        best = merged(best, which, numbers[at], products(asked, rows, which, at), count)
    return best


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


# ---- by sign bits ---------------------------------------------------------------------------------------------


def by_signs(bank: Bank, asked: Tensor, count: int, depth: Depth, chosen: Array | None = None) -> Found:
    """As `exact`, but only among the rows whose bits are nearest; needs the bank's bits."""
    parts = [of_some(bank, part.contiguous(), count, depth, chosen) for part in torch.split(asked.float(), ASKED_AT_ONCE)]
    return Found(np.concatenate([part.rows for part in parts]), np.concatenate([part.cosines for part in parts]))


def of_some(bank: Bank, asked: Tensor, count: int, depth: Depth, chosen: Array | None) -> Found:
    if bank.frame is None:
        raise ValueError("a bank without sign bits")
    words = bank.frame.words(asked)
    size = len(bank) if chosen is None else len(chosen)
    count = min(count, size)
    first, later = np.ascontiguousarray(words[:, :FIRST_WORDS]), words[:, FIRST_WORDS:]
    near = near_by_first(bank, first, min(size, max(count, depth.by_bits)), chosen)
    rows, cosines = np.empty((len(asked), count), dtype=np.int64), np.empty((len(asked), count), dtype=np.float32)
    for query, numbers in enumerate(near):
        kept = max(count, depth.by_rows)
        if kept < len(numbers):
            apart = counted(bank.first(numbers) ^ first[query]) + counted(bank.rest(numbers) ^ later[query])
            numbers = np.sort(numbers[np.argpartition(apart, kept - 1)[:kept]])
        cosine = (bank.rows(numbers) @ asked[query]).numpy()
        order = np.lexsort((numbers, -cosine))[:count]
        rows[query], cosines[query] = numbers[order], cosine[order]
    return Found(rows, cosines)


def counted(words: Array) -> Array:
    """(m,) how many bits are set in words (m, W)."""
    bits, total = np.bitwise_count(words), np.zeros(len(words), dtype=np.uint16)
    for column in range(words.shape[1]):
        total += bits[:, column]
    return total


def near_by_first(bank: Bank, asked: Array, wanted: int, chosen: Array | None) -> list[Array]:
    """For each of `asked` (Q, F) the numbers (m,) of rows that are near by their first bits: at least `wanted`, and not many more.

    The distance within which they lie is guessed from a sample, and widened for a query that finds too few.
    """
    size = len(bank) if chosen is None else len(chosen)
    width = 64 * asked.shape[1]
    sample = np.linspace(0, size - 1, min(size, SAMPLED)).astype(np.int64)
    sample = sample if chosen is None else chosen[sample]
    drawn = popcounts(np.ascontiguousarray(bank.first(sample).T), asked)
    place = min(len(sample) - 1, int(np.ceil(wanted / size * len(sample))))
    within = np.partition(drawn, place, 1)[:, place].astype(np.int64)
    found: list[Array] = [np.zeros(0, dtype=np.int64)] * len(asked)
    open_still = np.arange(len(asked))
    while len(open_still):
        for query, pair in zip(open_still, within_distance(bank, asked[open_still], within[open_still], chosen), strict=True):
            found[query] = pair
        open_still = np.array([q for q in open_still if len(found[q]) < wanted and within[q] < width], dtype=np.int64)
        within[open_still] += max(1, width // 32)
    return found


def within_distance(bank: Bank, asked: Array, within: Array, chosen: Array | None) -> list[Array]:
    """For each of `asked` the numbers of all rows whose first bits are apart by no more than `within` (Q,), rising."""
    allowed = None
    if chosen is not None:
        allowed = np.zeros(len(bank), dtype=bool)
        allowed[chosen] = True
    numbers: list[list[Array]] = [[] for _ in asked]
    look = near_by_counting if len(asked) < FEW else near_by_product
    for part, (start, _) in zip(bank.bits, pairwise(bank.edges), strict=True):
        for at in starts(part.first.shape[1]):
            near = look(part.first[:, at : at + ROWS_AT_ONCE], asked, within)
            if allowed is not None:
                near &= allowed[start + at : start + at + near.shape[1]]
            found, width = np.flatnonzero(near), near.shape[1]
            ends = np.searchsorted(found, np.arange(len(asked) + 1) * width).tolist()
            for query, (first, last) in enumerate(pairwise(ends)):
                numbers[query].append(found[first:last] + (start + at - query * width))
    return [np.concatenate(rows) for rows in numbers]


def near_by_counting(first: Array, asked: Array, within: Array) -> Array:
    """(Q, n) bool: whose first bits (F, n) are apart from those of queries (Q, F) by no more than `within` (Q,): XOR and popcount."""
    return np.asarray(popcounts(first, asked) <= within[:, None].astype(np.uint8))


def near_by_product(first: Array, asked: Array, within: Array) -> Array:
    """The same, or a little more, by a product: of +1 and -1 it is the number of equal bits less that of unequal ones, exact up to 256.

    Where half of the bits or more may differ, all rows are near.
    """
    rows, queries = signs(np.ascontiguousarray(first.T)), signs(asked)
    return at_least(queries @ rows.T, torch.from_numpy(rows.shape[1] - 2.0 * within[:, None]).float())


def popcounts(first: Array, asked: Array) -> Array:
    """(Q, n) uint8: how many of the first bits (F, n) of rows and (Q, F) of queries differ."""
    found, room, more = np.zeros((len(asked), first.shape[1]), dtype=np.uint8), np.empty_like(first[0]), np.empty(first.shape[1], np.uint8)
    for query, words in enumerate(asked):
        for rows, word in zip(first, words, strict=True):
            np.bitwise_count(np.bitwise_xor(rows, word, out=room), out=more)
            found[query] += more
    return found


def signs(words: Array) -> Tensor:
    """(n, 64 F) +1 and -1 of words (n, F), in the type that products are fastest in."""
    if fast_16_bits():
        made = np.take(signs_of_bytes(), words.view(np.uint8), mode="clip").view(np.int16)
        return torch.from_numpy(made.reshape(len(words), -1)).view(torch.bfloat16)
    return torch.from_numpy(np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(np.float32)) * 2 - 1


@cache
def signs_of_bytes() -> Array:
    """(256,) for each byte eight numbers of type bfloat16, +1 where a bit is set, else -1, as one of 16 bytes."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    plus, minus = torch.tensor([1.0, -1.0]).bfloat16().view(torch.int16).tolist()
    return np.ascontiguousarray(np.where(bits, plus, minus).astype(np.int16)).view(np.complex128)[:, 0]


# ---- how deep to look -----------------------------------------------------------------------------------------

GOAL, FIRST_DEPTH, FIRST_SHARE = 0.99, 100, 0.002
COMPARED = 10


def deepened(bank: Bank, queries: Sequence[Tensor], own: Array) -> tuple[Depth | None, list[float]]:
    """The least depth, doubled from the first, at which recall@10 of each kind of `queries` (Q, D) is `GOAL`, and these recalls.

    The first kind are the rows `own` (Q,) themselves, which do not count as found. None where so many rows would have to be
    looked at that a product with all of them is no slower.
    """
    truth = [exact(bank, asked, COMPARED + 1).rows for asked in queries]
    depth = Depth(max(FIRST_DEPTH, int(FIRST_SHARE * len(bank))), FIRST_DEPTH)
    while True:
        found = [by_signs(bank, asked, COMPARED + 1, depth).rows for asked in queries]
        recalls = [recall(one, right, own if kind == 0 else None) for kind, (one, right) in enumerate(zip(found, truth, strict=True))]
        if min(recalls) >= GOAL:
            return depth, recalls
        if depth.by_bits > len(bank) // 4:
            return None, recalls
        depth = Depth(2 * depth.by_bits, 2 * depth.by_rows)


def recall(found: Array, right: Array, own: Array | None) -> float:
    """The mean share of the ten right rows (Q, 11) that are among the ten found (Q, 11), without the query's own."""
    shares = []
    for query in range(len(found)):
        both = [[row for row in one[query].tolist() if own is None or row != own[query]][:COMPARED] for one in (found, right)]
        shares.append(len(set(both[0]) & set(both[1])) / len(both[1]))
    return float(np.mean(shares))
