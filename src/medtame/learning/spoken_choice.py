"""Options as a generative model is shown them, and which of them its words choose.

An answer counts only where it is unmistakable; everything else is None, a refusal, and never a class. Read in this order:

1. The whole answer is an option, or its marker (`B`, `(B)`, `Answer: B.`).
2. It begins with a marker and names no other option (`B) pneumonia`).
3. It begins with yes or no, where these are options, and ends or goes on after a sign (`No, the lungs are clear`).
4. It names exactly one option that it does not deny.

Names are whole words, whatever the case and the signs between them, the longest first: "viral pneumonia" does not name
"pneumonia". A name is denied by a word such as no, not, without, neither, "absence of", "rather than" before it in its clause, or
by not, absent, excluded, unlikely … just after it; "whether", "unclear", "unable" and the like count as denials, too. A clause
ends at a full stop, semicolon, colon, bracket, line, "but" or "however", and at a comma unless "or" or "nor" goes on with the
list: "no effusion, pneumonia or nodule" denies all three.
A thought between <think> and </think> is left out; one that never ends is no answer. The rules are for English.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

BEFORE = re.compile(
    r"\b(?:no|not|non|without|never|neither|nor|none|cannot|lacks?|lacking|denies|excludes?|excluding|unlikely|absence|absent|"
    r"whether|unclear|uncertain|unsure|unable|impossible|difficult|insufficient|"
    r"free of|rule[sd]? out|ruling out|rather than|instead of|negative for|\w+n['’]t)\b"
)
AFTER = re.compile(r"^\W*(?:\w+\W+){0,3}?(?:no|not|absent|excluded|unlikely|unclear|uncertain|negative|ruled out|\w+n['’]t)\b", re.ASCII)
CLAUSE = re.compile(r"[.;:()\[\]\n]|\b(?:but|however|though|although)\b")
LEADING = re.compile(r"(?:(?:the )?(?:correct |best )?(?:answer|option|choice)(?: is)?\s*:?\s*)?", re.IGNORECASE)


def options_of(names: Sequence[str], prompts: Sequence[Sequence[str]]) -> list[str]:
    """How each candidate is worded to the model: its first sentence, bare of the template where all share one."""
    sentences = [sentences[0].strip() for sentences in prompts]
    for name in names:
        before, found, after = sentences[0].partition(name)
        if name and found and set(sentences) == {f"{before}{one}{after}" for one in names}:
            return [sentence[len(before) : len(sentence) - len(after)] for sentence in sentences]
    return sentences


def markers_of(options: Sequence[str]) -> list[str]:
    """A, B, C … or 1, 2, 3 …, whichever no option could be taken for; empty where neither is free."""
    plain = {option.strip().casefold() for option in options}
    if len(options) <= len(string.ascii_uppercase) and not any(len(option) == 1 and option.isalpha() for option in plain):
        return list(string.ascii_uppercase[: len(options)])
    if not any(option.isdecimal() for option in plain):
        return [str(number) for number in range(1, len(options) + 1)]
    return []


def listed(options: Sequence[str]) -> str:
    """A line an option, each after its marker."""
    return "\n".join(offered(options, k) for k in range(len(options)))


def offered(options: Sequence[str], k: int) -> str:
    """Option k as the list shows it, and as an example answers it."""
    markers, words = markers_of(options), " ".join(options[k].split())
    return f"{markers[k]}) {words}" if markers else f"- {words}"


def spoken(answer: str) -> str:
    """The answer without its thoughts; nothing where these never end."""
    text = unicodedata.normalize("NFKC", answer)
    text = text.rpartition("</think>")[2] if "</think>" in text else text.partition("<think>")[0]
    return text.strip()


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """The number of the one option that an answer chooses; None for a refusal, for none, and for several."""
    text = spoken(answer).strip("*_`\"'“” \n\t")
    text = text[LEADING.match(text).end() :].strip("*_`\"'“” \n\t")  # type: ignore[union-attr]
    whole = [k for k, option in enumerate(options) if bare(option) and bare(option) == bare(text)]
    if whole:
        return whole[0] if len(whole) == 1 else None
    first = marked(text, markers_of(options))
    if first is not None:
        rest = named(text[first[1] :], options)
        return first[0] if rest <= {first[0]} or options.count(options[first[0]]) > 1 else None
    begun = re.match(r"(yes|no)\s*(?:[.,;:!\n]|$)", text, re.IGNORECASE)
    if begun:
        said = [k for k, option in enumerate(options) if option.strip().casefold() == begun[1].casefold()]
        if said:
            return said[0]
    found = named(text, options)
    return next(iter(found)) if len(found) == 1 else None


def held(answer: str, options: Sequence[str]) -> frozenset[int] | None:
    """The options of which an answer says that they hold; None where it names none and does not say none either."""
    text = spoken(answer)
    if bare(text) in ("none", "none of them", "none of these", "none of the above"):
        return frozenset()
    found = set(named(text, options))
    for line in text.splitlines():
        begun = marked(line.strip("*_`-• \t"), markers_of(options))
        if begun is not None and not BEFORE.search(line.casefold()[begun[1] :]):
            found.add(begun[0])
    return frozenset(found) or None


def marked(text: str, markers: Sequence[str]) -> tuple[int, int] | None:
    """The option whose marker a text begins with, and where the marker ends; a letter alone, or before a bracket, point or colon."""
    for k, marker in enumerate(markers):
        found = re.match(rf"\(?{marker}(?:\)|[.:](?=\s|$)|\s*$|\*+)", text)
        if found:
            return k, found.end()
    return None


def named(text: str, options: Sequence[str]) -> frozenset[int]:
    """The options that a text names and does not deny; one of the same words as another is not told apart, so all such are named."""
    plain = text.casefold()
    spans: list[tuple[int, int, int]] = []
    hidden = plain
    for k in sorted(range(len(options)), key=lambda k: -len(options[k])):
        pattern = pattern_of(options[k])
        same = {bare(options[other]) for _, _, other in spans}
        if pattern is None:
            continue
        for found in pattern.finditer(plain if bare(options[k]) in same else hidden):
            spans.append((found.start(), found.end(), k))
            hidden = hidden[: found.start()] + "\0" * (found.end() - found.start()) + hidden[found.end() :]
    return frozenset(k for start, end, k in spans if not denied(hidden, start, end))


def denied(text: str, start: int, end: int) -> bool:
    """Whether what surrounds a name denies it; names themselves are blanked in `text`, so that "no finding" denies nothing."""
    before = CLAUSE.split(text[:start])[-1]
    parts, after = before.split(","), CLAUSE.split(text[end:])[0]
    list_goes_on = len(parts) > 1 and re.search(r"\b(?:or|nor)\b", parts[-1] + after)
    scope = before if list_goes_on else parts[-1]
    if BEFORE.search(scope):
        return True
    following = re.split(r"[.;()\[\]\n,\0]|\b(?:but|however|rather|instead|and|or)\b", text[end:])[0]
    return bool(AFTER.match(following))


def pattern_of(option: str) -> re.Pattern[str] | None:
    """Whole words in any case, with any signs between them; an option of signs alone is looked for as it stands."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", option).casefold())
    if not words:
        return re.compile(re.escape(option.strip())) if option.strip() else None
    return re.compile(r"(?<![^\W_])" + r"[\W_]+".join(map(re.escape, words)) + r"(?![^\W_])")


def bare(text: str) -> str:
    """Words alone, lower case; what has none stays as it is."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", plain)) or plain.strip()
