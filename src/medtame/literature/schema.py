"""A paper and a model as rows of the tables, checked when they are made. A message says what is wrong and what was got."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from medtame.literature import links, words

FIRST_YEAR, LAST_YEAR = 1990, 2035
MARKUP = re.compile(r"[{}]|\\[\"'`^~=.a-zA-Z]")


def split(value: object) -> object:
    """Several values are joined by semicolons."""
    return tuple(part.strip() for part in value.split(";") if part.strip()) if isinstance(value, str) else value


def known(kind: str, names: Sequence[str], value: str) -> str:
    """One of the names. Raises ValueError with the nearest."""
    if value not in names:
        near = difflib.get_close_matches(value, names, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names)}.")
    return value


def all_known(kind: str, names: Sequence[str]) -> AfterValidator:
    return AfterValidator(lambda values: tuple(known(kind, names, value) for value in values))


def one_known(kind: str, names: Sequence[str]) -> AfterValidator:
    return AfterValidator(lambda value: known(kind, names, value))


def plain_title(title: str) -> str:
    """Letters as they are read, not as BibTeX writes them. Raises ValueError."""
    if not title:
        raise ValueError("no title")
    if MARKUP.search(title):
        raise ValueError(f'title {title!r} holds BibTeX markup: write plain letters (ü, not {{\\"u}}) and no braces')
    return title


def year_number(value: object) -> object:
    """A year in four digits; empty means that the source did not say. Raises ValueError."""
    if value in ("", None):
        return None
    if not re.fullmatch(r"\d{4}", str(value)) or not FIRST_YEAR <= int(str(value)) <= LAST_YEAR:
        raise ValueError(f"year {value!r} is no number from {FIRST_YEAR} to {LAST_YEAR}; leave it empty where the source does not say")
    return int(str(value))


def repository(value: str) -> str:
    if value and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ValueError(f"code {value!r} is not owner/name of a repository")
    return value


def document(values: tuple[str, ...]) -> tuple[str, ...]:
    """Documents that were read: web pages, files of an installed package, or the paper's title as the review lists it."""
    for value in values:
        if value.startswith("https://"):
            links.checked_link(value)
        elif value != "title" and not re.fullmatch(r"pypi:[\w.-]+==[\w.]+:[\w./-]+", value):
            raise ValueError(f"source {value!r} is no web page, no pypi:package==version:file and not the word title")
    return values


Words = Annotated[tuple[str, ...], BeforeValidator(split)]
Tasks = Annotated[Words, all_known("task", words.TASKS)]
Strategies = Annotated[Words, all_known("strategy", words.STRATEGIES)]
Learnings = Annotated[Words, all_known("learning", words.LEARNING)]
Modalities = Annotated[Words, all_known("modality", words.MODALITIES)]
BodyParts = Annotated[Words, all_known("body_part", words.BODY_PARTS)]
Title = Annotated[str, AfterValidator(plain_title)]
Link = Annotated[str, AfterValidator(links.checked_link)]
Identifier = Annotated[str, AfterValidator(links.checked_identifier)]
Documents = Annotated[Words, AfterValidator(document)]


class Row(BaseModel):
    """Frozen, no unknown columns, no spaces at the ends."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Paper(Row):
    """A paper. Empty means that the source did not say. `strategy` is the main one, then perhaps a second."""

    title: Title
    year: Annotated[int | None, BeforeValidator(year_number)]
    task: Annotated[str, one_known("task", words.TASKS)]
    other_tasks: Tasks
    learning: Learnings
    strategy: Strategies
    model: Words
    modality: Modalities
    body_part: BodyParts
    dataset: Words
    code: Annotated[str, AfterValidator(repository)]
    identifier: Identifier
    url: Link
    evidence: Annotated[str, one_known("evidence", words.EVIDENCE)]
    origin: Literal["review", "added"]

    @model_validator(mode="after")
    def agrees(self) -> Paper:
        """What must hold between the fields of one row."""
        if self.task in self.other_tasks:
            raise ValueError(f"{self.task} stands under task and again under other_tasks")
        if len(self.strategy) > 2:
            raise ValueError(f"{len(self.strategy)} strategies: name the main one and at most a second")
        if self.identifier and self.url:
            raise ValueError("identifier and url are both filled: the identifier gives the link, leave url empty")
        if self.origin == "added" and not (self.identifier or self.url):
            raise ValueError("neither identifier nor url: an added paper needs one")
        return self

    @property
    def link(self) -> str:
        """The stable link of the identifier, else the page, else nothing."""
        return links.stable(self.identifier) or self.url


class Model(Row):
    """A model of the review's table. What no document that was read says is `unknown`; `source` names these documents."""

    name: str
    paper: str
    domain: Literal["natural", "medical"]
    identifier: Identifier
    url: Link
    reached: Annotated[str, one_known("way to reach a model", words.REACHED)]
    checkpoint: str
    licence: str
    licence_covers: Literal["weights", "repository", "unknown"]
    size: str
    modality: str
    kind: Annotated[str, one_known("kind of model", words.KINDS)]
    loads_as: str
    source: Documents

    @model_validator(mode="after")
    def rests_on_documents(self) -> Model:
        """No fact without a document; a licence or a size is never read from a title alone."""
        facts = {name: getattr(self, name) for name in FACTS}
        empty = [name for name, value in facts.items() if not value]
        if empty:
            raise ValueError(f"{empty[0]} is empty: write unknown")
        said = [name for name, value in facts.items() if value != words.UNKNOWN]
        if said and not self.source:
            raise ValueError(f"{said[0]} is {facts[said[0]]!r} and source names no document that was read")
        beyond = [name for name in said if name not in ("modality", "kind", "size")]
        if beyond and not set(self.source) - {"title"}:
            raise ValueError(f"{beyond[0]} is {facts[beyond[0]]!r} and source names only the title")
        if (self.licence == words.UNKNOWN) != (self.licence_covers == words.UNKNOWN):
            raise ValueError(f"licence is {self.licence!r} and licence_covers is {self.licence_covers!r}")
        if self.checkpoint and self.reached not in ("open_clip", "transformers", "diffusers", "own code"):
            raise ValueError(f"a checkpoint is named and reached is {self.reached!r}")
        return self

    @property
    def link(self) -> str:
        return links.stable(self.identifier) or self.url


FACTS = ("reached", "licence", "size", "modality", "kind")
