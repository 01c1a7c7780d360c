"""The feature store on disk: rows of 16-bit numbers by encoder identity, kind, and the SHA-256 of what they were made from.

A folder an (identity, kind) holds shards: safetensors files that are written once, beside their place, and renamed, so that any
number of processes may write at once. A row costs 10 bytes besides its numbers: the beginning of its key, and a checksum over
its shape, its whole key and its numbers, so that keys that begin alike are told apart. A shard that is cut, altered or no shard
at all is deleted and its rows are simply missing again. Many small shards are joined into one, which is there before they go.
Nothing here names a patient: paths are hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from platformdirs import user_cache_dir
from safetensors.numpy import save

if TYPE_CHECKING:  # a process that only reads or writes rows needs no torch
    from medtame.types import Array

FORMAT = "medtame-features-2"
KEY_BYTES = {FORMAT: 6, "medtame-features-1": 32}  # how much of its key a row carries, in this format and in the one before
SMALL_BYTES = 4 * 2**20
MANY_SHARDS = 32  # so many small ones are joined
LISTINGS_AT_MOST = 10
MAX_HEADER_BYTES = 2**20
LEFT_BEHIND_SECONDS = 24 * 3600  # unfinished files older than this come from killed runs
_TYPES: dict[str, np.dtype[Any]] = {"rows": np.dtype("<f2"), "keys": np.dtype("u1"), "sums": np.dtype("<u4")}
_NAMES = {"rows": "F16", "keys": "U8", "sums": "U32"}

Result = TypeVar("Result")


class BadShardError(Exception):
    """Inside this file only: a shard that cannot be trusted."""


@dataclass
class _Index:
    """Where the rows of one (identity, kind) lie: for the beginning of each key, in ascending order, a shard and a row number."""

    shards: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    beginnings: Array = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    owners: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    numbers: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def forget(self) -> None:
        """A shard went or was written anew, which is rare: look at all of them again."""
        self.shards.clear()
        self.beginnings, self.owners, self.numbers = self.beginnings[:0], self.owners[:0], self.numbers[:0]

    def add(self, shards: Mapping[str, Array]) -> None:
        """Take in new shards, each with the beginnings of its keys."""
        lengths = [len(keys) for keys in shards.values()]
        joined = np.concatenate([self.beginnings, *shards.values()])
        owners = np.concatenate([self.owners, np.repeat(np.arange(len(lengths)) + len(self.shards), lengths)])
        numbers = np.concatenate([self.numbers, *map(np.arange, lengths)])
        order = np.argsort(joined, kind="stable")
        self.beginnings, self.owners, self.numbers = joined[order], owners[order], numbers[order]
        self.shards += shards

    def candidates(self, beginnings: Array) -> Iterator[tuple[str, Array, Array]]:
        """A shard at a time: which of the asked may be in it (m,), and at which of its rows (m,), in ascending order."""
        left = np.searchsorted(self.beginnings, beginnings, "left")
        counts = np.searchsorted(self.beginnings, beginnings, "right") - left
        which = np.repeat(np.arange(len(beginnings)), counts)
        at = np.arange(counts.sum()) + np.repeat(left - np.cumsum(counts) + counts, counts)
        order = np.lexsort((self.numbers[at], self.owners[at]))
        which, at = which[order], at[order]
        owners = self.owners[at]
        edges = [*np.flatnonzero(np.diff(owners, prepend=-1)), len(at)]
        for start, end in pairwise(edges):
            yield self.shards[owners[start]], which[start:end], self.numbers[at[start:end]]


class Store:
    """Rows on disk under `folder`; without one, the user's cache or MEDTAME_CACHE. A copy of it starts with nothing indexed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.refused = False  # whether its user was told that it keeps nothing
        self._indexes: dict[Path, _Index] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def read(self, identity: str, kind: str, keys: Sequence[str]) -> dict[str, Array]:
        """The rows that are there and whole, float16. Keys are SHA-256 in hexadecimal; absent ones are left out."""
        return {keys[place]: row for places, rows in self.parts(identity, kind, keys) for place, row in zip(places, rows, strict=True)}

    def parts(self, identity: str, kind: str, keys: Sequence[str]) -> Iterator[tuple[Array, Array]]:
        """`read`, a shard at a time: which of `keys` it answers (m,), and their rows (m, ...), one array."""
        place = self._place(identity, kind)
        index = self._indexes.setdefault(place, _Index())
        beginnings = _beginnings(np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(-1, 32))
        answered = np.zeros(len(keys), dtype=bool)
        again = True
        while again and not answered.all():
            _refresh(index, place, identity, kind)
            again, doubts = False, []
            open_still = np.flatnonzero(~answered)
            for shard, which, numbers in index.candidates(beginnings[open_still]):
                asked = open_still[which]
                try:
                    rows, whole = _rows(place / shard, numbers, [keys[number] for number in asked])
                except BadShardError:
                    again = True
                    _delete(index, place, shard)
                    continue
                except OSError as error:
                    again = True
                    if not isinstance(error, FileNotFoundError):  # else another process joined it or found it broken
                        index.refused.add(shard)
                    continue
                answered[asked[whole]] = True
                yield asked[whole], rows[whole]
                doubts.append((shard, asked[~whole]))
            for shard, asked in doubts:
                if not answered[asked].all():  # no row of another key that begins alike, but a broken one
                    again = True
                    _delete(index, place, shard)
            if again:
                index.forget()

    def write(self, identity: str, kind: str, rows: Mapping[str, Array]) -> bool:
        """Keep rows of one shape, as float16. False where the disk is full or may not be written: nothing is kept then."""
        if not rows:
            return True
        place, keys = self._place(identity, kind), sorted(rows)
        numbers = np.stack([np.asarray(rows[key]) for key in keys]).astype(_TYPES["rows"])
        tensors = {
            "rows": numbers,
            "keys": np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(-1, 32)[:, : KEY_BYTES[FORMAT]],
            "sums": _checksums(keys, numbers),
        }
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32] + ".safetensors"
        try:
            place.mkdir(parents=True, exist_ok=True)
            _write_shard(place / name, tensors, identity, kind)
        except OSError:
            return False
        _join_small(place, identity, kind)
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


