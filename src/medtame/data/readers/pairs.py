"""Pairs of images and words as shards give them, one at a time: columns that grow, and a count of what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medtame.data.readers.table import first_few

WORDS = ("text", "caption", "findings", "impression", "label", "labels", "question")  # a pair needs one of these where others have some


@dataclass
class LeftOut:
    """How many pairs were left out for one reason, and the names of the first."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, names: Iterable[str], count: int = 1) -> None:
        self.count += count
        self.first = [*self.first, *names][:4]


@dataclass
class Pairs:
    """Columns of one length by name, cells as text, None, or pictures; `left_out` by reason; `ignored` counts by the kind of member."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    count: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, cells: Mapping[str, Any]) -> None:
        for name, cell in cells.items():
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = [None] * self.count
            column.append(cell)
        self.count += 1
        self._level()

    def drop(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, LeftOut()).add([name])

    def ignore(self, kind: str) -> None:
        self.ignored[kind] = self.ignored.get(kind, 0) + 1

    def extend(self, other: Pairs) -> None:
        """With all pairs of another, in their order."""
        for name in dict.fromkeys([*self.columns, *other.columns]):
            column = self.columns.setdefault(name, [None] * self.count)
            column.extend(other.columns.get(name, [None] * other.count))
        self.count += other.count
        for why, those in other.left_out.items():
            self.left_out.setdefault(why, LeftOut()).add(those.first, those.count)
        for kind, count in other.ignored.items():
            self.ignored[kind] = self.ignored.get(kind, 0) + count
        self.notes |= other.notes

    def without_words(self, names: Iterable[str]) -> None:
        """Leaves out the pairs that have no words, where others have some. `names` are their names."""
        held = [self.columns[name] for name in WORDS if name in self.columns]
        kept = [any(cell is not None for cell in cells) for cells in zip(*held, strict=True)] if held else []
        if all(kept) or not any(kept):
            return
        those = self.left_out.setdefault("without text", LeftOut())
        for name, keep in zip(names, kept, strict=True):
            if not keep:
                those.add([name])
        for name, column in self.columns.items():
            self.columns[name] = [cell for cell, keep in zip(column, kept, strict=True) if keep]
        self.count = sum(kept)

    def told(self) -> list[str]:
        """A phrase for each reason why pairs were left out, with the first of them."""
        return [f"{those.count} {'pair' if those.count == 1 else 'pairs'} {why}: {shown(those)}" for why, those in self.left_out.items()]

    def _level(self) -> None:
        for column in self.columns.values():
            if len(column) < self.count:
                column.append(None)


def shown(those: LeftOut) -> str:
    rest = those.count - 3
    return first_few(those.first[:3]) + (f" and {rest} more" if rest > 0 else "")
