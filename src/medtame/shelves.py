"""The shelves as tables: methods, tasks, and the matrix of both, read from the code."""

from __future__ import annotations

from typing import Any

from medtame import catalogue
from medtame.run import unmet
from medtame.strategies.base import Method
from medtame.tasks.base import Task

STRATEGIES = ("direct_use", "tuning", "fusion", "language_model", "knowledge")
ALL_TASKS = (
    "classification",
    "segmentation",
    "object_detection",
    "anomaly_detection",
    "report_generation",
    "visual_question_answering",
    "image_text_retrieval",
    "image_synthesis",
    "super_resolution",
    "registration",
    "multi_task",
)


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
    """One method with its settings and what it says of itself."""
    kind = catalogue.settings_class(catalogue.METHODS, name)
    row = next(row for row in methods() if row["name"] == name)
    return {**row, "settings": catalogue.settings_of(kind()), "about": " ".join((kind.__doc__ or "").split())}


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


def matrix() -> dict[str, Any]:
    """How many methods of each strategy serve each task; an empty cell has its reason."""
    serving, there = methods(), catalogue.names(catalogue.TASKS)
    rows = []
    for strategy in STRATEGIES:
        counts = [sum(name in row["tasks"] for row in serving if row["strategy"] == strategy) for name in ALL_TASKS]
        cells = [
            str(count) if count else ("no method yet" if name in there else "no task yet")
            for name, count in zip(ALL_TASKS, counts, strict=True)
        ]
        rows.append({"strategy": strategy, "cells": cells})
    return {"tasks": list(ALL_TASKS), "rows": rows}


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
