"""Which papers are meant: filters by label and by words of the title, the matrix of counts, and one paper by its title."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medtame.errors import DataError, UnknownNameError
from medtame.literature.schema import Model, Paper
from medtame.literature.words import NOT_SAID, STRATEGIES, TASKS

VALUES: Mapping[str, Callable[[Paper], tuple[str, ...]]] = {
    "task": lambda paper: (paper.task, *paper.other_tasks),
    "main_task": lambda paper: (paper.task,),
    "other_task": lambda paper: paper.other_tasks,
    "strategy": lambda paper: paper.strategy,
    "main_strategy": lambda paper: paper.strategy[:1],
    "learning": lambda paper: paper.learning,
    "modality": lambda paper: paper.modality,
    "body_part": lambda paper: paper.body_part,
    "model": lambda paper: paper.model,
    "dataset": lambda paper: paper.dataset,
    "year": lambda paper: (str(paper.year),) if paper.year else (),
    "code": lambda paper: ("yes" if paper.code else "no",),
    "evidence": lambda paper: (paper.evidence,),
    "origin": lambda paper: (paper.origin,),
}
# One paper, one cell: the count of a pair of these adds up to the number of papers.
COUNTED = {"task": "main_task", "strategy": "main_strategy"}
IN_ORDER = {"main_task": TASKS, "main_strategy": STRATEGIES, "task": TASKS, "strategy": STRATEGIES}


def values(paper: Paper, field: str) -> tuple[str, ...]:
    """What a paper says in a field; `not said` where it says nothing."""
    return VALUES[field](paper) or (NOT_SAID,)


def filtered(papers: Sequence[Paper], chosen: Mapping[str, str], text: str = "") -> list[Paper]:
    """Papers that meet every filter and whose title holds every word of `text`.

    A filter is a value without regard to case (`not said` finds empty fields); a year may be a range, 2023-2025. Raises
    UnknownNameError for a value that no paper has, DataError where nothing is left; both say the nearest values.
    """
    left = list(papers)
    for field, wanted in chosen.items():
        match = matching(papers, field, wanted)
        found = [paper for paper in left if any(match(value) for value in values(paper, field))]
        if not found:
            here = ", ".join(f"{value} ({n})" for value, n in counted(left, field).most_common(8))
            before = list(chosen.items())[: list(chosen).index(field)]
            others = "".join(f" and {name} {value!r}" for name, value in before)
            raise DataError(f"no paper has {field} {wanted!r}{others}: the {len(left)} left before it have {field} {here}")
        left = found
    terms = text.casefold().split()
    found = [paper for paper in left if all(term in paper.title.casefold() for term in terms)]
    if not found:
        raise DataError(f"no title of {len(left)} papers holds {text!r}: {nearest_words(left, terms)}")
    return found


def matching(papers: Sequence[Paper], field: str, wanted: str) -> Callable[[str], bool]:
    """The test that a filter means. Raises UnknownNameError for a value that no paper of the table has."""
    if field == "year" and (span := re.fullmatch(r"(\d{4})\s*-\s*(\d{4})", wanted)):
        low, high = int(span[1]), int(span[2])
        return lambda value: value.isdigit() and low <= int(value) <= high
    there = {value for paper in papers for value in values(paper, field)}
    same = {value for value in there if plain(value) == plain(wanted) or plain(value.partition(" (")[0]) == plain(wanted)}
    if not same:
        raise UnknownNameError(field, wanted, shortlist(there, wanted))
    return lambda value: value in same


def plain(value: str) -> str:
    """Without case, and with one sign between words."""
    return re.sub(r"[\s_-]+", " ", value.casefold()).strip()


def shortlist(there: set[str], wanted: str) -> list[str]:
    """All values of a small vocabulary, the twelve nearest of a large one."""
    if len(there) <= 30:
        return list(there)
    holding = sorted(value for value in there if plain(wanted) in plain(value))[:6]
    by_plain = {plain(value): value for value in sorted(there)}
    near = [by_plain[name] for name in difflib.get_close_matches(plain(wanted), by_plain, 12, 0.3)]
    return list(dict.fromkeys([*holding, *near]))[:12]


def nearest_words(papers: Sequence[Paper], terms: Sequence[str]) -> str:
    words = {word for paper in papers for word in re.findall(r"[\w-]{3,}", paper.title.casefold())}
    near = [word for term in terms if term not in words for word in difflib.get_close_matches(term, sorted(words), 3, 0.6)]
    return f"did you mean {', '.join(near)}?" if near else "try fewer words, or medtame papers --like TEXT"


def counted(papers: Sequence[Paper], field: str) -> Counter[str]:
    return Counter(value for paper in papers for value in values(paper, field))


def counts(papers: Sequence[Paper], rows: str, columns: str) -> dict[str, Any]:
    """Papers by two fields: names of rows and columns and the numbers between. Task and strategy count the main label only."""
    fields = [COUNTED.get(name, name) for name in (rows, columns)]
    for name, field in zip((rows, columns), fields, strict=True):
        if field not in VALUES:
            raise UnknownNameError("field to count", name, [key for key in VALUES if not key.startswith("main_")])
    pairs = Counter((a, b) for paper in papers for a in values(paper, fields[0]) for b in values(paper, fields[1]))
    names = [ordered(field, {pair[place] for pair in pairs}) for place, field in enumerate(fields)]
    return {
        "rows": {"field": rows, "names": names[0]},
        "columns": {"field": columns, "names": names[1]},
        "counts": [[pairs[a, b] for b in names[1]] for a in names[0]],
        "papers": len(papers),
    }


def ordered(field: str, there: set[str]) -> list[str]:
    """Tasks and strategies all, in the design's order; other values as they sort; `not said` last."""
    named = list(IN_ORDER.get(field, sorted(there - {NOT_SAID})))
    return [*named, *([NOT_SAID] if NOT_SAID in there else [])]


def titled(papers: Sequence[Paper], title: str) -> Paper | None:
    """The paper that has this title, without regard to case and signs."""
    return next((paper for paper in papers if letters(paper.title) == letters(title)), None)


def letters(title: str) -> str:
    return re.sub(r"[\W_]+", "", title.casefold())


def closest_methods(paper: Paper, methods: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The methods of medtame that name this paper, then those of its main strategy that serve its main task.

    `methods` are rows with `name`, `strategy`, `tasks` and `papers`, as `medtame methods --json` gives them.
    """
    named = [row["name"] for row in methods if paper.identifier and paper.identifier in row["papers"]]
    same = [row["name"] for row in methods if row["strategy"] in paper.strategy[:1] and paper.task in row["tasks"]]
    close = [{"method": name, "why": "names this paper"} for name in named]
    return close + [{"method": name, "why": "same task and strategy"} for name in same if name not in named]


def models(rows: Sequence[Model], chosen: Mapping[str, str]) -> list[Model]:
    """Models that meet every filter. Raises UnknownNameError with the nearest values."""
    left = list(rows)
    for field, wanted in chosen.items():
        found = [row for row in left if plain(wanted) == plain(str(getattr(row, field)))]
        if not found:
            raise UnknownNameError(f"model's {field}" if field != "name" else "model", wanted, {str(getattr(row, field)) for row in left})
        left = found
    return left
