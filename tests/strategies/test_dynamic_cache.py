"""TDA: a plain-loop twin, the unit of its entropy, and the orders of the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit

from medtame.errors import SettingsError
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.direct_use.dynamic_cache import DynamicCache, entropy_units

NAMES = ("a", "b", "c")


def asked(n=25, scale=8.0):
    rows = query(PlantedEncoder(unit(noise(n, 6)), scale=scale), NAMES, samples(n))
    return rows, problem(rows, [i % 3 for i in range(n)], seed=5)


def plain_loop(images, logits, order, scale):
    """Sorted lists a class, one row after the other."""
    positive, negative = {}, {}

    def update(cache, guess, item, size):
        held = cache.setdefault(guess, [])
        if len(held) < size:
            held.append(item)
        elif item[1] < held[-1][1]:
            held[-1] = item
        held.sort(key=lambda one: one[1])

    said = {}
    for i in order:
        p = [math.exp(x - max(logits[i])) for x in logits[i]]
        p = [x / sum(p) for x in p]
        entropy = -sum(x * math.log(x) for x in p) / math.log2(len(p))
        guess = p.index(max(p))
        update(positive, guess, (images[i], entropy, None), 3)
        if 0.2 < entropy < 0.5:
            update(negative, guess, (images[i], entropy, [0.03 < x < 1.0 for x in p]), 2)
        total = list(logits[i])
        for k, held in positive.items():
            for key, _, _ in held:
                total[k] += scale * 0.02 * math.exp(-5 * (1 - float(key @ images[i])))
        for held in negative.values():
            for key, _, mask in held:
                for k, doubtful in enumerate(mask):
                    total[k] -= doubtful * scale * 0.00117 * math.exp(-(1 - float(key @ images[i])))
        said[i] = total
    return np.array([said[i] for i in range(len(images))])


def test_it_is_the_mean_of_three_plain_loops():
    rows, fitted = asked()
    adapted = DynamicCache().fit(fitted)
    logits, images = zero_shot_logits(rows), rows.encoder.images.numpy().astype(float)
    units = entropy_units(logits)
    assert ((units > 0.2) & (units < 0.5)).sum() > 3, "the negative cache would stay empty"
    orders = [np.random.default_rng([5, number]).permutation(25).tolist() for number in range(3)]
    loops = [plain_loop(images, logits.double().tolist(), order, 8.0) for order in orders]
    assert np.abs(loops[0] - loops[1]).max() > 1e-3, "the order does not matter here, so the mean shows nothing"
    assert np.allclose(adapted.answer(rows).values.numpy(), np.mean(loops, axis=0), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_entropy_is_in_nats_over_log2_of_the_classes(classes):
    assert float(entropy_units(torch.zeros(1, classes))) == pytest.approx(math.log(2), abs=1e-5)
    sure = torch.zeros(1, classes)
    sure[0, 0] = 100.0
    assert float(entropy_units(sure)) == pytest.approx(0, abs=1e-5)


def test_without_weights_it_is_zero_shot_and_the_seed_chooses_the_orders():
    rows, fitted = asked()
    none = DynamicCache(positive_weight=0, negative_weight=0).fit(fitted)
    assert torch.allclose(none.answer(rows).values, zero_shot_logits(rows), atol=1e-6)
    other = problem(rows, [0, 1, 2] * 8 + [0], seed=6)
    assert not torch.equal(DynamicCache().fit(fitted).answer(rows).values, DynamicCache().fit(other).answer(rows).values)


def test_the_weight_is_a_share_of_the_encoders_scale():
    """Twice the scale and half the differences of cosine leave the guesses; what the cache adds doubles."""
    added = []
    for scale in (8.0, 16.0):
        rows, fitted = asked(scale=scale)
        adapted = DynamicCache(negative_weight=0, positive_size=1, orders=1).fit(fitted)
        first = int(np.random.default_rng([5, 0]).permutation(25)[0])
        added.append(float((adapted.answer(rows).values - zero_shot_logits(rows))[first].max()))
    assert added[0] == pytest.approx(0.02 * 8, abs=1e-5)  # the first row finds itself alone
    assert added[1] == pytest.approx(0.02 * 16, abs=1e-5)


def test_thresholds_the_wrong_way_round_are_refused():
    _, fitted = asked()
    with pytest.raises(SettingsError, match="entropy_low below entropy_high"):
        DynamicCache(entropy_low=0.5, entropy_high=0.2).fit(fitted)
