"""One report for every image: the support report that is most like the others. What a report writer has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from medtame.errors import DataError
from medtame.strategies.base import Method
from medtame.types import Adapted, Problem, Query, Texts


@dataclass(frozen=True)
class ConstantReportAdapted(Adapted):
    text: str

    def answer(self, query: Query) -> Texts:
        return Texts([self.text] * len(query))


def numbered_words(text: str) -> list[str]:
    """Each word with how often it came before, so that common entries of two lists count repeated words rightly."""
    seen: dict[str, int] = {}
    numbered = []
    for word in text.lower().split():
        seen[word] = seen.get(word, 0) + 1
        numbered.append(f"{word} {seen[word]}")
    return numbered


def medoid(texts: Sequence[str]) -> int:
    """The number of the text with the largest mean token F1 to all texts; the first of equals."""
    counts = CountVectorizer(analyzer=numbered_words, dtype=np.float64).fit_transform(texts)
    lengths = np.asarray(counts.sum(1)).ravel()
    means = [float(np.mean(2 * (counts @ row.T).toarray().ravel() / (lengths + row.sum()).clip(min=1))) for row in counts]
    return int(np.argmax(means))


@dataclass(frozen=True)
class ConstantReport(Method):
    """The medoid of the support reports by token F1; image and words are never read.

    On chest X-ray reports such a constant comes near the BLEU-4 and ROUGE-L of published systems (Boag et al. 2020 on plain
    references): those metrics alone cannot show that an image was read.
    """

    gives = ("texts",)
    needs = frozenset({"answer_texts"})
    stores_support = True  # one report
    trains = "nothing: a support report is chosen"
    cost = "milliseconds"
    good_when = "as the bar that a report writer has to pass"
    poor_when = "as a report of a patient: it is the same for all"
    papers = ("Boag et al., Baselines for chest X-ray report generation, PMLR 116, 2020",)

    def fit(self, problem: Problem) -> Adapted:
        texts = [str(text) for text in problem.targets]
        if not any(text.split() for text in texts):
            raise DataError(f"all {len(texts)} support texts are empty: give reports with words")
        return ConstantReportAdapted(texts[medoid(texts)])
