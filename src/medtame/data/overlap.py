"""Who stands on both sides of a split: patients, studies and groups, by the manifest's columns and by the headers of DICOM files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from medtame.data.overview import Images
from medtame.data.splits import GROUP_COLUMNS
from medtame.types import Array, Samples


@dataclass(frozen=True)
class Shared:
    """`count` values of one kind that stand in two parts or more, and the numbers of the images that they bring there."""

    kind: str
    count: int
    images: tuple[int, ...]
    decides: bool  # the column by which medtame groups, or the header of the files


def overlaps(samples: Samples, images: Images, parts: Mapping[str, Array]) -> list[Shared]:
    """What is shared among the parts. Numbers only: no patient is named."""
    if len(parts) < 2:
        return []
    part_of = {int(row): name for name, rows in parts.items() for row in rows}
    found: list[Shared] = []
    columns = [column for column in GROUP_COLUMNS if column in samples]
    for column in columns:
        values = samples.column(column)
        found.append(_shared(column, [[(values[row], part_of.get(row)) for row in rows] for rows in images.rows], column == columns[0]))
    for kind, name in (("patient", "PatientID"), ("study", "StudyInstanceUID")):
        numbers = [None if header is None else getattr(header, kind) for header in images.headers]
        marked = [[(number, part_of.get(row)) for row in rows] for number, rows in zip(numbers, images.rows, strict=True)]
        found.append(_shared(f"DICOM {name}", marked, True))
    return [shared for shared in found if shared.count]


def _shared(kind: str, marked: Sequence[Sequence[tuple[Hashable, str | None]]], decides: bool) -> Shared:
    """`marked`: for each image, (value, part) of its rows; an empty value and a row in no part do not count."""
    seen: dict[Hashable, set[str]] = {}
    for pairs in marked:
        for value, part in pairs:
            if value is not None and part is not None:
                seen.setdefault(value, set()).add(part)
    both = {value for value, names in seen.items() if len(names) > 1}
    rows = [number for number, pairs in enumerate(marked) if any(value in both and part is not None for value, part in pairs)]
    return Shared(kind, len(both), tuple(rows), decides)


def parts_of_images(images: Images, parts: Mapping[str, Array]) -> list[frozenset[str]]:
    """The parts that each image brings rows to."""
    part_of = {int(row): name for name, rows in parts.items() for row in rows}
    return [frozenset(part_of[row] for row in rows if row in part_of) for rows in images.rows]


def across(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two images, by their parts, lie on two sides."""
    return any(a != b for a in one for b in other)
