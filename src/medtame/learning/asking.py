"""A query put to a generative model in words, a question a row, and its replies as an answer. Shared by methods that speak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medtame.errors import SettingsError
from medtame.learning.spoken_choice import chosen, held, listed, offered, options_of
from medtame.types import Array, Kind, Problem, Query

CHOOSE = "{question}\nOptions:\n{options}\nAnswer with one line of this list, copied as it stands, and nothing else."
SEVERAL = (
    "{question} Several of these, or none, may hold.\nOptions:\n{options}\n"
    "Answer with the lines that hold, copied as they stand, or with the one word none, and nothing else."
)
SAY = "{question}"
SHOWS = "What does this medical image show?"
REPORT = "Describe the findings of this medical image as a short radiology report."
REFUSED = -1e4  # the logit of an option that a row may not take


@dataclass(frozen=True)
class Asked:
    """One row: its prompt, its options in the order of the prompt, and the candidate that each of them is; no options for texts."""

    prompt: str
    options: list[str]
    places: list[int]


def asked(query: Query, template: str, choose: str = CHOOSE) -> list[Asked]:
    """(N,) the questions. `{question}` is the row's own words, or a plain one; `{options}` are the candidates that it may take.

    Without a template `choose` is used where one option is right, SEVERAL where several may be, and SAY for texts.
    """
    words = query.words or ("",) * len(query)
    if query.candidates is None:
        return [Asked((template or SAY).replace("{question}", own or REPORT), [], []) for own in words]
    wanted, plain = query.candidates, choose if query.candidates.exclusive else SEVERAL
    every = options_of(wanted.names, wanted.prompts)
    made = []
    for row, own in enumerate(words):
        places = list(range(len(every))) if query.allowed is None else np.flatnonzero(query.allowed[row]).tolist()
        options = [every[k] for k in places]
        parts = [part.replace("{question}", own or SHOWS) for part in (template or plain).split("{options}")]
        prompt = listed(options).join(parts)
        made.append(Asked(prompt, options, places))
    return made


def checked(template: str, wants: Kind, *, shows_options: bool = True) -> None:
    """Raises SettingsError for a template that would leave out what is asked."""
    if template and wants == "scores" and shows_options and template.count("{options}") != 1:
        raise SettingsError("the setting template must hold {options} once, where the candidates go (and may hold {question})")
    if template and wants == "texts" and "{options}" in template:
        raise SettingsError("the setting template holds {options}, and texts have none: leave it out")


def scores_of(query: Query, questions: Sequence[Asked], said: Sequence[str]) -> Tensor:
    """(N, C) logits of what was said. One right option: 1 for the chosen one, 0 for the others. Several: 1 and -1.

    A model that only names an option tells nothing of its confidence, and the logits claim none. A row of which no option can be
    told is NaN throughout: a refusal.
    """
    wanted = query.wanted
    values = torch.full((len(questions), len(wanted.names)), torch.nan)
    for row, (question, text) in enumerate(zip(questions, said, strict=True)):
        if wanted.exclusive:
            one = chosen(text, question.options)
            found = None if one is None else [one]
        else:
            several = held(text, question.options)
            found = None if several is None else sorted(several)
        if found is not None:
            values[row] = REFUSED
            values[row, question.places] = 0.0 if wanted.exclusive else -1.0
            values[row, [question.places[k] for k in found]] = 1.0
    return values


def right_answers(problem: Problem, questions: Sequence[Asked]) -> list[str | None]:
    """(N,) the true answer of each support row as it should be said; None where it is not known."""
    if problem.query.candidates is None:
        return [str(text) or None for text in problem.targets]
    made: list[str | None] = []
    for question, target in zip(questions, problem.targets, strict=True):
        own = target[question.places]
        right = torch.nonzero(own > 0.5)[:, 0].tolist()
        if problem.query.candidates.exclusive:  # of several that share a target, the first
            right = [int(own.argmax())] if len(own) and own.max() > 0 else []
        known = not own.isnan().any() and (right or not problem.query.candidates.exclusive)
        made.append(("\n".join(offered(question.options, k) for k in right) or "none") if known else None)
    return made


def balanced(answers: Sequence[str | None], groups: Array, count: int, seed: int) -> list[int]:
    """Up to `count` rows with an answer, shuffled by `seed`: each distinct answer in turn, and a new group first where there is one."""
    shuffled = np.random.default_rng(seed).permutation(len(answers)).tolist()
    waiting: dict[str, list[int]] = {}
    for row in shuffled:
        if (answer := answers[row]) is not None:
            waiting.setdefault(answer, []).append(row)
    picked: list[int] = []
    seen: set[object] = set()
    while waiting and len(picked) < count:
        for answer in list(waiting):
            rows = waiting[answer]
            row = next((row for row in rows if groups[row] not in seen), rows[0])
            rows.remove(row)
            seen.add(groups[row])
            picked.append(row)
            if not rows:
                del waiting[answer]
            if len(picked) == count:
                break
    return picked
