"""Fourteen few-shot methods as one writes them for one support in numpy and scikit-learn: what the grid is timed against.

Each takes a support (features, labels), the text vectors, the rest of the training rows and the test rows, and gives test logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifierCV

from medtame.learning.caches import NO_WORSE
from medtame.types import Array, dealt


@dataclass(frozen=True)
class Shot:
    """One support and what is asked: all features of unit norm."""

    features: Array  # (n, D)
    labels: Array  # (n,)
    texts: Array  # (C, D)
    rest: Array  # (U, D) training rows without labels
    test: Array  # (N, D)
    scale: float
    seed: int
    names: Array  # (n,) group of each row

    @property
    def classes(self) -> int:
        return len(self.texts)

    @property
    def one_hot(self) -> Array:
        return np.eye(self.classes, dtype=np.float32)[self.labels]

    @property
    def shots(self) -> int:
        """Rows a class: the same in all."""
        return len(self.labels) // self.classes


def unit(values: Array) -> Array:
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def zero_shot(shot: Shot) -> Array:
    return np.asarray(shot.scale * shot.test @ shot.texts.T)


def nearest_prototype(shot: Shot) -> Array:
    means = np.stack([shot.features[shot.labels == k].mean(0) for k in range(shot.classes)])
    return np.asarray(shot.scale * shot.test @ unit(means).T)


def k_nearest_neighbours(shot: Shot) -> Array:
    cosine = shot.test @ shot.features.T
    said = np.zeros((len(cosine), shot.classes))
    for row, near in enumerate(np.argsort(-cosine, axis=1)[:, :5]):
        for neighbour, vote in zip(near, softmax(cosine[row, near] / 0.07), strict=True):
            said[row, shot.labels[neighbour]] += vote
    return np.log((said + 1e-3) / (said + 1e-3).sum(1, keepdims=True))


def linear_probe(shot: Shot) -> Array:
    model = LogisticRegression(C=100.0, max_iter=1000).fit(shot.features, shot.labels)
    return np.asarray(model.decision_function(shot.test))


def ridge_probe(shot: Shot) -> Array:
    if shot.shots < 2:
        return np.asarray(shot.scale * Ridge(alpha=0.1).fit(shot.features.astype(float), shot.one_hot).predict(shot.test.astype(float)))
    model = RidgeClassifierCV(alphas=np.logspace(-4, 2, 20)).fit(shot.features.astype(float), shot.labels)
    return np.asarray(shot.scale * (model.decision_function(shot.test.astype(float)) + 1) / 2)


def gaussians(features: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Weights (C, D) and biases (C,) of a discriminant with one shrunk covariance, its precision of mean eigenvalue 1."""
    means = np.stack([features[labels == k].mean(0) for k in range(classes)])
    deviations = features - means[labels]
    scatter, width = deviations.T @ deviations, features.shape[1]
    ridge = np.trace(scatter) / max(len(features) - 1, 1)
    precision = np.eye(width) if ridge < 1e-12 else np.linalg.inv(scatter + ridge * np.eye(width))
    precision = precision * width / np.trace(precision)
    noise = (precision * scatter).sum() / max(len(features) - classes, 1) / np.bincount(labels, minlength=classes)
    weight = means @ precision
    bias = -((weight * means).sum(1) - noise) / 2
    return weight - weight.mean(0), bias - bias.mean()


def gda(shot: Shot) -> Array:
    features, alpha = shot.features.astype(float), 0.3
    if shot.shots > 1:
        start, held = shot.scale * features @ shot.texts.T, np.zeros((len(features), shot.classes))
        fold = dealt(shot.names, shot.labels, np.arange(len(features)), 5, shot.seed)
        for number in np.unique(fold):
            weight, bias = gaussians(features[fold != number], shot.labels[fold != number], shot.classes)
            held[fold == number] = shot.scale * (features[fold == number] @ weight.T + bias)
        losses = {strength: balanced(start + strength * held, shot) for strength in np.logspace(-2, 2, 17)}
        alpha = min(losses, key=lambda strength: losses[strength])
    weight, bias = gaussians(features, shot.labels, shot.classes)
    return zero_shot(shot) + alpha * shot.scale * (shot.test @ weight.T + bias)


