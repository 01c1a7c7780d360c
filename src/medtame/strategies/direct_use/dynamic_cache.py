"""TDA: query rows that zero-shot is sure of become examples for those that come after them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.errors import SettingsError
from medtame.strategies.base import Method, masked, same_candidates, zero_shot_logits
from medtame.types import Adapted, Array, Problem, Query, Scores


@dataclass
class Cache:
    """The least uncertain rows that were seen, at most `size` a class; an empty place has infinite entropy."""

    keys: Array  # (K, size, D)
    values: Array  # (K, size, K)
    entropy: Array  # (K, size)

    @classmethod
    def empty(cls, classes: int, size: int, width: int) -> Cache:
        return cls(
            np.zeros((classes, size, width), np.float32), np.zeros((classes, size, classes), np.float32), np.full((classes, size), np.inf)
        )

    def put(self, guess: int, key: Array, value: Array, entropy: float) -> None:
        """Keep a row in the place of the most uncertain one of its class, if it is less uncertain than that."""
        worst = int(self.entropy[guess].argmax())
        if entropy < self.entropy[guess, worst]:
            self.keys[guess, worst], self.values[guess, worst], self.entropy[guess, worst] = key, value, entropy

    def votes(self, key: Array, sharpness: float) -> Array:
        """(K,) sum over what is kept of exp(-sharpness x (1 - cosine)) x value."""
        filled = np.isfinite(self.entropy)
        near = np.exp(-sharpness * (1 - self.keys[filled] @ key))
        return np.asarray(near @ self.values[filled])


def entropy_units(logits: Tensor) -> Tensor:
    """(N,) entropy in nats divided by log2 of the number of classes, at most ln 2 = .693: the unit that the thresholds are in."""
    log_probability = logits.log_softmax(1)
    nats = -(log_probability.exp() * log_probability).sum(1)
    return nats / math.log2(logits.shape[1])


@dataclass(frozen=True)
class DynamicCacheAdapted(Adapted):
    names: tuple[str, ...]
    settings: dict[str, float]
    orders: int
    seed: int

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            features = nn.functional.normalize(query.features(), dim=-1).numpy()
            logits, scale = zero_shot_logits(query), query.encoder.scale
            orders = [np.random.default_rng([self.seed, number]).permutation(len(query)) for number in range(self.orders)]
            said = torch.stack([self.streamed(features, logits, order, scale) for order in orders]).mean(0)
        return Scores(masked(said, query.allowed))

    def streamed(self, features: Array, logits: Tensor, order: Array, scale: float) -> Tensor:
        """(N, K) logits, the rows taken in that order: each is put into the caches before it is answered."""
        s, classes, width = self.settings, logits.shape[1], features.shape[1]
        entropy, guess = entropy_units(logits).numpy(), logits.argmax(1).numpy()
        likely = logits.softmax(1).numpy()
        doubtful = ((likely > s["mask_low"]) & (likely < s["mask_high"])).astype(np.float32)
        one_hot = np.eye(classes, dtype=np.float32)
        positive = Cache.empty(classes, int(s["positive_size"]), width)
        negative = Cache.empty(classes, int(s["negative_size"]), width)
        said = logits.numpy().copy()
        for row in order.tolist():
            positive.put(guess[row], features[row], one_hot[guess[row]], entropy[row])
            if s["entropy_low"] < entropy[row] < s["entropy_high"]:
                negative.put(guess[row], features[row], doubtful[row], entropy[row])
            said[row] += scale * s["positive_weight"] * positive.votes(features[row], s["positive_sharpness"])
            said[row] -= scale * s["negative_weight"] * negative.votes(features[row], s["negative_sharpness"])
        return torch.from_numpy(said)


@dataclass(frozen=True)
class DynamicCache(Method):
    """Training-free dynamic adapter (Karmanov et al. 2024).

    Logits are zero-shot's plus those of a positive cache (the surest rows, at most 3 a guessed class, one-hot guess) minus those
    of a negative one (rows of middling entropy, at most 2 a class, marking the classes whose probability lies between
    `mask_low` and `mask_high`). A kept row counts exp(-sharpness x (1 - cosine)). Weights are shares of the encoder's scale: 2
    and .117 of 100 in the paper. The paper chose the positive weight and sharpness per data set; here they are the ones of
    ImageNet, not chosen by data. `entropy_low` and `entropy_high` are in the unit of the released code, nats divided by log2 of
    the number of classes, so that no row is above .693.

    The answer depends on the order of the rows: they are shuffled three times, with seeds, and the logits are averaged. All rows
    are asked in one call. Like all that builds on zero-shot's own guesses it can do harm where those are poor.
    """

    needs = frozenset({"one_label"})
    scope = "stream"
    reads = frozenset({"candidates"})
    towers = frozenset({"text"})
    trains = "nothing at fit; caches of query rows at predict"
    cost = "a tenth of a millisecond a row and order, at predict"
    good_when = "zero-shot is already good and the test images differ from its training"
    poor_when = "zero-shot is poor, or rows come one by one: never above zero-shot here with `bundled`"
    papers = ("arxiv:2403.18293",)
    positive_size: Annotated[int, Field(ge=1)] = 3
    negative_size: Annotated[int, Field(ge=1)] = 2
    positive_weight: Annotated[float, Field(ge=0)] = 0.02
    negative_weight: Annotated[float, Field(ge=0)] = 0.00117
    positive_sharpness: Annotated[float, Field(ge=0)] = 5.0
    negative_sharpness: Annotated[float, Field(ge=0)] = 1.0
    entropy_low: Annotated[float, Field(ge=0)] = 0.2
    entropy_high: Annotated[float, Field(ge=0)] = 0.5
    mask_low: Annotated[float, Field(ge=0, le=1)] = 0.03
    mask_high: Annotated[float, Field(ge=0, le=1)] = 1.0
    orders: Annotated[int, Field(ge=1)] = 3

    def fit(self, problem: Problem) -> Adapted:
        if self.entropy_low >= self.entropy_high or self.mask_low >= self.mask_high:
            raise SettingsError("dynamic_cache needs entropy_low below entropy_high and mask_low below mask_high: exchange them")
        settings = {name: float(value) for name, value in vars(self).items() if name != "orders"}
        return DynamicCacheAdapted(problem.query.wanted.names, settings, self.orders, problem.seed)
