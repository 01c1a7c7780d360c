"""What of a report is learnt from: sections by name, marks of de-identification taken out, sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKS = re.compile(r"\[\*\*.*?\*\*\]|\bX{2,}\b(?:[\s,/-]*\bX{2,}\b)*|_{2,}|<(?:name|date|id|redacted|phi)[^>]*>", re.IGNORECASE)
HEADING = re.compile(r"(?:^|(?<=[\n.;:]))[ \t]*([A-Za-z][A-Za-z /()&-]{2,40}?):[ \t]*", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[^\s\d])|\n\s*\n")
SHORTEST = 3  # letters of a sentence


def cleaned(text: str) -> str:
    """Without marks of de-identification (XXXX, [** … **], ___, <NAME>) and what they leave behind; spaces are one space."""
    bare = MARKS.sub(" ", text)
    bare = re.sub(r"\(\s*\)|\[\s*\]", " ", bare)
    bare = re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"[ \t]+", " ", bare))
    bare = re.sub(r"([,;:])(?:\s*[,;:])+|([.!?])(?:\s*[.,;:])+", lambda found: found.group(1) or found.group(2), bare)
    lines = [line.strip(" ,;:") for line in bare.splitlines()]
    return "\n".join(line for line in lines if line).strip()


def sections(text: str) -> dict[str, str]:
    """Section name in lower case -> its words, for headings that stand at a line's or a sentence's begin and end in a colon.

    What stands before the first heading has the name "".
    """
    found: dict[str, str] = {}
    begin, name = 0, ""
    for heading in HEADING.finditer(text):
        _add(found, name, text[begin : heading.start()])
        begin, name = heading.end(), " ".join(heading.group(1).lower().split())
    _add(found, name, text[begin:])
    return found


def _add(found: dict[str, str], name: str, words: str) -> None:
    if words.strip():
        found[name] = f"{found[name]}\n{words.strip()}" if name in found else words.strip()


def chosen(text: str, wanted: Sequence[str]) -> str:
    """The wanted sections in the order asked for, by name (findings, impression); the whole text where it has none of them."""
    there = sections(text)
    kept = [there[name.strip().lower()] for name in wanted if name.strip().lower() in there]
    return "\n".join(kept) if kept else text


def sentences(text: str) -> list[str]:
    """Sentences with a letter in them; a text without an end is one."""
    parts = [" ".join(part.split()) for part in SENTENCE.split(text)]
    return [part for part in parts if sum(letter.isalpha() for letter in part) >= SHORTEST]
