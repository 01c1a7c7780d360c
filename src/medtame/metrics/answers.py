"""Metrics of visual question answering: what was said against what is true, after normalising both."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from medtame.errors import MedtameError
from medtame.metrics.statistic import Mean, Statistic

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
