"""A small language model, trained from nothing, that begins with vectors of the frozen image."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize

from medtame.errors import DataError
from medtame.learning.loop import Descent, Step, descend
from medtame.learning.vocabulary import END, SPEAK, UNKNOWN, UNSAID, ids_of, padded, sequences, split_words, vocabulary_of
from medtame.networks.prefix_decoder import PrefixDecoder
from medtame.strategies.base import REFUSED, Learner, hard, labelled
from medtame.types import Adapted, Problem, Query, Scores, Texts

SEQUENCES_AT_ONCE = 256


def image_vectors(query: Query) -> Tensor:
    """(N, 5, D) the row's vector, and the means of the four quarters of its image's coarsest map: left and right, above and below."""
    quarters = adaptive_avg_pool2d(query.encoder.grid(query.samples)[0], 2).flatten(2).transpose(1, 2)
    quarters = normalize(quarters, dim=-1)[torch.as_tensor(query.source)]
    return torch.cat([query.vectors()[:, None], quarters], 1)


@dataclass(frozen=True)
class PrefixLanguageModelAdapted(Adapted):
    weights: dict[str, Tensor]
    vocabulary: tuple[str, ...]
    centre: Tensor  # (5, D) of the image vectors of the support
    spread: Tensor  # (5, 1)
    question: int  # tokens, at most, of a question
    longest: int  # tokens, at most, of an answer

    def network(self) -> PrefixDecoder:
        width, image = self.weights["prefix.weight"].shape
        layers = len({name.split(".")[1] for name in self.weights if name.startswith("blocks.")})
        return PrefixDecoder(image, len(self.centre), len(self.vocabulary), self.question + 1 + self.longest, width, layers)

    def logits(self, image: Tensor, ids: Tensor) -> Tensor:
        """(N, L, words) from standardised vectors and ids."""
        found: Tensor = functional_call(self.network(), self.weights, (image, ids))
        return found

    def ids(self, text: str) -> list[int]:
        return ids_of(text, {word: k for k, word in enumerate(self.vocabulary)})

    def beginnings(self, questions: Sequence[str]) -> list[list[int]]:
        """The ids of each question, cut to the length that was learnt from, and the sign to speak."""
        return [[*self.ids(words)[: self.question], SPEAK] for words in questions]

    @torch.no_grad()
    def answer(self, query: Query) -> Texts | Scores:
        image, begun = (image_vectors(query) - self.centre) / self.spread, self.beginnings(query.words or [""] * len(query))
        if query.wants == "scores":
            return self._scores(query, image, begun)
        parts = [
            self._said(image[i : i + SEQUENCES_AT_ONCE], begun[i : i + SEQUENCES_AT_ONCE]) for i in range(0, len(query), SEQUENCES_AT_ONCE)
        ]
        return Texts([text for part in parts for text in part])

    def _said(self, image: Tensor, begun: Sequence[list[int]]) -> list[str]:
        """The likeliest next word, again and again, until the end or the longest answer of the support."""
        ends = torch.tensor([len(ids) for ids in begun])
        ids = padded([[*start, *[END] * self.longest] for start in begun])
        rows, open_ = torch.arange(len(ids)), torch.ones(len(ids), dtype=torch.bool)
        for step in range(self.longest):
            logits = self.logits(image, ids[:, : int(ends.max()) + step])[rows, ends + step - 1]
            words = logits.index_fill(1, torch.tensor([UNKNOWN, SPEAK]), -torch.inf).argmax(1)
            open_ &= words != END
            if not open_.any():
                break
            ids[rows, ends + step] = words.where(open_, END)
        spoken = [row[end:].tolist() for row, end in zip(ids, ends.tolist(), strict=True)]
        return ["".join(self.vocabulary[k] for k in row if k != END).strip() for row in spoken]

    def _scores(self, query: Query, image: Tensor, begun: Sequence[list[int]]) -> Scores:
        """Mean log-likelihood of a candidate's words and end, for the candidates that a row may take."""
        candidates = [[*self.ids(name)[: self.longest - 1], END] for name in query.wanted.names]
        allowed = np.ones((len(query), len(candidates)), dtype=bool) if query.allowed is None else query.allowed
        scores = torch.full(allowed.shape, REFUSED)
        pairs = np.argwhere(allowed)
        for start in range(0, len(pairs), SEQUENCES_AT_ONCE):
            part = pairs[start : start + SEQUENCES_AT_ONCE]
            ids, said = sequences([begun[row] for row, _ in part], [candidates[k] for _, k in part])
            logits = self.logits(image[torch.as_tensor(part[:, 0])], ids[:, :-1]).transpose(1, 2)
            loss = cross_entropy(logits, ids[:, 1:].where(said, UNSAID), reduction="none", ignore_index=UNSAID)
            scores[part[:, 0], part[:, 1]] = -loss.sum(1) / said.sum(1)
        return Scores(scores)


