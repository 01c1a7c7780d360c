"""CSV (commas or semicolons) and TSV.

The header `image,label` and the line `a.png, benign` become one row with image `a.png` and label `benign`. UTF-8, with or without
a byte order mark; lines end in LF, CRLF or CR. Cells stay text: the patient `007` stays `007`, the label `NA` is a label, `=1+1`
is no formula.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from medtame.data.readers.table import Fault, Table, check_header, column_name, each, told
from medtame.errors import DataError

_MAGIC = {
    b"PK\x03\x04": "an Excel file or a ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF",
    b"PAR1": "Parquet: name it .parquet",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read(path: Path, name: str = "") -> Table:
    """The cells of a CSV or TSV. Raises DataError, with line numbers, for ragged rows and for what is no UTF-8 text."""
    name, text = name or path.name, text_of(path)
    first = text[: text.find("\n") if "\n" in text else len(text)]
    tabs = path.suffix.lower() == ".tsv"
    semicolons = not tabs and ";" in first and "," not in first
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ";" if semicolons else ",", strict=True)
    start = 1
    try:
        header = list(map(column_name, next(reader, [])))
        check_header(name, header)
        cells: list[str] = []  # all rows one after another: a list a row would take twice the time
        lines: list[int] = []
        ragged: list[tuple[int, int]] = []
        width = len(header)
        start = reader.line_num + 1
        for row in reader:
            if "".join(row).strip():
                if len(row) != width:
                    ragged.append((len(lines), len(row)))
                cells += row
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name} cannot be read as a table from line {start} on: {error}. Close its quotes, or double those inside"
        ) from None
    places = [f"line {line}" for line in lines]
    if ragged:
        mend = "Give every line as many cells as the header; put a cell that holds the separator in quotes."
        raise DataError(told(name, [Fault(row, f"{held} cells, but the header has {width}", mend) for row, held in ragged], places))
    named = {column: each(_stripped, cells[number::width]) for number, column in enumerate(header) if column}
    unnamed = header.count("")
    notes = [f"{unnamed} unnamed column(s) were left out."] if unnamed else []
    notes += ["Columns are separated by semicolons."] if semicolons else []
    return Table(named, places, tuple(notes))


def _stripped(cell: str) -> str | None:
    return cell.strip() or None


def text_of(path: Path) -> str:
    """The UTF-8 text of a file. Raises DataError, which names the line, for other bytes."""
    raw = readable(path)
    kind = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), None)
    if kind is not None:
        raise DataError(f"{path.name} is no UTF-8 text but {kind}. Save it as a text table in UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name} is not UTF-8: line {line} holds the byte {raw[error.start]:#04x}. Save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path.name} is no text: line {line} holds a NUL character. Save it as UTF-8 text, or delete the character")
    return text


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} cannot be opened ({error.strerror}): check the path and its permissions") from None