def balanced(logits: Array, shot: Shot) -> float:
    """Cross-entropy, the mean of each class summed over classes."""
    return -float((shot.one_hot * log_softmax(logits.astype(np.float32), axis=1)).sum() / shot.shots)


def tip_adapter(shot: Shot) -> Array:
    values, rows = shot.one_hot * min(shot.shots, 16) / shot.shots, len(shot.labels)
    alpha, beta = 1.0, 5.5
    if shot.shots > 1:
        start, losses, others = shot.scale * shot.features @ shot.texts.T, {}, 1 - np.eye(rows, dtype=np.float32)
        full = values.sum(0) / (others @ values)
        cosine = shot.features @ shot.features.T
        for sharp in np.arange(1.0, 21.0):
            cached = (np.exp(-sharp * (1 - cosine)) * others) @ values * full
            for strength in np.logspace(-2, 2, 20):
                losses[strength, sharp] = balanced(start + strength * cached, shot)
        least = min(losses.values()) + NO_WORSE * shot.classes
        alpha = min(strength for (strength, _), loss in losses.items() if loss <= least)
        beta = min((sharp for strength, sharp in losses if strength == alpha), key=lambda sharp: losses[alpha, sharp])
    return zero_shot(shot) + alpha * np.exp(-beta * (1 - shot.test @ shot.features.T)) @ values


def of_prototypes(shot: Shot, prototypes: Array) -> Array:
    return np.asarray(shot.scale * shot.test @ unit(prototypes).T)


def ss_text(shot: Shot) -> Array:
    sums = np.stack([shot.features[shot.labels == k].sum(0) for k in range(shot.classes)])
    return of_prototypes(shot, shot.texts + shot.scale * shot.shots / len(shot.labels) * sums)


def ss_text_unlabelled(shot: Shot) -> Array:
    sums, share = np.stack([shot.features[shot.labels == k].sum(0) for k in range(shot.classes)]), math.log(1 / shot.classes)
    seen = shot.scale * shot.shots / (2 * len(shot.labels)) * sums
    prototypes = shot.texts
    for _ in range(3 if len(shot.rest) else 0):
        plan = shot.scale * shot.rest @ unit(prototypes).T
        for _ in range(10):
            plan = plan - logsumexp(plan, axis=0, keepdims=True) + share
            plan = plan - logsumexp(plan, axis=1, keepdims=True)
        prototypes = shot.texts + seen + shot.scale / len(shot.rest) * softmax(plan, axis=1).T @ shot.rest
    return of_prototypes(shot, prototypes if len(shot.rest) else shot.texts + seen)


def optimal_transport(shot: Shot) -> Array:
    logits, share = zero_shot(shot).astype(float), math.log(1 / shot.classes)
    columns = np.zeros(shot.classes)
    for _ in range(100):
        rows = -logsumexp(logits + columns, axis=1, keepdims=True) - math.log(len(logits))
        columns = share - logsumexp(logits + rows, axis=0)
    return log_softmax(logits + columns, axis=1)


def lp_plus_plus(shot: Shot) -> Array:
    features, cosine = np.pad(shot.features, ((0, 0), (0, 1)), constant_values=1), shot.features @ shot.texts.T
    of_weight = 4 * len(features) / np.linalg.eigvalsh((features @ features.T).astype(float))[-1]
    of_alpha = len(features) / (4 * (cosine**2).sum(0).max())
    weight = min(shot.shots, 16) * np.stack([features[shot.labels == k].mean(0) for k in range(shot.classes)])
    weight[:, -1], momentum = 0, 0.0
    own = np.array([cosine[shot.labels == k, k].mean() for k in range(shot.classes)])
    alpha = np.full(shot.classes, 2.5 * shot.scale * max(own.mean(), 0))
    for number in range(1, 301):
        slope = (softmax(features @ weight.T + alpha * cosine, axis=1) - shot.one_hot) / len(features)
        momentum = 0.9 * momentum + slope.T @ features
        weight = weight - of_weight * momentum
        if number % 10 == 0:
            alpha = alpha - of_alpha * (slope * cosine).sum(0)
    weight = weight - weight.mean(0)
    return np.pad(shot.test, ((0, 0), (0, 1)), constant_values=1) @ weight.T + alpha * (shot.test @ shot.texts.T)


