"""MONAI data lists and the Medical Segmentation Decathlon: a `dataset.json` with lists `training`, `validation`, `test`.

An entry is `{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}` or a path alone. With `"labels": {"0": "background",
"1": "liver"}` each entry becomes one row a class: image, mask (the pixels of that value), prompt (its name), case, split. A label
that is no file stays a label: a class number or name; a list of them becomes `labels`. Of an image that is a list of files
(channels) the first is read. nnU-Net's older `dataset.json` is of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from medtame.data import images
from medtame.data.readers import label_map
from medtame.data.readers.table import PARTS, Fault, Table, nested, of_records, quoted, told
from medtame.errors import DataError


def fits(content: Mapping[str, Any]) -> bool:
    return not {"image", "file_name"} & content.keys() and any(key in PARTS and isinstance(value, list) for key, value in content.items())


def read(name: str, content: Mapping[str, Any]) -> Table:
    """Rows in the order of the lists. Raises DataError for entries without an image, all at once."""
    entries, places, faults = [], [], []
    for key in content:
        for number, entry in enumerate(content[key] if key in PARTS and isinstance(content[key], list) else ()):
            entry = {"image": entry} if isinstance(entry, str) else entry
            places.append(f"{key}, entry {number + 1}")
            entries.append((PARTS[key], entry))
            if not isinstance(entry, dict) or not _first(entry.get("image")):
                mend = 'Write {"image": "…", "label": "…"}, or a path alone.'
                faults.append(Fault(len(entries) - 1, f"{quoted(entry)} names no image" if isinstance(entry, str) else "no image", mend))
    if faults:
        raise DataError(told(name, faults, places))
    names, notes = label_map.structures(name, content.get("labels") or {}) if isinstance(content.get("labels"), dict) else ({}, [])
    rows = [row for (part, entry), place in zip(entries, places, strict=True) for row in _rows(entry, part, place, names)]
    several = sum(isinstance(entry["image"], list) and len(entry["image"]) > 1 for _, entry in entries)
    notes += [f"{several} entries have several image files (channels); the first of each is read."] if several else []
    masked = any(row["mask"] for row, _, _ in rows)
    if masked and names:
        notes.append(label_map.read_as(names))
    elif masked:
        notes.append('Masks have no names: add "labels": {"1": "liver"} to the file to segment by name.')
    table = of_records([{k: v for k, v in row.items() if v is not None} for row, _, _ in rows], [place for _, place, _ in rows], notes)
    return Table(table.columns, table.places, table.notes, mask_values=[numbers for _, _, numbers in rows] if masked else None)


def _rows(
    entry: Mapping[str, Any], part: str, place: str, names: Mapping[str, tuple[int, ...]]
) -> list[tuple[dict[str, Any], str, tuple[int, ...] | None]]:
    """(cells, place, mask values) of one entry: a row a structure where it has a label map."""
    label, image = entry.get("label"), str(_first(entry["image"]))
    plain = {key: value for key, value in entry.items() if key not in ("image", "label") and not nested(value)}
    row = {"image": _tidy(image), "mask": None, "case": _case(image), **plain, "split": part}
    mask = _first(label)
    if not (isinstance(mask, str) and mask.lower().endswith(images.SUFFIXES)):
        return [({**row, ("labels" if isinstance(label, list) else "label"): label}, place, None)]
    row["mask"] = _tidy(mask)
    return [({**row, "prompt": structure}, place, numbers) for structure, numbers in names.items()] or [(row, place, None)]


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _tidy(path: str) -> str:
    return path.removeprefix("./")


def _case(image: str) -> str:
    """The file's name without its endings; nnU-Net's channel number is no part of it."""
    return PurePosixPath(image).name.split(".")[0]
