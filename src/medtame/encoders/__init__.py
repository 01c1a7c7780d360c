"""Encoders by name: `bundled`, or `bundled:FOLDER` with its weight files in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from medtame.encoders import bundled
from medtame.encoders.towers import EncoderCard, TowerEncoder
from medtame.errors import UnknownNameError

Opener = Callable[[], TowerEncoder]


def _bundled(rest: str) -> tuple[Callable[[], EncoderCard], Opener]:
    folder = Path(rest) if rest else None
    return lambda: bundled.card(folder), lambda: bundled.load(folder)


FAMILIES: Mapping[str, Callable[[str], tuple[Callable[[], EncoderCard], Opener]]] = {"bundled": _bundled}


def card(spec: str) -> EncoderCard:
    """What is known of an encoder before its weights are read. Raises UnknownNameError, MissingExtraError, EncoderError."""
    return _family(spec)[0]()


def load(spec: str) -> TowerEncoder:
    """The encoder, its weights read and checked. Raises UnknownNameError, MissingExtraError, EncoderError."""
    return _family(spec)[1]()


def _family(spec: str) -> tuple[Callable[[], EncoderCard], Opener]:
    family, _, rest = spec.partition(":")
    if family not in FAMILIES:
        raise UnknownNameError("encoder", spec, FAMILIES)
    return FAMILIES[family](rest)
