"""The decoder of text_query_detector told by a number what to find: the same network and the same steps, without language."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from medtame.errors import PairError
from medtame.learning.decoding import fixed_codes
from medtame.learning.detecting import by_kind, lessons, located, objects_by_kind, taught
from medtame.learning.loop import Descent, Step
from medtame.networks.film_decoder import FilmDecoder
from medtame.strategies.base import Learner
from medtame.types import Adapted, Boxes, Problem, Query

ANY = "an object"


@dataclass(frozen=True)
class FixedCodeDetectorAdapted(Adapted):
    weights: dict[str, Tensor]
    names: tuple[str, ...]
    length: int
    most: int
    least: float
    overlap: float

    def answer(self, query: Query) -> Boxes:
        """Of classes that fit never saw nothing is found."""
        if query.size is None:
            raise PairError("fixed_code_detector answers with boxes, and this query names no size for its maps")
        known = [k for k, name in enumerate(query.wanted.names) if name in self.names]
        codes = fixed_codes([query.wanted.names[k] for k in known], self.length)
        found = located(FilmDecoder.of(self.weights), query, codes, self.most, self.least, self.overlap)
        return Boxes(by_kind(found, known))


@dataclass(frozen=True)
class FixedCodeDetector(Learner):
    """The image-only reference of the same size: FiLM (Perez et al. 2018) by one fixed random code a class, no words.

    What text_query_detector has to beat before its language can be said to help; it cannot be asked for anything new. Centre maps
    as in CenterNet (Zhou et al. 2019); maps of the encoder's image side, pixels, steps and settings are those of text_query_detector.
    """

    learning = "fine_tuning"
    gives = ("boxes",)
    needs = frozenset({"labels", "centres"})
    towers = frozenset({"grid"})
    trains = "an upsampling decoder with a pixel stem; the encoder stays frozen"
    cost = "minutes on cached features"
    good_when = "known classes, and as the bar that prompted detection has to pass"
    poor_when = "a class without training boxes: it cannot be asked for a new word"
    papers = ("arxiv:1904.07850", "arxiv:1709.07871")
    steps: Annotated[int, Field(ge=0)] = 2000
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    width: Annotated[int, Field(gt=0, multiple_of=16)] = 64
    length: Annotated[int, Field(gt=0)] = 1280
    most: Annotated[int, Field(gt=0)] = 200
    least: Annotated[float, Field(ge=0, lt=1)] = 0.01
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        names = problem.query.wanted.names
        objects = objects_by_kind(problem.targets, len(names))
        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
        kept = yield from taught(
            lessons(problem.query, objects),
            fixed_codes([*names, ANY][: len(objects)], self.length),
            how,
            width=self.width,
            dropout=self.feature_dropout,
            seed=problem.seed,
            resume=resume,
        )
        return FixedCodeDetectorAdapted(kept, names, self.length, self.most, self.least, self.overlap)
