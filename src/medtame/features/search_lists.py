"""Nearest rows by cosine without looking at all: lists of rows about centres, sign bits, and a second look in single precision.

Rows are dealt to the nearest of some thousand centres (k-means; an inverted file, Jégou et al. 2011). A query looks at the lists that
are nearest to it until they hold so many rows, counts how many sign bits of each differ from its own, and works out the cosines of the
rows that differ least. A sign bit says on which side of the mean a vector lies along one direction of a random rotation (Charikar
2002); the share of unequal bits grows with the angle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medtame.features.neighbours import fast_16_bits
from medtame.features.searching import ASKED_AT_ONCE, ROWS_AT_ONCE, Bank, Found, brief, exact, starts
from medtame.types import Array

LISTS_A_ROOT = 4  # lists, in square roots of the number of rows when centres were learnt
SAMPLE_A_LIST = 32  # rows that a centre is learnt from
ROUNDS = 5
LISTED_AT_ONCE = 4096  # rows that are dealt to lists at once
SLACK = 16  # lists that are sorted beyond those that are needed on average


@dataclass(frozen=True)
class Lists:
    """Of n vectors, list by list: the row of each (n,) int32, sign bits (n, W) uint64, and where lists start (L + 1,) int64."""

    rows: Array
    words: Array
    edges: Array


@dataclass(frozen=True)
class Frame:
    """Where sign bits are taken: the mean (D,) of the rows, and a rotation (D, D); and the centres (L, D) of lists. All float32."""

    mean: Array
    rotation: Array
    centres: Array

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
        generator = np.random.default_rng(seed)
        rotation = np.linalg.qr(generator.standard_normal((dimension, dimension)))[0]
        count = max(1, min(total // SAMPLE_A_LIST, round(LISTS_A_ROOT * total**0.5)))
        drawn = np.sort(generator.choice(total, min(total, SAMPLE_A_LIST * count), replace=False))
        centres = centred(Bank(parts).rows(drawn), count, generator)
        return cls((summed / total).astype(np.float32), rotation.astype(np.float32), centres)

    def words(self, vectors: Tensor) -> Array:
        """(n, W) uint64 of vectors (n, D) float32; bits beyond D are zero."""
        turned = (vectors - torch.from_numpy(self.mean)) @ torch.from_numpy(self.rotation)
        signs = np.zeros((len(vectors), -(-turned.shape[1] // 64) * 64), dtype=bool)
        signs[:, : turned.shape[1]] = (turned > 0).numpy()
        return np.packbits(signs, 1, bitorder="little").view("<u8")

    def lists(self, rows: Array) -> Lists:
        """Of rows (n, D) float16."""
        made = [self.words(torch.from_numpy(rows[start : start + ROWS_AT_ONCE]).float()) for start in starts(len(rows))]
        words = np.concatenate(made) if made else np.zeros((0, -(-rows.shape[1] // 64)), dtype=np.uint64)
        held = dealt(rows, torch.from_numpy(self.centres))
        order = np.argsort(held, kind="stable")
        edges = np.searchsorted(held[order], np.arange(len(self.centres) + 1))
        return Lists(order.astype(np.int32), words[order], edges.astype(np.int64))

    def nearness(self, vectors: Tensor) -> Tensor:
        """(n, L): larger where a centre is nearer to vectors (n, D) of one length."""
        centres = torch.from_numpy(self.centres)
        return torch.addmm(-half_squares(centres), vectors, centres.T)


def half_squares(centres: Tensor) -> Tensor:
    """(1, L)."""
    return (centres * centres).sum(1)[None] / 2


def centred(sample: Tensor, count: int, generator: np.random.Generator) -> Array:
    """(count, D) centres of a sample (n, D) by Lloyd's rounds from `count` of its rows; a centre without rows stays where it is."""
    centres = sample[torch.from_numpy(generator.choice(len(sample), count, replace=False))].clone()
    rows = sample.half().numpy()
    for _ in range(ROUNDS):
        held = torch.from_numpy(dealt(rows, centres))
        summed = torch.zeros_like(centres).index_add_(0, held, sample)
        size = torch.bincount(held, minlength=count)[:, None]
        centres = torch.where(size > 0, summed / size.clamp(min=1), centres)
    return np.asarray(centres.numpy(), dtype=np.float32)