def descended(shot: Shot, gradient: Callable[[Array, Array], Array], steps: int, rate: float, step: Callable[..., Array]) -> Array:
    """(C, D) of what starts at zero and goes down by batches of 256 with a cosine of the learning rate."""
    shift, held = np.zeros(shot.texts.shape, np.float32), [np.float32(0), np.float32(0)]
    for number in range(1, steps + 1):
        factor = 0.5 if number == 1 else 0.5 * (1 + math.cos(math.pi * (number - 2) / (steps - 1)))
        rows = torch.randperm(len(shot.labels), generator=torch.Generator().manual_seed(shot.seed * 1_000_003 + number)).numpy()[:256]
        shift = shift - factor * rate * step(gradient(shift, rows), held, number)
    return shift


def momentum(slope: Array, held: list[Array], number: int) -> Array:
    held[0] = 0.9 * held[0] + slope
    return held[0]


def adam(slope: Array, held: list[Array], number: int) -> Array:
    held[0], held[1] = 0.9 * held[0] + 0.1 * slope, 0.999 * held[1] + 0.001 * slope**2
    return np.asarray(held[0] / (1 - 0.9**number) / (np.sqrt(held[1] / (1 - 0.999**number)) + 1e-8))


def of_cosines(shot: Shot, weights: Array, rows: Array, slope: Callable[[Array], Array]) -> Array:
    """(C, D) gradient to prototypes that are of unit norm in the forward pass, given that to the logits."""
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    known = weights / norms
    to_unit = shot.scale * slope(shot.scale * shot.features[rows] @ known.T).T @ shot.features[rows]
    return np.asarray((to_unit - (to_unit * known).sum(1, keepdims=True) * known) / norms)


def mean_slope(shot: Shot, rows: Array) -> Callable[[Array], Array]:
    return lambda logits: (softmax(logits, axis=1) - shot.one_hot[rows]) / len(rows)


def text_initialised_probe(shot: Shot) -> Array:
    def gradient(shift: Array, rows: Array) -> Array:
        return of_cosines(shot, shot.texts + shift, rows, mean_slope(shot, rows))

    return of_prototypes(shot, shot.texts + descended(shot, gradient, 300, 1e-3, momentum))


def clap(shot: Shot) -> Array:
    trust = softmax(shot.scale * shot.features @ shot.texts.T, axis=1)
    held = shot.scale * np.array([trust[shot.labels == k, k].mean() for k in range(shot.classes)])[:, None]

    def gradient(shift: Array, rows: Array) -> Array:
        return of_cosines(shot, shot.texts + shift, rows, mean_slope(shot, rows)) + 2 * held * shift / shot.classes

    return of_prototypes(shot, shot.texts + descended(shot, gradient, 300, 1e-3, momentum))


def task_residual(shot: Shot) -> Array:
    def gradient(shift: Array, rows: Array) -> Array:
        return 0.5 * of_cosines(shot, shot.texts + 0.5 * shift, rows, mean_slope(shot, rows))

    return of_prototypes(shot, shot.texts + 0.5 * descended(shot, gradient, 200, 2e-3, adam))


METHODS: Mapping[str, Callable[[Shot], Array]] = {
    "zero_shot": zero_shot,
    "nearest_prototype": nearest_prototype,
    "k_nearest_neighbours": k_nearest_neighbours,
    "linear_probe": linear_probe,
    "ridge_probe": ridge_probe,
    "gda": gda,
    "tip_adapter": tip_adapter,
    "ss_text": ss_text,
    "ss_text_unlabelled": ss_text_unlabelled,
    "optimal_transport": optimal_transport,
    "lp_plus_plus": lp_plus_plus,
    "text_initialised_probe": text_initialised_probe,
    "clap": clap,
    "task_residual": task_residual,
}
