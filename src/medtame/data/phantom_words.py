"""What is said about a phantom image: findings, caption, questions. Several wordings, drawn by the generator that is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from medtame.data.phantom_lesions import Side, Size

NORMAL = "normal"


@dataclass(frozen=True)
class Facts:
    """What is true of an image. Side and size say nothing where the kind is normal."""

    kind: str
    side: Side
    size: Size


_SEEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tumour": (
            "There is a {size} ring-enhancing mass in the {side} cerebral hemisphere, in keeping with a tumour.",
            "A {size} tumour with a bright rim and a dark centre is seen on the {side}.",
            "{Side}-sided intra-axial tumour, {size}, with peripheral enhancement and central necrosis.",
            "Findings suggest a {size} tumour of the {side} hemisphere.",
        ),
        "haemorrhage": (
            "There is a {size} intraparenchymal haemorrhage in the {side} cerebral hemisphere.",
            "A {size} haemorrhage is seen on the {side}.",
            "{Side}-sided haemorrhage, {size}, with well defined margins.",
            "Signal change in keeping with a {size} haemorrhage of the {side} hemisphere.",
        ),
        "white matter lesions": (
            "There are several bright white matter lesions in the {side} cerebral hemisphere, the burden is {size}.",
            "Multiple white matter lesions on the {side}, of {size} total extent.",
            "{Side}-sided scattered white matter lesions with a {size} overall load.",
            "Focal white matter lesions are present in the {side} hemisphere; their total volume is {size}.",
        ),
        "infarct": (
            "There is a {size} wedge-shaped infarct in the {side} cerebral hemisphere.",
            "A {size} infarct with low signal that reaches the cortex is seen on the {side}.",
            "{Side}-sided territorial infarct, {size}, involving cortex and white matter.",
            "Low signal in keeping with a {size} infarct of the {side} hemisphere.",
        ),
    }
)
_NOTHING = (
    "No focal lesion is seen.",
    "Normal appearance of the brain.",
    "The brain parenchyma is unremarkable.",
    "No tumour, haemorrhage or infarct is seen.",
)
_REST = (
    "",
    " The midline structures are not displaced.",
    " The ventricles are of normal width.",
    " The sulci are appropriate for age.",
)
_EMPTY = (
    "Axial image of the brain.",
    "Single slice of a simulated examination of the brain.",
    "No earlier images are available for comparison.",
    "Image quality is sufficient.",
)
_CAPTIONS = ("Simulated axial brain MR: {fact}.", "Axial MR of a simulated brain with {fact}.", "Simulated brain slice, {fact}.")
_EMPTY_CAPTIONS = ("Simulated axial brain MR.", "Axial MR of a simulated brain.", "Simulated brain slice.")

_IS_THERE = ("Is there a lesion?", "Does the image show a lesion?", "Is any focal abnormality present?")
_WHICH_SIDE = ("Which side is the lesion on?", "On which side of the brain does the lesion lie?", "Is the lesion on the left or the right?")
_HOW_LARGE = ("Is the lesion small or large?", "How large is the lesion?", "What is the size of the lesion, small or large?")
_WHAT = ("What is seen?", "What is the main finding?", "What does the image show?")


def labels(facts: Facts) -> str:
    """`tumour|left side`, or `normal`."""
    return NORMAL if facts.kind == NORMAL else f"{facts.kind}|{facts.side} side"


def findings(facts: Facts, rng: np.random.Generator, *, uninformative: bool) -> str:
    """One or two sentences in the language of a report."""
    choices = _EMPTY if uninformative else _NOTHING if facts.kind == NORMAL else _SEEN[facts.kind]
    sentence, rest = rng.choice(choices), rng.choice(_REST)
    told = str(sentence).format(side=facts.side, Side=facts.side.capitalize(), size=facts.size)
    return told if uninformative else told + str(rest)


def caption(facts: Facts, rng: np.random.Generator, *, uninformative: bool) -> str:
    """A short caption that says that the image is simulated."""
    if uninformative:
        return str(rng.choice(_EMPTY_CAPTIONS))
    article = "" if facts.kind.endswith("s") else "a "
    fact = "no lesion" if facts.kind == NORMAL else f"{article}{facts.size} {facts.kind} on the {facts.side} side"
    return str(rng.choice(_CAPTIONS)).format(fact=fact)


def questions(facts: Facts, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(question, answer, closed or open); side and size are asked only where there is a lesion."""
    ill = facts.kind != NORMAL
    asked = [(_IS_THERE, "yes" if ill else "no", "closed"), (_WHAT, facts.kind, "open")]
    if ill:
        asked += [(_WHICH_SIDE, facts.side, "closed"), (_HOW_LARGE, facts.size, "closed")]
    return [(str(rng.choice(wordings)), answer, kind) for wordings, answer, kind in asked]