def dealt(rows: Array, centres: Tensor) -> Array:
    """(n,) int64: the nearest centre of rows (n, D) float16, or one that is about as near where 16-bit products are faster.

    What all centres have in common is taken out of them first, so that rounding leaves their differences.
    """
    rounded, found = fast_16_bits(), np.empty(len(rows), dtype=np.int64)
    room = np.empty((LISTED_AT_ONCE, rows.shape[1]), dtype=np.int16)
    scores = torch.empty(LISTED_AT_ONCE, len(centres))
    kind = torch.bfloat16 if rounded else torch.float32
    halves = half_squares(centres)
    across, away = (centres - centres.mean(0)).T.to(kind), (halves.mean() - halves).to(kind)
    for start in range(0, len(rows), LISTED_AT_ONCE):
        block = np.ascontiguousarray(rows[start : start + LISTED_AT_ONCE])
        given = brief(block, room) if rounded else torch.from_numpy(block).float()
        near = scores[: len(block)].copy_(torch.addmm(away, given, across))
        found[start : start + len(block)] = near.numpy().argmax(1)
    return found


@dataclass(frozen=True)
class Depth:
    """How many rows are looked at: by their bits, and then in single precision."""

    by_bits: int
    by_rows: int


@dataclass(frozen=True)
class Listed:
    """A bank with the lists of each of its parts."""

    bank: Bank
    lists: Sequence[Lists]
    frame: Frame

    def __len__(self) -> int:
        return len(self.bank)

    def sizes(self, allowed: Array | None = None) -> Array:
        """(L,) how many rows each list holds in all parts; `allowed` (N,) bool: of these rows."""
        total = np.zeros(len(self.frame.centres), dtype=np.int64)
        for part, start in zip(self.lists, self.bank.edges, strict=False):
            if allowed is None:
                total += np.diff(part.edges)
            else:
                total += np.diff(np.concatenate([[0], np.cumsum(allowed[part.rows + start])])[part.edges])
        return total


# ---- asking ---------------------------------------------------------------------------------------------------


def by_lists(listed: Listed, asked: Tensor, count: int, depth: Depth, chosen: Array | None = None) -> Found:
    """As `exact`, but only among rows in lists that are near, whose bits are near; `chosen`: these row numbers, rising, alone.

    Of few that are chosen so many lists are looked at that they hold the share of them that `depth` is of all.
    """
    size = len(listed) if chosen is None else len(chosen)
    count = min(count, size)
    rows, cosines = np.empty((len(asked), count), dtype=np.int64), np.empty((len(asked), count), dtype=np.float32)
    room = torch.empty(0)
    for query, (vector, words, numbers, bits) in enumerate(near(listed, asked.float(), max(depth.by_bits, count), chosen, count)):
        kept = max(count, depth.by_rows)
        if kept < len(numbers):
            numbers = numbers[np.argpartition(apart(bits, words), kept - 1)[:kept]]
        if len(room) < len(numbers):
            room = torch.empty(2 * len(numbers), asked.shape[1])
        gathered = room[: len(numbers)].copy_(torch.from_numpy(listed.bank.gathered(listed.bank.parts, numbers)))
        cosine = torch.mv(gathered, vector).numpy()
        order = np.lexsort((numbers, -cosine))[:count]
        rows[query], cosines[query] = numbers[order], cosine[order]
    return Found(rows, cosines)


