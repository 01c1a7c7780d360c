"""Few-shot draws: which training rows a method may learn from."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medtame.errors import DataError, SettingsError, UnknownNameError
from medtame.types import Array

REGIMES = ("standard", "relaxed", "realistic")
ALONE_AT_MOST = 0.99  # of realistic draws that would hold one stratum alone


@dataclass(frozen=True)
class Draw:
    """Sorted numbers of the drawn rows, and what is to be said about them."""

    rows: Array
    notes: list[str] = field(default_factory=list)


def draw(strata: Sequence[str | None] | Array, groups: Array, shots: int | Literal["all"], *, seed: int, regime: str = "standard") -> Draw:
    """K shots over N training rows. `strata` (N,) names each row's stratum, None where it is not drawn from; `groups` (N,).

    standard: K rows a stratum. relaxed: C x K in all, by prevalence, at least one a stratum. realistic: C x K in all at random,
    so a stratum may be missed, but never all but one: such a draw is drawn again. `all`: every row that has a stratum.
    Inside a stratum groups are picked at random, one row of each, before a second row of any. The order depends only on the
    seed, so the rows of a smaller K are among those of a larger one (standard and realistic).
    """
    if regime not in REGIMES:
        raise UnknownNameError("regime", regime, REGIMES)
    if shots != "all" and (isinstance(shots, bool) or not isinstance(shots, (int, np.integer)) or shots < 1):
        raise SettingsError(f"shots is {shots!r}: give a whole number from 1, or 'all'")
    members: dict[str, list[int]] = {}
    for row, stratum in enumerate(strata):
        if stratum is not None:
            members.setdefault(str(stratum), []).append(row)
    if not members:
        raise DataError(f"none of {len(strata)} training rows has a label to draw by: fill the label column")
    if shots == "all":
        return Draw(np.sort(np.concatenate([np.array(rows) for rows in members.values()])))
    wanted = _wanted(members, int(shots), seed, regime)
    chosen, notes = [], []
    for stratum in sorted(members):
        rows = _by_group(members[stratum], groups, seed, stratum)[: wanted[stratum]]
        chosen += rows
        notes += _notes(stratum, rows, groups, len(members[stratum]), wanted[stratum])
    return Draw(np.sort(np.array(chosen, dtype=np.intp)), notes)


def _wanted(members: dict[str, list[int]], shots: int, seed: int, regime: str) -> dict[str, int]:
    """How many rows of each stratum."""
    if regime == "standard":
        return dict.fromkeys(members, shots)
    counts = {stratum: len(members[stratum]) for stratum in sorted(members)}
    total = min(shots * len(counts), sum(counts.values()))
    if regime == "relaxed":
        return _proportional(counts, total)
    drawn = Counter(_dealt_at_random(counts, seed)[:total].tolist())
    return {stratum: drawn[stratum] for stratum in counts}


def _dealt_at_random(counts: dict[str, int], seed: int) -> Array:
    """(N,) all strata in random order, two of them among the first C: a support of one stratum alone teaches nothing.

    Raises DataError where nearly every order begins with C rows of one stratum: what is drawn then is no longer at random.
    """
    alone = sum(_all_of_one(count, sum(counts.values()), len(counts)) for count in counts.values())
    if len(counts) > 1 and alone > ALONE_AT_MOST:
        commonest = max(counts, key=lambda name: counts[name])
        raise DataError(
            f"a realistic draw would hold {commonest!r} alone in {alone:.1%} of cases ({counts[commonest]:,} of {sum(counts.values()):,} "
            "training rows): use the regime standard or relaxed"
        )
    random, labels = np.random.default_rng(seed), np.repeat(list(counts), list(counts.values()))
    order = random.permutation(labels)
    while len(counts) > 1 and len(set(order[: len(counts)].tolist())) == 1:
        order = random.permutation(labels)
    return order


def _all_of_one(count: int, total: int, drawn: int) -> float:
    """The chance that `drawn` of `total` rows are all among the `count` rows of one stratum."""
    return 0.0 if count < drawn else float(np.prod([(count - k) / (total - k) for k in range(drawn)]))


def _proportional(counts: dict[str, int], total: int) -> dict[str, int]:
    """`total` dealt by prevalence, by largest remainder, at least one each."""
    share = {stratum: total * count / sum(counts.values()) for stratum, count in counts.items()}
    dealt = {stratum: max(1, int(part)) for stratum, part in share.items()}
    while sum(dealt.values()) < total:
        dealt[max((s for s in dealt if dealt[s] < counts[s]), key=lambda s: share[s] - dealt[s])] += 1
    while sum(dealt.values()) > total:
        dealt[max((s for s in dealt if dealt[s] > 1), key=lambda s: dealt[s] - share[s])] -= 1
    return dealt


def _by_group(rows: list[int], groups: Array, seed: int, stratum: str) -> list[int]:
    """All rows of a stratum in the order in which they are drawn: one of every group, then a second of every group."""
    random = np.random.default_rng([seed, zlib.crc32(stratum.encode())])
    held: dict[Any, list[int]] = {}
    for row in random.permutation(rows).tolist():
        held.setdefault(groups[row], []).append(row)
    piles = list(held.values())
    order = random.permutation(len(piles))
    return [piles[pile][turn] for turn in range(max(map(len, piles))) for pile in order if turn < len(piles[pile])]


def _notes(stratum: str, rows: list[int], groups: Array, held: int, wanted: int) -> list[str]:
    if held < wanted:
        return [f"{stratum!r} has only {held} of {wanted} rows: all are taken"]
    different = len({groups[row] for row in rows})
    return [f"{stratum!r}: {len(rows)} rows of only {different} groups"] if different < len(rows) else []
