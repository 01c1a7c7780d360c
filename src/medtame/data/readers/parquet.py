"""Parquet: a row a row. Numbers are written as a CSV would hold them (7.0 is 7), lists of plain values are joined by `|`."""

from __future__ import annotations

from pathlib import Path

import pyarrow
from pyarrow import parquet

from medtame.data.readers.table import Table, check_header, column_name, nested, quoted, written
from medtame.errors import DataError


def read(path: Path) -> Table:
    """The cells of a Parquet file. Columns of bytes or objects are left out and named; images must be files of their own."""
    try:
        with parquet.ParquetFile(path) as file:  # `read_table` refuses two columns of one name with other words
            table = file.read()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path.name} cannot be read as Parquet ({type(error).__name__}): write it again, or give a CSV") from None
    header = list(map(column_name, table.column_names))
    check_header(path.name, header)
    columns, left_out = {}, []
    for place, name in enumerate(header):
        values = table.column(place).to_pylist()
        if any(map(nested, values)):
            left_out.append(name)
        else:
            columns[name] = [written(value) for value in values]
    if "image" in left_out:
        raise DataError(f"{path.name} holds its pictures inside the column 'image': save them as files and name these in the table")
    notes = (f"Left out, for they hold more than a cell: {', '.join(map(quoted, left_out))}.",) if left_out else ()
    return Table(columns, [f"row {row + 1}" for row in range(table.num_rows)], notes)
