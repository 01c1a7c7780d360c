"""Reading the tables: every row checked, every fault with its line, nothing half-read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from medtame.errors import DataError
from medtame.literature import links
from medtame.literature.schema import Model, Paper, Row

PAPERS, MODELS = Path(__file__).with_name("papers.csv"), Path(__file__).with_name("models.csv")
JOINED_NAMES = ("model", "dataset")
Kind = TypeVar("Kind", bound=Row)
Lines = list[tuple[int, Kind]]


@dataclass(frozen=True)
class Fault:
    """What is wrong in a line of a file; the first line is its header."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


@cache
def papers() -> tuple[Paper, ...]:
    """The 153 papers of the review, then those that were added. Raises DataError."""
    return sound(PAPERS, *read_papers(PAPERS))


@cache
def models() -> tuple[Model, ...]:
    """The 68 models of the review's table. Raises DataError."""
    return sound(MODELS, *read_models(MODELS))


def sound(path: Path, rows: Lines[Kind], faults: Sequence[Fault]) -> tuple[Kind, ...]:
    if faults:
        raise DataError(f"{path.name}, {faults[0]} ({len(faults)} in all): run medtame papers --check on it, or reinstall medtame")
    return tuple(row for _, row in rows)


def read_papers(path: Path) -> tuple[Lines[Paper], list[Fault]]:
    """Papers with their lines, and the faults of the file in the order of lines. Raises DataError for a file that is no such table."""
    rows, faults = read(path, Paper)
    repeated = [
        *twice(rows, "title", lambda paper: re.sub(r"[\W_]+", "", paper.title.casefold())),
        *twice(rows, "identifier", lambda paper: links.key(paper.identifier)),
        *twice(rows, "url", lambda paper: paper.url),
        *spelled_twice(rows),
    ]
    return rows, sorted([*faults, *repeated], key=lambda fault: fault.line)


def read_models(path: Path) -> tuple[Lines[Model], list[Fault]]:
    """Models with their lines, and the faults of the file. Raises DataError for a file that is no such table."""
    rows, faults = read(path, Model)
    return rows, sorted([*faults, *twice(rows, "name", lambda model: model.name.casefold())], key=lambda fault: fault.line)


def read(path: Path, kind: type[Kind]) -> tuple[Lines[Kind], list[Fault]]:
    reader = csv.DictReader(io.StringIO(text(path), newline=""), restkey="more", restval=None)
    columns = list(kind.model_fields)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path} lacks the column {missing[0]!r}: its first line must be {','.join(columns)}")
    rows, faults = [], []
    for cells in reader:
        number = reader.line_num
        if "more" in cells or None in cells.values():
            n = len(columns)
            faults.append(Fault(number, f"not {n} cells: put a value that holds a comma in double quotes, and leave empty ones empty"))
            continue
        try:
            rows.append((number, kind.model_validate(cells)))
        except ValidationError as error:
            faults.extend(Fault(number, said(one["msg"], one["loc"])) for one in error.errors())
    return rows, faults


def said(message: str, place: tuple[int | str, ...]) -> str:
    """The message of pydantic in one line, with its column where the message does not name it."""
    own = message.removeprefix("Value error, ")
    return own if own != message else f"{'.'.join(map(str, place))}: {message[0].lower()}{message[1:]}"


def text(path: Path) -> str:
    """A file in UTF-8. Raises DataError."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a CSV file") from None
    except UnicodeDecodeError as error:
        lines = content[: error.start].count(b"\n") + 1
        where = f"byte 0x{content[error.start]:02x} in line {lines}, perhaps Latin-1"
        raise DataError(f"{path} is not UTF-8 ({where}): save it as UTF-8") from None


def twice(rows: Lines[Kind], name: str, key: Callable[[Kind], str]) -> list[Fault]:
    """Two rows with one value; empty values are no repetition."""
    first: dict[str, int] = {}
    faults = []
    for number, row in rows:
        value = key(row)
        if value and value in first:
            faults.append(Fault(number, f"{name} {getattr(row, name)!r} stands in line {first[value]} too"))
        elif value:
            first[value] = number
    return faults


def spelled_twice(rows: Lines[Paper]) -> list[Fault]:
    """A model or data set that another line spells with other capitals, or with or without spaces and hyphens."""
    faults = []
    for name in JOINED_NAMES:
        first: dict[str, tuple[str, int]] = {}
        for number, row in rows:
            for value in getattr(row, name):
                spelling, where = first.setdefault(re.sub(r"[\s_-]+", "", value.casefold()), (value, number))
                if spelling != value:
                    faults.append(Fault(number, f"{name} {value!r} is spelled {spelling!r} in line {where}"))
    return faults


def written(rows: Sequence[Row]) -> str:
    """The rows as a table that `read` takes again."""
    lines = [[cell(value) for value in row.model_dump().values()] for row in rows]
    return "".join(map(line, [list(type(rows[0]).model_fields), *lines]))


def line(cells: Sequence[str]) -> str:
    """One line of a table."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def cell(value: object) -> str:
    return "" if value is None else ";".join(map(str, value)) if isinstance(value, tuple) else str(value)
