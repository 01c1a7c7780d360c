"""Methods and tasks that break one contract each. `shelve` puts the methods on the catalogue's shelf for as long as a test lasts."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame import catalogue, state
from medtame.errors import PairError
from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner, Method, labelled, zero_shot_logits
from medtame.tasks.base import Frame, every
from medtame.tasks.classification import Classification, ClassificationFrame
from medtame.types import Adapted, Answer, Candidates, Encoder, Kind, Problem, Query, Samples, Scores

HOME = "medtame.strategies.baselines"


def shelve(patch: pytest.MonkeyPatch) -> None:
    """Every method of this file appears in the catalogue under the name that its file would have."""
    this = sys.modules[__name__]
    kinds = [kind for kind in vars(this).values() if isinstance(kind, type) and kind.__module__ == __name__]
    methods = {re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind for kind in kinds if issubclass(kind, Method)}
    for name in [*methods, "broken"]:
        patch.setitem(sys.modules, f"{HOME}.{name}", this)
    for kind in kinds:
        if issubclass(kind, Adapted):
            patch.setattr(kind, "__module__", f"{HOME}.broken")
    for name, kind in methods.items():
        patch.setattr(kind, "__module__", f"{HOME}.{name}")
    known = catalogue.listing
    patch.setattr(
        catalogue,
        "listing",
        lambda shelf: known(shelf) | ({name: f"{HOME}.{name}" for name in methods} if shelf == catalogue.METHODS else {}),
    )


@dataclass(frozen=True)
class Prototypes(Adapted):
    """An honest answer: the cosine of images and class means."""

    values: Tensor  # (C, F)

    def answer(self, query: Query) -> Answer:
        return Scores(query.features() @ self.values.T)


def means(problem: Problem) -> Tensor:
    """(C, F) class means of the support; zero where a class is missing."""
    counts = problem.targets.sum(0)[:, None].clamp(min=1)
    return problem.targets.T @ problem.query.features() / counts


@dataclass(frozen=True)
class Honest(Method):
    """Breaks nothing: what the others are one change away from. Snell et al. 2017."""

    needs = frozenset({"labels"})
    trains = "class means"
    papers = ("arxiv:1703.05175",)
    strength: float = 1.0

    def fit(self, problem: Problem) -> Adapted:
        return Prototypes(self.strength * means(problem))


# ---- 1 to 4 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswersUnfitted(Honest):
    def answer(self, query: Query) -> Answer:
        return Scores(zero_shot_logits(query))


@dataclass(frozen=True)
class FittedFitsAgain(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return Refittable(means(problem))


@dataclass(frozen=True)
class Refittable(Prototypes):
    def fit(self, problem: Problem) -> Adapted:
        return self


@dataclass(frozen=True)
class DoublesItsSettings(Honest):
    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", 2 * self.strength)


@dataclass(frozen=True)
class IgnoresTheSeed(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return Prototypes(means(problem) + 1e-6 * torch.randn(1))


@dataclass(frozen=True)
class NeighboursAdapted(Prototypes):
    def answer(self, query: Query) -> Answer:
        scores = query.features() @ self.values.T
        return Scores(scores - scores.mean(0))


@dataclass(frozen=True)
class LooksAtItsNeighbours(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return NeighboursAdapted(means(problem))


@dataclass(frozen=True)
class OrderAdapted(Prototypes):
    def answer(self, query: Query) -> Answer:
        return Scores(query.features() @ self.values.T + 0.01 * torch.arange(len(query))[:, None])


@dataclass(frozen=True)
class CountsItsRows(Honest):
    scope = "set"

    def fit(self, problem: Problem) -> Adapted:
        return OrderAdapted(means(problem))


# ---- 5 and 6 --------------------------------------------------------------------------------------------------

KEPT_OUTSIDE: list[Tensor] = []


@dataclass(frozen=True)
class ForgetfulAdapted(Adapted):
    number: int

    def answer(self, query: Query) -> Answer:
        return Scores(query.features() @ KEPT_OUTSIDE[self.number].T)


@dataclass(frozen=True)
class Forgetful(Honest):
    """Opened in the same process it answers alike; in a fresh one it knows nothing."""

    def fit(self, problem: Problem) -> Adapted:
        KEPT_OUTSIDE.append(means(problem))
        return ForgetfulAdapted(len(KEPT_OUTSIDE) - 1)


@dataclass(frozen=True)
class ChangesWhenLoaded(Honest):
    """Half of what it learnt is set aside when it is made again."""

    def fit(self, problem: Problem) -> Adapted:
        return RoundedAdapted(means(problem))


@dataclass(frozen=True)
class RoundedAdapted(Prototypes):
    opened: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.values * (0.5 if self.opened else 1))
        object.__setattr__(self, "opened", True)


@dataclass(frozen=True)
class AddressAdapted(Prototypes):
    server: str


@dataclass(frozen=True)
class CarriesAnAddress(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return AddressAdapted(means(problem), "https://example.org/model")


def trusting_open(folder: Path, opener: Any) -> Any:
    """Makes whatever class the config names, as a loader without a check would."""
    fitted = state.json.loads((folder / "config.json").read_text(encoding="utf-8"))["value"]["dict"]["adapted"]
    module, _, name = fitted["class"].partition(":")
    return getattr(import_module(module), name)


# ---- 7 to 12 --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeedsTwoRows(Honest):
    def fit(self, problem: Problem) -> Adapted:
        features, labels = problem.query.features(), problem.targets.argmax(1)
        spread = [features[labels == k].numpy().var(0).mean() for k in range(problem.targets.shape[1])]
        return Prototypes(means(problem) / torch.tensor(spread)[:, None])


@dataclass(frozen=True)
class CountsSeenClasses(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return Prototypes(means(problem)[problem.targets.sum(0) > 0])


@dataclass(frozen=True)
class FailsOnOneClass(Honest):
    def fit(self, problem: Problem) -> Adapted:
        labels = problem.targets.argmax(1).numpy()
        return Prototypes(torch.from_numpy(LogisticRegression().fit(problem.query.features().numpy(), labels).coef_).float())


@dataclass(frozen=True)
class AsksForNothingAndRefuses(Honest):
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self, problem: Problem) -> Adapted:
        labelled(problem)
        return Prototypes(means(problem))


@dataclass(frozen=True)
class FirstAdapted(Prototypes):
    def answer(self, query: Query) -> Answer:
        scores = query.features() @ self.values.T
        return Scores(torch.cat([scores[:, :1] + 0.01, scores[:, 1:]], 1))


@dataclass(frozen=True)
class PrefersTheFirst(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return FirstAdapted(means(problem))


@dataclass(frozen=True)
class Descends(Learner):
    """Class vectors by momentum. Breaks nothing. Polyak 1964."""

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    trains = "class vectors"
    papers = ("doi:10.1016/0041-5553(64)90137-5",)
    start: ClassVar[float] = 0.0
    steps: int = 3

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        features, targets = problem.query.features(), problem.targets
        values = torch.full((targets.shape[1], features.shape[1]), self.start)

        def loss(batch: Tensor) -> Tensor:
            return -(targets[batch] * (10 * features[batch] @ values.T).log_softmax(1)).sum(1).mean()

        how = Descent(steps=self.steps, learning_rate=0.5, batch=8, optimiser="sgd")
        kept = yield from descend({"values": values}, loss, how, n=len(features), seed=problem.seed, resume=self.taken_up(resume))
        return Prototypes(kept["values"])

    def taken_up(self, resume: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        return resume


@dataclass(frozen=True)
class LearnsFromNothing(Descends):
    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        return super().learn(replace(problem.take([]), targets=problem.targets[:0]), resume)


@dataclass(frozen=True)
class StartsElsewhere(Descends):
    starts_at_zero_shot = True


@dataclass(frozen=True)
class FailsToLearn(Honest):
    def fit(self, problem: Problem) -> Adapted:
        return Prototypes(torch.zeros_like(means(problem)))


@dataclass(frozen=True)
class TellingFrame(ClassificationFrame):
    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        candidates = Candidates(names=self.names, prompts=self.prompts)
        told = tuple(samples.column("label"))
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), candidates=candidates, words=told)

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        targets = torch.tensor([[float(name == label) for name in self.names] for label in support.column("label")])
        return Problem(query=self.query(support, encoder), targets=targets, seed=seed)


@dataclass(frozen=True)
class TellingClassification(Classification):
    """Each row's words are its label: the truth reaches the query."""

    def given(self, samples: Samples) -> tuple[Samples, Sequence[str] | None]:
        return samples, None

    def frame(self, support: Samples, wants: Kind) -> Frame:
        honest = super().frame(support, wants)
        assert isinstance(honest, ClassificationFrame)
        return TellingFrame(wants, honest.names, honest.prompts)


