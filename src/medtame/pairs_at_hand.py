"""The pairs that `pretrain` learns from and measures on: words cleaned, pictures readable, some cases kept aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medtame.data.report_text import chosen, cleaned
from medtame.data.samples import ManifestSamples
from medtame.data.splits import Split, joined
from medtame.errors import DataError, ImageError
from medtame.learning.pairs import Pairs
from medtame.run import Data
from medtame.strategies.base import Pretrainer
from medtame.types import Array, Encoder, Query

FEWEST = 8  # pairs
HELD, MOST_HELD, HELD_OF = 0.1, 500, 40  # a share of the cases is kept aside; at most so many pairs; of so many pairs at least
Progress = Callable[[str, int, int], None]


def in_words(data: Data, sections: Sequence[str]) -> Data:
    """The data with the wanted sections of each text, without marks of de-identification; pairs that have no words left are left out."""
    texts = [cleaned(chosen(str(text), sections) if sections else str(text)) for text in data.samples.column("text")]
    kept = np.array([bool(text) for text in texts])
    given = [text or str(before) for text, before in zip(texts, data.samples.column("text"), strict=True)]
    samples = data.samples.replaced(text=given)
    return left_out(replace(data, samples=samples), kept, "had no words left without marks of de-identification")


def readable(data: Data, *, strict: bool, watch: Progress) -> Data:
    """The data without training pairs whose image cannot be read. `strict` refuses them: raises DataError."""
    kept, reason = np.ones(len(data.samples), dtype=bool), ""
    pictures = data.train.pictures()
    for number, (row, picture) in enumerate(zip(data.split.train.tolist(), pictures, strict=True)):
        if number % 50 == 0:
            watch("looking at the images", number, len(pictures))
        try:
            picture.read()
        except ImageError as error:
            kept[row], reason = False, reason or str(error)
    if strict and reason:
        raise DataError(f"{int((~kept).sum())} training images cannot be read, the first: {reason}")
    return left_out(data, kept, f"could not be read, the first: {reason}")


def left_out(data: Data, kept: Array, why: str) -> Data:
    """The data with only the kept rows (N,) on either side of the split, and a note of how many were left out and why."""
    if kept.all():
        return data
    train, test = (None if rows is None else rows[kept[rows]] for rows in (data.split.train, data.split.test))
    count = int((~kept).sum())
    note = f"{count} {'pair was' if count == 1 else 'pairs were'} left out: {why}."
    assert train is not None
    return replace(data, samples=data.samples.noted(note), split=replace(data.split, train=train, test=test))


@dataclass(frozen=True)
class Material:
    """Training rows of the manifest, some cases of them kept aside; its test rows are in neither part."""

    data: Data

    @classmethod
    def of(cls, data: Data, share: float, seed: int) -> Material:
        """Cases are kept aside whole, copies of a file count as one case, as many as fit the share."""
        samples = data.train
        whole = cls(Data(samples, data.task, Split(np.arange(len(samples)), None, "No pair was kept aside.")))
        if len(samples) < HELD_OF or share == 0:
            return whole
        _, of_row = np.unique(joined(samples), return_inverse=True)
        sizes, most = np.bincount(of_row), min(MOST_HELD, round(share * len(samples)))
        taken: list[int] = []
        for group in np.random.default_rng((seed, len(sizes))).permutation(len(sizes)).tolist():
            if sizes[group] + sum(sizes[taken]) <= most:
                taken.append(group)
        aside = np.isin(of_row, taken)
        if len(set(samples.take(np.flatnonzero(aside)).column("text"))) < 2:
            return whole
        told = f"{int(aside.sum())} pairs of {len(taken)} cases were kept aside."
        return cls(Data(samples, data.task, Split(np.flatnonzero(~aside), np.flatnonzero(aside), told)))

    @property
    def learnt(self) -> ManifestSamples:
        return self.data.train

    @property
    def held(self) -> ManifestSamples | None:
        return self.data.test


def paired_up(samples: ManifestSamples, opened: Encoder, first: Pretrainer, seed: int) -> Pairs:
    """Pairs of all rows; a text is right for the images of its own case, and for those with the same text. Raises DataError."""
    texts = [str(text) for text in samples.column("text")]
    if len(texts) < FEWEST:
        raise DataError(f"{len(texts)} pairs are too few to tell right texts from wrong ones: give {FEWEST} or more")
    distinct, own = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    _, case = np.unique(np.asarray(samples.groups, dtype=str), return_inverse=True)
    if len(distinct) < 2:
        raise DataError(f"all {len(texts)} pairs have the same text ({texts[0][:60]!r}): pretraining needs images with different texts")

    def right(rows: Array, ids: Array) -> Tensor:
        return torch.from_numpy((case[rows][:, None] == case[rows][None]) | (own[rows][:, None] == ids[None]))

    query = Query(wants="scores", samples=samples.only(("image",)), encoder=opened, source=np.arange(len(texts)))
    return Pairs.of(query, distinct.tolist(), [(int(k),) for k in own], right, first.moving(seed))
