"""Classes described by what they look like: the mean cosine of an image and a class's findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from medtame.data.class_findings import chosen
from medtame.errors import SettingsError
from medtame.strategies.base import Method, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Candidates, Problem, Query, Scores

SHIPPED = Path(__file__).with_name("findings")


@dataclass(frozen=True)
class DescriptorsAdapted(Adapted):
    names: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]  # of each class; empty where nothing describes them
    note: str

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            if not self.sentences:
                return Scores(zero_shot_logits(query))
            flat = tuple(sentence for sentences in self.sentences for sentence in sentences)
            each = replace(query, allowed=None, candidates=Candidates(names=flat, prompts=tuple((sentence,) for sentence in flat)))
            parts = torch.split(zero_shot_logits(each), [len(sentences) for sentences in self.sentences], dim=1)
            logits = torch.stack([part.mean(1) for part in parts], 1)
            if query.wanted.negatives is not None:
                absent = Candidates(names=self.names, prompts=query.wanted.negatives)
                logits = logits - zero_shot_logits(replace(query, allowed=None, candidates=absent))
            return Scores(masked(logits, query.allowed))


@dataclass(frozen=True)
class Descriptors(Method):
    """scale x mean over a class's findings of cosine(image, "{class}, which shows {finding}") + bias (Menon and Vondrick 2023).

    `file` is a JSON file of findings, the name of a shipped one, or empty: then the one shipped file that speaks of all classes
    (`note` says which; look whether it speaks of your kind of image). A class with an empty list is described by its name alone.
    Where no file is in use, or several shipped ones speak of these classes, it answers as zero_shot does, and `note` says so.
    The shipped findings are general knowledge or have their source beside them; no clinician has reviewed them. A template with
    {finding} alone leaves the class's name out. Where a class has negative prompts (several may hold), their
    logit is taken away. The prompts of the task are not read otherwise: controls change the findings.
    """

    reads = frozenset({"findings", "owned_findings", "rows"})
    towers = frozenset({"text"})
    good_when = "no labels, and an encoder that knows the words of findings"
    poor_when = "an encoder of everyday words: below zero-shot more often than above here"
    papers = ("arxiv:2210.07183",)
    file: str = ""
    template: Annotated[str, Field(min_length=1)] = "{class}, which shows {finding}"

    def fit(self, problem: Problem) -> Adapted:
        names = problem.query.wanted.names
        if "{finding}" not in self.template:
            raise SettingsError(f"the template {self.template!r} has no place for the finding: write {{finding}} in it")
        found, note = chosen(names, self.file, SHIPPED)
        if found is None:
            return DescriptorsAdapted(names, (), note)
        said = tuple(tuple(self._sentence(name, finding) for finding in found.of(name)) or (name,) for name in names)
        return DescriptorsAdapted(names, said, note)

    def _sentence(self, name: str, finding: str) -> str:
        return self.template.replace("{class}", name).replace("{finding}", finding)
