"""The feature store on disk: rows of 16-bit numbers by encoder identity, kind, and the SHA-256 of what they were made from.

A folder an (identity, kind) holds shards: safetensors files that are written once, beside their place, and renamed, so that any
number of processes may write at once. Every row carries a checksum over its shape, key and numbers; a shard that is cut,
altered or no shard at all is deleted and its rows are simply missing again. Nothing here names a patient: paths are hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from platformdirs import user_cache_dir
from safetensors.numpy import save

if TYPE_CHECKING:  # a process that only reads or writes rows needs no torch
    from medtame.types import Array

FORMAT = "medtame-features-1"
MAX_HEADER_BYTES = 2**20
LEFT_BEHIND_SECONDS = 24 * 3600  # unfinished files older than this come from killed runs
_TYPES: dict[str, np.dtype[Any]] = {"rows": np.dtype("<f2"), "keys": np.dtype("u1"), "sums": np.dtype("<u4")}
_NAMES = {"rows": "F16", "keys": "U8", "sums": "U32"}

Result = TypeVar("Result")


class BadShardError(Exception):
    """Inside this file only: a shard that cannot be trusted."""


@dataclass
class _Index:
    """Where the rows of one (identity, kind) lie: the shards seen, and for each key a shard and a row number."""

    shards: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def forget(self) -> None:
        """A shard went or was written anew, which is rare: look at all of them again."""
        self.shards.clear()
        self.places.clear()


class Store:
    """Rows on disk under `folder`; without one, the user's cache or MEDTAME_CACHE. A copy of it starts with nothing indexed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self._indexes: dict[Path, _Index] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def read(self, identity: str, kind: str, keys: Sequence[str]) -> dict[str, Array]:
        """The rows that are there and whole, float16. Keys are SHA-256 in hexadecimal; absent ones are left out."""
        place = self._place(identity, kind)
        index = self._indexes.setdefault(place, _Index())
        found: dict[str, Array] = {}
        _refresh(index, place, identity, kind)
        while wanted := [key for key in dict.fromkeys(keys) if key not in found and key in index.places]:
            shard = index.places[wanted[0]][0]
            here = [(key, index.places[key][1]) for key in wanted if index.places[key][0] == shard]
            try:
                found.update(_rows(place / shard, here))
                continue
            except FileNotFoundError:
                pass  # another process found it broken
            except BadShardError:
                _delete(index, place, shard)
            except OSError:
                index.refused.add(shard)
            index.forget()
            _refresh(index, place, identity, kind)
        return found

    def write(self, identity: str, kind: str, rows: Mapping[str, Array]) -> bool:
        """Keep rows of one shape, as float16. False where the disk is full or may not be written: nothing is kept then."""
        if not rows:
            return True
        place, keys = self._place(identity, kind), sorted(rows)
        numbers = np.stack([np.asarray(rows[key]) for key in keys]).astype(_TYPES["rows"])
        tensors = {
            "rows": numbers,
            "keys": np.stack([np.frombuffer(bytes.fromhex(key), dtype=np.uint8) for key in keys]),
            "sums": np.array([_checksum(key, row) for key, row in zip(keys, numbers, strict=True)], dtype=_TYPES["sums"]),
        }
        content = save(tensors, metadata={"format": FORMAT, "identity": identity, "kind": kind})
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32] + ".safetensors"
        try:
            place.mkdir(parents=True, exist_ok=True)
            _write_whole(place / name, content)
        except OSError:
            return False
        index = self._indexes.setdefault(place, _Index())
        index.refused.discard(name)
        if name in index.shards:
            index.forget()
        return True

    def known_digests(self, names: Sequence[str]) -> dict[str, str]:
        """Digests kept earlier, by name (both SHA-256 in hexadecimal); unknown names are left out."""

        def look_up(memo: sqlite3.Connection) -> dict[str, str]:
            known: dict[str, str] = {}
            for start in range(0, len(names), 500):
                part = [bytes.fromhex(name) for name in names[start : start + 500]]
                rows = memo.execute(f"SELECT name, digest FROM digests WHERE name IN ({','.join('?' * len(part))})", part)
                known.update({name.hex(): digest.hex() for name, digest in rows})
            return known

        return self._in_memo(look_up) or {}

    def keep_digests(self, digests: Mapping[str, str]) -> bool:
        """Remember digests by name. False where they could not be kept."""
        rows = [(bytes.fromhex(name), bytes.fromhex(digest)) for name, digest in digests.items()]

        def insert(memo: sqlite3.Connection) -> bool:
            memo.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", rows)
            memo.commit()
            return True

        return self._in_memo(insert) or False

    def _in_memo(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Work on the table of digests. None where it is busy or may not be used, or was damaged: then it is deleted."""
        path = self.folder / "digests.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=10)) as memo:
                memo.execute("CREATE TABLE IF NOT EXISTS digests (name BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID")
                return work(memo)
        except (sqlite3.OperationalError, OSError):
            return None
        except sqlite3.DatabaseError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def _place(self, identity: str, kind: str) -> Path:
        return self.folder / hashlib.sha256(f"{identity}\n{kind}".encode()).hexdigest()[:32]


def default_folder() -> Path:
    """MEDTAME_CACHE, or the user's cache folder of this system."""
    return Path(os.environ.get("MEDTAME_CACHE") or user_cache_dir("medtame", appauthor=False))


def _checksum(key: str, row: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(row).tobytes(), zlib.crc32(f"{row.shape}{key}".encode()))


def _refresh(index: _Index, place: Path, identity: str, kind: str) -> None:
    """Take in the shards that have appeared, forget those that have gone, delete those that are broken."""
    try:
        with os.scandir(place) as entries:
            present = {entry.name for entry in entries if entry.name.endswith(".safetensors")} - index.refused
    except OSError:
        present = set()
    if index.shards - present:
        index.forget()
    for shard in sorted(present - index.shards):
        try:
            header = _header(place / shard)
            if header.metadata.get("identity") != identity or header.metadata.get("kind") != kind:
                raise BadShardError
            keys = _mapped(place / shard, header, "keys")
        except FileNotFoundError:
            continue
        except BadShardError:
            _delete(index, place, shard)
            continue
        except OSError:
            index.refused.add(shard)
            continue
        index.shards.add(shard)
        index.places.update({key.tobytes().hex(): (shard, row) for row, key in enumerate(keys)})


def _delete(index: _Index, place: Path, shard: str) -> None:
    """Delete a broken shard; where that is not allowed, never look at it again."""
    try:
        (place / shard).unlink(missing_ok=True)
    except OSError:
        index.refused.add(shard)


def _rows(path: Path, wanted: Sequence[tuple[str, int]]) -> dict[str, Array]:
    """Some rows of a shard, each checked. Raises BadShardError."""
    header = _header(path)
    rows, sums = _mapped(path, header, "rows"), _mapped(path, header, "sums")
    found: dict[str, Array] = {}
    for key, number in wanted:
        if number >= len(rows):
            raise BadShardError
        row = np.array(rows[number])
        if _checksum(key, row) != int(sums[number]):
            raise BadShardError
        found[key] = row
    return found


@dataclass(frozen=True)
class _Header:
    """What a shard says of itself: for each tensor its shape and where in the file it starts."""

    shapes: dict[str, tuple[int, ...]]
    starts: dict[str, int]
    metadata: dict[str, Any]


def _header(path: Path) -> _Header:
    """Read and check a safetensors header without trusting it. Raises BadShardError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BadShardError
        raw = file.read(length)
    try:
        stated = json.loads(raw)
        metadata = dict(stated["__metadata__"])
        shapes = {name: tuple(int(side) for side in stated[name]["shape"]) for name in _TYPES}
        spans = {name: tuple(int(offset) for offset in stated[name]["data_offsets"]) for name in _TYPES}
        types = {name: stated[name]["dtype"] for name in _TYPES}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadShardError from None
    count = shapes["rows"][0] if shapes["rows"] else 0
    whole = all(len(span) == 2 and span[1] - span[0] == _nbytes(name, shapes[name]) for name, span in spans.items())
    ordered = sorted(spans.values())
    joined = [0, *(span[-1] for span in ordered)] == [*(span[0] for span in ordered), size - 8 - length]
    if not (metadata.get("format") == FORMAT and types == _NAMES and whole and joined and count > 0):
        raise BadShardError
    if shapes["keys"] != (count, 32) or shapes["sums"] != (count,) or min(shapes["rows"]) < 1:
        raise BadShardError
    return _Header(shapes, {name: 8 + length + span[0] for name, span in spans.items()}, metadata)


def _nbytes(name: str, shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:  # Python's own integers: no overflow
        count *= side
    return count * _TYPES[name].itemsize


def _mapped(path: Path, header: _Header, name: str) -> Array:
    """One tensor of a shard, mapped into memory: only the rows that are used are read. Raises BadShardError."""
    try:
        return np.memmap(path, _TYPES[name], mode="r", offset=header.starts[name], shape=header.shapes[name])
    except ValueError:
        raise BadShardError from None


def _write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all: written beside its place, flushed to disk, renamed."""
    for old in path.parent.glob(".*.part"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_BEHIND_SECONDS:
                old.unlink()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
