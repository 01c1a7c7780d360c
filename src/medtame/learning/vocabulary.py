"""Texts as ids of whole words, for small language models that are trained from nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

END, UNKNOWN, SPEAK = 0, 1, 2  # ids of: the end and padding, a word that was never seen, the end of the question
SPECIAL = ("<end>", "<unknown>", "<speak>")
UNSAID = -100  # the target of a place where nothing is learnt


def split_words(text: str) -> list[str]:
    """Words and signs, each with the space before it (the first with one too), so that joining them gives the text again."""
    return re.findall(r"\s?(?:\w+|[^\w\s])", " ".join(["", *text.split()]))


def vocabulary_of(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The signs that steer, then the `most` commonest words; those as common in order of the alphabet."""
    counts = Counter(word for text in texts for word in split_words(text))
    return (*SPECIAL, *sorted(sorted(counts), key=lambda word: -counts[word])[:most])


def ids_of(text: str, number: Mapping[str, int]) -> list[int]:
    return [number.get(word, UNKNOWN) for word in split_words(text)]


def sequences(begun: Sequence[list[int]], answers: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids (N, L) of beginnings and answers, padded on the right, and (N, L - 1) whether the next place is an answer's."""
    ids = padded([[*start, *answer] for start, answer in zip(begun, answers, strict=True)])
    places = torch.arange(1, ids.shape[1])[None]
    start = torch.tensor([len(row) for row in begun])[:, None]
    return ids, (places >= start) & (places < start + torch.tensor([len(row) for row in answers])[:, None])


def padded(rows: Sequence[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[END] * (longest - len(row))] for row in rows])
