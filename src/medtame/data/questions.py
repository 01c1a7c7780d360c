"""What the wording of a question tells: whether it asks for yes or no, what kind of thing it asks for, what it offers to choose from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from medtame.metrics.answers import normalised

YES_NO = ("yes", "no")
AUXILIARIES = frozenset({"is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "would", "should"})
# of a question that asks for neither yes nor no; the first that matches
KINDS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "plane": re.compile(r"\b(plane|view|axial|sagittal|coronal|orientation)\b"),
        "modality": re.compile(
            r"\b(modality|imaging|ct|mri?|x ?ray|ultrasound|radiograph|sequence|weighted|technique|type of image|scan)\b"
        ),
        "count": re.compile(r"\b(how many|number of)\b"),
        "size": re.compile(r"\b(size|large|small|big|wide|how much)\b"),
        "place": re.compile(r"\b(where|side|location|located|lobe|region|left|right|part of|lies?)\b"),
        "organ": re.compile(r"\b(organ|organs|body|structures?)\b"),
    }
)
OTHER = "other"


def asks_yes_or_no(question: str) -> bool:
    """Whether the wording of a question asks for yes or no: it begins with an auxiliary verb and offers no choice."""
    words = normalised(question).split()
    return bool(words) and words[0] in AUXILIARIES and "or" not in words


def kind_of(question: str) -> str:
    """yes_no, choice, plane, modality, count, size, place, organ or other, by words alone: rules, not a parser."""
    text = normalised(question)
    if asks_yes_or_no(question):
        return "yes_no"
    found = next((kind for kind, words in KINDS.items() if words.search(text)), None)
    return found or ("choice" if "or" in text.split() else OTHER)


def offered(question: str, answers: Sequence[str]) -> list[int]:
    """The numbers of the answers (normalised) that a question which offers a choice names word by word; none where it offers none.

    "Is this a CT or an MR image?" offers "ct" and "mr". An answer inside a longer one that is named too ("contrast ct") is not offered.
    """
    text = f" {normalised(question)} "
    if " or " not in text:
        return []
    named = [k for k, answer in enumerate(answers) if answer and answer not in YES_NO and f" {answer} " in text]
    return [k for k in named if not any(k != other and f" {answers[k]} " in f" {answers[other]} " for other in named)]
