"""Hugging Face imagefolder: a folder with `metadata.csv`, `.jsonl` or `.parquet`, at its top or in `train`, `validation`, `test`.

`file_name` becomes image (paths start from the metadata's folder); the other columns stay. The first folder of a path, where it is
train, validation (val) or test, becomes split. Without a column `label`, the folder that an image lies in is its label, where
there are at least two. Images that no metadata lists are left out; notes say what was read.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from medtame.data.readers import delimited, json_lines, parquet, walk
from medtame.data.readers.table import PARTS, Table, first_few, nfc
from medtame.errors import DataError

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata(folder: Path) -> list[Path]:
    """The metadata files of a folder, at its top and in the folders of its parts."""
    places = [folder, *(part for part in walk.subfolders(folder) if part.name.casefold() in PARTS)]
    return [place / name for place in places for name in _NAMES if (place / name).is_file()]


def read(folder: Path) -> Table:
    """Rows in the order of the metadata. Raises DataError where one has no column `file_name`."""
    cells: dict[str, list[str | None]] = {"image": []}
    places: list[str] = []
    notes = []
    for path in metadata(folder):
        where = path.relative_to(folder)
        table = _read(path)
        names = table.columns.get("file_name")
        if names is None:
            held = ", ".join(table.columns)
            raise DataError(f"{where} has no column 'file_name'; it has {held}: rename the column with the files' names")
        before = len(places)
        places += [f"{where} {place}" for place in table.places]
        columns = {name: values for name, values in table.columns.items() if name not in ("file_name", "image")}
        columns["image"] = [None if name is None else (where.parent / name).as_posix() for name in names]
        for name in dict.fromkeys([*cells, *columns]):
            cells.setdefault(name, [None] * before).extend(columns.get(name, [None] * len(names)))
        notes += [f"Read {where}: {len(names)} rows with {', '.join(table.columns)}.", *table.notes]
    images = cells["image"]
    if "split" not in cells:
        parts = [PARTS.get(PurePosixPath(image or "").parts[0].casefold()) if image else None for image in images]
        if any(parts):
            cells["split"] = list(parts)
            notes.append("The split is the name of the first folder.")
    if not {"label", "labels"} & cells.keys():
        owners = [nfc(PurePosixPath(image).parent.name) if image else None for image in images]
        if len({owner for owner in owners if (owner or "").casefold() not in ("", *PARTS)}) > 1:
            cells["label"] = owners
            notes.append("The label is the name of the folder that an image lies in.")
    listed = {Path(image).as_posix() for image in images if image}
    ignored = [file.relative_to(folder).as_posix() for file in walk.files(folder) if walk.is_image(file)]
    ignored = [name for name in ignored if name not in listed]
    notes += [f"Ignored, not in the metadata: {first_few(ignored)}."] if ignored else []
    return Table(cells, places, tuple(notes))


def _read(path: Path) -> Table:
    if path.suffix == ".csv":
        return delimited.read(path)
    return parquet.read(path) if path.suffix == ".parquet" else json_lines.read(path)
