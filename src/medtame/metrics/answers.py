"""Metrics of visual question answering: what was said against what is true, after normalising both."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.statistic import Mean, Statistic
from medtame.types import Array

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {word: str(k) for k, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1)}
DROPPED = re.compile(r"['’`]|(?<=\d),(?=\d{3})")  # joins what it parts: Crohn's, 1,000
PARTING = re.compile(r"(?!(?<=\d)\.(?=\d))[\W_]+")  # all other punctuation, but for a decimal point


def normalised(text: str) -> str:
    """Lower case; no articles, punctuation or blanks at the ends; one to ten as digits. "The left lobe. " and "left lobe" are the same.

    What would leave nothing is kept: the answer "A" stays "a", and "+" differs from "-".
    """
    plain = unicodedata.normalize("NFKC", text).lower().strip()
    words = [NUMBERS.get(word, word) for word in PARTING.split(DROPPED.sub("", plain)) if word]
    return " ".join([word for word in words if word not in ARTICLES] or words) or plain


def token_f1(said: str, true: str) -> float:
    """F1 of the words of two normalised answers, each counted as often as it stands; NaN where the true one is empty."""
    a, b = normalised(said).split(), normalised(true).split()
    if not b:
        return np.nan
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def answers(said: Sequence[str], true: Sequence[str], answer_types: Sequence[str | None]) -> dict[str, Statistic]:
    """accuracy, closed_accuracy, open_exact_match, token_f1 of N answers; `answer_types` are `closed` or `open`.

    All but token_f1 ask for the same text after `normalised`: "yes, there is" is not "yes". `accuracy` and `token_f1` are over all rows.
    A row of another type counts in these two only; a row whose true answer is empty is left out.
    """
    if not len(said) == len(true) == len(answer_types):
        raise MedtameError(f"{len(said)} answers said, {len(true)} true, {len(answer_types)} types: give one of each a row")
    exact = np.array(
        [float(normalised(a) == normalised(b)) if normalised(b) else np.nan for a, b in zip(said, true, strict=True)], dtype=float
    )
    kind = np.array([str(one).strip().lower() for one in answer_types], dtype=str)
    return {
        "accuracy": Mean(exact),
        "closed_accuracy": Mean(np.where(kind == "closed", exact, np.nan)),
        "open_exact_match": Mean(np.where(kind == "open", exact, np.nan)),
        "token_f1": Mean(np.array([token_f1(a, b) for a, b in zip(said, true, strict=True)], dtype=float)),
    }


def consistency(said: Sequence[str], linked: Sequence[object], questions: Sequence[str]) -> Mean:
    """Share of a row's paraphrases (rows with the same `linked` value and another wording) that got the same answer; NaN without any."""
    texts = [normalised(one) for one in said]
    worded = [normalised(str(one)) for one in questions]
    members: dict[object, list[int]] = {}
    for row, link in enumerate(linked):
        if link is not None:
            members.setdefault(link, []).append(row)
    values = np.full(len(texts), np.nan)
    for rows in members.values():
        for row in rows:
            others = [other for other in rows if worded[other] != worded[row]]
            if others:
                values[row] = np.mean([texts[other] == texts[row] for other in others])
    return Mean(values)


def surest(exact: Array, confidence: Array, share: float) -> Array:
    """(N,) `exact` of the given share of rows with the highest confidence, the first of equals; NaN for all others."""
    known = np.flatnonzero(~np.isnan(exact) & ~np.isnan(confidence))
    order = known[np.argsort(-confidence[known], kind="stable")]
    values = np.full(len(exact), np.nan)
    kept = order[: max(1, round(share * len(order)))]
    values[kept] = exact[kept]
    return values


def surest_half(exact: Array, confidence: Array) -> Mean:
    """Accuracy when the half of the rows that are least sure is not answered (Geifman and El-Yaniv 2017, at coverage one half)."""
    return Mean(surest(exact, confidence, 0.5))


def abstention(exact: Array, confidence: Array, shares: Sequence[float]) -> list[tuple[float, float]]:
    """(share answered, accuracy of these): the abstention curve."""
    return [(share, Mean(surest(exact, confidence, share)).value()) for share in shares]


def by_type(exact: Array, types: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, Mean]:
    """`accuracy/TYPE` of the rows that are of a type; a row of several counts in each."""
    return {f"accuracy/{name}": Mean(np.where([name in several for several in types], exact, np.nan)) for name in names}
