"""Manifests: the table of a data set in any of its forms, checked. All bad rows are told in one error, which is one line.

| given | becomes |
|---|---|
| CSV, TSV, Parquet, JSON, JSONL | a row a line, row, or object; columns by name |
| COCO JSON | a row a box or caption (`readers.coco`) |
| MONAI/Decathlon `dataset.json` | a row an image, or an image and structure (`readers.decathlon`) |
| a folder with `dataset.json` | nnU-Net: a row a case and structure (`readers.nnunet`), else as above |
| a folder with `metadata.csv`, `.jsonl`, `.parquet` | Hugging Face imagefolder (`readers.image_folder`) |
| a folder with `sub-01`, … | BIDS: a row an anatomical image (`readers.bids`) |
| `.tar`, `s-{000..010}.tar`, `train-*.parquet`, a folder of these | a row a pair: WebDataset, Parquet with pictures (`readers.shards`) |
| any other folder | a class a sub-folder; DICOM files are joined to series, a row each (`readers.class_folder`) |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medtame.data import images
from medtame.data.packed import PackedPicture
from medtame.data.readers import bids, class_folder, decathlon, delimited, image_folder, json_lines, nnunet, parquet, shards, tars, walk
from medtame.data.readers.paths import Finder
from medtame.data.readers.table import Fault, Table, each, listed, nfc, quoted, told
from medtame.data.readers.walk import TABLES, is_image
from medtame.data.samples import ManifestSamples
from medtame.data.series import LabelPicture, SeriesPicture, headers, scan
from medtame.data.splits import groups_of
from medtame.errors import DataError, UnknownNameError

__all__ = ["STANDARD_COLUMNS", "TABLES", "images_below", "is_image", "is_manifest", "read"]

IMAGE_COLUMNS = ("image", "fixed", "moving")
PATH_COLUMNS = (*IMAGE_COLUMNS, "mask", "instances", "fov", "moving_labels", "fixed_labels", "moving_landmarks", "fixed_landmarks")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
REPORT_COLUMNS = ("text", "caption", "findings", "impression")
TEXT_COLUMNS = ("label", "labels", *REPORT_COLUMNS, "question", "answer", "answer_type", "prompt", "query")
PERSON_COLUMNS = ("patient", "case", "study", "group", "lesion", "site", "sex", "age", "split")
STANDARD_COLUMNS = (*PATH_COLUMNS, *BOX_COLUMNS, *TEXT_COLUMNS, *PERSON_COLUMNS)
NAMED_COLUMNS = ("label", "labels", "prompt")  # whose values are names that stand for one thing each
_PICTURES = tars.Columns(IMAGE_COLUMNS, PATH_COLUMNS)
_FORMS = "a .csv, .tsv, .parquet, .json, .jsonl or .tar file, or a folder (a class a sub-folder, DICOM series, nnU-Net, BIDS, shards)"


def read(
    path: Path | str, *, columns: Mapping[str, str] | None = None, root: Path | str | None = None, strict: bool = False
) -> ManifestSamples:
    """The samples of a manifest, checked: every path is there, boxes and ages are numbers.

    Args:
        path: a table or a folder, as the table at the top of this module says.
        columns: standard name = yours. Yours wins over a column that already has the standard name.
        root: what relative paths start from, and may not leave; by default the manifest's folder. For a folder: one that holds it.
        strict: of shards: refuse what would be left out with a note.

    Text is stripped and NFC; an empty cell is None. Box corners (pixels) and age become floats. A DICOM series becomes a
    `SeriesPicture`, a structure of a label map a `LabelPicture`. Rows whose box has no area are left out, and a note names them.
    Raises DataError, which lists all bad rows with their lines, and UnknownNameError for a column that is not there.
    """
    path = Path(path)
    path = path.absolute()  # files of a series are kept by path, and are looked up from elsewhere
    packed = shards.given(path)
    if packed is not None:
        start = shards.base_of(packed)
        table, base = shards.read(packed, start, _PICTURES, strict=strict), start if root is None else Path(root).absolute()
    elif path.is_dir():
        try:
            found = _folder(path)
        except OSError as error:
            raise DataError(f"{path.name} cannot be listed ({error.strerror}): check its permissions and links") from None
        table, base = _below(found, path, root)
    elif path.is_file():
        table, base = _file(path), path.parent if root is None else Path(root).absolute()
    else:
        raise DataError(f"{path} is {'neither a file nor a folder' if path.exists() else 'not there'}: give {_FORMS}")
    if not base.is_dir():
        raise DataError(f"the root {base} is not a folder: give the folder that the paths start from")
    if not table.places:
        raise DataError(f"{path.name} has no rows: write at least one below the header")
    table = replace(table, columns=_mapped(table.columns, columns or {}))
    _check_columns(path.name, table.columns)
    table = _without_strays(table)
    values, faults, found_notes = _checked(table, base)
    if faults:
        raise DataError(told(path.name, faults, table.places))
    values, places, box_notes = _with_area(values, table.places)
    if not places:
        raise DataError(f"{path.name} has no rows but boxes without area: write xmin, ymin, xmax, ymax in pixels")
    notes = (*table.notes, *found_notes, *box_notes, *_remarks(values, places))
    samples = ManifestSamples(values, np.arange(len(places)), base, notes)
    groups, sentence = groups_of(samples)
    return replace(samples, groups=groups, notes=(*notes, sentence))


def is_manifest(path: Path) -> bool:
    """Whether a file is a table by its name, or a name or a folder stands for shards."""
    return path.suffix.lower() in TABLES or shards.given(path) is not None


def images_below(folder: Path) -> list[str | SeriesPicture]:
    """Every image below a folder, without labels: absolute paths, and DICOM series of several files joined to one picture."""
    folder = folder.absolute()
    found = [file for file in walk.files(folder) if is_image(file)]
    joined = class_folder.series_names(scan(headers(file for file in found if walk.is_dicom(file))).series, folder)
    series = [SeriesPicture(paths, name) if len(paths) > 1 else str(paths[0]) for name, paths in joined.items()]
    return [*(str(file) for file in found if not walk.is_dicom(file)), *series]


# ---- which reader ---------------------------------------------------------------------------------------------


def _file(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return delimited.read(path)
    if suffix == ".parquet":
        return parquet.read(path)
    if suffix not in TABLES:
        raise DataError(f"{path.name} is no manifest: give {_FORMS}")
    if path.name == "dataset.json" and nnunet.fits(content := json_lines.loaded(path)):
        return nnunet.read(path.parent, content)
    return json_lines.read(path)


def _folder(folder: Path) -> Table:
    described = folder / "dataset.json"
    if described.is_file():
        content = json_lines.loaded(described)
        if nnunet.fits(content):
            return nnunet.read(folder, content)
        if isinstance(content, dict) and decathlon.fits(content):
            return decathlon.read(described.name, content)
        raise DataError(
            f"{folder.name}/dataset.json has neither lists (training, validation, test) nor nnU-Net's keys (channel_names, labels, "
            "file_ending): add them, or move the file away to read the sub-folders as classes"
        )
    if image_folder.metadata(folder):
        return image_folder.read(folder)
    return bids.read(folder) if bids.fits(folder) else class_folder.read(folder)


def _below(table: Table, folder: Path, root: Path | str | None) -> tuple[Table, Path]:
    """The table of a folder with its paths from the root: the folder itself, or one above it."""
    if root is None or Path(root).absolute() == folder.absolute() or not Path(root).is_dir():
        return table, folder if root is None else Path(root)
    if not folder.absolute().is_relative_to(Path(root).absolute()):
        raise DataError(f"the root {root} does not hold the folder {folder}: leave --root out, or give a folder above")
    way = folder.absolute().relative_to(Path(root).absolute())
    moved = {
        name: [cell if cell is None else (way / cell).as_posix() for cell in cells] if name in PATH_COLUMNS else cells
        for name, cells in table.columns.items()
    }
    return replace(table, columns=moved, series={(way / name).as_posix(): paths for name, paths in table.series.items()}), Path(root)


# ---- names and rows -------------------------------------------------------------------------------------------


def _mapped(columns: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> dict[str, list[Any]]:
    """Standard names first; a column keeps its own name beside the standard one.

    Text becomes NFC; paths keep their code points, for a file name on disk may not be NFC.
    """
    for standard, yours in names.items():
        if standard not in STANDARD_COLUMNS:
            raise UnknownNameError("standard column", standard, STANDARD_COLUMNS)
        if yours not in columns:
            raise UnknownNameError("column of the manifest", yours, columns)
        twice = [other for other, column in names.items() if column == yours]
        if len(twice) > 1:
            raise DataError(f"the column {yours!r} is mapped to {' and to '.join(twice)}: give each standard name a column of its own")
    source = dict(names) | {name: name for name in columns if name not in names}
    return {name: list(columns[yours]) if name in PATH_COLUMNS else each(_cell, columns[yours]) for name, yours in source.items()}


def _cell(cell: Any) -> Any:
    return nfc(cell) if isinstance(cell, str) else cell


def _without_strays(table: Table) -> Table:
    """Pictures inside a shard are kept in the columns that stand for pictures, once."""
    strays = [
        name for name, cells in table.columns.items() if name not in PATH_COLUMNS and any(isinstance(cell, PackedPicture) for cell in cells)
    ]
    if not strays:
        return table
    shown = {cell for name in PATH_COLUMNS for cell in table.columns.get(name, ())}
    other = [name for name in strays if not shown.issuperset(table.columns[name])]
    notes = (f"Left out, for no column of pictures is called so: {', '.join(map(quoted, other))}.",) if other else ()
    kept = {name: cells for name, cells in table.columns.items() if name not in strays}
    return replace(table, columns=kept, notes=(*table.notes, *notes))


def _check_columns(name: str, columns: Mapping[str, Sequence[Any]]) -> None:
    found = [column for column in IMAGE_COLUMNS if column in columns]
    if not found:
        like = next((column for column, values in columns.items() if _like_an_image(values[0])), None)
        if like is None and any(column in columns for column in REPORT_COLUMNS):
            return
        like = like or next(iter(columns), "YOURS")
        raise DataError(f"{name} has no column 'image'; it has {', '.join(columns) or 'none'}. Name yours: --columns image={like}")
    if ("fixed" in found) != ("moving" in found):
        other = "moving" if "fixed" in found else "fixed"
        raise DataError(f"{name} has a column {found[-1]!r} but none called {other!r}. Name yours: --columns {other}=YOURS")
    corners = [column for column in BOX_COLUMNS if column in columns]
    if 0 < len(corners) < len(BOX_COLUMNS):
        absent = next(column for column in BOX_COLUMNS if column not in corners)
        raise DataError(
            f"{name} has only {', '.join(corners)} of a box; it needs {', '.join(BOX_COLUMNS)}. Name yours: --columns {absent}=YOURS"
        )


def _like_an_image(cell: object) -> bool:
    return isinstance(cell, PackedPicture) or str(cell).lower().endswith(images.SUFFIXES)


def _checked(table: Table, root: Path) -> tuple[dict[str, list[Any]], list[Fault], list[str]]:
    """The columns with their types, what is wrong, and notes. Values of a person are never in a message."""
    values: dict[str, list[Any]] = {name: list(cells) for name, cells in table.columns.items()}
    faults: list[Fault] = []
    notes: list[str] = []
    finder, respelled = Finder(root), 0
    for name in PATH_COLUMNS:
        if name in values:
            checked = finder.column(name, values[name], image=name in IMAGE_COLUMNS, series=table.series)
            values[name] = list(checked.cells)
            faults, notes, respelled = faults + checked.faults, notes + checked.notes, respelled + checked.respelled
    if respelled:
        notes.append(f"{respelled} file name(s) differ from the manifest only in their Unicode form and were found.")
    if table.mask_values is not None and not faults:
        pairs = zip(values["mask"], table.mask_values, strict=True)
        values["mask"] = [cell if cell is None or chosen is None else LabelPicture(root / cell, cell, chosen) for cell, chosen in pairs]
    for name in (*BOX_COLUMNS, "age"):
        if name in values:
            cells, values[name] = values[name], each(_number, values[name])
            for row, number in enumerate(values[name]):
                if number is not None and math.isnan(number):
                    faults.append(_no_number(row, name, cells[row]))
    if all(name in values for name in BOX_COLUMNS):
        faults += _box_faults(*(values[name] for name in BOX_COLUMNS))
    return values, faults, notes


def _number(cell: str | None) -> float | None:
    """NaN for what is no finite number."""
    try:
        number = None if cell is None else float(cell)
    except ValueError:
        return math.nan
    return number if number is None or math.isfinite(number) else math.nan


def _no_number(row: int, name: str, cell: str | None) -> Fault:
    if name in PERSON_COLUMNS:
        return Fault(row, f"{name} is not a number", f"Write {name} in years as a number, or leave it empty.")
    return Fault(row, f"{name} {quoted(cell)!r} is not a number", "Write corners in pixels, with a point before decimals.")


def _box_faults(*corners: Sequence[float | None]) -> Iterable[Fault]:
    for row, (xmin, ymin, xmax, ymax) in enumerate(zip(*corners, strict=True)):
        if xmin is None or ymin is None or xmax is None or ymax is None:
            box = (xmin, ymin, xmax, ymax)
            if box != (None,) * 4:
                yield Fault(row, f"a box with an empty corner ({BOX_COLUMNS[box.index(None)]})", "Fill all four corners, or none.")
        elif xmax < xmin or ymax < ymin:
            told_box = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
            yield Fault(row, f"a box with xmax < xmin or ymax < ymin ({told_box})", "Write the smaller corner first.")


def _with_area(values: dict[str, list[Any]], places: Sequence[str]) -> tuple[dict[str, list[Any]], Sequence[str], list[str]]:
    """Rows whose box is a point or a line are left out, and a note names them."""
    if not all(name in values for name in BOX_COLUMNS):
        return values, places, []
    boxes = zip(*(values[name] for name in BOX_COLUMNS), strict=True)
    empty = {row for row, (xmin, ymin, xmax, ymax) in enumerate(boxes) if xmin is not None and (xmin == xmax or ymin == ymax)}
    if not empty:
        return values, places, []
    kept = [row for row in range(len(places)) if row not in empty]
    note = f"{len(empty)} boxes without area were left out: {listed([places[row] for row in sorted(empty)])}."
    return {name: [cells[row] for row in kept] for name, cells in values.items()}, [places[row] for row in kept], [note]


# ---- notes ----------------------------------------------------------------------------------------------------


def _remarks(values: Mapping[str, Sequence[Any]], places: Sequence[str]) -> list[str]:
    """What may be a slip and may be meant."""
    notes = []
    unlabelled = sum(label is None for label in values.get("label", ()))
    if unlabelled:
        notes.append(f"{unlabelled} of {len(places)} rows have no label.")
    if not any(name in values for name in IMAGE_COLUMNS):
        notes.append("There is no image column: the rows are text only.")
    for name in NAMED_COLUMNS:
        notes += _spellings(name, values.get(name, ()))
    return notes + _both_sides(values, places)


def _spellings(name: str, cells: Sequence[str | None]) -> list[str]:
    """Names that differ only by case or spaces."""
    counts: dict[str, int] = {}
    for cell in cells:
        for part in (cell or "").split("|") if name == "labels" else [cell or ""]:
            counts[part] = counts.get(part, 0) + 1
    alike: dict[str, list[str]] = {}
    for word in counts:
        alike.setdefault("".join(word.split()).casefold(), []).append(word)
    return [
        f"{name}: {' and '.join(f'{quoted(word)!r} ({counts[word]} rows)' for word in words)} differ only by case or spaces: "
        "if they are one, write them alike."
        for words in alike.values()
        if len(words) > 1
    ]


def _both_sides(values: Mapping[str, Sequence[Any]], places: Sequence[str]) -> list[str]:
    """Images that stand in train and in test, by their lines: a name may be a patient's. The split refuses them unless told otherwise."""
    if "split" not in values or "image" not in values:
        return []
    first: dict[tuple[Any, str], int] = {}
    for row, (image, part) in enumerate(zip(values["image"], values["split"], strict=True)):
        if part is not None and part.casefold() in ("train", "test"):
            first.setdefault((image, part.casefold()), row)
    shared = [(row, first[image, "test"]) for (image, part), row in first.items() if part == "train" and (image, "test") in first]
    if not shared:
        return []
    pairs = "; ".join(f"{places[row]} and {places[other]}" for row, other in shared[:3])
    more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
    return [f"{len(shared)} image(s) stand in train and in test: {pairs}{more}. Give each image one split."]
