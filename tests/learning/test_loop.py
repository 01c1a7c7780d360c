"""The loop of learning: against torch's own optimiser, and resumed bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from medtame.errors import LearningError
from medtame.learning.loop import Descent, descend, descend_slopes, finish, warm_cosine


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=generator), torch.randn(30, generator=generator)


def test_a_full_batch_step_of_sgd_is_the_gradient_times_the_rate():
    x, y = problem()
    weight = torch.zeros(4)
    how = Descent(steps=1, learning_rate=0.1, batch=30, optimiser="sgd")
    learnt = finish(descend({"w": weight}, lambda rows: (x[rows] @ weight - y[rows]).square().mean(), how, n=30, seed=0))
    gradient = -2 * x.T @ y / 30
    assert torch.allclose(learnt["w"], -0.1 * warm_cosine(1, 1, 0) * gradient, atol=1e-6)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_resumed_equals_uninterrupted_bit_for_bit(optimiser):
    x, y = problem()
    how = Descent(steps=12, learning_rate=0.05, batch=7, optimiser=optimiser, weight_decay=0.01, warm_up=3)

    def learn(resume=None):
        weight = torch.zeros(4)
        return descend({"w": weight}, lambda rows: (x[rows] @ weight - y[rows]).square().mean(), how, n=30, seed=3, resume=resume)

    steps, states = learn(), []
    while True:
        try:
            states.append(next(steps).state())
        except StopIteration as done:
            whole = done.value
            break
    again = finish(learn(states[4]))
    assert torch.equal(whole["w"], again["w"])


def test_no_step_changes_nothing():
    weight = torch.ones(3)
    learnt = finish(descend({"w": weight}, lambda rows: weight.sum(), Descent(steps=0, learning_rate=1.0, batch=1), n=1, seed=0))
    assert torch.equal(learnt["w"], torch.ones(3))


def test_the_rate_rises_over_the_warm_up_and_falls_along_half_a_cosine():
    rates = [warm_cosine(step, 10, 2) for step in range(1, 11)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2] == pytest.approx(1.0)
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 8)))
    assert all(a > b for a, b in pairwise(rates[2:]))


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_gradient_in_another_order_is_applied_where_it_belongs(optimiser):
    """One that lies column by column: fused optimisers would read it row by row, and say nothing."""
    start, wanted = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    how, learnt = Descent(steps=5, learning_rate=0.1, batch=1, optimiser=optimiser), []
    for turned in (False, True):
        weight = start.clone()

        def slopes(rows: torch.Tensor, weight: torch.Tensor = weight, turned: bool = turned):
            gradient = 2 * (weight - wanted)
            return gradient.square().sum(), {"w": gradient.T.contiguous().T if turned else gradient}

        learnt.append(finish(descend_slopes({"w": weight}, slopes, how, n=1, seed=0))["w"])
    assert torch.equal(*learnt)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_its_step(bad):
    weight = torch.ones(2)

    def loss(rows):
        return weight.sum() * (1.0 if weight[0].item() > 0.95 else bad)

    steps, seen = descend({"w": weight}, loss, Descent(steps=9, learning_rate=0.03, batch=1), n=1, seed=0), []
    for _ in range(2):
        seen.append((next(steps).number, weight.detach().clone()))
    with pytest.raises(LearningError, match=r"the loss of step 3 of 9 is (nan|inf): lower learning_rate \(it is 0.03\)"):
        next(steps)
    assert [number for number, _ in seen] == [1, 2]
    assert torch.equal(weight.detach(), seen[-1][1])


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_share_of_the_rate_is_a_smaller_rate(optimiser):
    x, y = problem()
    how = Descent(steps=6, learning_rate=0.05, batch=7, optimiser=optimiser, shares={"b": 0.25})
    both = {"a": torch.zeros(4), "b": torch.zeros(4)}

    def loss(weights):
        return lambda rows: sum((x[rows] @ weight - y[rows]).square().mean() for weight in weights.values())

    found = finish(descend(both, loss(both), how, n=30, seed=3))
    for name, rate in (("a", 0.05), ("b", 0.0125)):
        alone = {name: torch.zeros(4)}
        expected = finish(descend(alone, loss(alone), replace(how, learning_rate=rate, shares={}), n=30, seed=3))
        assert torch.allclose(found[name], expected[name], atol=1e-7)
