"""Many files that hold the pairs themselves: WebDataset archives (`.tar`) and Parquet files with pictures in them.

Given as one file, as a pattern (`pairs-{000..010}.tar`, `train-*.parquet`, `{a,b}.tar`), or as a folder that holds such files and no
image. A shard that is cut short or damaged is left out as a whole; so is a pair without an image, or without words where others have
some. All this is counted. The split is the name of the first folder, or what a file's name begins with, where that is a part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medtame.data.packed import RowGroups
from medtame.data.readers import parquet_pairs, tars, walk
from medtame.data.readers.pairs import Pairs
from medtame.data.readers.table import PARTS, Table, first_few, quoted
from medtame.errors import DataError

ENDINGS = (".tar", ".parquet")
MOST_SHARDS = 100_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def given(path: Path) -> list[Path] | None:
    """The files that a name stands for, in order; None where it means no shards. Raises DataError for a pattern that nothing fits."""
    if path.is_file():
        return (
            [path] if path.suffix.lower() == ".tar" or (path.suffix.lower() == ".parquet" and parquet_pairs.picture_columns(path)) else None
        )
    if path.is_dir():
        return in_folder(path)
    text = str(path)
    if path.suffix.lower() not in ENDINGS or not ("{" in text or any(sign in text for sign in "*?[")):
        return None
    found = []
    for name in expanded(text):
        found += globbed(name) if any(sign in name for sign in "*?[") else [name]
        if len(found) > MOST_SHARDS:
            raise DataError(f"{path.name} stands for more than {MOST_SHARDS} files: give fewer")
    if not any(map(os.path.isfile, found)):
        raise DataError(f"no file fits {path}: correct the pattern, or give a folder")
    return [Path(name) for name in dict.fromkeys(found)]


def globbed(name: str) -> list[str]:
    anchor = Path(name).anchor or "."
    return sorted(map(str, Path(anchor).glob(name.removeprefix(anchor))))


def expanded(text: str) -> Iterator[str]:
    """All that a name with braces stands for: `{a,b}`, and `{000..010}`, whose zeros are kept."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MOST_SHARDS:
            raise DataError(f"{quoted(text)} stands for more than {MOST_SHARDS} files: give fewer")
        width = max(map(len, span.groups())) if any(len(end) > 1 and end.startswith("0") for end in span.groups()) else 0
        parts = [f"{number:0{width}d}" for number in range(first, last + 1) or range(first, last - 1, -1)]
    else:
        parts = match[1].split(",")
    for part in parts:
        yield from expanded(text[: match.start()] + part + text[match.end() :])


def in_folder(folder: Path) -> list[Path] | None:
    """Shards at the top of a folder and in its sub-folders; None where there are none, or images beside them."""
    try:
        found = [
            file
            for place in (folder, *walk.subfolders(folder))
            for file in sorted(place.iterdir())
            if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
        ]
        return None if not found or any(walk.is_image(file) for file in walk.files(folder)) else found
    except OSError:
        return None


def base_of(files: Sequence[Path]) -> Path:
    """The folder below which all lie."""
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def read(files: Sequence[Path], base: Path, columns: tars.Columns, *, strict: bool) -> Table:
    """The pairs of all shards that can be read. Raises DataError where there are none; if `strict`, where anything is left out."""
    found, groups, broken, split = Pairs(), RowGroups(), [], {}
    for file in files:
        name = file.absolute().relative_to(base).as_posix()
        try:
            pairs = tars.read(file, name, columns) if file.suffix.lower() == ".tar" else parquet_pairs.read(file, name, groups)
        except tars.DamagedError as why:
            broken.append(f"{quoted(name)} {why}")
        except FileNotFoundError:
            broken.append(f"{quoted(name)} is not there")
        except OSError as error:
            broken.append(f"{quoted(name)} cannot be opened ({error.strerror or type(error).__name__})")
        else:
            if pairs.count and "split" not in pairs.columns and (part := part_of(name)):
                split[name] = part
                pairs.columns["split"] = [part] * pairs.count
            found.extend(pairs)
    faults = told_broken(broken, len(files))
    found.without_words(places(found, columns))
    faults += [f"{phrase}" for phrase in found.told()]
    if strict and faults:
        raise DataError(f"{'; '.join(faults)}: mend the shards, or leave strict out to go on without these")
    if not found.count:
        raise DataError(f"no pair can be read: {'; '.join(faults) or 'the shards are empty'}")
    notes = [f"Left out: {fault}." for fault in faults]
    if split:
        notes.append("The split is the name of the first folder, or the beginning of a file's name.")
    if found.notes:
        notes.append(f"Left out, for they hold more than a cell or name pictures: {first_few(list(found.notes))}.")
    if found.ignored:
        notes.append(f"Ignored members: {', '.join(f'{quoted(kind)} ({count})' for kind, count in sorted(found.ignored.items()))}.")
    return Table(found.columns, places(found, columns), tuple(notes))


def places(found: Pairs, columns: tars.Columns) -> list[str]:
    """A name for each pair: that of its image, else its number."""
    held = next((found.columns[name] for name in columns.images if name in found.columns), None)
    return [f"pair {number + 1}" for number in range(found.count)] if held is None else [str(cell) for cell in held]


def part_of(name: str) -> str | None:
    """train, val or test, where the first folder of a shard is called so, or its own name begins with it."""
    folder, _, last = name.rpartition("/")
    start = re.split(r"[-_.]", last)[0]
    return PARTS.get(folder.split("/")[0].casefold()) or PARTS.get(start.casefold())


def told_broken(broken: Sequence[str], count: int) -> list[str]:
    if not broken:
        return []
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return [f"{len(broken)} of {count} shards could not be read: {', '.join(broken[:3])}{more}"]
