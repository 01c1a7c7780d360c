"""The contract of the source itself: shelves blind to each other, methods that say what they are, short files."""

from __future__ import annotations

import ast
import re
from dataclasses import is_dataclass
from pathlib import Path

from medtame.strategies.base import Method

CALLS_THE_CATALOGUE = ("run.py", "comparison", "verbs.py", "shelves.py", "config.py", "cli.py", "pretrain.py", "forgetting.py")


def imported(file: Path) -> set[str]:
    """Modules and names that a file imports, in full, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import: write it in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def shelves_are_blind(source: Path) -> None:
    """No method imports a method or a task, no task a method, and only those who hold both shelves call the catalogue."""
    for shelf, other in (("strategies", "tasks"), ("tasks", "strategies")):
        for file in sorted((source / shelf).rglob("*.py")):
            own = {
                name for name in imported(file) if name.startswith(f"medtame.{shelf}.") and not name.startswith(f"medtame.{shelf}.base.")
            }
            assert not own, f"{file.relative_to(source)} imports {', '.join(sorted(own))}: only base may be imported"
            across = {name for name in imported(file) if name.startswith(f"medtame.{other}")}
            assert not across, f"{file.relative_to(source)} imports {', '.join(sorted(across))}: the shelves are blind to each other"
    for file in sorted(source.rglob("*.py")):
        if file.relative_to(source).parts[0] not in (*CALLS_THE_CATALOGUE, "catalogue.py"):
            called = {name for name in imported(file) if name.startswith("medtame.catalogue")}
            assert not called, f"{file.relative_to(source)} imports the catalogue: only {', '.join(CALLS_THE_CATALOGUE)} may"


CITED = re.compile(r"[A-Z][\w-]+( et al\.| and [A-Z][\w .-]*?)?,? \(?(19|20)\d\d|arxiv:\S+|doi:\S+")


def method_says_what_it_is(kind: type[Method]) -> None:
    text = docstring(kind)
    assert CITED.search(text), f"{kind.__name__}: its docstring names no author with a year and no paper"
    assert kind.papers, f"{kind.__name__} declares no papers"
    odd = [paper for paper in kind.papers if not (paper.startswith(("arxiv:", "doi:")) or re.search(r"\b(19|20)\d\d\b", paper))]
    assert not odd, f"{kind.__name__}: {odd[0]!r} is neither arxiv:…, doi:… nor a reference with a year"
    assert kind.trains.strip(), f"{kind.__name__} does not say what it trains"
    assert kind.cost.strip(), f"{kind.__name__} does not say what it costs"


def docstring(kind: type) -> str:
    """The written one: a dataclass without any gets its signature."""
    text = kind.__doc__ or ""
    written = bool(text.strip()) and not (is_dataclass(kind) and text.startswith(f"{kind.__name__}("))
    assert written, f"{kind.__name__} has no docstring"
    return text


def source_is_short_and_explained(source: Path) -> None:
    for file in sorted(source.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        assert lines <= 400, f"{file.relative_to(source)} has {lines} lines: take it apart"
        assert ast.get_docstring(ast.parse(text)), f"{file.relative_to(source)} has no module docstring"
