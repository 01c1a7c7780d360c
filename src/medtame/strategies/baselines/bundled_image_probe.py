"""A probe on the images alone, through the embedded general-purpose encoder, whatever encoder is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medtame import encoders
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store
from medtame.learning.readout import logistic
from medtame.strategies.base import REFUSED, Method, labelled, masked, same_candidates
from medtame.types import Adapted, Encoder, Problem, Query, Scores


def opened(spec: str, query: Query) -> Encoder:
    """The encoder by its name, with the cache on disk around it; the query's own where that is the one."""
    if query.encoder.spec == spec:
        return query.encoder
    return CachedEncoder(encoders.card(spec), lambda: encoders.load(spec), Store())


def image_features(query: Query, spec: str) -> Tensor:
    """(N, F) of the images and regions alone."""
    with torch.no_grad():
        return replace(query, words=None).features(opened(spec, query))


@dataclass(frozen=True)
class BundledImageProbeAdapted(Adapted):
    names: tuple[str, ...]
    spec: str
    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        return Scores(masked(image_features(query, self.spec) @ self.weight.T + self.bias, query.allowed))


@dataclass(frozen=True)
class BundledImageProbe(Method):
    """Logistic regression on `bundled`'s image features (EfficientNet-Lite0 of ImageNet: Tan and Le 2019), without any text.

    What a large or medical encoder has to beat before it can be said to help: this one fits on a phone and saw no medical
    image. The same probe as linear_probe (scikit-learn, lbfgs, C fixed at 100), but for the encoder, and rows' words are not read.
    Its features are kept in the same cache. Needs the weights of medtame[demo].
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    trains = "a linear layer on frozen features of another encoder"
    cost = "seconds on cached features; the first time a pass of every image through `bundled`"
    good_when = "as the bar that a large or medical encoder has to pass"
    poor_when = "questions in words: it reads none"
    papers = ("arxiv:1905.11946", "arxiv:2103.00020")
    other: Annotated[str, Field(min_length=1)] = "bundled"
    inverse_penalty: Annotated[float, Field(gt=0)] = 100.0
    iterations: Annotated[int, Field(gt=0)] = 1000

    def fit(self, problem: Problem) -> Adapted:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        features = image_features(query, self.other).numpy()
        model = lambda: LogisticRegression(C=self.inverse_penalty, max_iter=self.iterations)  # noqa: E731
        weight, bias = logistic(features, targets, model, exclusive=query.wanted.exclusive, never=REFUSED)
        return BundledImageProbeAdapted(query.wanted.names, self.other, weight, bias)
