"""A folder with one sub-folder a class, and a folder of DICOM series.

`benign/1.png`, `malignant/a/2.png` become two rows: the image and, as its label, the name of the first folder. `train`, `val` (or
`validation`) and `test` above the classes become the column `split`. DICOM files, at any depth, are joined to series: a series is
one row. Where each first folder holds one patient, or there is only one, DICOM folders are no classes and give no label.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medtame.data.readers import walk
from medtame.data.readers.table import PARTS, Table, first_few, nfc
from medtame.data.series import Header, Scan, Series, headers, scan
from medtame.errors import DataError


def read(folder: Path) -> Table:
    """A row an image or a DICOM series. Raises DataError where there is none, or where a table lies in the way."""
    parts = walk.subfolders(folder)
    by_split = bool(parts) and all(part.name.casefold() in PARTS for part in parts)
    classes = [below for part in parts for below in walk.subfolders(part)] if by_split else parts
    tops = {folder, *parts, *classes}
    _refuse_tables(folder, tops)
    found = list(walk.files(folder))
    top_of = {file: next(parent for parent in file.parents if parent in tops) for file in found if walk.is_image(file)}
    header_of = headers(file for file in top_of if walk.is_dicom(file))
    labelled, notes = _classes(top_of, header_of, set(classes))
    loose_counts = not labelled and len(header_of) == len(top_of)
    heaps: dict[tuple[str | None, str | None], list[Path]] = {}
    for file, top in top_of.items():
        split = PARTS[file.relative_to(folder).parts[0].casefold()] if by_split and top != folder else None
        if top in labelled or (not labelled and (top != folder or loose_counts)):
            heaps.setdefault((nfc(top.name) if top in labelled else None, split), []).append(file)
    taken = {file for heap in heaps.values() for file in heap}
    ignored = [file.relative_to(folder).as_posix() for file in found if file not in taken]
    notes += [f"Ignored, no images below a class: {first_few(ignored)}."] if ignored else []
    return _table(folder, heaps, header_of, notes)


def _refuse_tables(folder: Path, places: set[Path]) -> None:
    held = [entry for place in places for entry in place.iterdir() if entry.suffix.lower() in (".csv", ".tsv", ".parquet")]
    if held:
        first = min(entry.relative_to(folder).as_posix() for entry in held)
        raise DataError(f"{folder.name} holds {first}: give that file, or move it away to read the sub-folders as classes")


def _classes(top_of: Mapping[Path, Path], header_of: Mapping[Path, Header | None], classes: set[Path]) -> tuple[set[Path], list[str]]:
    """Which folders are classes. Folders of DICOM files may be patients, whose names are no label and nobody's business."""
    used = classes & set(top_of.values())
    patients: dict[Path, set[str]] = {top: set() for top in used}
    for file, header in header_of.items():
        if top_of[file] in used and header is not None:
            patients[top_of[file]].add(header.patient)
    if not used or any(top in used and file not in header_of for file, top in top_of.items()):
        return used, []
    if len({top.name for top in used}) == 1:
        return set(), ["All DICOM files lie in one sub-folder, so there are no classes: give a manifest for labels."]
    names = [next(iter(held)) for held in patients.values() if len(held) == 1 and "" not in held]
    if len(names) == len(set(names)) == len(used):
        return set(), ["Each sub-folder holds one patient, so its name is no label: give a manifest for labels."]
    return used, []


def _table(
    folder: Path, heaps: Mapping[tuple[str | None, str | None], list[Path]], header_of: Mapping[Path, Header | None], notes: list[str]
) -> Table:
    cells: dict[str, list[str | None]] = {"image": [], "label": [], "split": []}
    joined: dict[str, tuple[Path, ...]] = {}
    total = Scan()
    for (label, split), files in heaps.items():
        one = scan({file: header_of[file] for file in files if file in header_of})
        total = total.joined(one)
        named = series_names(one.series, folder)
        joined |= {name: paths for name, paths in named.items() if len(paths) > 1}
        names = [*(file.relative_to(folder).as_posix() for file in files if file not in header_of), *named]
        cells["image"] += names
        cells["label"] += [label] * len(names)
        cells["split"] += [split] * len(names)
    notes = [*notes, *total.notes(folder)]
    if not cells["image"]:
        reason = f" ({' '.join(notes)})" if notes else ""
        raise DataError(f"{folder.name} has no image in a sub-folder{reason}: give a manifest, or a folder with one sub-folder a class")
    if joined:
        notes.append(
            f"{len(joined)} DICOM series of several files are a row each, seen by their middle slice, or by as many as --slices asks."
        )
    kept = {name: values for name, values in cells.items() if any(value is not None for value in values)}
    return Table(kept, [f"file {name}" for name in kept["image"]], tuple(notes), joined)


def series_names(series: list[Series], root: Path) -> dict[str, tuple[Path, ...]]:
    """A name for each series: its folder, where that holds no other; else its first file. UIDs are never shown."""
    folders = [{path.parent for path in one.paths} for one in series]
    shared: dict[Path, int] = {}
    for own in folders:
        for where in own:
            shared[where] = shared.get(where, 0) + 1
    names = {}
    for one, own in zip(series, folders, strict=True):
        where = next(iter(own))
        alone = len(one.paths) > 1 and len(own) == 1 and where != root and shared[where] == 1
        names[(where if alone else one.paths[0]).relative_to(root).as_posix()] = one.paths
    return names
