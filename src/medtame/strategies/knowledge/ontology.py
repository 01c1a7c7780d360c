"""Near misses cost less than far ones: the answer with the least expected distance in a tree of classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from medtame.data.class_findings import Findings, ancestors, chosen
from medtame.errors import PairError, SettingsError
from medtame.strategies.base import Method, masked, same_candidates
from medtame.types import Adapted, Problem, Query, Scores

SHIPPED = Path(__file__).with_name("findings")


@dataclass(frozen=True)
class OntologyAdapted(Adapted):
    names: tuple[str, ...]
    within: Adapted  # what gives the probabilities
    distances: Tensor  # (C, C) edges between two classes
    note: str

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        said = self.within.answer(query)
        if not isinstance(said, Scores):
            raise PairError("ontology stands on a method that gives scores: name another one with over=")
        return Scores(masked(utility(said.values, self.distances).log(), query.allowed))


def utility(logits: Tensor, distances: Tensor) -> Tensor:
    """(N, C) 1 - expected distance / largest distance, from logits (N, C): its largest value is at the least expected distance."""
    nearness = 1 - distances / distances.max().clamp(min=1)
    return (logits.softmax(1) @ nearness.T).clamp(min=1e-12)


def distances_of(names: tuple[str, ...], tree: Findings | None) -> Tensor:
    """(C, C) edges on the way from one class to another over their nearest common ancestor; 2 for any two where there is no tree.

    Raises SettingsError for two classes without a common ancestor, or for two names of one class.
    """
    if tree is None:
        return 2.0 * (1 - torch.eye(len(names)))
    lines = [ancestors(str(tree.known(name, "parents")), tree.parents) for name in names]
    found = torch.zeros(len(names), len(names))
    for i, first in enumerate(lines):
        for j, second in enumerate(lines):
            common = next((node for node in first if node in second), None)
            if common is None:
                raise SettingsError(f"{tree.name} has no common ancestor of {names[i]!r} and {names[j]!r}: give the tree one root")
            if i != j and first[0] == second[0]:
                raise SettingsError(f"{names[i]!r} and {names[j]!r} are one class in {tree.name}: join them, or give another file")
            found[i, j] = first.index(common) + second.index(common)
    return found


@dataclass(frozen=True)
class Ontology(Method):
    """Least expected tree distance under the probabilities of another method (conditional risk, Karthik et al. 2021).

    `over` names that method; `file` is a JSON file with `parents` (class -> what it is a kind of), the name of a shipped one, or
    empty: the one shipped file that knows all classes. The distance of two classes is the number of edges between them. Logits
    are log(1 - expected distance / largest distance): so they are those of `over`, but for a constant a row, where all classes
    are equally far apart, as they are without a tree (`note` says so). It trades a little accuracy for milder mistakes, and only if the
    probabilities can be trusted; balanced accuracy does not see the mildness.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels", "one_label"})
    reads = frozenset({"candidates"})  # where `over` does
    trains = "what `over` trains; a linear layer by default"
    good_when = "some errors are milder than others and probabilities can be trusted"
    poor_when = "balanced accuracy is what counts: it does not see mildness"
    papers = ("arxiv:2104.00795",)
    over: str | Method = field(default="linear_probe", metadata={"part": "medtame.strategies"})
    file: str = ""

    def fit(self, problem: Problem) -> Adapted:
        over = self.over
        if isinstance(over, str) or "scores" not in over.gives or over.scope != "row" or not over.needs <= self.needs:
            name = over if isinstance(over, str) else type(over).__name__
            raise SettingsError(
                f"ontology cannot stand on {name}: name a method that scores each row alone, such as linear_probe or zero_shot"
            )
        names = problem.query.wanted.names
        tree, note = chosen(names, self.file, SHIPPED, "parents")
        note = note.replace("no findings in use", "all classes are equally far apart").replace("findings from", "tree from")
        return OntologyAdapted(names, over.fit(problem), distances_of(names, tree), note)
