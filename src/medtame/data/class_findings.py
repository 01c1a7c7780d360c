"""Knowledge as data: JSON files of what a class looks like, other names of it, and what it is a kind of. Anyone may edit them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medtame.errors import SettingsError

UNREVIEWED = "general knowledge, not reviewed by a clinician"
SHAPE = '{"classes": {"pneumonia": ["an opacity in one lung"]}}'


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    finding: str = Field(pattern=r"\S")
    source: str = Field(default=UNREVIEWED, pattern=r"\S")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    about: str = ""
    classes: dict[str, list[_Line | str]] = {}
    synonyms: dict[str, str] = {}
    parents: dict[str, str] = {}


@dataclass(frozen=True)
class Findings:
    """One file. Names are compared without regard to case, hyphens and underscores; a synonym counts as its class."""

    name: str  # as messages say it
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)  # kind -> what it is a kind of; a root has no line

    def known(self, name: str, part: Literal["classes", "parents"]) -> str | None:
        """The name in the file that stands for a class, or None."""
        mapping = self.classes if part == "classes" else self.parents
        own = {plain(one): one for one in mapping}
        other = {plain(synonym): one for synonym, one in self.synonyms.items()}
        return own.get(plain(name)) or own.get(plain(other.get(plain(name), "")))

    def missing(self, names: Sequence[str], part: Literal["classes", "parents"]) -> list[str]:
        return [name for name in names if self.known(name, part) is None]

    def of(self, name: str) -> tuple[str, ...]:
        """The findings of a class; none where the file does not know it or lists none."""
        known = self.known(name, "classes")
        return () if known is None else self.classes[known]

    def called(self, name: str) -> list[str]:
        """A class by all its names."""
        known = {self.known(name, "classes"), self.known(name, "parents")} - {None}
        return [name, *sorted(str(one) for one in known), *sorted(synonym for synonym, one in self.synonyms.items() if one in known)]


def plain(name: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", name).casefold().split())


def says(sentence: str, name: str) -> bool:
    """Whether a sentence holds a name as whole words."""
    return re.search(rf"\b{re.escape(plain(name))}\b", plain(sentence)) is not None


def chosen(names: Sequence[str], file: str, folder: Path, part: Literal["classes", "parents"] = "classes") -> tuple[Findings | None, str]:
    """The file that speaks of all classes, and a sentence that says so; None where none does and none was asked for.

    `file` is empty (the one shipped file that covers all classes), the name of a shipped file, or a path. Where several shipped
    files cover the classes none is taken: which images they are is not guessed. Raises SettingsError for a file that lacks a
    class, or, where it is the user's own list of findings, holds one that nobody asks about.
    """
    shipped = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if file:
        found = read(shipped.get(file, Path(file)), known=tuple(shipped))
        missing = found.missing(names, part)
        if missing:
            raise SettingsError(
                f"{found.name} says nothing of the class {missing[0]!r}; its {part} are {listed(getattr(found, part))}: "
                "add the class, or correct its name"
            )
        asked = {found.known(name, "classes") for name in names}
        unknown = [one for one in found.classes if one not in asked]
        if part == "classes" and unknown and file not in shipped:
            raise SettingsError(
                f"{found.name} speaks of {unknown[0]!r}, which is no class here; the classes are {listed(names)}: remove it, or correct it"
            )
        return found, f"findings from {found.name}"
    covering = [one for one in map(read, shipped.values()) if not one.missing(names, part)]
    if len(covering) == 1:
        return covering[0], f"findings from {covering[0].name}"
    if covering:
        several = ", ".join(one.name.removesuffix(".json") for one in covering)
        return None, f"no findings in use: {several} all speak of these classes, so name one with the setting file"
    return None, "no findings in use: no shipped file speaks of all these classes, so give one with the setting file"


def read(path: Path, known: Sequence[str] = ()) -> Findings:
    """One file, checked. Raises SettingsError."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unrepeated)
        file = _File.model_validate(raw)
    except OSError:
        raise SettingsError(f"there is no file {path}: give a JSON file of findings, or one of {', '.join(known) or 'none'}") from None
    except (ValueError, ValidationError) as error:
        raise SettingsError(f"{path.name} is no file of findings ({_why(error)}): write {SHAPE}") from None
    classes = {name: tuple(line if isinstance(line, str) else line.finding for line in lines) for name, lines in file.classes.items()}
    found = Findings(path.name, classes, file.synonyms, file.parents)
    _check(found)
    return found


def ancestors(name: str, parents: Mapping[str, str]) -> list[str]:
    """A name and what it is a kind of, up to its root; cut where it comes back to itself."""
    line = [name]
    while line[-1] in parents and parents[line[-1]] not in line:
        line.append(parents[line[-1]])
    return line


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    ordered = list(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "") or "none"


def _check(found: Findings) -> None:
    for part in (found.classes, found.parents):
        seen: dict[str, str] = {}
        for name in part:
            if plain(name) in seen:
                raise SettingsError(f"{found.name} names the class {name!r} twice (also as {seen[plain(name)]!r}): keep one")
            seen[plain(name)] = name
    astray = next((one for one in found.synonyms.values() if one not in found.classes and one not in found.parents), None)
    if astray is not None:
        raise SettingsError(f"{found.name} has a synonym of {astray!r}, which is no class of it: correct the name")
    empty = next((name for name, lines in found.classes.items() if any(not line.strip() for line in lines)), None)
    if empty is not None:
        raise SettingsError(f"{found.name} has an empty finding of {empty!r}: fill it, or remove it")
    round_ = next((name for name in found.parents if found.parents.get(ancestors(name, found.parents)[-1]) is not None), None)
    if round_ is not None:
        raise SettingsError(f"{found.name} makes {round_!r} a kind of itself: a hierarchy has a top")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{double!r} is there twice")
    return dict(pairs)


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'][:2]))}: {first['msg'].lower()}" if first["loc"] else first["msg"].lower()
    return str(error).splitlines()[0]
