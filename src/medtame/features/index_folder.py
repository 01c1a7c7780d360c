"""An index in a folder.

Parts are written once: vectors as safetensors that are read where they lie, columns as Parquet. `index.json` names the parts with their
sizes and SHA-256 and is replaced last, in one step: a killed writer leaves the old index or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from safetensors.numpy import save_file

from medtame.errors import DataError
from medtame.features.index import Index, Measured, Part
from medtame.features.search_lists import COMPARED, Depth, Frame, Lists
from medtame.types import Array

FORMAT = "medtame-index-2"
LISTING = "index.json"
TYPES = {"F16": "<f2", "U64": "<u8", "U8": "u1", "F32": "<f4", "I32": "<i4", "I64": "<i8"}
MAX_HEADER_BYTES = 2**20
LEFT_OVER = ("part-*", "frame-*", ".part-*", ".frame-*")


def is_index(folder: Path) -> bool:
    return (folder / LISTING).is_file()


def write(index: Index, folder: Path) -> Index:
    """Write what is new and then the listing; files that it does not need are deleted after that. The index as it lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part if part.file else written(part, folder) for part in index.parts]
    listed = [
        {"name": part.file, "images": len(part.rows), "files": [sealed(path) for path in files_of(part.file, folder)]} for part in parts
    ]
    frame = None if index.frame is None else framed(index.frame, folder)
    listing = {
        "format": FORMAT,
        "encoder": dict(index.encoder),
        "images": len(index),
        "parts": listed,
        "frame": None if frame is None else sealed(frame),
        "measured": None
        if index.measured is None
        else asdict(index.measured.depth) | {f"recall_at_{COMPARED}": list(index.measured.recalls)},
        "use": "research use only: not for clinical decisions",
    }
    text = json.dumps(listing, indent=1)
    whole(folder / LISTING, lambda path: path.write_text(text, encoding="utf-8"))
    needed = {path.name for part in parts for path in files_of(part.file, folder)} | {frame.name if frame is not None else ""}
    for path in (found for pattern in LEFT_OVER for found in folder.glob(pattern)):
        if path.name not in needed:
            path.unlink(missing_ok=True)
    return replace(index, parts=tuple(parts))


def written(part: Part, folder: Path) -> Part:
    """Under a name that its images and their order give."""
    name = f"part-{hashlib.sha256(part.digests.tobytes() + bytes(part.lists is not None)).hexdigest()[:24]}"
    tensors = {"rows": part.rows, "digests": part.digests}
    if part.lists is not None:
        tensors |= {"listed": part.lists.rows, "words": part.lists.words, "edges": part.lists.edges}
    tensors = {key: np.ascontiguousarray(values) for key, values in tensors.items()}
    table = pa.table({column: pa.array(list(cells), pa.string()) for column, cells in part.columns.items()})
    vectors, cells = files_of(name, folder)
    whole(vectors, lambda path: save_file(tensors, path))
    whole(cells, lambda path: parquet.write_table(table, path))
    return replace(part, file=name)


def framed(frame: Frame, folder: Path) -> Path:
    tensors = {name: np.ascontiguousarray(values) for name, values in vars(frame).items()}
    path = folder / f"frame-{hashlib.sha256(b''.join(values.tobytes() for values in tensors.values())).hexdigest()[:24]}.safetensors"
    if not path.is_file():
        whole(path, lambda place: save_file(tensors, place))
    return path


def files_of(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.parquet"


def sealed(path: Path) -> dict[str, Any]:
    """What the listing says of a file."""
    with path.open("rb") as file:
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def whole(path: Path, write_to: Callable[[Path], object]) -> None:
    """A file appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write_to(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- reading --------------------------------------------------------------------------------------------------


def read(folder: Path, encoder: Mapping[str, str] | None = None) -> Index:
    """The index, every file checked by size and SHA-256. Raises DataError for another encoder's, and for one that is damaged."""
    listing = listed(folder)
    made_with = {key: str(value) for key, value in listing["encoder"].items()}
    now = made_with if encoder is None else encoder
    other = next((key for key in ("image_identity", "text_identity") if made_with.get(key) != now[key]), None)
    if other is not None:
        raise DataError(
            f"the index {folder} was built by {made_with.get('spec')}, not by {now['spec']} ({other} was {made_with.get(other)!r}, "
            f"is {now[other]!r}): search with that one, or build another index"
        )
    try:
        for file in [*(one for part in listing["parts"] for one in part["files"]), *filter(None, [listing["frame"]])]:
            if sealed(folder / Path(file["file"]).name) != file:
                raise DataError(
                    f"the index {folder} is damaged: {file['file']} is not what was written; delete the folder and build it anew"
                )
        parts = tuple(opened(part["name"], folder) for part in listing["parts"])
        frame = None if listing["frame"] is None else Frame(**tensors_of(folder / Path(listing["frame"]["file"]).name))
        told = listing["measured"]
        found = None if told is None else Measured(Depth(told["by_bits"], told["by_rows"]), tuple(told[f"recall_at_{COMPARED}"]))
    except FileNotFoundError as error:
        raise DataError(
            f"the index {folder} is damaged: {Path(error.filename).name} is not there; delete the folder and build it anew"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"the index {folder} is damaged ({str(error).splitlines()[0]}): delete the folder and build it anew") from None
    return Index(made_with, parts, frame, found)


def listed(folder: Path) -> dict[str, Any]:
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is no index: it has no {LISTING}; build one with medtame search … --index {folder}") from None
    except ValueError:
        raise DataError(f"the index {folder} is damaged: {LISTING} is no JSON; delete the folder and build it anew") from None
    if not isinstance(listing, dict) or listing.get("format") != FORMAT:
        said = listing.get("format") if isinstance(listing, dict) else None
        raise DataError(f"the index {folder} has format {said!r}, this medtame reads {FORMAT}: delete the folder and build it anew")
    missing = [key for key in ("encoder", "parts", "frame", "measured") if key not in listing]
    if missing or not isinstance(listing["encoder"], dict) or not isinstance(listing["parts"], list):
        raise DataError(f"the index {folder} is damaged: {LISTING} lacks {missing or 'its parts'}; delete the folder and build it anew")
    return listing


def opened(name: str, folder: Path) -> Part:
    vectors, cells = files_of(Path(name).name, folder)
    found = tensors_of(vectors)
    columns: Mapping[str, list[str | None]] = parquet.read_table(cells).to_pydict()
    rows, lists = found["rows"], Lists(found["listed"], found["words"], found["edges"]) if "listed" in found else None
    lengths = {
        len(rows),
        len(found["digests"]),
        *map(len, columns.values()),
        *(() if lists is None else (len(lists.rows), len(lists.words), int(lists.edges[-1]))),
    }
    if len(lengths) > 1 or rows.ndim != 2 or rows.dtype != np.float16:
        raise ValueError(f"{name} has parts of unequal length")
    return Part(rows, found["digests"], columns, lists, name)


def tensors_of(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, read where they lie; what is written into them stays in memory. Raises ValueError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(size))
    found = {}
    for name, told in header.items():
        if name != "__metadata__":
            shape, kind, start = tuple(told["shape"]), np.dtype(TYPES[told["dtype"]]), 8 + size + told["data_offsets"][0]
            empty = 0 in shape
            found[name] = np.zeros(shape, kind) if empty else np.memmap(path, mode="c", dtype=kind, shape=shape, offset=start)
    return found
