"""One WebDataset shard: a tar archive without compression whose members share a name up to the first point, one after another.

| member | becomes |
|---|---|
| `KEY.png`, `.jpg`, `.dcm`, … | image |
| `KEY.mask.png`, `.fixed.png`, … | the column of pictures of that name |
| `KEY.txt`, `.text`, `.caption` | text; `KEY.findings.txt` the column findings |
| `KEY.cls`, `.label` | label |
| `KEY.json` | a column a key; lists of plain values are joined by a bar |

`id` is the key, unless the JSON has one. Headers and words are read; images are passed over, and found later by their offset.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from medtame.data import images
from medtame.data.packed import PackedPicture, TarShard, stamp_of
from medtame.data.readers.pairs import Pairs
from medtame.data.readers.table import column_name, nested, nfc, quoted, written

MOST_WORDS_BYTES = 1 << 20  # of one member that holds words
BLOCK_BYTES = 512
WORD_ENDINGS = {"txt": "text", "text": "text", "caption": "text", "cls": "label", "label": "label"}
UNDECODABLE = "with words that are not UTF-8, no JSON object, or longer than 1 MB"


class DamagedError(Exception):
    """Why a shard cannot be used, in a few words."""


class Member(NamedTuple):
    """A file in an archive: its key, what follows the first point of its name in small letters, and where its bytes lie."""

    name: str
    key: str
    ending: str
    place: int
    extent: int


@dataclass(frozen=True)
class Columns:
    """The columns that pictures may stand in: those that show what is asked about, and all others."""

    images: tuple[str, ...]
    paths: tuple[str, ...]


def read(path: Path, name: str, columns: Columns) -> Pairs:
    """The pairs of one shard. Raises DamagedError, and OSError where it cannot be read."""
    shard, found = TarShard(path, name, stamp_of(path)), Pairs()
    with path.open("rb") as file:
        together: list[Member] = []
        for member in members(file, shard.stamp[0], found):
            if together and member.key != together[0].key:
                add(found, together, file, shard, columns)
                together = []
            together.append(member)
        if together:
            add(found, together, file, shard, columns)
    return found


def members(file: IO[bytes], size: int, found: Pairs) -> Iterator[Member]:
    """Files of an archive in their order, hidden ones left out. Raises DamagedError where it is cut short or a header is broken."""
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.TarError:
        file.seek(0)
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        raise DamagedError(
            "is compressed: write it without compression" if packed else "is no tar archive" if size else "is empty"
        ) from None
    try:
        while (entry := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte a member
            if not entry.isfile() or entry.sparse is not None:
                if not entry.isdir():
                    found.ignore("links and devices")
                continue
            if entry.offset_data + entry.size > size:
                raise DamagedError("is cut short")
            name = entry.name if entry.name.isprintable() else ascii(entry.name)[1:-1]
            folder, _, last = name.rpartition("/")
            key, _, ending = last.partition(".")
            if key and not key.startswith("__"):
                yield Member(name, f"{folder}/{key}" if folder else key, ending.lower(), entry.offset_data, entry.size)
    except (tarfile.TarError, ValueError, OverflowError):
        raise DamagedError("is cut short or damaged") from None
    file.seek(archive.offset)
    if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
        raise DamagedError("is cut short" if archive.offset >= size - BLOCK_BYTES else "has a broken header")


def add(found: Pairs, together: list[Member], file: IO[bytes], shard: TarShard, columns: Columns) -> None:
    """One pair of members with one key, or a count of why there is none."""
    key, unknown = together[0].key, []
    cells: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for member in together:
        column = picture_column(member.ending, columns)
        if column is not None:
            if column in cells:
                found.drop(f"with more than one {column}", f"{shard.name}/{quoted(key)}")
                return
            cells[column] = PackedPicture(shard, member.name, member.place, member.extent)
            continue
        named = word_column(member.ending)
        if named is None or named in columns.paths:
            unknown.append(f".{member.ending}" if member.ending else "no ending")
            continue
        text = decoded(file, member)
        content = parsed(text) if named == "json" and text is not None else text
        if content is None or (named == "json" and not isinstance(content, dict)):
            found.drop(UNDECODABLE, f"{shard.name}/{quoted(key)}")
            return
        if isinstance(content, dict):
            described = content
        else:
            cells[named] = nfc(content)
    for kind in unknown:
        found.ignore(kind)
    if not any(name in cells for name in columns.images):
        found.drop("without an image", f"{shard.name}/{quoted(key)}")
        return
    found.add({"id": key} | of_json(described, found, columns) | {name: cell for name, cell in cells.items() if cell is not None})


def picture_column(ending: str, columns: Columns) -> str | None:
    """The column of a picture by the end of its name; None for what is no picture."""
    suffix = next((suffix for suffix in images.SUFFIXES if f".{ending}".endswith(suffix)), None)
    if suffix is None:
        return None
    named = f".{ending}"[: -len(suffix)].lstrip(".")
    return "image" if not named else named if named in columns.paths else None


def word_column(ending: str) -> str | None:
    """`json`, the column of a member of words, or None where it is neither."""
    if ending == "json" or ending in WORD_ENDINGS:
        return WORD_ENDINGS.get(ending, ending)
    named = PurePosixPath(f"x.{ending}")
    return named.stem[2:] or None if named.suffix == ".txt" and "." in ending else None


def decoded(file: IO[bytes], member: Member) -> str | None:
    if member.extent > MOST_WORDS_BYTES:
        return None
    file.seek(member.place)
    try:
        return file.read(member.extent).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def of_json(described: dict[str, Any], found: Pairs, columns: Columns) -> dict[str, Any]:
    """Cells of an object. Nested values and names of pictures are left out: nothing is looked up by what a shard says."""
    cells = {}
    for key, value in described.items():
        name = column_name(key)
        if nested(value) or name in columns.paths:
            found.notes[f"the key {quoted(name)} of the JSON"] = None
        elif name:
            cells[name] = nfc(written(value))
    return cells
