"""Search: the ten nearest of many unit vectors for 200 queries, against a product and a sort a query."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.harness import Case, verdict
from medtame.features.search_lists import Frame, Listed, by_lists, deepened
from medtame.features.searching import Bank, Found, exact
from medtame.types import Array

WIDTH, CLUSTERS, FOUND = 512, 2000, 10
MADE_AT_ONCE = 50_000
LEAST_RECALL = {True: 0.99, False: 0.999}  # by lists, on queries that the depth was not found on; exactly, but for ties
FEW_ROWS = 125_000  # of which the plain loop multiplies and sorts, so that it needs no copy of all rows in single precision


def vectors(count: int, seed: int) -> Array:
    """(count, 512) float16, unit norm: clusters about a mean, with a spectrum that falls as 1 / sqrt(i), as features have it."""
    spread = torch.arange(1, WIDTH + 1).float() ** -0.5
    centres = torch.randn(CLUSTERS, WIDTH, generator=torch.Generator().manual_seed(0)) * spread
    generator, found = torch.Generator().manual_seed(seed), np.empty((count, WIDTH), dtype=np.float16)
    for start in range(0, count, MADE_AT_ONCE):
        some = min(MADE_AT_ONCE, count - start)
        rows = torch.randn(some, WIDTH, generator=generator).mul_(spread).mul_(0.7)
        rows.add_(centres[torch.randint(CLUSTERS, (some,), generator=generator)])
        found[start : start + some] = torch.nn.functional.normalize(rows, dim=1).half().numpy()
    return found


@contextmanager
def nearest(count: int, goal: float, asked: int = 200, timed: int = 4) -> Iterator[Case]:
    """Exactly up to 10^5 rows, beyond by lists; the plain loop, of `timed` queries and FEW_ROWS rows at most, is scaled to all."""
    from medtame.features.index import EXACT_UP_TO

    rows, queries = vectors(count, 1), torch.from_numpy(vectors(asked, 2)).float()
    few, bank, listed, depth, built = rows[: min(count, FEW_ROWS)].astype(np.float32), Bank([rows]), None, None, 0.0
    if count > EXACT_UP_TO:
        started = time.process_time()
        frame = Frame.of([rows])
        listed = Listed(bank, [frame.lists(rows)], frame)
        own = np.linspace(0, count - 1, asked).astype(np.int64)
        depth, _ = deepened(listed, [bank.rows(own)], own)
        built = time.process_time() - started

    def ours() -> Found:
        return exact(bank, queries, FOUND) if depth is None or listed is None else by_lists(listed, queries, FOUND, depth)

    def plain() -> list[Array]:
        return [np.argsort(-(few @ query.numpy()))[:FOUND] for query in queries[:timed]]

    def check() -> str:
        """Recall of what a product with all rows finds, a block at a time."""
        values, numbers = torch.zeros(asked, 0), torch.zeros(asked, 0, dtype=torch.long)
        for start in range(0, count, 16_384):
            block = queries @ torch.from_numpy(rows[start : start + 16_384]).float().T
            best = block.topk(min(FOUND, block.shape[1]), 1)
            values, numbers = torch.cat([values, best.values], 1), torch.cat([numbers, best.indices + start], 1)
        right = numbers.gather(1, values.topk(FOUND, 1).indices).numpy()
        found = ours().rows
        recall = np.mean([len(set(one) & set(other)) / FOUND for one, other in zip(found.tolist(), right.tolist(), strict=True)])
        kept = [] if listed is None else [*vars(listed.lists[0]).values(), *vars(listed.frame).values()]
        size = rows.nbytes + sum(values.nbytes for values in kept) + 32 * count
        how = "exact" if depth is None else f"{depth.by_bits} rows by bits, {depth.by_rows} in single precision, built in {built:.0f} s"
        said = f"recall@10 {recall:.4f} ({how}); index {size / 1e9:.2f} GB; plain: {timed} queries on {len(few)} rows, scaled"
        return verdict(bool(recall >= LEAST_RECALL[depth is not None]), said)

    yield Case(ours=ours, plain=plain, check=check, goal=goal, rounds=3, plain_share=timed / asked * len(few) / count)
