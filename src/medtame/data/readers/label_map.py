"""Label maps: a mask file whose pixel values are classes gives one row a class, so that each structure can be asked by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtame.data.readers.table import quoted
from medtame.errors import DataError

BACKGROUND = "background"


def structures(name: str, labels: Any) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Class name -> its pixel values, from {"liver": 1} (nnU-Net, also {"whole": [1, 2]}) or {"1": "liver"} (Decathlon); and notes.

    Background (0) and nnU-Net's `ignore` are no structures. Raises DataError, which names `name`, for values that are no whole numbers.
    """
    if not isinstance(labels, Mapping):
        raise DataError(f'{name}: \'labels\' is no object: write it as {{"background": 0, "liver": 1}}')
    turned = bool(labels) and all(str(key).lstrip("-").isdecimal() for key in labels)
    pairs = [(str(value), [key]) if turned else (str(key), value if isinstance(value, list) else [value]) for key, value in labels.items()]
    found: dict[str, tuple[int, ...]] = {}
    notes = []
    for structure, values in pairs:
        try:
            numbers = tuple(int(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{name}: the label {quoted(structure)!r} has the value {quoted(values)}: give whole numbers") from None
        if structure.casefold() == "ignore":
            notes.append(f"The label 'ignore' ({', '.join(map(str, numbers))}) is no structure; its pixels count as outside.")
        elif structure.casefold() != BACKGROUND and numbers != (0,):
            found[structure] = numbers
    return found, notes


def read_as(names: Mapping[str, tuple[int, ...]]) -> str:
    """A note that says which pixel value is which structure."""
    pairs = ", ".join(f"{quoted(name)} = {'|'.join(map(str, numbers))}" for name, numbers in names.items())
    return f"A row a case and structure; the mask holds the pixels with its values: {pairs}."
