"""Settings that come as text: shots, prompts, columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from medtame.errors import SettingsError


def shots_of(text: str) -> tuple[int | Literal["all"], ...]:
    """`1,4,16,all` as numbers, in rising order, `all` last."""
    found: set[int | Literal["all"]] = set()
    for part in (part.strip() for part in text.split(",")):
        if part != "all" and not part.isdecimal():
            raise SettingsError(f"shots are whole numbers, or all, by commas: not {part!r}")
        found.add("all" if part == "all" else int(part))
    return tuple(sorted(found, key=lambda k: float("inf") if k == "all" else k))


def prompts_of(path: Path) -> dict[str, tuple[str, ...]]:
    """Class -> sentences from a JSON file."""
    try:
        read = TypeAdapter(dict[str, tuple[str, ...]]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SettingsError(f"there is no file {path}: give a JSON file of class -> sentences") from None
    except (ValueError, ValidationError) as error:
        raise SettingsError(
            f'{path} is not a JSON object of class -> list of sentences ({str(error).splitlines()[0]}): write {{"name": ["a sentence"]}}'
        ) from None
    empty = [name for name, sentences in read.items() if not any(sentence.strip() for sentence in sentences)]
    if empty:
        raise SettingsError(f"{path} has no sentence for {', '.join(map(repr, empty))}: give at least one")
    return read


def columns_of(columns: str) -> dict[str, str]:
    """standard=yours, by commas."""
    parts = [part for part in columns.split(",") if part.strip()]
    if any("=" not in part for part in parts):
        raise SettingsError(f"--columns takes standard=yours by commas, such as text=caption, not {columns!r}")
    found = {part.partition("=")[0].strip(): part.partition("=")[2].strip() for part in parts}
    empty = next((f"{standard}={yours}" for standard, yours in found.items() if not (standard and yours)), None)
    if empty is not None:
        raise SettingsError(f"--columns {empty} has a name on one side only: write standard=yours, such as image=filename")
    return found


def filters_of(filters: Sequence[str] | None) -> dict[str, str]:
    """column=value, one each."""
    found: dict[str, str] = {}
    for text in filters or ():
        name, sign, value = (part.strip() for part in text.partition("="))
        if not (name and sign and value):
            raise SettingsError(f"--where takes column=value, such as modality=CT, not {text!r}")
        if found.get(name, value) != value:
            raise SettingsError(f"--where {name}={found[name]} and {name}={value}: no image has both, give one")
        found[name] = value
    return found
