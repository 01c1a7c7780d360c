"""Tip-Adapter's two numbers on a grid of 20 x 20: `searched` against the loops of the released code, on the same objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy.special import log_softmax

from benchmarks.harness import Case, cpu_seconds, verdict
from benchmarks.made import made
from medtame.learning.caches import NO_WORSE, SHARPNESSES, STRENGTHS, searched
from medtame.learning.supports import balance
from medtame.types import Array


@contextmanager
def twenty_by_twenty(rows: int = 480, classes: int = 8, dimension: int = 512) -> Iterator[Case]:
    """Leave-one-out losses of the support. As in the released `search_hp`, similarities are worked out anew for each pair of numbers.

    A tidier loop works them out once, and the cache once a sharpness; the check says how long that one takes.
    """
    data = made(rows, classes, dimension, noise=4.0)
    keys, targets = data.images, data.problem(np.arange(rows)).targets
    weights = balance(targets, exclusive=True)
    values, zero_shot, scale = weights * rows / classes, data.encoder.scale * keys @ data.texts.T, data.encoder.scale
    features, entries, start, counted = (side.numpy() for side in (keys, values, zero_shot, weights))
    others = 1 - np.eye(rows, dtype=np.float32)

    def ours() -> tuple[float, float]:
        return searched(keys, values, zero_shot, weights, np.arange(rows), scale, exclusive=True)

    def cached(beta: float) -> Array:
        """(n, C) of a cache in which a row does not see itself, each class at its full weight."""
        affinity = np.exp(-beta * (1 - features @ features.T)) * others
        return np.asarray(affinity @ entries * entries.sum(0) / (others @ entries))

    def loss(alpha: float, cache: Array) -> float:
        return -float((counted * log_softmax(start + alpha * cache, axis=1)).sum())

    def plain() -> tuple[float, float]:
        losses = [[loss(alpha, cached(beta)) for alpha in alphas] for beta in betas]
        return chosen(np.array(losses), alphas, betas, classes)

    def tidier() -> tuple[float, float]:
        caches = [cached(beta) for beta in betas]
        return chosen(np.array([[loss(alpha, cache) for alpha in alphas] for cache in caches]), alphas, betas, classes)

    alphas, betas = (STRENGTHS.numpy() * scale / 100).tolist(), (SHARPNESSES.numpy() * scale / 100).tolist()

    def check() -> str:
        mine, theirs = ours(), plain()
        times = cpu_seconds(tidier) / cpu_seconds(ours)
        said = f"alpha {mine[0]:.4g}, beta {mine[1]:.4g}; the loops find {theirs[0]:.4g}, {theirs[1]:.4g}; a tidier loop {times:.1f} x ours"
        return verdict(bool(np.allclose(mine, theirs)), said)

    yield Case(ours=ours, plain=plain, check=check, goal=50.0, rounds=3)


def chosen(losses: Array, alphas: list[float], betas: list[float], classes: int) -> tuple[float, float]:
    """The least alpha that is as good as the best to a thousandth, with its best beta: losses (betas, alphas)."""
    alpha = int(np.flatnonzero((losses <= losses.min() + NO_WORSE * classes).any(0))[0])
    return alphas[alpha], betas[int(losses[:, alpha].argmin())]
