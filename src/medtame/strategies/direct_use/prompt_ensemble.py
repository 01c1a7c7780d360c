"""Prompts weighted by how sure zero-shot is with them: a template that says nothing of these images counts less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.strategies.base import Method, cosine_logits, masked
from medtame.types import Adapted, Encoder, Problem, Query, Scores, sentence_means


@dataclass(frozen=True)
class PromptEnsembleAdapted(Adapted):
    weights: tuple[float, ...]  # of the sets of prompts; their sum is 1

    def answer(self, query: Query) -> Scores:
        with torch.no_grad():
            every = sets(query, len(self.weights))
            texts = nn.functional.normalize(torch.einsum("p,pcd->cd", torch.tensor(self.weights), every), dim=-1)
            if query.wanted.negatives is not None:
                texts = nn.functional.normalize(texts - sentence_means(query.encoder, query.wanted.negatives), dim=-1)
            if query.words is not None:
                texts = nn.functional.normalize(query.encoder.texts(query.words)[:, None] + texts[None], dim=-1)
            return Scores(masked(cosine_logits(query.vectors(), texts, query.encoder), query.allowed))


def sets(query: Query, count: int) -> Tensor:
    """(P, C, D) unit vectors: set p takes prompt p of each candidate, and starts again where a candidate has fewer."""
    flat = [prompts[p % len(prompts)] for p in range(count) for prompts in query.wanted.prompts]
    return query.encoder.texts(flat).reshape(count, len(query.wanted.names), -1)


def confidence(vectors: Tensor, texts: Tensor, encoder: Encoder) -> Tensor:
    """(P,) mean over rows (N, D) of the largest logit of each set (P, C, D), in units of the encoder's scale.

    From each candidate's logits their mean over the rows is taken away first: a prompt that is near to every image says nothing.
    """
    cosine = torch.einsum("nd,pcd->npc", vectors, texts)
    largest: Tensor = (cosine - cosine.mean(0)).amax(2).mean(0)
    return encoder.scale * largest


@dataclass(frozen=True)
class PromptEnsemble(Method):
    """Each class is the weighted mean of its unit prompt vectors; weights are softmax(confidence) (Allingham et al. 2023).

    Prompt p of every class is one set, as a template makes them; a class with fewer prompts starts again with its first. The
    confidence of a set is the mean over support rows (and unlabelled training rows, where there are any) of its largest logit,
    each candidate's own mean taken away. The paper also takes away the mean on images of its pretraining, which nobody has
    here. No label is read, and no query row: a row's answer depends on the row alone. Prompts that are all alike, and one
    prompt a class, give zero_shot. Where rows have words, the weights come from images and candidates
    alone; negative prompts all count the same.
    """

    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True  # with one prompt a class
    unlabelled = True
    towers = frozenset({"text"})
    trains = "a weight a prompt, in closed form"
    good_when = "several sentences a class, of which some suit the images better"
    poor_when = "all sentences are equally good, or none knows the classes"
    papers = ("arxiv:2302.06235",)
    sharpness: Annotated[float, Field(ge=0)] = 1.0

    def fit(self, problem: Problem) -> Adapted:
        count = max(len(prompts) for prompts in problem.query.wanted.prompts)
        if count == 1:
            return PromptEnsembleAdapted((1.0,))
        with torch.no_grad():
            pools = [problem.query, *([problem.unlabelled] if problem.unlabelled is not None else [])]
            vectors = torch.cat([pool.vectors() for pool in pools])
            found = confidence(vectors, sets(problem.query, count), problem.query.encoder)
        return PromptEnsembleAdapted(tuple((self.sharpness * found).softmax(0).tolist()))
