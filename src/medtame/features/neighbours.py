"""Each row's nearest other rows by cosine, exactly, without a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

NUMBERS_AT_ONCE = 2**23  # cosines held at a time: 32 MB, however many rows there are
CHUNK = 64  # cosines of a row of which the largest is looked at first
WORTH_ROWS = 2048  # below it all is done in single precision
MOST_CANDIDATES = 64  # a row, on average: beyond it (many rows alike) a block is worked out in single precision
PAIRS_AT_ONCE = 4096
ROUNDING = 2.0**-8  # of a number to 16 bits (bfloat16), twice the largest relative error

Block = Callable[[Tensor], tuple[Tensor, Tensor]]  # row numbers (n,) -> numbers and cosines (n, k)


def nearest(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Row numbers and cosines (N, k) of the nearest other rows of unit vectors (N, D), nearest first; k is `count`, or N - 1 if fewer.

    Where the processor multiplies 16-bit numbers faster, candidates come from rounded vectors: all rows that can be among the
    nearest, given how far each vector was rounded. Their cosines are then taken in single precision, so the result is the same.
    """
    n = len(features)
    k = min(count, n - 1)
    if k < 1:
        return torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, 0)
    blocks, block = torch.split(torch.arange(n), max(1, NUMBERS_AT_ONCE // n)), plain(features, k)
    if n >= max(WORTH_ROWS, CHUNK * k) and fast_16_bits():
        rounded = Rounded.of(features, k)
        block = rounded.nearest if rounded.few(blocks[0]) else block
    numbers, cosines = torch.empty(n, k, dtype=torch.long), torch.empty(n, k)  # made first: kept between blocks they would split the heap
    for rows in blocks:
        numbers[rows], cosines[rows] = block(rows)
    return numbers, cosines


def fast_16_bits() -> bool:
    """Whether products of bfloat16 have an instruction of their own for whole tiles: else they are no faster."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16"))


def plain(features: Tensor, k: int) -> Block:
    """All in single precision."""

    def of_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
        cosine = features[rows] @ features.T
        cosine[torch.arange(len(rows)), rows] = -torch.inf  # a row is not its own neighbour
        best = cosine.topk(k, dim=1)
        return best.indices, best.values

    return of_rows


@dataclass(frozen=True, eq=False)
class Rounded:
    """Vectors as they are (N, D), rounded (D, N and some zeros), and by how much a cosine with each row may be off at most (N,)."""

    exact: Tensor
    rounded: Tensor
    off: Tensor
    k: int

    @classmethod
    def of(cls, features: Tensor, k: int) -> Rounded:
        rounded = features.bfloat16()
        lost, left = (features - rounded.float()).norm(dim=1), rounded.float().norm(dim=1)
        off = lost * features.norm(dim=1).max() + left * lost.max()  # |ab - a'b'| <= |a - a'||b| + |a'||b - b'|
        return cls(features, nn.functional.pad(rounded, (0, 0, 0, -len(features) % CHUNK)).T, off, k)

    def few(self, rows: Tensor) -> bool:
        """Whether these rows have few enough candidates for rounding to pay."""
        return len(self.candidates(rows)[0]) <= MOST_CANDIDATES * len(rows)

    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        row, column = self.candidates(rows)
        if len(row) > MOST_CANDIDATES * len(rows):
            return plain(self.exact, self.k)(rows)
        pairs = zip(torch.split(rows[row], PAIRS_AT_ONCE), torch.split(column, PAIRS_AT_ONCE), strict=True)
        cosine = torch.cat([self.exact.index_select(0, a).mul_(self.exact.index_select(0, b)).sum(1) for a, b in pairs])
        order = np.lexsort((-cosine.numpy(), row.numpy()))
        first = np.searchsorted(row.numpy(), np.arange(len(rows)))
        best = torch.from_numpy(order[first[:, None] + np.arange(self.k)])
        return column[best], cosine[best]

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Places in `rows`, rising, and row numbers: at least k a row, the k nearest among them.

        The k-th largest of the chunks' largest is no more than the k-th largest of all; what lies further below it than both may be
        off cannot be among the nearest.
        """
        n = len(self.exact)
        cosine = self.rounded.T[rows] @ self.rounded
        cosine[torch.arange(len(rows)), rows] = -torch.inf
        cosine[:, n:] = -torch.inf
        chunks = cosine.view(len(rows), -1, CHUNK)
        largest = chunks.amax(2)
        least = largest.topk(self.k, dim=1).values[:, -1].float()
        least = (least - 2 * (self.off[rows] + ROUNDING * (least.abs() + 2 * self.off[rows])))[:, None].bfloat16()
        row, chunk = (largest >= least).nonzero(as_tuple=True)
        found, place = (chunks[row, chunk] >= least[row]).nonzero(as_tuple=True)
        return row[found], chunk[found] * CHUNK + place
