"""Make the tables of `medtame.literature` from the review's two tables: python scripts/make_literature.py FOLDER

The review's columns are taken anew, its labels rewritten by `labels.csv`. What was added by hand is kept: papers of the origin
`added`, and what is known of the models.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from medtame.literature import tables, words
from medtame.literature.schema import FACTS, Model, Paper

LABELS = Path(tables.__file__).with_name("labels.csv")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def relabelled(field: str, value: str, labels: dict[tuple[str, str], str]) -> str:
    """The design's words for tasks, strategies and learning; one spelling of a data set."""
    return ";".join(labels.get((field, part), part) for part in value.split(";") if part)


def paper(row: dict[str, str], labels: dict[tuple[str, str], str]) -> Paper:
    same = {name: row[name] for name in ("title", "year", "model", "modality", "body_part", "code", "identifier", "evidence")}
    return Paper.model_validate(
        same
        | {
            "task": relabelled("task", row["task"], labels),
            "other_tasks": relabelled("task", row["other_tasks"], labels),
            "learning": relabelled("learning", row["learning_strategy"], labels),
            "strategy": relabelled("strategy", row["adaptation_strategy"], labels),
            "dataset": relabelled("dataset", row["dataset"], labels),
            "url": page(row),
            "origin": "review",
        }
    )


def model(row: dict[str, str], before: dict[str, dict[str, str]]) -> Model:
    unknown = dict.fromkeys((*FACTS, "licence_covers"), words.UNKNOWN) | dict.fromkeys(("checkpoint", "loads_as", "source"), "")
    kept = {name: before[row["name"]][name] for name in unknown} if row["name"] in before else unknown
    return Model.model_validate({name: row[name] for name in ("name", "paper", "domain", "identifier")} | {"url": page(row)} | kept)


def page(row: dict[str, str]) -> str:
    """The review's link where no identifier gives a stable one."""
    return "" if row["identifier"] else row["url"]


def main(folder: Path) -> None:
    labels = {(row["field"], row["source"]): row["medtame"] for row in rows(LABELS)}
    added = [row for _, row in tables.read_papers(tables.PAPERS)[0] if row.origin == "added"] if tables.PAPERS.exists() else []
    before = {row["name"]: row for row in rows(tables.MODELS)} if tables.MODELS.exists() else {}
    papers = [*(paper(row, labels) for row in rows(folder / "papers.csv")), *added]
    models = [model(row, before) for row in rows(folder / "models.csv")]
    tables.PAPERS.write_text(tables.written(papers), encoding="utf-8")
    tables.MODELS.write_text(tables.written(models), encoding="utf-8")
    print(f"{len(papers)} papers, {len(models)} models")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
