"""One network for objects of any name: the image is decoded to centres and sizes, and the prompt says of which."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from medtame.errors import PairError
from medtame.learning.detecting import by_kind, lessons, located, objects_by_kind, taught
from medtame.learning.loop import Descent, Step
from medtame.networks.film_decoder import FilmDecoder
from medtame.strategies.base import Learner
from medtame.types import Adapted, Boxes, Problem, Query, sentence_means

ANY = ("an object", "any object")  # what is asked for where boxes have no name


@dataclass(frozen=True)
class TextQueryDetectorAdapted(Adapted):
    weights: dict[str, Tensor]
    centre: Tensor  # (D,) the mean of the support's prompts
    spread: float  # their root mean square distance from it
    most: int
    least: float
    overlap: float

    def condition(self, prompts: Tensor) -> Tensor:
        """Centred and rescaled to about unit variance: raw prompts of one field are nearly parallel."""
        conditioned: Tensor = (prompts - self.centre) / self.spread * len(self.centre) ** 0.5
        return conditioned

    def answer(self, query: Query) -> Boxes:
        if query.size is None:
            raise PairError("text_query_detector answers with boxes, and this query names no size for its maps")
        codes = self.condition(sentence_means(query.encoder, query.wanted.prompts))
        return Boxes(by_kind(located(FilmDecoder.of(self.weights), query, codes, self.most, self.least, self.overlap)))


@dataclass(frozen=True)
class TextQueryDetector(Learner):
    """Frozen maps and a pixel stem, modulated by the prompt, decoded to a map of centres with sizes and offsets.

    The decoder is that of text_query_decoder (CLIPSeg: Lüddecke and Ecker 2022; FiLM: Perez et al. 2018), its targets are those of
    CenterNet (Zhou et al. 2019): a bump at each centre under a focal loss, sizes and offsets under L1. A row is an image and a class;
    new words can be asked. Objects without a name (a class kept as unseen) are learnt under "an object". Boxes of a class that
    overlap by more than `overlap` are one. AdamW, cosine decay; a share of the feature channels is left out at each step.
    """

    learning = "fine_tuning"
    gives = ("boxes",)
    needs = frozenset({"labels", "centres"})
    towers = frozenset({"text", "grid"})
    new_words = True
    reads = frozenset({"candidates"})
    trains = "an upsampling decoder with a pixel stem; encoder and text stay frozen"
    cost = "minutes on cached features"
    good_when = "some hundred boxes, one network for many classes, and new words"
    poor_when = "known classes alone: a fixed code does as well"
    papers = ("arxiv:1904.07850", "arxiv:2112.10003", "arxiv:1709.07871")
    steps: Annotated[int, Field(ge=0)] = 2000
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch: Annotated[int, Field(gt=0)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    width: Annotated[int, Field(gt=0, multiple_of=16)] = 64
    most: Annotated[int, Field(gt=0)] = 200
    least: Annotated[float, Field(ge=0, lt=1)] = 0.01
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        wanted = problem.query.wanted
        objects = objects_by_kind(problem.targets, len(wanted.names))
        prompts = sentence_means(problem.query.encoder, [*wanted.prompts, *[ANY] * (len(objects) - len(wanted.names))])
        centre = prompts.mean(0)
        spread = float((prompts - centre).square().sum(1).mean().sqrt())
        fitted = TextQueryDetectorAdapted({}, centre, spread if spread > 1e-6 else 1.0, self.most, self.least, self.overlap)
        kept = yield from taught(
            lessons(problem.query, objects),
            fitted.condition(prompts),
            self.descent(),
            width=self.width,
            dropout=self.feature_dropout,
            seed=problem.seed,
            resume=resume,
        )
        return TextQueryDetectorAdapted(kept, centre, fitted.spread, self.most, self.least, self.overlap)

    def descent(self) -> Descent:
        return Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(10, self.steps // 4),
        )
