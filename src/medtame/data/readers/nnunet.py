"""nnU-Net: a folder with `dataset.json` (channel_names, labels, file_ending), `imagesTr/CASE_0000.ext`, `labelsTr/CASE.ext`.

Each case becomes one row a structure of `labels`: image (its first channel), mask (the pixels of that structure), prompt (its
name), case, and split where `imagesTs` is there. Other channels are checked to be there and left out; a note names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtame.data.readers import label_map, walk
from medtame.data.readers.table import Fault, Table, first_few, quoted, told
from medtame.errors import DataError


def fits(content: Any) -> bool:
    return isinstance(content, dict) and "file_ending" in content and "labels" in content


def read(folder: Path, content: Mapping[str, Any]) -> Table:
    """Rows by case, then structure. Raises DataError for cases whose label or channel is missing, all at once."""
    ending, channels = str(content["file_ending"]), _channels(content)
    names, notes = label_map.structures("dataset.json", content["labels"])
    if not names:
        raise DataError('dataset.json names no structure in \'labels\': write it as {"background": 0, "liver": 1}')
    cells: dict[str, list[str | None]] = {name: [] for name in ("image", "mask", "prompt", "case", "split")}
    values: list[tuple[int, ...] | None] = []
    faults, cases, places = [], [], []
    for part, pictures, masks in (("train", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs")):
        for case in _cases(folder / pictures, ending):
            cases.append(f"case {case}")
            mask = f"{masks}/{case}{ending}"
            needed = [f"{pictures}/{case}_{number:04d}{ending}" for number in channels]
            needed += [mask] if (folder / masks).is_dir() or part == "train" else []
            faults += [
                Fault(len(cases) - 1, f"{quoted(file)} is not there", "Add the file, or take the case out of the folder.")
                for file in needed
                if not (folder / file).is_file()
            ]
            masked = mask in needed
            for structure, numbers in names.items() if masked else [(None, None)]:
                row = (needed[0], mask if masked else None, structure, case, part)
                for name, cell in zip(cells, row, strict=True):
                    cells[name].append(cell)
                values.append(numbers)
                places.append(f"case {case}")
    if faults:
        raise DataError(told(folder.name, faults, cases))
    if not cases:
        raise DataError(
            f"{folder.name} has no imagesTr/CASE_0000{quoted(ending)}, as its dataset.json says: add the images, or correct file_ending"
        )
    if "test" not in cells["split"]:
        del cells["split"]
    notes.append(label_map.read_as(names))
    if len(channels) > 1:
        notes.append(f"Of {len(channels)} channels ({first_few(list(channels.values()))}) the first is read.")
    return Table(cells, places, tuple(notes), mask_values=values)


def _channels(content: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name, from {"0": "CT"}. Raises DataError for anything else."""
    channels = content.get("channel_names") or content.get("modality") or {"0": "image"}
    if not isinstance(channels, dict) or not all(str(number).isdecimal() for number in channels):
        raise DataError(f'dataset.json: channel_names {quoted(channels)} does not number channels: write it as {{"0": "CT"}}')
    return {int(number): str(name) for number, name in channels.items()}


def _cases(folder: Path, ending: str) -> list[str]:
    """Names before _0000, in order."""
    files = [file.name for file in walk.files(folder)] if folder.is_dir() else []
    stems = {file.removesuffix(ending) for file in files if file.endswith(ending)}
    return sorted({stem[:-5] for stem in stems if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal()})
