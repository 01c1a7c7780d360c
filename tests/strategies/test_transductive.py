"""The mixture over all query rows: a dense slow twin, memory that grows with N alone, help and harm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit
from torch.utils._python_dispatch import TorchDispatchMode

from medtame.features import neighbours
from medtame.features.neighbours import nearest
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.direct_use.transductive import Transductive

NAMES = ("a", "b", "c")


def clusters(n=30, width=5, spread=0.3, text_noise=0.5, scale=20.0, swapped=False):
    """n rows around three centres, whose texts are noisy centres."""
    centres, labels = unit(noise(3, width, seed=1)), [i % 3 for i in range(n)]
    images = unit(centres[labels] + spread * noise(n, width, seed=2))
    texts = unit(centres + text_noise * noise(3, width, seed=3))
    texts = texts.roll(1, 0) if swapped else texts
    encoder = PlantedEncoder(images, dict(zip(NAMES, texts, strict=True)), scale=scale)
    return query(encoder, NAMES, samples(n)), labels


def dense(features, logits, k=3, rounds=10, steps=5, sure=8, weight=0.02):
    """Plain loops and an N x N matrix, in numpy."""
    f, logits = features.double().numpy(), logits.double().numpy()
    n, classes = logits.shape
    prior = np.exp(logits - logits.max(1, keepdims=True))
    prior /= prior.sum(1, keepdims=True)
    w = np.zeros((n, n))
    for i in range(n):
        order = sorted((j for j in range(n) if j != i), key=lambda j: -float(f[i] @ f[j]))[:k]
        for j in order:
            w[i, j] = max(0.0, float(f[i] @ f[j]))
    z = prior.copy()
    means = np.stack([f[np.argsort(-prior[:, c])[:sure]].mean(0) for c in range(classes)])

    def variance():
        found = np.zeros(f.shape[1])
        for i in range(n):
            for c in range(classes):
                found += z[i, c] * (f[i] - means[c]) ** 2
        found /= n
        return np.maximum(found, 1e-3 * found.mean())

    spread = variance()
    for _ in range(rounds):
        density = np.array([[-0.5 * ((f[i] - means[c]) ** 2 / spread).sum() for c in range(classes)] for i in range(n)])
        for _ in range(steps):
            exponent = weight * density + (w + w.T) @ z / (2 * k)
            z = prior * np.exp(exponent - exponent.max(1, keepdims=True))
            z /= z.sum(1, keepdims=True)
        means = np.stack([(z[:, c, None] * f).sum(0) / z[:, c].sum() for c in range(classes)])
        spread = variance()
    return np.log(z)


def accuracy(logits, labels):
    return float((logits.argmax(1) == torch.tensor(labels)).float().mean())


def test_it_equals_the_dense_slow_twin(monkeypatch):
    rows, labels = clusters()
    monkeypatch.setattr(neighbours, "NUMBERS_AT_ONCE", 70)  # two rows at a time
    said = Transductive().fit(problem(rows, labels)).answer(rows).values
    slow = dense(rows.encoder.images, zero_shot_logits(rows))
    assert np.allclose(said.double().exp().numpy(), np.exp(slow), atol=2e-4)


def test_a_row_is_not_its_own_neighbour():
    features = unit(noise(12, 4))
    rows, weights = nearest(features, 3)
    assert not (rows == torch.arange(12)[:, None]).any()
    assert float(weights.max()) < 1
    assert nearest(features[:1], 3)[0].shape == (1, 0)


class Largest(TorchDispatchMode):
    """The most numbers that any one tensor made inside had."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


def test_memory_grows_with_the_rows_and_not_with_their_square(monkeypatch):
    monkeypatch.setattr(neighbours, "NUMBERS_AT_ONCE", 2**14)
    seen = []
    for n in (1500, 3000):
        rows, labels = clusters(n=n)
        adapted = Transductive(rounds=2).fit(problem(rows.take(range(30)), labels[:30]))
        with Largest() as largest:
            adapted.answer(rows)
        seen.append(largest.numbers)
        assert largest.numbers <= max(2**14, 5 * n), "a tensor larger than the features or a block"
    assert seen[1] <= 2 * seen[0]


def test_without_its_terms_it_is_zero_shot():
    rows, labels = clusters()
    adapted = Transductive(likelihood_weight=0, neighbours=0).fit(problem(rows, labels))
    assert torch.allclose(adapted.answer(rows).values, zero_shot_logits(rows).log_softmax(1), atol=1e-5)
    one = rows.take([3])
    assert torch.allclose(Transductive().fit(problem(rows, labels)).answer(one).values, zero_shot_logits(one).log_softmax(1), atol=1e-3)


def test_it_helps_where_zero_shot_is_fair():
    rows, labels = clusters(n=300, width=16, spread=0.22, text_noise=0.5, scale=5.0)
    before = accuracy(zero_shot_logits(rows), labels)
    adapted = Transductive().fit(problem(rows, labels))
    assert 0.5 < before < 0.95
    assert accuracy(adapted.answer(rows).values, labels) > before + 0.03
    assert "harm" not in adapted.note


def test_it_does_harm_where_zero_shot_is_wrong_and_says_so():
    rows, labels = clusters(n=300, width=16, spread=0.22, text_noise=0.5, scale=5.0, swapped=True)
    adapted = Transductive().fit(problem(rows, labels))
    before = accuracy(zero_shot_logits(rows), labels)
    assert accuracy(adapted.answer(rows).values, labels) < before
    right = round(before * 300)
    assert adapted.note == f"zero-shot is right on {right} of 300 support rows: transduction starts from it and may well do harm here"


def test_labels_of_the_support_change_nothing_but_the_note():
    rows, labels = clusters()
    first, second = (Transductive().fit(problem(rows, each)) for each in (labels, [(label + 1) % 3 for label in labels]))
    assert torch.equal(first.answer(rows).values, second.answer(rows).values)
    assert first.note != second.note


def test_a_class_that_no_row_may_take_stays_out():
    rows, labels = clusters()
    allowed = np.ones((30, 3), dtype=bool)
    allowed[:, 1] = False
    barred = query(rows.encoder, NAMES, samples(30), allowed=allowed)
    said = Transductive().fit(problem(barred, labels)).answer(barred).values
    assert said.isfinite().all()
    assert set(said.argmax(1).tolist()) <= {0, 2}


@pytest.mark.parametrize("n", [2, 7])
def test_a_few_rows_give_finite_answers(n):
    rows, labels = clusters()
    said = Transductive().fit(problem(rows, labels)).answer(rows.take(range(n))).values
    assert said.isfinite().all()
    assert said.exp().sum(1).tolist() == pytest.approx([1.0] * n, abs=1e-5)
    assert not math.isnan(float(said.sum()))
