"""Sinkhorn between rows and classes: the plain iterations, marginals, and where the prior comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit

from medtame.strategies.base import REFUSED, zero_shot_logits
from medtame.strategies.direct_use.optimal_transport import OptimalTransport, shares_of, sinkhorn

NAMES = ("a", "b", "c")


def asked(n=40, scale=20.0, **more):
    return query(PlantedEncoder(unit(noise(n, 8)), scale=scale), NAMES, samples(n), **more)


def test_it_is_the_plain_iteration_of_products():
    rows = asked()
    labels = [0] * 20 + [1] * 15 + [2] * 5
    kernel = np.exp(zero_shot_logits(rows).double().numpy())
    v, wanted = np.ones(3), np.array([0.5, 0.375, 0.125])
    for _ in range(100):
        u = (1 / len(kernel)) / (kernel @ v)
        v = wanted / (kernel.T @ u)
    plan = kernel * v
    slow = plan / plan.sum(1, keepdims=True)
    said = OptimalTransport().fit(problem(rows, labels)).answer(rows).values
    assert np.allclose(said.exp().numpy(), slow, atol=1e-5)


@pytest.mark.parametrize("scale", [20.0, 5000.0])
def test_the_marginals_hold_and_no_scale_overflows(scale):
    rows = asked(scale=scale)
    labels = [0] * 20 + [1] * 15 + [2] * 5
    said = OptimalTransport(softness=scale / 20, iterations=2000).fit(problem(rows, labels)).answer(rows).values.exp()
    assert said.isfinite().all()
    assert said.sum(1).tolist() == pytest.approx([1.0] * 40, abs=1e-5)
    assert said.mean(0).tolist() == pytest.approx([0.5, 0.375, 0.125], abs=1e-3)
    assert OptimalTransport().fit(problem(rows, labels)).answer(rows).values.isfinite().all()


def test_the_prior_is_the_supports_whatever_the_query_rows_are():
    """All query rows are of one class: a balanced support moves two thirds of the mass away. That is the harm that it can do."""
    centre = torch.eye(4)[0]
    images = unit(centre + 0.2 * noise(30, 4))
    encoder = PlantedEncoder(images, {"a": centre, "b": torch.eye(4)[1], "c": torch.eye(4)[2]})
    rows = query(encoder, NAMES, samples(30))
    assert (zero_shot_logits(rows).argmax(1) == 0).all()
    balanced = OptimalTransport().fit(problem(rows, [0, 1, 2] * 10)).answer(rows).values.exp()
    assert balanced.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    true = OptimalTransport().fit(problem(rows, [0] * 28 + [1, 2])).answer(rows).values
    assert (true.argmax(1) == 0).float().mean() > 0.85


def test_a_single_row_is_answered_with_the_prior():
    rows = asked()
    said = OptimalTransport().fit(problem(rows, [0] * 20 + [1] * 15 + [2] * 5)).answer(rows.take([0])).values
    assert said.exp()[0].tolist() == pytest.approx([0.5, 0.375, 0.125], abs=1e-5)


def test_a_class_without_a_support_row_gets_a_quarter_of_the_least():
    targets = torch.tensor([[1.0, 0, 0]] * 6 + [[0, 1.0, 0]] * 2)
    assert shares_of(targets).tolist() == pytest.approx([6 / 8.5, 2 / 8.5, 0.5 / 8.5])


def test_what_a_row_may_not_take_gets_nothing_and_the_rest_is_moved():
    allowed = np.ones((40, 3), dtype=bool)
    allowed[:, 2] = False
    allowed[:10, 1] = False
    rows = asked(allowed=allowed)
    said = OptimalTransport(iterations=500).fit(problem(rows, [0] * 20 + [1] * 10 + [2] * 10)).answer(rows).values
    assert (said[:, 2] == REFUSED).all()
    assert (said[:10, 1] == REFUSED).all()
    assert said.exp().mean(0)[:2].tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-3)


def test_uniform_logits_and_prior_are_left_alone():
    assert torch.allclose(sinkhorn(torch.zeros(4, 2), torch.tensor([0.5, 0.5]), 5).exp(), torch.full((4, 2), 0.5))
