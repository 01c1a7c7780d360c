"""CoOp: the shared first words of the prompts become free vectors; the image side stays cached."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from medtame.learning.loop import Descent, Step, descend
from medtame.strategies.base import Learner, Tuned, classification_loss, cosine_logits, labelled, masked
from medtame.types import Adapted, Candidates, Encoder, Problem, Query, Scores


@dataclass(frozen=True)
class PromptedTower:
    """A text tower in which the word embeddings of a known beginning are replaced by context vectors."""

    base: Any
    beginning: Tensor  # (M,) token ids after the first special token
    context: Tensor  # (M, E)

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.base.tokens(strings)
        return ids, mask

    def embed(self, ids: Tensor) -> Tensor:
        embedded, length = self.base.embed(ids), len(self.beginning)
        if ids.shape[1] <= length:
            return torch.as_tensor(embedded)
        begins = (ids[:, 1 : length + 1] == self.beginning).all(1)[:, None, None]
        middle = torch.where(begins, self.context[None], embedded[:, 1 : length + 1])
        return torch.cat([embedded[:, :1], middle, embedded[:, length + 1 :]], 1)

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return torch.as_tensor(self.base.encode(embedded, mask))


def shared_beginning(ids: Tensor) -> int:
    """How many tokens after the first special one are the same in all rows of ids (C, L)."""
    same = (ids == ids[:1]).all(0).tolist()
    return next((i for i, equal in enumerate(same) if not equal), len(same)) - 1


def one_prompt(candidates: Candidates, template: str) -> Candidates:
    """The first prompt of each candidate; `template` with its name where a template is given."""
    prompts = ((template.format(name),) for name in candidates.names) if template else (sentences[:1] for sentences in candidates.prompts)
    return replace(candidates, prompts=tuple(prompts))


@dataclass(frozen=True)
class CoopAdapted(Tuned):
    beginning: Tensor
    context: Tensor
    template: str

    def encoder(self, base: Encoder) -> Encoder:
        return base.changed(text=PromptedTower(base.text_tower, self.beginning, self.context), identity="coop")

    def answer(self, query: Query) -> Scores:
        return super().answer(replace(query, candidates=one_prompt(query.wanted, self.template)))


@dataclass(frozen=True)
class Coop(Learner):
    """Context optimisation (Zhou et al. 2022): cross-entropy over scale x cosine, only the context vectors are learnt.

    The context takes the place of the words that all first prompts begin with ("chest X-ray of"), starts at their own
    embeddings, and so answers like zero-shot with that prompt before the first step. Prompts that share no beginning are
    replaced by `template`. Position and type embeddings are added once, by the tower. No augmentation, so image features stay
    cached. AdamW instead of SGD; steps and learning rate were chosen on held-out training rows of the phantom and chest_xray.
    """

    learning = "prompt_learning"
    needs = frozenset({"labels"})
    towers = frozenset({"text"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "the first word vectors of the prompt"
    cost = "seconds: passes through the text tower"
    papers = ("arxiv:2109.01134",)
    steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    batch: Annotated[int, Field(gt=0)] = 64
    template: str = "a medical image of {}"

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        base, tower = problem.query.encoder, problem.query.encoder.text_tower
        template, beginning = self._beginning(problem.query.wanted, tower)
        query = replace(problem.query.take(rows.numpy()), candidates=one_prompt(problem.query.wanted, template))
        vectors = query.vectors()
        with torch.no_grad():
            context = tower.embed(beginning[None])[0].clone()

        def loss(batch: Tensor) -> Tensor:
            encoder = base.changed(text=PromptedTower(tower, beginning, context), identity="coop")
            part = query.take(batch.numpy())
            logits = masked(cosine_logits(vectors[batch], part.texts(encoder), base), part.allowed)
            return classification_loss(logits, targets[batch], exclusive=query.wanted.exclusive)

        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        kept = yield from descend({"context": context}, loss, how, n=len(rows), seed=problem.seed, resume=resume)
        return CoopAdapted(beginning, kept["context"], template)

    def _beginning(self, candidates: Candidates, tower: Any) -> tuple[str, Tensor]:
        """The template in use ("" for the prompts as given) and the token ids that the context replaces."""
        for template in ("", self.template):
            strings = [sentences[0] for sentences in one_prompt(candidates, template).prompts]
            ids = tower.tokens(strings)[0]
            length = shared_beginning(ids)
            if 0 < length < ids.shape[1] - 1:
                return template, ids[0, 1 : length + 1].clone()
        ids = tower.tokens([self.template.split("{")[0].strip()])[0]
        return self.template, ids[0, 1:-1].clone()
