"""Manifests: a CSV, TSV or Parquet table, or a folder with one sub-folder a class. All bad rows are told in one error."""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from medtame.data import dicom, images
from medtame.data.samples import ManifestSamples
from medtame.data.splits import groups_of
from medtame.errors import DataError, UnknownNameError

IMAGE_COLUMNS = ("image", "fixed", "moving")
PATH_COLUMNS = (*IMAGE_COLUMNS, "mask", "instances", "fov", "moving_labels", "fixed_labels", "moving_landmarks", "fixed_landmarks")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
TEXT_COLUMNS = ("label", "labels", "text", "caption", "findings", "impression", "question", "answer", "answer_type", "prompt")
PERSON_COLUMNS = ("patient", "case", "study", "group", "lesion", "site", "sex", "age", "split")
STANDARD_COLUMNS = (*PATH_COLUMNS, *BOX_COLUMNS, *TEXT_COLUMNS, *PERSON_COLUMNS)
SPLIT_FOLDERS = {"train", "val", "test"}
SHOWN = 20


@dataclass(frozen=True)
class _Table:
    """Cells as text, empty ones None, and where each row stands in its file."""

    columns: dict[str, list[str | None]]
    places: Sequence[str]
    notes: tuple[str, ...] = ()


def read(path: Path | str, *, columns: Mapping[str, str] | None = None, root: Path | str | None = None) -> ManifestSamples:
    """The samples of a manifest, checked: every path is there, boxes and ages are numbers.

    Args:
        path: CSV, TSV or Parquet (UTF-8), or a folder with one sub-folder a class, also below `train`, `val` and `test`.
        columns: standard name = yours. Yours wins over a column that already has the standard name.
        root: what relative paths start from; by default the manifest's folder.

    Text is stripped and NFC; an empty cell is None. Box corners (pixels) and age become floats.
    Raises DataError, which lists all bad rows with their lines, and UnknownNameError for a column that is not there.
    """
    path = Path(path)
    if path.is_dir():
        table, base = _folder(path), path
    elif path.is_file():
        table, base = _file(path), path.parent
    else:
        raise DataError(f"{path} is not there: give a CSV, TSV or Parquet file, or a folder with one sub-folder a class")
    base = base if root is None else Path(root)
    if not base.is_dir():
        raise DataError(f"the root {base} is not a folder")
    if not table.places:
        raise DataError(f"{path.name} has no rows")
    table = replace(table, columns=_mapped(table.columns, columns or {}))
    _check_columns(path.name, table.columns)
    values, faults = _checked(table, base)
    if faults:
        raise DataError(_told(path.name, faults, table))
    unlabelled = sum(label is None for label in values.get("label", ()))
    notes = (*table.notes, *([f"{unlabelled} of {len(table.places)} rows have no label."] if unlabelled else []))
    samples = ManifestSamples(values, np.arange(len(table.places)), base, notes)
    groups, sentence = groups_of(samples)
    return replace(samples, groups=groups, notes=(*notes, sentence))


# ---- tables ---------------------------------------------------------------------------------------------------


def _file(path: Path) -> _Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix not in (".csv", ".tsv"):
        raise DataError(f"{path.name} is no manifest: give a .csv, .tsv or .parquet file, or a folder with one sub-folder a class")
    try:
        return _csv(path, suffix)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}") from None


