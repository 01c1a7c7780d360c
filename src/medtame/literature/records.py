"""Papers and models as others read them: JSON rows, Markdown, BibTeX. An empty field is shown as `not said`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from medtame.literature.schema import FACTS, Model, Paper
from medtame.literature.words import EVIDENCE_NOTE, NOT_SAID, READING, UNKNOWN

COLUMNS = ("title", "year", "task", "strategy", "learning", "modality", "body part", "evidence", "code", "link")


def paper(row: Paper) -> dict[str, Any]:
    """A row of `medtame papers --json`: lists may be empty, year and code null; `link` is stable where there is an identifier."""
    return row.model_dump(exclude={"url"}) | {"code": row.code or None, "identifier": row.identifier or None, "link": row.link or None}


def model(row: Model) -> dict[str, Any]:
    """A row of `medtame models --json`; what no document says is `unknown`, `loads_as` is null where medtame does not load it."""
    return row.model_dump(exclude={"url"}) | {
        "link": row.link or None,
        "loads_as": row.loads_as or None,
        "checkpoint": row.checkpoint or None,
    }


def shown(values: Sequence[str] | str | int | None) -> str:
    """A field as a person reads it."""
    if isinstance(values, str) or values is None or isinstance(values, int):
        return str(values) if values else NOT_SAID
    return ", ".join(values) or NOT_SAID


def cells(row: Paper) -> tuple[str, ...]:
    """The columns that a table shows, in the order of COLUMNS."""
    others = f" (also {', '.join(row.other_tasks)})" if row.other_tasks else ""
    task, labels = row.task + others, (row.strategy, row.learning, row.modality, row.body_part)
    return (row.title, shown(row.year), task, *map(shown, labels), row.evidence, row.code or NOT_SAID, row.link or NOT_SAID)


def unknowns(rows: Sequence[Model]) -> dict[str, int]:
    """How many models have each fact unknown."""
    return {name: sum(getattr(row, name) == UNKNOWN for row in rows) for name in FACTS}


def unknowns_said(rows: Sequence[Model]) -> str:
    """The unknowns in a line."""
    counts = ", ".join(f"{name} {n}" for name, n in unknowns(rows).items())
    loaded = sum(bool(row.loads_as) for row in rows)
    return f"unknown, of {len(rows)} models: {counts}. medtame loads {loaded} of them by a name."


# ---- Markdown ------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Paper]) -> str:
    """A table with a link in each title, and what its labels are."""
    lines = ["| " + " | ".join(COLUMNS[:-2]) + " | code |", "|" + "---|" * (len(COLUMNS) - 1)]
    for row in rows:
        title, *labels, code, link = map(escaped, cells(row))
        name = f"[{title}](<{link}>)" if row.link else f"{title} (no link)"
        repository = f"[{code}](https://github.com/{row.code})" if row.code else code
        lines.append("| " + " | ".join([name, *labels, repository]) + " |")
    return "\n".join([*lines, "", f"{READING} {EVIDENCE_NOTE}", ""])


def escaped(text: str) -> str:
    return re.sub(r"([\\|\[\]*_<>`])", r"\\\1", text) if "://" not in text else text


# ---- BibTeX --------------------------------------------------------------------------------------------------

ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k",
}  # fmt: skip
SIGNS = {
    "\\": "{\\textbackslash}", "{": "{\\textbraceleft}", "}": "{\\textbraceright}", "~": "{\\textasciitilde}", "^": "{\\textasciicircum}",
    "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "ß": "{\\ss}", "æ": "{\\ae}", "Æ": "{\\AE}", "ø": "{\\o}", "Ø": "{\\O}",
    "ł": "{\\l}", "Ł": "{\\L}", "ı": "{\\i}", "–": "{\\textendash}", "—": "{\\textemdash}", "’": "{\\textquoteright}",
    "‘": "{\\textquoteleft}", "“": "{\\textquotedblleft}", "”": "{\\textquotedblright}", "°": "{\\textdegree}",
}  # fmt: skip


def bibtex(rows: Sequence[Paper]) -> str:
    """An entry a paper; authors are not in the tables, so every entry is `@misc` with its title, year, link and identifier."""
    keys = [key(row) for row in rows]
    times = Counter(keys)
    seen: Counter[str] = Counter()
    entries = []
    for row, name in zip(rows, keys, strict=True):
        seen[name] += 1
        entries.append(entry(row, name if times[name] == 1 else f"{name}-{seen[name]}"))
    return "\n".join(entries)


def entry(row: Paper, name: str) -> str:
    scheme, _, value = row.identifier.partition(":")
    fields = {"title": f"{{{tex(row.title)}}}", "year": str(row.year or ""), "url": row.link}
    if scheme == "arxiv":
        fields |= {"eprint": value, "archiveprefix": "arXiv"}
    elif scheme == "doi":
        fields["doi"] = value
    labels = [("task", row.task), ("strategy", shown(row.strategy)), ("labels rest on", row.evidence)]
    fields["note"] = tex("; ".join(f"{label}: {said}" for label, said in labels))
    lines = [f"  {label} = {{{said}}}," for label, said in fields.items() if said]
    return "\n".join([f"@misc{{{name},", *lines, "}", ""])


def key(row: Paper) -> str:
    """First long word of the title and the year, in plain letters."""
    letters = unicodedata.normalize("NFKD", row.title).encode("ascii", "ignore").decode()
    words = [word for word in re.findall(r"[A-Za-z0-9]+", letters) if len(word) > 3] or ["paper"]
    return f"{words[0].lower()}{row.year or 'nodate'}"


def tex(text: str) -> str:
    """Letters as BibTeX takes them: braces are balanced whatever the title holds, accents are commands."""
    out: list[str] = []
    for sign in unicodedata.normalize("NFD", text):
        if sign in ACCENTS and out:
            accent, letter = ACCENTS[sign], out.pop()
            out.append(f"{{\\{accent}{{{letter}}}}}" if accent.isalpha() else f"{{\\{accent}{letter}}}")
        else:
            out.append(SIGNS.get(sign, "-" if sign in "\u2010\u2011" else sign))
    return unicodedata.normalize("NFC", "".join(out))
