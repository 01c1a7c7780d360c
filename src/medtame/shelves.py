"""The shelves as tables: methods, tasks, and the matrix of both, read from the code."""

from __future__ import annotations

from typing import Any

from medtame import catalogue, ranges
from medtame.encoders import card, known
from medtame.errors import MedtameError
from medtame.literature import choose, links, tables
from medtame.literature.words import READING, STRATEGIES
from medtame.literature.words import TASKS as ALL_TASKS
from medtame.run import unmet
from medtame.strategies.base import Method
from medtame.tasks.base import Task


def methods() -> list[dict[str, Any]]:
    """A row a method, as `medtame methods --json` prints it."""
    made = {name: task(name) for name in catalogue.names(catalogue.TASKS)}
    rows = []
    for name in catalogue.names(catalogue.METHODS):
        settings: Method = catalogue.build(catalogue.METHODS, name)
        rows.append(
            {
                "name": name,
                "strategy": catalogue.strategy_of(name),
                "learning": settings.learning,
                "tasks": [task_name for task_name, one in made.items() if not unmet(one, settings)],
                "trains": settings.trains,
                "cost": settings.cost,
                "papers": list(settings.papers),
            }
        )
    return rows


def method(name: str) -> dict[str, Any]:
    """One method with its settings, what each of them may be, and what the method says of itself."""
    kind = catalogue.settings_class(catalogue.METHODS, name)
    row = next(row for row in methods() if row["name"] == name)
    first, _, rest = (kind.__doc__ or "").partition("\n\n")
    return {
        **row,
        "gives": list(kind.gives),
        "needs": sorted(kind.needs),
        "towers": sorted(kind.towers),
        "literature": [cited(paper) for paper in row["papers"]],
        "settings": catalogue.settings_of(kind()),
        "ranges": ranges.of(kind),
        "formula": " ".join(first.split()),
        "good_when": kind.good_when,
        "poor_when": kind.poor_when,
        "about": " ".join(rest.split()),
    }


SHOWN = {
    "formula": "formula",
    "good_when": "good when",
    "poor_when": "poor when",
    "cost": "cost",
    "strategy": "strategy",
    "learning": "learning",
    "trains": "trains",
    "gives": "gives",
    "needs": "needs of the task",
    "towers": "needs of the encoder",
    "tasks": "tasks",
}


def told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `method` found, a title and a text a line, without what is empty: what it is, when to take it, what can be set."""
    limits = found["ranges"]
    settings = [f"{name} = {value!r} ({ranges.words(limits[name])})" for name, value in found["settings"].items()]
    lines = [(title, plain(found[key])) for key, title in SHOWN.items()]
    lines += [("settings", "\n".join(settings)), ("literature", "\n".join(found["literature"])), ("about", found["about"])]
    return [("name", found["name"]), *(line for line in lines if line[1])]


def cited(paper: str) -> str:
    """An identifier with the title where it is among the review's papers, and its link; a full reference stays as it is."""
    link = links.stable(paper)
    listed = next((row for row in tables.papers() if link and links.key(row.identifier) == links.key(paper)), None)
    if listed is not None:
        return f"{listed.title} ({listed.year or 'year not said'}), {link}"
    return f"{paper}: {link} (not among the review's papers)" if link else f"{paper} (not among the review's papers)"


def tasks() -> list[dict[str, Any]]:
    """A row a task: the columns it needs, its references, the methods that serve it."""
    serving = methods()
    return [
        {
            "name": name,
            "columns": list(one.requires),
            "asks": list(one.kinds),
            "references": list(one.references),
            "methods": [row["name"] for row in serving if name in row["tasks"]],
            "settings": catalogue.settings_of(one),
        }
        for name, one in ((name, task(name)) for name in catalogue.names(catalogue.TASKS))
    ]


def encoders() -> list[dict[str, Any]]:
    """A row an encoder with a name: whether it lies on this machine, would be fetched, or cannot be had. No network is tried."""
    return known.rows()


def encoder(name: str) -> dict[str, Any]:
    """One encoder: its row, and what its files say where they are here."""
    row = next((row for row in known.rows() if row["name"] == name), {"spec": name})
    try:
        found = card(name)
    except MedtameError as error:
        if "name" not in row:
            raise
        return {**row, "cannot be opened": str(error)}
    said = {
        field: getattr(found, field)
        for field in ("image_identity", "text_identity", "dimension", "scale", "bias", "medical_text", "licence")
    }
    return {**row, **said, "maps": [f"{channels} channels of {side} x {side}" for channels, side in found.scales], "notes": found.notes}


def matrix() -> dict[str, Any]:
    """How many methods of each strategy serve each task, and how many of the review's papers have both as their main labels.

    A cell without a method has its reason. `unlabelled` counts the papers whose strategy is not said.
    """
    serving, there = methods(), catalogue.names(catalogue.TASKS)
    counted = choose.counts(tables.papers(), "strategy", "task")
    of_papers = dict(zip(counted["rows"]["names"], counted["counts"], strict=True))
    rows = []
    for strategy in STRATEGIES:
        counts = [sum(name in row["tasks"] for row in serving if row["strategy"] == strategy) for name in ALL_TASKS]
        cells = [
            f"{count or ('no method yet' if name in there else 'no task yet')}; papers {papers}"
            for name, count, papers in zip(ALL_TASKS, counts, of_papers[strategy], strict=True)
        ]
        rows.append({"strategy": strategy, "cells": cells, "methods": counts, "papers": of_papers[strategy]})
    return {"tasks": list(ALL_TASKS), "rows": rows, "unlabelled": of_papers.get("not said", [0] * len(ALL_TASKS)), "reading": READING}


def matrix_table(record: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The matrix as titles and lines, a task a line: methods of medtame / papers of the review."""
    lines = []
    for place, name in enumerate(record["tasks"]):
        pairs = [f"{row['methods'][place]} / {row['papers'][place]}" for row in record["rows"]]
        lines.append((name, *pairs, str(record["unlabelled"][place])))
    return ("methods / papers", *(row["strategy"] for row in record["rows"]), "papers without a strategy"), lines


def task(name: str) -> Task:
    made: Task = catalogue.build(catalogue.TASKS, name)
    return made


def plain(value: Any) -> str:
    """A value for a cell of a table."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {item!r}" for key, item in value.items())
    return str(value)