def _csv(path: Path, suffix: str) -> _Table:
    """Cells stay text: no guess turns the patient 007 into 7, or the label NA into nothing."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        semicolons = suffix == ".csv" and ";" in first and "," not in first
        reader = csv.reader(file, delimiter="\t" if suffix == ".tsv" else ";" if semicolons else ",", strict=True)
        header = [_text(cell) or "" for cell in next(reader, [])]
        _check_header(path.name, header)
        rows, lines, faults, start = [], [], [], reader.line_num + 1
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(start)
                if len(row) != len(header):
                    faults.append((len(rows) - 1, f"{len(row)} cells, but the header has {len(header)}"))
            start = reader.line_num + 1
    places = [f"line {line}" for line in lines]
    if faults:
        raise DataError(_told(path.name, faults, _Table({}, places)))
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    named = {name: [cell.strip() or None for cell in column] for name, column in zip(header, cells, strict=True) if name}
    unnamed = header.count("")
    notes = [f"{unnamed} unnamed column(s) were left out."] if unnamed else []
    notes += ["Columns are separated by semicolons."] if semicolons else []
    return _Table(named, places, tuple(notes))


def _parquet(path: Path) -> _Table:
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path.name} cannot be read as Parquet ({type(error).__name__})") from None
    header = [_text(name) or "" for name in table.column_names]
    _check_header(path.name, header)
    named = {name: [_written(value) for value in table.column(place).to_pylist()] for place, name in enumerate(header)}
    return _Table(named, [f"row {row + 1}" for row in range(table.num_rows)])


def _written(value: Any) -> str | None:
    """A typed value as a CSV would hold it: 1.0 is 1, NaN is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return (str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)).strip() or None


def _text(cell: str | None) -> str | None:
    return (unicodedata.normalize("NFC", cell).strip() or None) if cell is not None else None


def _check_header(name: str, header: Sequence[str]) -> None:
    if not any(header):
        raise DataError(f"{name} is empty: its first line must name the columns")
    double = [column for column, count in Counter(header).items() if count > 1 and column]
    if double:
        raise DataError(f"{name} has more than one column called {', '.join(map(repr, double))}: rename all but one")


# ---- a folder a class -----------------------------------------------------------------------------------------


def _folder(folder: Path) -> _Table:
    """Images below a sub-folder, at any depth, have its name as their label."""
    tables = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in (".csv", ".tsv", ".parquet"))
    if tables:
        raise DataError(f"{folder.name} holds {tables[0]}: give that file, or move it away to read the sub-folders as classes")
    parts = _subfolders(folder)
    by_split = bool(parts) and {part.name.casefold() for part in parts} <= SPLIT_FOLDERS and any(map(_subfolders, parts))
    classes = [below for part in parts for below in _subfolders(part)] if by_split else parts
    cells: dict[str, list[str | None]] = {name: [] for name in ("image", "label", *(["split"] if by_split else []))}
    taken: set[Path] = set()
    for below in classes:
        for file in _files(below):
            if is_image(file):
                taken.add(file)
                cells["image"].append(file.relative_to(folder).as_posix())
                cells["label"].append(_text(below.name))
                if by_split:
                    cells["split"].append(below.parent.name.casefold())
    ignored = [file.relative_to(folder).as_posix() for file in _files(folder) if file not in taken]
    if not cells["image"]:
        raise DataError(f"{folder.name} has no image in a sub-folder: give a manifest, or a folder with one sub-folder a class")
    more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
    notes = (f"Ignored, no images below a class: {', '.join(ignored[:3])}{more}.",) if ignored else ()
    return _Table(cells, [f"file {name}" for name in cells["image"]], notes)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def _files(folder: Path) -> Iterator[Path]:
    """All files below, hidden ones left out, in the order of their names."""
    yield from sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    for below in _subfolders(folder):
        yield from _files(below)


def is_image(file: Path) -> bool:
    return file.name.lower().endswith(images.SUFFIXES) or (not file.suffix and dicom.is_dicom(file))


# ---- names and rows -------------------------------------------------------------------------------------------


