"""What every reader gives: cells as text, where each row stands in its file, and how bad rows are told in one line."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from medtame.errors import DataError

Cell = TypeVar("Cell", bound=Hashable)
Made = TypeVar("Made")

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val", "validation": "val"}
SHOWN = 20
LONGEST = 200


class Fault(NamedTuple):
    """A bad row: its number, what is wrong, and how to mend it."""

    row: int
    what: str
    mend: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text, empty ones None, or pictures inside a shard; and where each row stands: "line 3", "record 2", "file a/1.png".

    `series`: image cells that stand for the files of a DICOM series, in order. `mask_values`: for each row the numbers of its
    label map that are its mask; None where the whole mask is meant.
    """

    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]
    notes: tuple[str, ...] = ()
    series: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    mask_values: Sequence[tuple[int, ...] | None] | None = None


def told(name: str, faults: Sequence[Fault], places: Sequence[str]) -> str:
    """One line for all bad rows, each kind of mend once."""
    ordered = sorted(faults)
    shown = "; ".join(f"{quoted(places[fault.row])}: {fault.what}" for fault in ordered[:SHOWN])
    more = f"; and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    mends = "".join(f" {mend}" for mend in dict.fromkeys(fault.mend for fault in ordered) if mend)
    return f"{name} has {len({fault.row for fault in ordered})} bad row(s): {shown}{more}.{mends}"


def quoted(value: object) -> str:
    """A value as a message can show it: one line, not too long."""
    text = str(value)
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]


def listed(places: Sequence[str]) -> str:
    """Places as a message can show them: lines 3 and 5 become "lines 3, 5"; many are cut."""
    words = {place.rpartition(" ")[0] for place in places}
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    if len(words) > 1 or len(places) == 1 or "" in words:
        return ", ".join(places[:SHOWN]) + more
    return f"{words.pop()}s {', '.join(place.rpartition(' ')[2] for place in places[:SHOWN])}{more}"


def first_few(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def nfc(cell: str | None) -> str | None:
    """Stripped, in Unicode's composed form; None where nothing is left."""
    if cell is None:
        return None
    return (cell if cell.isascii() else unicodedata.normalize("NFC", cell)).strip() or None


def column_name(cell: object) -> str:
    """A column's name: NFC, one space where there are several, one printable line."""
    text = " ".join((nfc(str(cell)) or "").split())
    return text if text.isprintable() else ascii(text)[1:-1]


def each(function: Callable[[Cell], Made], cells: Sequence[Cell]) -> list[Made]:
    """A function of every cell, worked out once for each different one: columns repeat themselves."""
    made = {cell: function(cell) for cell in set(cells)}
    return [made[cell] for cell in cells]


def written(value: Any) -> str | None:
    """A typed value as a CSV would hold it: 1.0 is 1, NaN is empty, a list of plain values is joined by `|`."""
    if isinstance(value, (list, tuple)):
        return "|".join(filter(None, map(written, value))) or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return (str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)).strip() or None


def nested(value: Any) -> bool:
    """Whether a value is no cell: an object, bytes, or a list that holds such."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(part, (dict, list, tuple, bytes)) for part in value)
    return isinstance(value, (dict, bytes))


def check_header(name: str, header: Sequence[str]) -> None:
    if not any(header):
        raise DataError(f"{name} is empty: its first line must name the columns")
    double = [column for column, count in Counter(header).items() if count > 1 and column]
    if double:
        raise DataError(f"{name} has more than one column called {', '.join(map(repr, double))}: rename all but one")


def of_records(records: Sequence[Mapping[str, Any]], places: Sequence[str], notes: Sequence[str] = ()) -> Table:
    """Records with any keys: a column a key, None where a record lacks it. Columns with nested values are left out and named."""
    left_out = {name for record in records for name, value in record.items() if nested(value)}
    names = {name: column_name(name) for name in dict.fromkeys(name for record in records for name in record) if name not in left_out}
    columns = {column: [written(record.get(name)) for record in records] for name, column in names.items() if column}
    told_out = [f"Left out, for they hold more than a cell: {', '.join(map(quoted, sorted(left_out)))}."] if left_out else []
    return Table(columns, places, (*notes, *told_out))
