"""Sentences of findings say what is made: darker or brighter, small or large, rough or smooth; a probe learns to see it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame.data.anomalies import Kind, Recipe, balanced, covered, with_anomalies
from medtame.data.class_findings import read
from medtame.errors import SettingsError
from medtame.features.patch_memory import patch_vectors
from medtame.learning.anomaly import at_size, normal_rows
from medtame.strategies.base import Method
from medtame.types import Adapted, Grids, Problem, Query

SHIPPED = Path(__file__).with_name("findings")
NORMAL = re.compile(r"\b(no|not|without|normal|healthy|negative)\b")
DARKER = r"dark|black|hypoecho\w*|anecho\w*|hypodens\w*|hypointens\w*|lucen\w*|cyst\w*|shadow\w*|fluid"
BRIGHTER = r"bright|white|hyperecho\w*|hyperdens\w*|hyperintens\w*|dense|opacit\w*|consolidation|calcif\w*|haz\w*|ground-glass|rim"
SMALL, LARGE = r"small|tiny|spot\w*|focal|micro\w*|nodule\w*|dots?", r"large|diffuse|extensive|lobar|both|patchy|wide\w*|mass effect"
ROUGH = r"irregular|spiculated|rough|ill-defined|indistinct|angular|lobulated|jagged|patchy"
SMOOTH = r"smooth|round|oval|regular|circumscribed|well-defined|even"
TEXTURED = r"heterogeneous|uneven|mixed|coarse|texture\w*|complex"
DEFAULTS = (
    "a dark round mass",
    "a bright focal spot",
    "a large patchy opacity with ill-defined edges",
    "a dark mass with an irregular outline",
)


def says(sentence: str, words: str) -> bool:
    return re.search(rf"\b({words})\b", sentence.casefold()) is not None


def recipe_of(sentence: str) -> Recipe:
    """What a sentence asks to be made; what it does not say stays open. Texture or a soft edge is a blob, else light is added or taken."""
    dark, bright = says(sentence, DARKER), says(sentence, BRIGHTER)
    small, large = says(sentence, SMALL), says(sentence, LARGE)
    kind: Kind = "blob" if says(sentence, TEXTURED) or says(sentence, "mass|lesion|tumou?r|nodule|cyst") else "intensity"
    rough = 0.6 if says(sentence, ROUGH) else 0.1 if says(sentence, SMOOTH) else 0.25
    size = (0.05, 0.2) if small and not large else (0.25, 0.55) if large and not small else (0.1, 0.4)
    return Recipe(kind, int(bright) - int(dark), size, rough, 0.12 if says(sentence, TEXTURED) else 0.05)


@dataclass(frozen=True)
class DescribedAnomaliesAdapted(Adapted):
    weight: Tensor  # (F,)
    bias: float
    side: int
    sentences: tuple[str, ...]  # that were made

    def answer(self, query: Query) -> Grids:
        vectors = patch_vectors(query, self.side)
        return Grids(at_size((vectors @ self.weight + self.bias).reshape(-1, self.side, self.side), query))


@dataclass(frozen=True)
class DescribedAnomalies(Method):
    """Logistic regression on patches of normals against patches of anomalies that sentences describe.

    Synthetic lesions teach a detector what to look for (MediCLIP: Zhang et al. 2024); here the sentences choose them: a small dictionary
    of words turns each into a recipe (darker, brighter, size, outline, texture), so a sentence that says none of these is made as any
    blob. `findings`: your own sentences; else those of `file`, the name of a shipped file of findings or a path, but for its classes and
    sentences that say normal; else four general ones. The encoder's text side is not asked.
    """

    learning = "fine_tuning"
    gives = ("grids",)
    needs = frozenset({"normals", "states"})
    reads = frozenset({"findings"})
    trains = "a linear layer on patches of the image tower's maps"
    cost = "seconds, and a pass of the made images through the image tower"
    good_when = "normals, and sentences that say darker, brighter, size or outline"
    poor_when = "findings that are no local change of grey or texture"
    papers = ("arxiv:2405.11315",)
    findings: tuple[str, ...] = ()
    file: str = ""
    made: Annotated[int, Field(gt=0)] = 120
    rows: Annotated[int, Field(gt=1)] = 4000
    inverse_penalty: Annotated[float, Field(gt=0)] = 1.0
    side: Annotated[int, Field(gt=0)] = 14

    def fit(self, problem: Problem) -> Adapted:
        normals = problem.query.take(normal_rows(problem))
        sentences = self._sentences()
        recipes = [recipe_of(sentence) for sentence in sentences]
        order = np.random.default_rng(problem.seed).permutation(len(normals))
        copies = max(1, round(self.made / (2 * len(recipes) * len(normals))))
        chosen = np.sort(order[: max(1, self.made // (len(recipes) * copies))])
        samples, made = with_anomalies(normals.samples, recipes * copies, chosen)
        shares = np.stack([np.zeros((self.side, self.side)) if one is None else covered(one, self.side) for one in made]).ravel()
        vectors = patch_vectors(replace(normals, samples=samples, source=np.arange(len(samples))), self.side).flatten(0, 1)
        rows, abnormal = balanced(shares, self.rows, problem.seed)
        model = LogisticRegression(C=self.inverse_penalty, max_iter=500)
        model.fit(vectors[torch.from_numpy(rows)].numpy(), abnormal)
        return DescribedAnomaliesAdapted(torch.from_numpy(model.coef_[0]).float(), float(model.intercept_[0]), self.side, tuple(sentences))

    def _sentences(self) -> Sequence[str]:
        if self.findings:
            return self.findings
        if not self.file:
            return DEFAULTS
        shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}
        found = read(shipped.get(self.file, Path(self.file)), known=tuple(shipped))
        said = [one for name, lines in found.classes.items() if not NORMAL.search(name.casefold()) for one in lines]
        said = list(dict.fromkeys(one for one in said if not NORMAL.search(one.casefold())))
        if not said:
            raise SettingsError(f"{found.name} has no sentence of an abnormal class: give some with the setting findings")
        return said