def _mapped(columns: dict[str, list[str | None]], names: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Standard names first; a column keeps its own name beside the standard one.

    Text becomes NFC; paths keep their code points, for a file name on disk may not be NFC.
    """
    for standard, yours in names.items():
        if standard not in STANDARD_COLUMNS:
            raise UnknownNameError("standard column", standard, STANDARD_COLUMNS)
        if yours not in columns:
            raise UnknownNameError("column of the manifest", yours, columns)
    source = dict(names) | {name: name for name in columns if name not in names}
    return {name: columns[yours] if name in PATH_COLUMNS else [_text(cell) for cell in columns[yours]] for name, yours in source.items()}


def _check_columns(name: str, columns: Mapping[str, Sequence[str | None]]) -> None:
    found = [column for column in IMAGE_COLUMNS if column in columns]
    if not found:
        like = next((column for column, values in columns.items() if str(values[0]).lower().endswith(images.SUFFIXES)), next(iter(columns)))
        raise DataError(f"{name} has no column 'image'; it has {', '.join(columns)}. Name yours: --columns image={like}")
    if ("fixed" in found) != ("moving" in found):
        other = "moving" if "fixed" in found else "fixed"
        raise DataError(f"{name} has a column {found[-1]!r} but none called {other!r}. Name yours: --columns {other}=YOURS")
    corners = [column for column in BOX_COLUMNS if column in columns]
    if 0 < len(corners) < len(BOX_COLUMNS):
        raise DataError(f"{name} has only {', '.join(corners)} of a box; it needs {', '.join(BOX_COLUMNS)}")


def _checked(table: _Table, root: Path) -> tuple[dict[str, list[Any]], list[tuple[int, str]]]:
    """The columns with their types, and (row, what is wrong). Values of a person are never in a message."""
    faults = [fault for name in PATH_COLUMNS if name in table.columns for fault in _path_faults(name, table.columns[name], root)]
    values: dict[str, list[Any]] = dict(table.columns)
    for name in (*BOX_COLUMNS, "age"):
        if name in values:
            values[name] = [_number(cell) for cell in table.columns[name]]
            faults += [
                (row, f"{name} is not a number") for row, number in enumerate(values[name]) if number is not None and math.isnan(number)
            ]
    if all(name in values for name in BOX_COLUMNS):
        for row, (xmin, ymin, xmax, ymax) in enumerate(zip(*(values[name] for name in BOX_COLUMNS), strict=True)):
            given = [corner for corner in (xmin, ymin, xmax, ymax) if corner is not None]
            if 0 < len(given) < len(BOX_COLUMNS):
                faults.append((row, "a box with an empty corner"))
            elif given and (xmax <= xmin or ymax <= ymin):
                faults.append((row, "a box with xmax <= xmin or ymax <= ymin"))
    return values, faults


def _number(cell: str | None) -> float | None:
    """NaN for what is no finite number."""
    try:
        number = None if cell is None else float(cell)
    except ValueError:
        return math.nan
    return number if number is None or math.isfinite(number) else math.nan


def _path_faults(name: str, cells: Sequence[str | None], root: Path) -> Iterator[tuple[int, str]]:
    """Empty, climbing and missing paths. Each folder is listed once, so many rows cost little."""
    listed: dict[str, set[str]] = {}
    for row, cell in enumerate(cells):
        if cell is None:
            if name in IMAGE_COLUMNS:
                yield row, f"{name} is empty"
            continue
        plain = os.path.normpath(cell)
        if not Path(cell).is_absolute() and plain.startswith(os.pardir) and Path(plain).parts[0] == os.pardir:
            yield row, f"{name} {cell} climbs out of the root"
            continue
        folder, file = os.path.split(os.path.normpath(root / plain))
        if folder not in listed:
            listed[folder] = _listing(folder)
        if file not in listed[folder]:
            yield row, f"{name} {cell} is not there"


def _listing(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _told(name: str, faults: Sequence[tuple[int, str]], table: _Table) -> str:
    """One line for all bad rows."""
    ordered = sorted(faults)
    shown = "; ".join(f"{table.places[row]}: {what}" for row, what in ordered[:SHOWN])
    more = f"; and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    root = " Paths start from the manifest's folder, or from --root." if any("is not there" in what for _, what in ordered) else ""
    return f"{name} has {len({row for row, _ in faults})} bad row(s): {shown}{more}.{root}"
