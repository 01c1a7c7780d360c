"""Does the language matter, and is the image read? Changes of a problem and of a query, so that no method and no task knows of them.

Two kinds. Refit: the words are changed at fit and at predict (does their meaning matter?). Changed at predict only: a fitted
thing meets other words or other images (does it read them?).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from medtame.data.images import ArrayPicture
from medtame.metrics.intervals import Interval
from medtame.types import Problem, Query, Samples

Rows = TypeVar("Rows", bound=Samples)
Change = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Arm:
    """One control: what it changes, when, and what it isolates."""

    name: str
    changes: Literal["words", "findings", "image"]
    when: Literal["refit", "predict"]
    isolates: str


ARMS = (
    Arm("constant_text", "words", "refit", "one sentence for all: what is left without any words"),
    Arm("random_text", "words", "refit", "a random code for each: identity without meaning"),
    Arm("random_findings", "findings", "refit", "a random code for each finding: what is left without their meaning"),
    Arm("shuffled_findings", "findings", "refit", "each class gets the findings of another: does it matter whose they are"),
    Arm("shuffled_text", "words", "predict", "the sentences change owners: are they read at all"),
    Arm("paraphrased_text", "words", "predict", "the same said otherwise"),
    Arm("held_out_text", "words", "predict", "the bare names instead of the prompts"),
    Arm("blank_image", "image", "predict", "a grey image: what is known without looking"),
    Arm("shuffled_image", "image", "predict", "another sample's image: is it read at all"),
)


def constant(sentences: Sequence[str]) -> list[str]:
    return ["an image"] * len(sentences)


def random_code(sentences: Sequence[str]) -> list[str]:
    """Letters without meaning, the same for the same sentence."""
    digests = [hashlib.sha256(sentence.encode()).hexdigest() for sentence in sentences]
    return ["".join(chr(ord("b") + int(digit, 16)) for digit in digest[:18]) for digest in digests]


def shuffled(sentences: Sequence[str]) -> list[str]:
    """Every distinct sentence becomes the next one."""
    distinct = sorted(set(sentences))
    following = dict(zip(distinct, distinct[1:] + distinct[:1], strict=True))
    return [following[sentence] for sentence in sentences]


def paraphrased(sentences: Sequence[str]) -> list[str]:
    return [f"what this picture shows can be put as follows: {sentence}" for sentence in sentences]


CHANGES: dict[str, Change] = {
    "constant_text": constant,
    "random_text": random_code,
    "shuffled_text": shuffled,
    "paraphrased_text": paraphrased,
}


def reworded(query: Query, arm: str) -> Query:
    """The query with its wording changed everywhere that words reach a method: candidates and rows. Names stay."""
    candidates = query.candidates
    if candidates is not None:
        firsts = [sentences[0] for sentences in candidates.prompts]
        changed = list(candidates.names) if arm == "held_out_text" else CHANGES[arm](firsts)
        absent = None
        if candidates.negatives is not None:
            absences = [sentences[0] for sentences in candidates.negatives]
            said = [f"no {name}" for name in candidates.names] if arm == "held_out_text" else CHANGES[arm](absences)
            absent = tuple((sentence,) for sentence in said)
        worded = replace(candidates, prompts=tuple((sentence,) for sentence in changed), negatives=absent)
        query = replace(query, candidates=worded)
    if query.words is not None and arm in CHANGES:
        distinct = sorted(set(query.words))
        table = dict(zip(distinct, CHANGES[arm](distinct), strict=True))
        query = replace(query, words=tuple(table[word] for word in query.words))
    return query


def reworded_problem(problem: Problem, arm: str) -> Problem:
    """The problem of a refit with other words: labelled and unlabelled rows are asked the same question."""
    unlabelled = None if problem.unlabelled is None else reworded(problem.unlabelled, arm)
    return replace(problem, query=reworded(problem.query, arm), unlabelled=unlabelled)


def with_images(samples: Rows, arm: str, columns: Sequence[str], seed: int) -> Rows:
    """The samples with grey images, or with the images of other samples."""
    for column in columns:
        pictures = samples.pictures(column)
        if arm == "blank_image":
            grey = ArrayPicture(np.full((64, 64, 1), 0.5, dtype=np.float32), "blank")
            samples = samples.replaced(**{column: [grey] * len(pictures)})
        else:
            order = np.random.default_rng(seed).permutation(len(pictures))
            samples = samples.replaced(**{column: [pictures[i] for i in order]})
    return samples


def verdict(arm: Arm, difference: Interval) -> str:
    """A sentence from the interval of (as given - changed)."""
    subject = {"words": "the text", "findings": "what the findings say", "image": "the image"}[arm.changes]
    other_wording = arm.name in ("paraphrased_text", "held_out_text")
    if np.isnan(difference.low) or difference.low <= 0 <= difference.high:
        if other_wording:
            return "no measurable loss from another wording"
        return f"no measurable benefit of {subject}" if arm.when == "refit" else f"no measurable effect: {subject} may not be read"
    if difference.low > 0:
        if other_wording:
            return "the wording matters: another one does worse"
        return f"{subject} helps" if arm.when == "refit" else f"{subject} is read"
    return f"{subject} as given does worse than the changed one"


def applicable(arm: Arm, query: Query, reads: frozenset[str]) -> bool:
    """Whether a control can be made: images need the column `image`; words must be there and be of a kind that the method reads."""
    if arm.changes == "image":
        return "image" in query.samples
    if arm.changes == "findings":
        return ("owned_findings" if arm.name == "shuffled_findings" else "findings") in reads
    candidates = "candidates" in reads and query.candidates is not None
    if arm.name == "held_out_text":
        return candidates
    return candidates or ("rows" in reads and query.words is not None)
