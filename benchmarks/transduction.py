"""All query rows at once: `transductive`, which makes no N x N matrix, against the same steps with a dense affinity."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import Case, verdict
from benchmarks.made import made
from medtame.strategies.direct_use.transductive import Transductive, TransductiveAdapted, likelihood
from medtame.types import Query

MOST_DIFFERENCE = 1e-3  # of probabilities
MEMORY_ROWS, MEMORY_DIMENSION = (25_000, 50_000, 100_000), 32  # few columns: memory is measured, not time


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside it have held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.most, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if place not in self.known:
                    self.known.add(place)
                    self.held += size
                    self.most = max(self.most, self.held)
                    weakref.finalize(storage, self._gone, place, size)
        return made

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.held -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    with Peak() as peak:
        work()
    return peak.most


@contextmanager
def of_rows(rows: int = 12_000, classes: int = 8, dimension: int = 512, memory_rows: tuple[int, ...] = MEMORY_ROWS) -> Iterator[Case]:
    """Time at a size at which the dense matrix fits; memory of ours at growing sizes, up to 10^5 rows."""
    data = made(rows, classes, dimension, noise=4.0)
    fitted = adapted(data.problem(np.arange(min(rows, 80))))
    query = data.query(np.arange(rows))

    def ours() -> Tensor:
        return fitted.answer(query).values

    def plain() -> Tensor:
        return dense(fitted, data.images, data.encoder.scale * data.images @ data.texts.T)

    def check() -> str:
        gap = float((ours().softmax(1) - plain().softmax(1)).abs().max())
        peaks = [peak_bytes(partial(fitted.answer, large(count, classes))) for count in memory_rows]
        a_row = [peak / count for peak, count in zip(peaks, memory_rows, strict=True)]
        linear = max(a_row) <= 1.1 * a_row[0]  # bytes a row do not grow with the rows
        most = f"{peaks[-1] / 2**20:.0f} MiB at {memory_rows[-1]} rows (dense: {4 * memory_rows[-1] ** 2 / 2**20:.0f})"
        return verdict(gap <= MOST_DIFFERENCE and linear, f"timed at {rows} rows, probabilities differ by {gap:.1e}; {most}")

    yield Case(ours=ours, plain=plain, check=check, goal=10.0, rounds=2)


def large(rows: int, classes: int) -> Query:
    data = made(rows, classes, MEMORY_DIMENSION)
    return data.query(np.arange(rows))


def adapted(problem: Any) -> TransductiveAdapted:
    found = Transductive().fit(problem)
    assert isinstance(found, TransductiveAdapted)
    return found


def dense(how: TransductiveAdapted, features: Tensor, logits: Tensor) -> Tensor:
    """(N, C) log probabilities: the matrix of cosines, all but each row's nearest set to zero, symmetrised, and then the same steps."""
    cosine = (features @ features.T).fill_diagonal_(-torch.inf)
    values, nearest = cosine.topk(how.neighbours, dim=1)
    affinity = torch.zeros_like(cosine).scatter_(1, nearest, values.clamp(min=0))
    affinity = (affinity + affinity.T) / (2 * how.neighbours)
    centred = features - features.mean(0)
    prior, said = how.text_weight * logits.log_softmax(1), logits.log_softmax(1)
    means = centred[logits.softmax(1).topk(how.confident, dim=0).indices].mean(0)
    variance = of_shares(centred, said.exp(), means)
    for _ in range(how.rounds):
        known = prior + how.likelihood_weight * likelihood(centred, means, variance)
        for _ in range(how.steps):
            said = (known + affinity @ said.exp()).log_softmax(1)
        share = said.exp()
        means = share.T @ centred / share.sum(0)[:, None].clamp(min=1e-6)
        variance = of_shares(centred, share, means)
    return said


def of_shares(features: Tensor, share: Tensor, means: Tensor) -> Tensor:
    """(D,) the mean square distance of rows to the means, by their shares, as the formula has it."""
    moment = (features.square() - 2 * features * (share @ means) + share @ means.square()).mean(0)
    return moment.clamp(min=max(1e-3 * float(moment.mean()), 1e-12))
