"""Settings that come as text: shots and prompts."""

from __future__ import annotations

import json
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
