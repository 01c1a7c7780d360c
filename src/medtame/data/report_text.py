"""What of a report is learnt from: sections by name, marks of de-identification taken out, sentences."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

MARK = r"(?:\[\*\*.*?\*\*\]|(?-i:X{4,})(?:'s\b|[AP]M\b)?|\bX{3,}\b|_{2,}|<(?:name|date|id|redacted|phi)\b[^>]*>)"
MARKS = re.compile(rf"(?:\b-)?{MARK}(?:[\s,/-]*{MARK})*", re.IGNORECASE)  # with the hyphen that ties it to a word: dual-XXXX
RAY = re.compile(rf"\b(x)-{MARK}", re.IGNORECASE)  # the one word that Open-i's masking hides behind a hyphen: x-ray
KNOWN = (
    r"(?:clinical |brief |past medical |patient )?history|(?:clinical )?indications?|(?:clinical )?information|"
    r"reason for (?:the )?(?:exam|study)\w*|comparisons?|techniques?|(?:type of )?exam(?:ination)?|procedure|views?|"
    r"findings?(?: and impressions?)?|impressions?|conclusions?|recommendations?|addendum|summary|diagnosis|differential diagnosis|"
    r"discussion|opinion|interpretation"
)
HEADING = re.compile(rf"(?:^|(?<=[\n.;:]))[ \t]*((?i:{KNOWN})|[A-Z][A-Z /()&-]{{2,40}}?):[ \t]*", re.MULTILINE)
ITEM = r"\d{1,2}[.)][ \t]+"  # of a numbered list
ABBREVIATED = r"(?<!\bvs\.)(?<!\bDr\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bapprox\.)"
ENDS = r"(?<=[.!?;])\s+"
SENTENCE = re.compile(rf"{ABBREVIATED}(?:{ENDS}(?=[^\s\d])|{ENDS}(?={ITEM})|(?<=[a-z]{{4}}[.!?;])\s+(?=\d)|\n\s*(?={ITEM}))|\n\s*\n")
SHORTEST = 3  # letters of a sentence


def cleaned(text: str) -> str:
    """Without marks of de-identification (XXXX, [** … **], ___, <NAME>) and what they leave behind; spaces are one space.

    Entities and line breaks of HTML are taken for what they mean.
    """
    bare = re.sub(r"<br\s*/?>", "\n", html.unescape(text), flags=re.IGNORECASE)
    bare = MARKS.sub(" ", RAY.sub(r"\1-ray", bare))
    bare = re.sub(r"\(\s*\)|\[\s*\]", " ", bare)
    bare = re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"[ \t]+", " ", bare))
    bare = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", bare)
    bare = re.sub(r"[,;:]\s*([.!?])|([.!?])(?:\s*[.;:])+", lambda found: found.group(1) or found.group(2), bare)
    lines = [line.lstrip(" ,;:").rstrip() for line in bare.splitlines()]
    return "\n".join(line for line in lines if line).strip().rstrip(" ,;:")


def sections(text: str) -> dict[str, str]:
    """Section name in lower case -> its words, for headings that stand at a line's or a sentence's begin and end in a colon.

    A heading is one of the usual names of a report's sections in any case, or in capitals throughout: "Left knee:" within the findings
    is none. What stands before the first heading has the name "".
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
    """The wanted sections in the order asked for, by name (findings, impression); the whole text where it has none of them.

    A name also finds the sections whose heading holds it ("impression": "FINDINGS AND IMPRESSION"), each once.
    """
    there = sections(text)
    names = []
    for name in (one.strip().lower() for one in wanted):
        names += [name] if name in there else [one for one in there if name and re.search(rf"\b{re.escape(name.rstrip('s'))}", one)]
    return "\n".join(there[name] for name in dict.fromkeys(names)) if names else text


def sentences(text: str) -> list[str]:
    """Sentences with a letter in them, without the numbers of a list; a text without an end is one."""
    parts = [re.sub(rf"^{ITEM}", "", " ".join(part.split())) for part in SENTENCE.split(text)]
    return [part for part in parts if sum(letter.isalpha() for letter in part) >= SHORTEST]
