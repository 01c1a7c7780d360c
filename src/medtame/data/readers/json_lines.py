"""JSON and JSONL.

JSONL: one object a line, `{"image": "a.png", "label": "benign"}`; keys are columns. JSON: a list of such objects, or one object of
columns, `{"image": ["a.png"], "label": ["benign"]}`. COCO and MONAI/Decathlon files are known by their keys and read as such.
A list of plain values is joined by `|`; deeper values are left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtame.data.readers import coco, decathlon
from medtame.data.readers.delimited import text_of
from medtame.data.readers.table import Fault, Table, of_records, quoted, told
from medtame.errors import DataError

_SHAPES = "give a list of objects, an object of columns, COCO, or a dataset.json with training, validation or test lists"


def read(path: Path) -> Table:
    """Rows of any JSON that is known. Raises DataError with line, record or column for what is wrong."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _lines(path)
    content = loaded(path)
    if isinstance(content, list):
        return _list(path.name, content, [f"record {number + 1}" for number in range(len(content))])
    if isinstance(content, dict) and coco.fits(content):
        return coco.read(path.name, content)
    if isinstance(content, dict) and decathlon.fits(content):
        return decathlon.read(path.name, content)
    if isinstance(content, dict) and content and all(isinstance(values, list) for values in content.values()):
        return _columns(path.name, content)
    held = f"an object with {', '.join(map(quoted, list(content)[:5])) or 'no key'}" if isinstance(content, dict) else "a single value"
    raise DataError(f"{path.name} holds {held}: {_SHAPES}")


def loaded(path: Path) -> Any:
    """What a JSON file holds. Raises DataError, which names the line."""
    return _parsed(text_of(path), path.name, "If it has one record a line, name it .jsonl")


def _parsed(text: str, where: str, mend: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}. {mend}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON that can be read ({type(error).__name__}). {mend}") from None


def _lines(path: Path) -> Table:
    records, places, faults = [], [], []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        places.append(f"line {number}")
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
            records.append({})
            faults.append(Fault(len(records) - 1, f"no JSON ({reason})", "Write one whole object a line, or name a JSON list .json."))
    if faults:
        raise DataError(told(path.name, faults, places))
    return _list(path.name, records, places)


def _list(name: str, records: list[Any], places: list[str]) -> Table:
    mend = 'Write objects, such as {"image": "a.png", "label": "benign"}.'
    faults = [Fault(row, f"{_kind(record)}, no object", mend) for row, record in enumerate(records) if not isinstance(record, dict)]
    if faults:
        raise DataError(told(name, faults, places))
    return of_records(records, places)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _columns(name: str, content: Mapping[str, list[Any]]) -> Table:
    sizes = {column: len(values) for column, values in content.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"{name} has columns of unequal length ({', '.join(f'{quoted(c)} {n}' for c, n in sizes.items())}): give each row a value"
        )
    size = next(iter(sizes.values()))
    records = [{column: values[row] for column, values in content.items()} for row in range(size)]
    return of_records(records, [f"row {row + 1}" for row in range(size)])
