"""What is typed on a command line behind --set, --columns, --where and --out, as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medtame.errors import SettingsError


def method_settings(settings: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """`--set clap.steps=5` is for clap; `--set steps=5` for the one method (under the name "")."""
    found: dict[str, dict[str, str]] = {}
    for name, value in pairs(settings):
        owner, _, setting = name.rpartition(".")
        if owner != "task":
            found.setdefault(owner, {})[setting] = value
    return found


def pairs(settings: Sequence[str] | None) -> list[tuple[str, str]]:
    """name=value, one each."""
    for text in settings or ():
        if "=" not in text:
            raise SettingsError(f"--set takes name=value, not {text!r}")
    return [(text.partition("=")[0].strip(), text.partition("=")[2].strip()) for text in settings or ()]


def mapped(columns: str) -> dict[str, str]:
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


def free_folder(out: Path | None, name: str, *, resume: bool) -> Path:
    """The folder asked for, or the first free one of name, name-2, name-3 …"""
    if out is not None or resume:
        return (out or Path(name)).absolute()
    numbered = (Path(name if number == 1 else f"{name}-{number}") for number in range(1, 1000))
    return next(path for path in numbered if not path.exists()).absolute()