@dataclass(frozen=True)
class PrefixLanguageModel(Learner):
    """An image as the beginning of a causal transformer that is asked for the text (ClipCap, Mokady et al. 2021; R2GenGPT).

    The frozen image is five vectors: whole and quarters, centred on the support and scaled; then a row's question, where it has
    one, then the text, word by word. The language model starts from nothing, so it says only what support texts say. Greedy
    decoding; candidates are scored by their mean log-likelihood a word. AdamW, cosine decay; half of the image features are
    left out at each step.
    """

    learning = "fine_tuning"
    gives = ("texts", "scores")
    needs = frozenset({"answer_texts"})
    reads = frozenset({"candidates", "rows"})
    stores_support = True  # the words of its texts
    trains = "a small causal transformer and the map of image vectors into it"
    cost = "tens of seconds on cached features"
    good_when = "hundreds of short texts that repeat themselves"
    poor_when = "rare findings: it writes what it has read often"
    papers = ("arxiv:2111.09734", "arxiv:2309.09812")
    steps: Annotated[int, Field(ge=0)] = 240
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch: Annotated[int, Field(gt=0)] = 32
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 128
    layers: Annotated[int, Field(gt=0)] = 2
    vocabulary: Annotated[int, Field(gt=0)] = 4000
    longest: Annotated[int, Field(gt=1)] = 120

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        query, texts = spoken(problem)
        if not any(text.split() for text in texts):
            raise DataError(f"all {len(texts)} support texts are empty: give texts with words")
        questions = query.words or [""] * len(query)
        words = vocabulary_of([*texts, *questions], self.vocabulary)
        vectors = image_vectors(query)
        centre = vectors.mean(0)
        spread = (vectors - centre).square().mean((0, 2))[:, None].sqrt()
        question = max(len(split_words(text)) for text in questions)
        longest = min(self.longest, max(len(split_words(text)) for text in texts) + 1)
        empty = PrefixLanguageModelAdapted({}, words, centre, spread.where(spread > 0, 1.0), min(question, self.longest), longest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            network = PrefixDecoder(vectors.shape[2], len(centre), len(words), empty.question + 1 + longest, self.width, self.layers)
        weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        ids, said = sequences(empty.beginnings(questions), [[*empty.ids(text), END][:longest] for text in texts])
        targets = ids[:, 1:].where(said & (ids[:, 1:] != UNKNOWN), UNSAID)
        image = (vectors - centre) / empty.spread
        made = count(0 if resume is None else int(resume["step"]))

        def loss(rows: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(problem.seed * 1_000_003 + next(made))
            kept = torch.rand(image[rows].shape, generator=generator) >= self.feature_dropout
            logits = functional_call(network, weights, (image[rows] * kept / (1 - self.feature_dropout), ids[rows, :-1]))
            return cross_entropy(logits.transpose(1, 2), targets[rows], ignore_index=UNSAID)

        how = Descent(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            warm_up=min(20, self.steps // 4),
        )
        kept = yield from descend(weights, loss, how, n=len(texts), seed=problem.seed, resume=resume)
        return replace(empty, weights=kept)


def spoken(problem: Problem) -> tuple[Query, list[str]]:
    """The rows to learn from and what is said of them; where scores are wanted, the name of the likeliest candidate."""
    if problem.query.wants == "texts":
        return problem.query, [str(text) for text in problem.targets]
    rows, targets = labelled(problem)
    return problem.query.take(rows.numpy()), [problem.query.wanted.names[k] for k in hard(targets)]