def _checksums(keys: Sequence[str], rows: Array) -> Array:
    """(m,) of whole keys and their rows (m, ...)."""
    content, size, shape = memoryview(np.ascontiguousarray(rows).tobytes()), rows[:1].nbytes, zlib.crc32(f"{rows.shape[1:]}".encode())
    sums = [zlib.crc32(content[i * size : (i + 1) * size], zlib.crc32(key.encode(), shape)) for i, key in enumerate(keys)]
    return np.array(sums, dtype=_TYPES["sums"])


def _beginnings(keys: Array) -> Array:
    """(n,) the first bytes of keys (n, 6 or more) as whole numbers."""
    padded = np.zeros((len(keys), 8), dtype=np.uint8)
    padded[:, -KEY_BYTES[FORMAT] :] = keys[:, : KEY_BYTES[FORMAT]]
    return padded.view(">u8")[:, 0].astype(np.uint64)


def _present(place: Path) -> dict[str, int]:
    """The shards of a folder and their bytes. Listed until nothing moves, so that one that is joined meanwhile is not overlooked."""
    before: dict[str, int] | None = None
    for _ in range(LISTINGS_AT_MOST):
        now: dict[str, int] = {}
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.endswith(".safetensors"):
                        with suppress(FileNotFoundError):
                            now[entry.name] = entry.stat().st_size
        except OSError:
            return {}
        if now == before:
            break
        before = now
    return before or {}


def _refresh(index: _Index, place: Path, identity: str, kind: str) -> None:
    """Take in the shards that have appeared, forget those that have gone, delete those that are broken."""
    vanished = True
    while vanished:
        vanished = False
        present = _present(place).keys() - index.refused
        if not present.issuperset(index.shards):
            index.forget()
        new: dict[str, Array] = {}
        for shard in sorted(present.difference(index.shards)):
            try:
                with (place / shard).open("rb") as file:
                    new[shard] = _beginnings(_mapped(file, _header(file, identity, kind), "keys"))
            except FileNotFoundError:
                vanished = True
            except BadShardError:
                _delete(index, place, shard)
            except OSError:
                index.refused.add(shard)
        if new:
            index.add(new)


