"""Report generation: the findings of an image, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtame import metrics
from medtame.errors import DataError, PairError
from medtame.metrics.statistic import Statistic
from medtame.metrics.text import findings_in, reports
from medtame.tasks.base import Frame, Task, every
from medtame.types import Answer, Encoder, Kind, Predicted, Problem, Query, Samples, Texts

SHIPPED = Path(metrics.__file__).with_name("findings.json")


@dataclass(frozen=True)
class ReportGenerationFrame(Frame):
    vocabulary: dict[str, list[str]]  # finding -> its wordings, for the metrics only

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        texts = [str(text) for text in support.column("findings")]
        return Problem(query=self.query(support.only(("image",)), encoder), targets=texts, seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        if words is not None:
            raise DataError("report generation asks no question and was given words: leave them out, or use visual_question_answering")
        return Query(wants="texts", samples=samples, encoder=encoder, source=every(samples))

    def read(self, query: Query, answer: Answer) -> Predicted:
        """`findings` are those that the vocabulary finds in the text; a text without any may still say much."""
        if not isinstance(answer, Texts):
            raise PairError("report generation reads texts")
        rows = zip(query.samples.pictures(), answer.values, strict=True)
        return Predicted(table=[self._row(picture.name, text) for picture, text in rows])

    def _row(self, image: str, text: str) -> dict[str, object]:
        found = sorted(findings_in(text, self.vocabulary))
        return {"image": image, "prediction": text, "findings": "|".join(found), "warning": "" if text.strip() else "no answer"}

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        texts = [str(row["prediction"]) for row in said.table]
        return reports(texts, [str(text) for text in truth.column("findings")], self.vocabulary)


@dataclass(frozen=True)
class ReportGeneration(Task):
    """`vocabulary`: finding -> wordings, by which finding_f1, hallucinations and omissions are counted; empty: the shipped one.

    The shipped one is general knowledge, not reviewed by a clinician; matching is lexical, so its numbers are not F1-CheXbert.
    """

    kinds = ("texts",)
    requires = ("image", "findings")
    offers = frozenset({"answer_texts", "whole_images"})
    references = ("constant_report",)
    start = plain = "constant_report"
    shots = ("all",)
    vocabulary: dict[str, list[str]] = field(default_factory=dict)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        return ReportGenerationFrame(wants, {finding: list(wordings) for finding, wordings in (self.vocabulary or shipped()).items()})


def shipped() -> dict[str, list[str]]:
    """The vocabulary that comes with medtame."""
    findings: dict[str, list[str]] = json.loads(SHIPPED.read_text(encoding="utf-8"))["findings"]
    return findings