def near(
    listed: Listed, asked: Tensor, by_bits: int, chosen: Array | None = None, count: int = 1
) -> Iterator[tuple[Tensor, Array, Array, Array]]:
    """For each of `asked` (Q, D): itself, its words (W,), and the numbers (m,) and words (m, W) of the rows in lists that are near.

    m is at least `count`, where so many are chosen.
    """
    allowed, wanted = None, [(listed.sizes(), min(by_bits, len(listed)))]
    if chosen is not None:
        allowed = np.zeros(len(listed), dtype=bool)
        allowed[chosen] = True
        wanted.append((listed.sizes(allowed), min(len(chosen), max(count, -(-by_bits * len(chosen) // len(listed))))))
    edges = [part.edges.tolist() for part in listed.lists]
    for some in torch.split(asked, ASKED_AT_ONCE):
        words = listed.frame.words(some)
        for query, lists in enumerate(nearest_lists(listed.frame.nearness(some), wanted)):
            spans = [(at, of[one], of[one + 1]) for at, of in enumerate(edges) for one in lists if of[one] < of[one + 1]]
            numbers = np.concatenate([listed.lists[at].rows[start:end] + int(listed.bank.edges[at]) for at, start, end in spans])
            bits = np.concatenate([listed.lists[at].words[start:end] for at, start, end in spans])
            if allowed is not None:
                kept = allowed[numbers]
                numbers, bits = numbers[kept], bits[kept]
            yield some[query], words[query], numbers, bits


def nearest_lists(nearness: Tensor, wanted: Sequence[tuple[Array, int]]) -> Iterator[list[int]]:
    """For each query of `nearness` (Q, L) the fewest nearest lists that hold what is wanted: at least so many, by sizes (L,)."""
    count = nearness.shape[1]
    share = max(least / max(1, int(sizes.sum())) for sizes, least in wanted)
    for sorted_lists in (min(count, int(2 * share * count) + SLACK), count):
        order = nearness.topk(sorted_lists, 1).indices.numpy()
        needed = np.max([1 + (np.cumsum(sizes[order], 1) < least).sum(1) for sizes, least in wanted], axis=0)
        if sorted_lists == count or needed.max() <= sorted_lists:
            break
    for lists, number in zip(order.tolist(), needed.tolist(), strict=True):
        yield lists[:number]


def apart(bits: Array, words: Array) -> Array:
    """(m,) how many bits of words (m, W) differ from those of one (W,)."""
    unequal = torch.bitwise_xor(torch.from_numpy(bits.view(np.int64)), torch.from_numpy(words.view(np.int64)))
    counts = torch.from_numpy(np.bitwise_count(unequal.numpy().view(np.uint64)))
    return np.asarray(counts.sum(1).numpy())


# ---- how deep to look -----------------------------------------------------------------------------------------

GOAL = 0.99
DEEPENED_TO = 0.995  # a little more than the goal, so that queries which the depth was not found on have it, too
FIRST_DEPTH, FIRST_SHARE = 100, 0.001
COMPARED = 10


def deepened(listed: Listed, queries: Sequence[Tensor], own: Array) -> tuple[Depth | None, list[float]]:
    """The least depth, doubled from the first, at which recall@10 of each kind of `queries` (Q, D) is `DEEPENED_TO`, and these recalls.

    Where right rows lie in lists that are not looked at, more of these are; else more rows are compared in single precision. The first
    kind are the rows `own` (Q,) themselves, which do not count as found. None where so many rows would have to be looked at that a
    product with all of them is no slower.
    """
    truth = [exact(listed.bank, asked, COMPARED + 1).rows for asked in queries]
    owns = [own, *[None] * (len(queries) - 1)]
    depth = Depth(max(FIRST_DEPTH, int(FIRST_SHARE * len(listed))), FIRST_DEPTH)
    while True:
        found = [by_lists(listed, asked, COMPARED + 1, depth).rows for asked in queries]
        recalls = [recall(list(one), right, mine) for one, right, mine in zip(found, truth, owns, strict=True)]
        if min(recalls) >= DEEPENED_TO:
            return depth, recalls
        if depth.by_bits > len(listed) // 4:
            return None, recalls
        looked_at = [[numbers for _, _, numbers, _ in near(listed, asked, depth.by_bits)] for asked in queries]
        held = [share_of(one, right, mine) for one, right, mine in zip(looked_at, truth, owns, strict=True)]
        wider = min(held) < (1 + DEEPENED_TO) / 2 or depth.by_rows >= depth.by_bits
        depth = Depth(2 * depth.by_bits, depth.by_rows) if wider else Depth(depth.by_bits, 2 * depth.by_rows)


def share_of(looked_at: Sequence[Array], right: Array, own: Array | None) -> float:
    """The mean share of the ten right rows (Q, 11) that are among those looked at, without the query's own."""
    shares = []
    for query, numbers in enumerate(looked_at):
        wanted = [row for row in right[query].tolist() if own is None or row != own[query]][:COMPARED]
        shares.append(float(np.isin(wanted, numbers).mean()))
    return float(np.mean(shares))


def recall(found: Sequence[Array], right: Array, own: Array | None) -> float:
    """The mean share of the ten right rows (Q, 11) that are among the ten found (Q, 11), without the query's own."""
    mine = [[row for row in one.tolist() if own is None or row != own[query]][:COMPARED] for query, one in enumerate(found)]
    return share_of([np.array(one) for one in mine], right, own)
