"""Folder listing -> names -> classes. Nothing is imported until it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from medtame.errors import MedtameError, SettingsError, UnknownNameError

METHODS, TASKS = "medtame.strategies", "medtame.tasks"


def listing(shelf: str) -> dict[str, str]:
    """Name -> module, of every file on a shelf, in the order of folders and names. No module of the shelf is imported."""
    found = find_spec(shelf)
    if found is None or not found.submodule_search_locations:
        raise MedtameError(f"no shelf {shelf!r}: reinstall medtame")
    folder = Path(next(iter(found.submodule_search_locations)))
    inside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return dict(_listed(shelf, folder, tuple(path.stat().st_mtime_ns for path in inside)))


@lru_cache(maxsize=8)
def _listed(shelf: str, folder: Path, changed: tuple[int, ...]) -> dict[str, str]:
    """The same; read again only where a file came or went (`changed`: the times of the folders)."""
    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if path.stem.startswith("_") or path.stem == "base":
            continue
        if path.stem in names:
            raise MedtameError(f"two files are called {path.stem}: rename one of them")
        names[path.stem] = ".".join([shelf, *path.relative_to(folder).with_suffix("").parts])
    return names


def names(shelf: str) -> list[str]:
    return list(listing(shelf))


def strategy_of(name: str) -> str:
    """The adaptation strategy of a method: the folder that its file lies in; `none` for a baseline."""
    folder = _module(METHODS, name).split(".")[-2]
    return "none" if folder == "baselines" else folder


def settings_class(shelf: str, name: str) -> type[Any]:
    """The class in a shelf's file: `linear_probe` -> LinearProbe."""
    title = "".join(word.title() for word in name.split("_"))
    found: type[Any] = getattr(import_module(_module(shelf, name)), title)
    return found


def build(shelf: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A settings object, checked; text from a command line is turned into numbers; a setting that names a part is built too."""
    kind = settings_class(shelf, name)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    chosen = dict(settings or {})
    for key in chosen:
        if key not in fields:
            raise UnknownNameError(f"setting of {name}", key, fields)
    for key, field in fields.items():
        part = chosen.get(key, field.default) if "part" in field.metadata else None
        if isinstance(part, str):
            chosen[key] = build(field.metadata["part"], part)
        elif isinstance(part, Mapping):
            chosen[key] = build(field.metadata["part"], part["name"], part["settings"])
    hints = get_type_hints(kind, include_extras=True) if chosen else {}
    return kind(**{key: _checked(name, key, value, hints[key], fields) for key, value in chosen.items()})


def _checked(name: str, key: str, value: Any, hint: Any, known: Iterable[str]) -> Any:
    """One setting, of the right type; text from a command line counts as a number or as a list with commas (or in JSON)."""
    if dataclasses.is_dataclass(value):
        return value
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(value, str) and get_origin(plain) is tuple:
        value = listed(value)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SettingsError(
            f"{name} cannot use {key} = {value!r}: {reason[0].lower()}{reason[1:]}. Its settings: {', '.join(known)}."
        ) from None


def listed(text: str) -> Any:
    """Parts by commas; a JSON list where a part holds a comma itself."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def settings_of(value: Any) -> dict[str, Any]:
    """The settings of a method or task as plain values, so that `build` makes it again."""
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def name_of(value: Any) -> str:
    """The name of a method or task: its file's."""
    return type(value).__module__.rpartition(".")[2]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": name_of(value), "settings": settings_of(value)}
    return value


def _module(shelf: str, name: str) -> str:
    known = listing(shelf)
    if name not in known:
        raise UnknownNameError("task" if shelf == TASKS else "method", name, known)
    return known[name]
