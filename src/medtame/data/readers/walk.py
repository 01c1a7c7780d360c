"""Files below a folder, in the order of their names, and which of them are images, DICOM files or tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medtame.data import dicom, images

TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson")


def subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")))


def files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below, hidden ones left out. A link to a folder that it lies in is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    yield from sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    for below in subfolders(folder):
        yield from files(below, above | {real})


def is_image(file: Path) -> bool:
    """By its suffix; a file without one, or with a number for one (as scanners name them), by its first bytes."""
    return file.name.lower().endswith(images.SUFFIXES) or _is_bare_dicom(file)


def is_dicom(file: Path) -> bool:
    """Whether a file is to be read as DICOM."""
    return file.suffix.lower() in dicom.SUFFIXES - {""} or _is_bare_dicom(file)


def _is_bare_dicom(file: Path) -> bool:
    bare = not file.suffix or file.suffix[1:].isdecimal()
    try:
        return bare and dicom.is_dicom(file)
    except OSError:
        return False
