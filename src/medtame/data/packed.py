"""An image inside a file that holds many: a member of a tar archive, a cell of a Parquet file. Read when it is asked for.

A tar member is found by its offset. Of a Parquet file whole row groups of the image column are read, and those used last are kept
while they fit into a bound, so that rows in order cost one pass; in random order archives are the better form.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from medtame.data import images, windows
from medtame.data.sources import Content
from medtame.errors import ImageError
from medtame.types import Array, Geometry

ROW_GROUPS_BYTES = 256 << 20  # kept of the image columns of one manifest; one row group is kept even where it is larger
Stamp: TypeAlias = tuple[int, int]  # bytes and time of the last change in ns, by which a file that was written again is known


class Shard(Protocol):
    """A file that holds many. Equal shards hold the same."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str:
        """As tables and messages show it."""
        ...

    def content(self, place: int, extent: int) -> bytes: ...


@dataclass(frozen=True)
class TarShard:
    """An archive without compression. A place is an offset and a size in bytes."""

    path: Path
    name: str
    stamp: Stamp = field(repr=False)

    def content(self, place: int, extent: int) -> bytes:
        """Raises ImageError where the archive is another than when it was listed, OSError where it cannot be read."""
        with self.path.open("rb") as file:
            check_unchanged(self)
            file.seek(place)
            return file.read(extent)


@dataclass(frozen=True)
class ParquetShard:
    """One column of a Parquet file. A place is the number of a row group, and of a row in it."""

    path: Path
    name: str
    column: str
    stamp: Stamp = field(repr=False)
    groups: RowGroups = field(repr=False, compare=False)

    def content(self, place: int, extent: int) -> bytes:
        """Raises ImageError where the file is another than when it was listed, or damaged here; OSError."""
        check_unchanged(self)
        found: bytes = self.groups.of(self, place)[extent].as_py() or b""
        return found


def stamp_of(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_unchanged(shard: TarShard | ParquetShard) -> None:
    if stamp_of(shard.path) != shard.stamp:
        raise ImageError(f"{shard.name} was written again since it was listed: start again")


@dataclass(eq=False)
class RowGroups:
    """The row groups of picture columns that were used last, as Arrow arrays of bytes, while they fit into `most_bytes`."""

    most_bytes: int = ROW_GROUPS_BYTES
    _held: OrderedDict[tuple[Path, str, int], Any] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def of(self, shard: ParquetShard, group: int) -> Any:
        """Raises ImageError where it is damaged."""
        key = (shard.path, shard.column, group)
        with self._lock:
            if key not in self._held:
                read = self._read(shard, group)
                while self._held and self.held_bytes + read.nbytes > self.most_bytes:
                    self._held.popitem(last=False)
                self._held[key] = read
            self._held.move_to_end(key)
            return self._held[key]

    @property
    def held_bytes(self) -> int:
        return sum(array.nbytes for array in self._held.values())

    def _read(self, shard: ParquetShard, group: int) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(shard.path) as file:
                column = file.read_row_group(group, columns=[shard.column]).column(0)
        except (FileNotFoundError, PermissionError):
            raise
        except (pyarrow.ArrowException, OSError, ValueError, LookupError):
            raise ImageError(f"row group {group} of {shard.name} is damaged") from None
        if pyarrow.types.is_struct(column.type):
            column = pyarrow.compute.struct_field(column, "bytes")
        return column


@dataclass(frozen=True, slots=True, weakref_slot=True)
class PackedPicture:
    """An image inside a shard. Satisfies `Picture`; its pixels and its digest are those of a file with the same bytes.

    `member` is its name in the shard, which is shown and never looked up; `place` and `extent` are what the shard finds it by.
    """

    shard: TarShard | ParquetShard
    member: str
    place: int
    extent: int
    frame: int | None = None
    window: str = ""

    def __post_init__(self) -> None:
        if self.window:
            windows.named(self.window)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{self.member}"

    @property
    def path(self) -> Path:
        """Of the shard."""
        return self.shard.path

    @property
    def size_bytes(self) -> int:
        """-1 where it is not known without reading."""
        return self.extent if isinstance(self.shard, TarShard) else -1

    def windowed(self, window: str) -> PackedPicture:
        """The same image, seen through another intensity window."""
        return replace(self, window=window)

    def content(self) -> Content:
        """Its bytes. Raises ImageError."""
        with images.reading(self.shard.path, self.name):
            data = self.shard.content(self.place, self.extent)
            if isinstance(self.shard, TarShard) and len(data) < self.extent:
                raise ImageError(f"{self.shard.name} is cut short")
            return Content(self.member, data)

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1 after the intensity convention; C is 1 or 3. Raises ImageError."""
        return images.unit(self.read())

    def read(self) -> Array:
        """`array`, but uint8 in 0..255 where the image was stored in 8 bits. Raises ImageError."""
        with self._decoding() as content:
            return images.shown(content, self.frame, self.window)

    def frames(self) -> int:
        """How many frames, pages or slices `frame` may choose from. Raises ImageError."""
        with self._decoding() as content:
            return images.frames(content)

    def values(self) -> Array:
        """(H, W) the stored numbers. Raises ImageError where three channels differ."""
        with self._decoding() as content:
            return images.values(content, self.frame)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, as of a file with these bytes. Raises ImageError."""
        with self._decoding() as content:
            return images.digest(content, self.frame, self.window)

    def content_hash(self) -> str:
        """SHA-256, in hexadecimal, of the bytes alone. Raises ImageError."""
        return sha256(self.content().data).hexdigest()

    def geometry(self) -> Geometry:
        """Size as `array` has it, and its place in space. Raises ImageError."""
        with self._decoding() as content:
            return images.geometry(content, self.frame)

    @contextmanager
    def _decoding(self) -> Iterator[Content]:
        content = self.content()
        with images.reading(content, self.name):
            yield content


# ---- as text --------------------------------------------------------------------------------------------------


def address(picture: PackedPicture) -> str:
    """Where it lies, as one line that an index can keep."""
    about = [picture.place, picture.extent, *picture.shard.stamp, getattr(picture.shard, "column", None)]
    return f"{picture.path.absolute()}#{json.dumps(about)}"


def place_of(cell: Any, root: Path) -> str | None:
    """Where a picture of a cell lies, for pages that show it: a path, an address in a shard, or None."""
    if isinstance(cell, PackedPicture):
        return address(cell)
    return str((root / cell).absolute()) if isinstance(cell, (str, Path)) else None


def at(address: str, name: str) -> PackedPicture | None:
    """The picture of an address, shown as `name`; None for what is none, or whose shard is gone or was written again."""
    path, _, about = address.rpartition("#")
    try:
        place, extent, size, changed, column = json.loads(about)
        if not path or stamp_of(Path(path)) != (size, changed):
            return None
    except (OSError, ValueError, TypeError):
        return None
    whole, stamp = Path(path), (size, changed)
    if column is None:
        return PackedPicture(TarShard(whole, whole.name, stamp), name, place, extent)
    return PackedPicture(ParquetShard(whole, whole.name, column, stamp, RowGroups()), name, place, extent)