def _join_small(place: Path, identity: str, kind: str) -> None:
    """Many small shards become one. Rows are copied with their checksums, so a broken one is still found."""
    small = sorted(name for name, size in _present(place).items() if size < SMALL_BYTES)
    if len(small) < MANY_SHARDS:
        return
    found: dict[str, dict[str, Array]] = {}
    for name in small:
        try:
            with (place / name).open("rb") as file:
                header = _header(file, identity, kind)
                tensors = {tensor: np.array(_mapped(file, header, tensor)) for tensor in _TYPES}
        except (OSError, BadShardError):
            continue  # gone, or for a reader to find
        if not found or tensors["rows"].shape[1:] == next(iter(found.values()))["rows"].shape[1:]:
            found[name] = tensors | {"keys": tensors["keys"][:, : KEY_BYTES[FORMAT]]}
    if len(found) < 2:
        return
    joined = {tensor: np.concatenate([each[tensor] for each in found.values()]) for tensor in _TYPES}
    once = np.unique(np.stack([_beginnings(joined["keys"]), joined["sums"]]), axis=1, return_index=True)[1]
    joined = {tensor: numbers[once] for tensor, numbers in joined.items()}
    name = hashlib.sha256(joined["keys"].tobytes() + joined["sums"].tobytes()).hexdigest()[:32] + ".safetensors"
    with suppress(OSError):  # no room: they stay as they are
        _write_shard(place / name, joined, identity, kind)
        for old in found.keys() - {name}:
            (place / old).unlink(missing_ok=True)


def _delete(index: _Index, place: Path, shard: str) -> None:
    """Delete a broken shard; where that is not allowed, never look at it again."""
    try:
        (place / shard).unlink(missing_ok=True)
    except OSError:
        index.refused.add(shard)


def _rows(path: Path, numbers: Array, keys: Sequence[str]) -> tuple[Array, Array]:
    """Some rows of a shard (m, ...), and which of them are whole and those of the keys (m,). Raises BadShardError."""
    with path.open("rb") as file:
        header = _header(file)
        if numbers.max() >= header.shapes["rows"][0]:
            raise BadShardError
        rows, sums = _mapped(file, header, "rows")[numbers], _mapped(file, header, "sums")[numbers]
    return rows, _checksums(keys, rows) == sums


@dataclass(frozen=True)
class _Header:
    """What a shard says of itself: for each tensor its shape and where in the file it starts."""

    shapes: dict[str, tuple[int, ...]]
    starts: dict[str, int]


def _header(file: BinaryIO, *labels: str) -> _Header:
    """Read and check a safetensors header without trusting it; `labels` are the identity and kind it must state. Raises BadShardError."""
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
    if not (metadata.get("format") in KEY_BYTES and types == _NAMES and whole and joined and count > 0):
        raise BadShardError
    if shapes["keys"] != (count, KEY_BYTES[metadata["format"]]) or shapes["sums"] != (count,) or min(shapes["rows"]) < 1:
        raise BadShardError
    if labels and (metadata.get("identity"), metadata.get("kind")) != labels:
        raise BadShardError
    return _Header(shapes, {name: 8 + length + span[0] for name, span in spans.items()})


def _nbytes(name: str, shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:  # Python's own integers: no overflow
        count *= side
    return count * _TYPES[name].itemsize


def _mapped(file: BinaryIO, header: _Header, name: str) -> Array:
    """One tensor of a shard, mapped into memory: only the rows that are used are read. Raises BadShardError."""
    try:
        mapped = np.memmap(file, _TYPES[name], mode="r", offset=header.starts[name], shape=header.shapes[name])
    except ValueError:
        raise BadShardError from None
    return mapped.view(np.ndarray)


def _write_shard(path: Path, tensors: Mapping[str, Array], identity: str, kind: str) -> None:
    content = {name: np.ascontiguousarray(numbers) for name, numbers in tensors.items()}
    write_whole(path, save(content, metadata={"format": FORMAT, "identity": identity, "kind": kind}))


def write_whole(path: Path, content: bytes) -> None:
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
