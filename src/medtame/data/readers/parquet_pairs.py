"""One Parquet file whose pictures lie in it: a column of bytes, or of objects {bytes, path} as Hugging Face writes them.

All other columns become cells as in a Parquet manifest; a number that the file's Hugging Face header names as a class becomes the
class. A row group at a time is read, without its pictures. A cell without bytes but with a path is that path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import parquet

from medtame.data.packed import PackedPicture, ParquetShard, RowGroups, stamp_of
from medtame.data.readers.pairs import Pairs
from medtame.data.readers.table import check_header, column_name, nested, nfc, quoted, written
from medtame.data.readers.tars import DamagedError
from medtame.errors import ImageError

ROWS_AT_ONCE = 4096
UNDECODABLE = "with words that are not UTF-8"


def picture_columns(path: Path) -> list[str]:
    """The columns that may hold pictures; none where the file cannot be read."""
    try:
        return [field.name for field in parquet.read_schema(path) if holds_pictures(field.type)]
    except (OSError, ValueError, pyarrow.ArrowException):
        return []


def holds_pictures(kind: Any) -> bool:
    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_pictures(kind.field("bytes").type)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def read(path: Path, name: str, groups: RowGroups) -> Pairs:
    """The rows of one file. Raises DamagedError, DataError for two columns of one name, and OSError where it cannot be read."""
    found = Pairs()
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            header = [column_name(field.name) for field in schema]
            check_header(path.name, header)
            pictures = [field.name for field in schema if holds_pictures(field.type)]
            shards = {column: ParquetShard(path, name, column, stamp_of(path), groups) for column in pictures}
            classes = class_names(schema)
            row = 0
            for group in range(file.num_row_groups):
                cells = {column_name(column): cells_of(file, group, shards[column], row) for column in pictures}
                for start, words in word_rows(file, group, [field.name for field in schema if field.name not in pictures], classes, found):
                    for at, said in enumerate(words, start):
                        one = f"{name}/{row + at + 1}"
                        if said is None:
                            found.drop(UNDECODABLE, one)
                        elif not any(held[at] is not None for held in cells.values()) and pictures:
                            found.drop("without an image", one)
                        else:
                            found.add({column: held[at] for column, held in cells.items()} | said)
                row += file.metadata.row_group(group).num_rows
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError, LookupError, ImageError, pyarrow.ArrowException):
        raise DamagedError("cannot be read as Parquet") from None
    return found


def cells_of(file: Any, group: int, shard: ParquetShard, row: int) -> Sequence[Any]:
    """A picture, a path, or None for each row of a group. Only where the file does not say that all have bytes are these read."""
    about = file.metadata.row_group(group)
    places = {about.column(number).path_in_schema: about.column(number) for number in range(about.num_columns)}
    paths: Sequence[str | None] = [None] * about.num_rows
    if f"{shard.column}.path" in places:
        column = file.read_row_group(group, columns=[f"{shard.column}.path"]).column(0)
        paths = pyarrow.compute.struct_field(column, "path").to_pylist()
    chunk = places[f"{shard.column}.bytes" if f"{shard.column}.bytes" in places else shard.column]
    known = chunk.is_stats_set and chunk.statistics.has_null_count and chunk.statistics.null_count == 0
    absent = [False] * about.num_rows if known else shard.groups.of(shard, group).is_null().to_pylist()
    return [
        (path or None) if empty else PackedPicture(shard, member(row + at + 1, path), group, at)
        for at, (path, empty) in enumerate(zip(paths, absent, strict=True))
    ]


def member(number: int, path: str | None) -> str:
    """The name of a cell: its row from 1, and the last part of its path."""
    last = PurePosixPath(path).name if path else ""
    return f"{number}/{last if last.isprintable() else ascii(last)[1:-1]}" if last else str(number)


def word_rows(
    file: Any, group: int, columns: Sequence[str], classes: dict[str, list[str]], found: Pairs
) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
    """(number of the first row, cells of rows, None for a row that cannot be decoded), some rows at a time."""
    count = file.metadata.row_group(group).num_rows
    if not columns:
        yield 0, [{} for _ in range(count)]
        return
    start = 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
        values = {name: plain(batch.column(batch.schema.get_field_index(name))) for name in columns}
        rows: list[dict[str, Any] | None] = []
        for at in range(batch.num_rows):
            rows.append(row_of({name: held[at] for name, held in values.items()}, classes, found))
        yield start, rows
        start += batch.num_rows


class Undecodable:
    """Stands for a cell whose bytes are no text."""


def plain(column: Any) -> list[Any]:
    try:
        listed: list[Any] = column.to_pylist()
        return listed
    except UnicodeDecodeError:
        return [one(cell) for cell in column]


def one(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return Undecodable


def row_of(values: dict[str, Any], classes: dict[str, list[str]], found: Pairs) -> dict[str, Any] | None:
    cells = {}
    for name, value in values.items():
        if value is Undecodable:
            return None
        if nested(value):
            found.notes[f"the column {quoted(column_name(name))}"] = None
            continue
        if name in classes and isinstance(value, int) and 0 <= value < len(classes[name]):
            value = classes[name][value]
        cells[column_name(name)] = nfc(written(value))
    return cells


def class_names(schema: Any) -> dict[str, list[str]]:
    """The names of classes by column, as the header of Hugging Face datasets has them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(one) for one in about["names"]]
            for name, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel" and isinstance(about.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
