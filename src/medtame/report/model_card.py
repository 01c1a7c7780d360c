"""The model card of a run: README.md with the YAML head that Hugging Face reads. Written from plain values that are checked first.

A card holds no image and no name of an image. It says which training data the run stores inside, and what the report shows in words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from pydantic import Field, ValidationError

from medtame.errors import RunError
from medtame.report.figure_values import Confused, Figures
from medtame.report.parts import Measured, Part, Prompts, Text
from medtame.report.plots import words
from medtame.report.record import (
    Control,
    Cost,
    EncoderNote,
    Environment,
    PartOfData,
    bracket,
    decimals,
    engine_sentence,
    first,
    number,
    write_file,
)

WEIGHTS = "weights.safetensors"
MISTAKES = 5  # of the commonest wrong answers
LIVE = re.compile(r"([\\`*\[\]|!#~$])")  # what Markdown would act on


class TrainingData(Part):
    """The rows that were learnt from; `rows` names the part of the data set (train, all)."""

    n: int
    classes: list[Text] | dict[Text, int] = Field(default_factory=list)
    groups: int | None = None
    rows: Text = ""
    split: Text | dict[Text, int] = ""


class Card(Part):
    """What a card says. `stores_support_rows`: features, texts or sentences of training rows lie inside the run."""

    method: Text
    task: Text
    strategy: Text = ""
    learning: Text = ""
    encoder: EncoderNote
    data: TrainingData
    settings: dict[Text, Any] = Field(default_factory=dict)
    papers: list[Text] = Field(default_factory=list)
    stores_support_rows: bool
    metrics: dict[Text, Measured] = Field(default_factory=dict)
    metrics_of: Text = ""
    answer: Text = ""
    how_chosen: Text = ""
    figures: Figures | None = None
    controls: list[Control] = Field(default_factory=list)
    cost: Cost | None = None
    parts: list[PartOfData] = Field(default_factory=list)
    leakage: Text = ""
    limits: list[Text] = Field(default_factory=list)
    warnings: list[Text] = Field(default_factory=list)
    prompts: Prompts = Field(default_factory=dict)
    checksum: Text | None = None
    environment: Environment = Field(default_factory=Environment)
    command: Text = ""
    simulated: bool = False
    license: Text = "unknown"
    base_model: Text | None = None
    tags: list[Text] = Field(default_factory=list)


def write(path: Path, details: Mapping[str, Any]) -> None:
    """Write the card; without a `checksum` that of weights.safetensors beside it is taken.

    Raises:
        RunError: a detail is missing, unknown or of another kind, or the file cannot be written.
    """
    try:
        card = Card.model_validate(details)
    except ValidationError as error:
        raise RunError(f"the model card cannot be written: {first(error)}") from None
    weights = path.parent / WEIGHTS
    if card.checksum is None and weights.is_file():
        with weights.open("rb") as file:
            card = card.model_copy(update={"checksum": hashlib.file_digest(file, "sha256").hexdigest()})
    write_file(path, text(card))


def text(card: Card) -> str:
    """The card as Markdown."""
    templates = Templates(
        loader=PackageLoader("medtame.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    templates.filters |= {"plain": plain, "yaml": yaml, "words": words, "number": number, "code": code, "setting": setting, "boxed": boxed}
    templates.globals |= {"bracket": bracket, "decimals": decimals, "mistaken": mistaken, "confidence": confidence}
    templates.globals |= {"engine_sentence": engine_sentence}
    tags = dict.fromkeys(["medical", "vision-language", card.task.replace("_", "-"), card.method, "research-use-only", *card.tags])
    return templates.get_template("card.md.j2").render(
        card=card, tags=tags, base_model=card.base_model or card.encoder.spec, weights=WEIGHTS
    )


def mistaken(found: Figures) -> list[Confused]:
    """The commonest wrong answers, from the matrix or the list."""
    matrix = found.confusion
    if matrix is None:
        return found.confusions[:MISTAKES]
    pairs = [
        Confused(truth=truth, said=said, n=n, share=n / sum(row))
        for truth, row in zip(matrix.labels, matrix.counts, strict=True)
        for said, n in zip(matrix.said, row, strict=True)
        if n and truth != said
    ]
    return sorted(pairs, key=lambda pair: (-pair.n, -pair.share))[:MISTAKES]


def confidence(found: Figures) -> tuple[float, float] | None:
    """Mean confidence of the method, and the share that is right."""
    bins = next((one.bins for one in found.reliability if one.method == found.method), [])
    n = sum(bin.n for bin in bins)
    if not n:
        return None
    return sum(bin.n * bin.confidence for bin in bins) / n, sum(bin.n * (bin.right.value or 0.0) for bin in bins) / n


def boxed(measured: Measured) -> str:
    """A value with its interval, as a cell of a table."""
    interval = bracket(measured.low, measured.high)
    return plain(f"{number(measured.value)} {interval}".rstrip())


def plain(value: Any) -> str:
    """A text on one line that neither Markdown nor HTML acts on."""
    return escape(LIVE.sub(r"\\\1", " ".join(str(value).split())), quote=False)


def code(value: str) -> str:
    """An indented block: no text can end it early."""
    return "\n".join(f"    {line}" for line in value.splitlines())


def setting(value: Any) -> str:
    return plain(json.dumps(value, ensure_ascii=False, default=str))


def yaml(value: Any) -> str:
    """A scalar for the YAML head: JSON strings are YAML strings."""
    return json.dumps(value)
