"""A generative vision-language model of transformers on this machine, asked in words about each image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from medtame.encoders.generators import Generator, identity, load, place_of
from medtame.errors import RunError, SettingsError
from medtame.features.answer_store import AnswerStore
from medtame.learning.asking import CHOOSE, REFUSED, Asked, asked, checked, scores_of
from medtame.learning.shown_images import digest, pictures_of, shown
from medtame.learning.spoken_choice import spoken
from medtame.strategies.base import Method
from medtame.types import Adapted, Answer, Array, Picture, Problem, Query, Scores, Texts

FORM = "local-1"  # part of every key of a kept answer: raise it when the same question is put otherwise
NAME_IT = "{question} Answer with one short phrase and nothing else."
IS_IT = "Does this medical image show {option}? Answer yes or no."
YES_NO = ["yes", "no"]

Work = Callable[[Generator, Array, Asked], str]


@dataclass(frozen=True)
class LocalVlmAdapted(Adapted):
    """Which model, and how it is asked; the model itself stays where it lies."""

    model: str
    identity: str
    scoring: str
    template: str
    longest_side: int
    most_tokens: int
    precision: str

    def answer(self, query: Query) -> Answer:
        likely = query.wants == "scores" and self.scoring == "likelihood"
        questions = asked(query, self.template, NAME_IT if likely else CHOOSE)
        pictures = pictures_of(query)
        if not likely:
            said = self.kept(pictures, questions, "written", self.written)
            return Texts([spoken(text) for text in said]) if query.wants == "texts" else Scores(scores_of(query, questions, said))
        if query.wanted.exclusive:
            rows = self.kept(pictures, questions, "likelihood", self.likelihoods)
        else:
            rows = self.kept(pictures, questions, "yes or no", self.yes_or_no)
        return Scores(placed(rows, questions, len(query.wanted.names)))

    def written(self, generator: Generator, pixels: Array, question: Asked) -> str:
        return generator.written(pixels, question.prompt, self.most_tokens)

    def likelihoods(self, generator: Generator, pixels: Array, question: Asked) -> str:
        """As JSON, a number an option."""
        return json.dumps(generator.likelihoods(pixels, question.prompt, question.options))

    def yes_or_no(self, generator: Generator, pixels: Array, question: Asked) -> str:
        """As JSON, the difference of yes and no for each option."""
        pairs = [generator.likelihoods(pixels, IS_IT.replace("{option}", option), YES_NO) for option in question.options]
        return json.dumps([yes - no for yes, no in pairs])

    def kept(self, pictures: Sequence[Picture], questions: Sequence[Asked], kind: str, work: Work) -> list[str]:
        """(N,) what `work` makes of each row, in their order; what is on disk is not made again. Raises EncoderError, RunError."""
        digests = {id(picture): digest(picture, self.longest_side) for picture in {id(one): one for one in pictures}.values()}
        keys = [self._key(kind, question, digests[id(picture)]) for picture, question in zip(pictures, questions, strict=True)]
        store = AnswerStore()
        known = store.read(list(dict.fromkeys(keys)))
        generator = None
        for key, picture, question in zip(keys, pictures, questions, strict=True):
            if key not in known:
                generator = generator or self.opened()
                known[key] = work(generator, shown(picture, self.longest_side), question)
                store.keep(key, known[key])
        return [known[key] for key in keys]

    def opened(self) -> Generator:
        place = place_of(self.model)
        now = identity(place)
        if now != self.identity:
            raise RunError(f"the files of the generative model {place.name} are not those that this run was made with: fit it again")
        return load(place.folder, place.name, now, self.precision)

    def _key(self, kind: str, question: Asked, image: str) -> str:
        """SHA-256 of all that an answer depends on; the folder is not among it."""
        told = [FORM, self.identity, self.precision, kind, question.prompt, image]
        told += [self.most_tokens] if kind == "written" else [question.options]  # type: ignore[list-item]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def placed(rows: Sequence[str], questions: Sequence[Asked], candidates: int) -> Tensor:
    """(N, C) the numbers of each row's options where these belong; far below for the others."""
    values = torch.full((len(rows), candidates), REFUSED)
    for row, (numbers, question) in enumerate(zip(rows, questions, strict=True)):
        values[row, question.places] = torch.tensor(json.loads(numbers), dtype=values.dtype)
    return values


@dataclass(frozen=True)
class LocalVlm(Method):
    """A generative model answers, nothing trained (LLaVA, Liu et al. 2023; SmolVLM, Marafioti et al. 2025).

    scoring=likelihood: the mean log-probability a token of each option's words as the answer to the question; the options are not
    shown, so their order cannot matter; where several may hold, yes minus no to a question each. scoring=generated: the options
    are shown, the greedy answer is read by rules on its words, and one that names no option beyond doubt is a row of NaN. Texts
    are the greedy answer. `model` is a folder, or a name of the hub that lies on this machine; only safetensors are read, no code
    of the folder is run and nothing is fetched. Answers are kept on disk, for a comparison asks the same rows often.
    """

    gives = ("scores", "texts")
    needs = frozenset({"whole_images"})
    towers = frozenset({"image_modules"})  # all threads: each row passes through a whole model
    new_words = True
    reads = frozenset({"candidates", "rows"})
    cost = "a pass of the generative model for each image and option: seconds to minutes an image without a graphics card"
    good_when = "a generative model lies on this machine, and images may not leave it"
    poor_when = "no graphics card, or a model whose answers were never checked on such images"
    papers = ("arxiv:2304.08485", "arxiv:2504.05299")
    model: str = ""
    scoring: Literal["likelihood", "generated"] = "likelihood"
    template: str = ""
    longest_side: Annotated[int, Field(ge=16, le=4096)] = 768
    most_tokens: Annotated[int, Field(gt=0)] = 256
    precision: Literal["float32", "bfloat16"] = "float32"

    def fit(self, problem: Problem) -> Adapted:
        """Look that the model is there. Raises SettingsError and EncoderError."""
        if not self.model.strip():
            raise SettingsError("local_vlm needs a folder or the name of a model: --set model=FOLDER (in compare local_vlm.model=FOLDER)")
        checked(self.template, problem.query.wants, shows_options=self.scoring == "generated")
        kept = identity(place_of(self.model))
        return LocalVlmAdapted(self.model, kept, self.scoring, self.template, self.longest_side, self.most_tokens, self.precision)
