"""Pairs of the tiny retrieval set, objectives at work on them, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from contracts.tiny import tiny
from medtame import catalogue
from medtame.learning.pairs import Moving, Pairs
from medtame.learning.pretraining import Part, Weighted, chunked_slopes, seeing
from medtame.learning.pretraining import moving as all_moving
from medtame.strategies.base import Pretrainer
from medtame.tasks.image_text_retrieval import ImageTextRetrieval
from medtame.types import Encoder, Problem

OBJECTIVES = [
    name for name in catalogue.names(catalogue.METHODS) if issubclass(catalogue.settings_class(catalogue.METHODS, name), Pretrainer)
]
DRAWS = torch.arange(24) + 5


def problem_of(encoder: Encoder, part: int = 0) -> Problem:
    task = ImageTextRetrieval()
    samples = task.usable(tiny("image_text_retrieval")[part])
    return task.settled(samples).frame(samples, "scores").problem(samples, encoder, 0)


def pairs_of(encoder: Encoder, **changed: Any) -> Pairs:
    given = {"train": "all", "blocks": 1, "sides": ("image", "text"), "augment": "safe", "sentences": 0, "precision": "float32", "seed": 0}
    return Pairs.of_problem(problem_of(encoder), Moving(**{**given, **changed}))


def slopes_of(pairs: Pairs, parts: Weighted, chunk: int = 24, draws: Tensor = DRAWS) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of every weight that moves."""
    named = all_moving(pairs, parts)
    loss, found = chunked_slopes(seeing(pairs, parts), parts, named, chunk=chunk)(draws)
    return float(loss), {name: torch.zeros_like(named[name]) if slope is None else slope for name, slope in found.items()}


def part_of(name: str, pairs: Pairs, **settings: Any) -> Part:
    method: Pretrainer = catalogue.build(catalogue.METHODS, name, settings)
    return method.part(pairs)


def flat(slopes: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([slope.detach().flatten() for slope in slopes.values()]).double()