# ---- 13 to 17 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeakyFrame(ClassificationFrame):
    """Hides the truth from a query and shows it to fit."""

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        honest = super().problem(support, encoder, seed)
        return replace(honest, query=replace(honest.query, samples=support))


@dataclass(frozen=True)
class LeakyClassification(Classification):
    def frame(self, support: Samples, wants: Kind) -> Frame:
        honest = super().frame(support, wants)
        assert isinstance(honest, ClassificationFrame)
        return LeakyFrame(wants, honest.names, honest.prompts)


@dataclass(frozen=True)
class HiddenAdapted(Adapted):
    values: list[list[float]]

    def answer(self, query: Query) -> Answer:
        return Scores(query.features() @ torch.tensor(self.values).T)


@dataclass(frozen=True)
class HidesItsCost(Honest):
    learning = "fine_tuning"

    def fit(self, problem: Problem) -> Adapted:
        return HiddenAdapted(means(problem).tolist())


@dataclass(frozen=True)
class AsksTheImpossible(Honest):
    needs = frozenset({"tea"})


def curt_meet(task: Any, method: Any) -> Kind:
    raise PairError("these two do not meet")


def misleading_meet(task: Any, method: Any) -> Kind:
    raise PairError("these two do not meet. These do: zero_shot, asks_the_impossible.")


@dataclass(frozen=True)
class LosesItsMomentum(Descends):
    def taken_up(self, resume: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        lost = {} if resume is None else {name: torch.zeros_like(value) for name, value in resume.items() if name.startswith("momentum")}
        return None if resume is None else {**resume, **lost}


@dataclass(frozen=True)
class ChangesTheTower(Honest):
    def fit(self, problem: Problem) -> Adapted:
        with torch.no_grad():
            next(iter(problem.query.encoder.image_tower.parameters())).mul_(1.01)
        return Prototypes(means(problem))


@dataclass(frozen=True)
class LeavesTheTowerOpen(Honest):
    def fit(self, problem: Problem) -> Adapted:
        problem.query.encoder.text_tower.requires_grad_(True)
        return Prototypes(means(problem))


# ---- 19 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaysNothing(Method):
    trains = "something"

    def fit(self, problem: Problem) -> Adapted:
        return Prototypes(torch.zeros(1, 1))


@dataclass(frozen=True)
class NamesNobody(Honest):
    """The best method that there is."""


@dataclass(frozen=True)
class HasNoPaper(Honest):
    """Found by Somebody et al. 2020."""

    papers = ()
