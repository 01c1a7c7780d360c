"""A generative vision-language model behind a server that speaks OpenAI's protocol, asked in words about each image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from medtame.errors import DataError, SettingsError
from medtame.features.answer_store import AnswerStore
from medtame.learning.asking import asked, balanced, checked, right_answers, scores_of
from medtame.learning.chat_server import Patience, from_environment
from medtame.learning.shown_images import data_url, digest, digest_of, pictures_of, shown
from medtame.learning.spoken_choice import spoken
from medtame.strategies.base import Method
from medtame.types import Adapted, Answer, Picture, Problem, Query, Scores, Texts

FORM = "chat-1"  # part of every key of a kept answer: raise it when the same question is put otherwise


@dataclass(frozen=True)
class ChatModelAdapted(Adapted):
    """How to ask, and examples from the support. Where to ask is told by the process that asks."""

    model: str
    template: str
    example_images: tuple[Tensor, ...]  # (H, W) or (H, W, 3) uint8 each
    example_prompts: tuple[str, ...]
    example_answers: tuple[str, ...]
    longest_side: int
    most_tokens: int
    timeout_seconds: float
    retries: int
    wait_seconds: float
    parallel: int

    def answer(self, query: Query) -> Answer:
        questions = asked(query, self.template)
        said = self.said(pictures_of(query), [question.prompt for question in questions])
        if query.wants == "texts":
            return Texts([spoken(text) for text in said])
        return Scores(scores_of(query, questions, said))

    def said(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[str]:
        """(N,) the reply to each row, in their order; a reply that is kept is not asked for again. Raises ChatError."""
        digests = {id(picture): digest(picture, self.longest_side) for picture in {id(one): one for one in pictures}.values()}
        begun = self._examples_digest()
        keys = [self._key(begun, prompt, digests[id(picture)]) for picture, prompt in zip(pictures, prompts, strict=True)]
        store = AnswerStore()
        known = store.read(list(dict.fromkeys(keys)))
        missing = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        if missing:
            questions = {key: (pictures[row], prompts[row]) for key, row in reversed(missing.items())}
            known |= self._replies(questions, store)
        return [known[key] for key in keys]

    def _replies(self, questions: Mapping[str, tuple[Picture, str]], store: AnswerStore) -> dict[str, str]:
        """The replies to questions (image, prompt) by key, each kept as soon as it is there. The first failure ends it."""
        server, patience, stop = from_environment(), Patience(self.timeout_seconds, self.retries, self.wait_seconds), Event()
        turns = self._turns()
        with server.opened(patience, self.parallel) as client, ThreadPoolExecutor(self.parallel) as threads:

            def reply(key: str) -> str:
                if stop.is_set():
                    return ""
                picture, prompt = questions[key]
                try:
                    messages = [*turns, turn(prompt, data_url(shown(picture, self.longest_side)))]
                    said = server.said(client, {**self._settings(), "messages": messages, "stream": False}, patience, stop)
                except BaseException:
                    stop.set()
                    raise
                store.keep(key, said)
                return said

            try:
                return dict(zip(questions, threads.map(reply, questions), strict=True))
            finally:
                stop.set()

    def _settings(self) -> dict[str, Any]:
        """What a server is told besides the messages: the likeliest words, not drawn ones."""
        return {"model": self.model, "temperature": 0, "seed": 0, "max_tokens": self.most_tokens}

    def _turns(self) -> list[dict[str, Any]]:
        """The examples as earlier turns: each image with what is asked of it, and the answer as it is wanted."""
        made: list[dict[str, Any]] = []
        for image, prompt, answer in zip(self.example_images, self.example_prompts, self.example_answers, strict=True):
            made += [turn(prompt, data_url(image.numpy())), {"role": "assistant", "content": answer}]
        return made

    def _examples_digest(self) -> list[Any]:
        return [[digest_of(image.numpy()) for image in self.example_images], self.example_prompts, self.example_answers]

    def _key(self, examples: Sequence[Any], prompt: str, image: str) -> str:
        """SHA-256 of all that an answer depends on. The address is not among it: the same model may move."""
        told = {"form": FORM, "settings": self._settings(), "examples": examples, "prompt": prompt, "image": image}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def turn(words: str, image: str) -> dict[str, Any]:
    """What a user says: an image and words."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": words}]}


@dataclass(frozen=True)
class ChatModel(Method):
    """A chat model is shown the image and asked to choose, or to write (visual instruction tuning, Liu et al. 2023).

    Nothing is trained. For scores it is asked to copy one of the options (where several may hold, all that do), for texts to
    answer in its own words; `examples` support rows (Alayrac et al. 2022), every answer in turn and chosen by the seed, stand
    before as earlier turns. An option counts only where the answer names it beyond doubt, by rules on its words; a refusal, no
    option and several ones are a row of NaN. Replies are greedy (temperature 0) and kept on disk, so a second run asks only
    what is not known yet; a server may still answer otherwise on another day.

    The address is never part of a run: it comes from --chat-url or MEDTAME_CHAT_URL, the key from MEDTAME_CHAT_KEY.
    """

    gives = ("scores", "texts")
    needs = frozenset({"whole_images"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    stores_support = True  # the examples, where there are any
    cost = "a request to the server for each image and question, longer by each example"
    good_when = "a strong model answers behind a server and there are few or no labels"
    poor_when = "probabilities are needed, images may not leave, or there are thousands of questions"
    papers = ("arxiv:2304.08485", "arxiv:2204.14198")
    model: str = ""
    examples: Annotated[int, Field(ge=0, le=64)] = 0
    template: str = ""
    longest_side: Annotated[int, Field(ge=16, le=4096)] = 768
    most_tokens: Annotated[int, Field(gt=0)] = 512
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 1.0
    parallel: Annotated[int, Field(gt=0, le=64)] = 4

    def fit(self, problem: Problem) -> Adapted:
        """Choose the examples; no server is asked. Raises SettingsError, and DataError where no row can be an example."""
        if not self.model.strip() or "://" in self.model:
            raise SettingsError(
                "chat_model needs the name that the server knows its model by: --set model=NAME (in compare chat_model.model=NAME)"
            )
        checked(self.template, problem.query.wants)
        rows, questions, answers = [], asked(problem.query, self.template) if self.examples else [], []
        if self.examples:
            answers = right_answers(problem, questions)
            groups = problem.query.samples.groups[problem.query.source]
            rows = balanced(answers, groups, self.examples, problem.seed)
            if not rows and len(answers):
                raise DataError(f"none of {len(answers)} support rows has an answer to show: fill the column, or set examples=0")
        pictures = pictures_of(problem.query.take(rows)) if rows else []
        return ChatModelAdapted(
            model=self.model.strip(),
            template=self.template,
            example_images=tuple(torch.from_numpy(shown(picture, self.longest_side)) for picture in pictures),
            example_prompts=tuple(questions[row].prompt for row in rows),
            example_answers=tuple(answers[row] or "" for row in rows),
            longest_side=self.longest_side,
            most_tokens=self.most_tokens,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            wait_seconds=self.wait_seconds,
            parallel=self.parallel,
        )
