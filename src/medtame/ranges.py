"""What a setting may be, read from the type that `catalogue.build` checks it with."""

from __future__ import annotations

import dataclasses
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "min_length")
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def of(kind: type[Any]) -> dict[str, dict[str, Any]]:
    """Setting -> `kind` (such as "whole number"), and what holds it: `ge gt le lt multiple_of min_length choices empty items`."""
    hints = get_type_hints(kind, include_extras=True)
    parts = {field.name for field in dataclasses.fields(kind) if "part" in field.metadata}
    return {
        field.name: {"kind": "name of a method"} if field.name in parts else _of(hints[field.name]) for field in dataclasses.fields(kind)
    }


def _of(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Annotated:
        plain, *more = get_args(hint)
        limits = [one for info in more for one in getattr(info, "metadata", [])]
        found = {name: getattr(limit, name) for limit in limits for name in BOUNDS if hasattr(limit, name)}
        return _of(plain) | found
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return {"kind": "choice", "choices": list(parts)}
    if get_origin(hint) is tuple:
        return {"kind": "list", "items": _of(parts[0])}
    if get_origin(hint) in (Union, UnionType):
        first = next(part for part in parts if part is not NoneType)
        return _of(first) | ({"empty": True} if NoneType in parts else {})
    return {"kind": KINDS[hint]}


def words(limits: dict[str, Any]) -> str:
    """The same for a reader: "whole number, 0 to 64", "end, middle or front"."""
    if limits["kind"] == "choice":
        *first, last = map(str, limits["choices"])
        said = f"{', '.join(first)} or {last}" if first else last
    elif limits["kind"] == "list":
        said = f"list by commas, each a {words(limits['items'])}" + (", not empty" if limits.get("min_length") else "")
    else:
        said = limits["kind"] + (", not empty" if limits.get("min_length") else "")
    held = _between(limits)
    several = f", a multiple of {limits['multiple_of']}" if "multiple_of" in limits else ""
    return said + (f", {held}" if held else "") + several + (", or not set" if limits.get("empty") else "")


def _between(limits: dict[str, Any]) -> str:
    """Bounds in words."""
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    low = f"{limits['ge']} or more" if "ge" in limits else f"above {limits['gt']}" if "gt" in limits else ""
    high = f"up to {limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    return " and ".join(filter(None, [low, high]))
