"""The literature as one static page: search, filters, matrix and timeline, without a network and without any other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from medtame.literature import choose, records
from medtame.literature.schema import Model, Paper
from medtame.literature.words import EVIDENCE_NOTE, NOT_SAID, READING, STRATEGIES, TASKS

FILTERS = ("task", "strategy", "learning", "modality", "body_part", "model", "dataset", "year", "code", "evidence")


def html(papers: Sequence[Paper], models: Sequence[Model], methods: Sequence[Mapping[str, Any]]) -> str:
    """The page as text. `methods` are the rows of `medtame methods --json`; the same tables give the same bytes."""
    environment = Environment(
        loader=PackageLoader("medtame.literature"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": lambda name: str(name).replace("_", " "), "shown": records.shown}
    years = sorted({paper.year for paper in papers if paper.year})
    return environment.get_template("literature.html.j2").render(
        papers=[(paper, labels(paper), choose.closest_methods(paper, methods)) for paper in papers],
        models=models,
        unknowns=records.unknowns_said(models),
        filters={field: options(papers, field) for field in FILTERS},
        tasks=TASKS,
        strategies=(*STRATEGIES, NOT_SAID),
        years=[*(str(year) for year in range(years[0], years[-1] + 1)), NOT_SAID],
        reading=READING,
        evidence=EVIDENCE_NOTE,
        not_said=NOT_SAID,
    )


def labels(paper: Paper) -> dict[str, list[str]]:
    """What the page filters and counts a paper by."""
    found = {field: list(choose.values(paper, field)) for field in FILTERS}
    return found | {"main_task": [paper.task], "main_strategy": list(paper.strategy[:1]) or [NOT_SAID]}


def options(papers: Sequence[Paper], field: str) -> list[tuple[str, int]]:
    """The values of a filter with the number of papers each, in the order of the tables."""
    found = choose.counted(papers, field)
    return [(value, found[value]) for value in choose.ordered(field, set(found)) if found[value]]
