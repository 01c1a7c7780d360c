"""Entropy tuning: rows grow surer, only norm layers move, and nothing is left of it at the next call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from contracts.tiny import tiny
from doubles import tiny_encoder, tiny_vit_encoder
from medtame import catalogue
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.direct_use.entropy_tuning import entropy, in_order, norm_weights
from medtame.tasks.classification import Classification
from medtame.types import Problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    task = Classification()
    test = task.usable(tiny("classification")[1])
    return task.settled(test).frame(test, "scores").problem(test, tiny_vit_encoder(), 0)  # type: ignore[union-attr]


def adapted(problem: Problem, **settings: float):
    return catalogue.build(catalogue.METHODS, "entropy_tuning", settings).fit(problem)


def test_entropy_is_that_of_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.3, 0.1, 5.0]])
    shares = torch.softmax(logits, 1).numpy()
    assert float(entropy(logits, exclusive=True)) == pytest.approx(float(-(shares * np.log(shares)).sum(1).mean()), rel=1e-5)
    yes = 1 / (1 + np.exp(-logits.numpy()))
    by_hand = -(yes * np.log(yes) + (1 - yes) * np.log(1 - yes)).mean()
    assert float(entropy(logits, exclusive=False)) == pytest.approx(float(by_hand), rel=1e-5)


def test_answers_grow_surer_and_the_next_call_starts_anew(problem: Problem) -> None:
    query = replace(problem.query, encoder=replace(problem.query.encoder, scale=4.0))  # type: ignore[type-var]
    plain, tuned = zero_shot_logits(query), adapted(problem, steps=20, learning_rate=0.003)
    first = tuned.answer(query).values
    assert float(entropy(first, exclusive=True)) < 0.9 * float(entropy(plain, exclusive=True))
    tuned.answer(query.take([0, 1, 2]))
    assert torch.equal(tuned.answer(query).values, first)
    torch.testing.assert_close(zero_shot_logits(query), plain, atol=0, rtol=0)


def test_one_small_step_goes_down_the_gradient_of_norm_layers(problem: Problem) -> None:
    """By hand: AdamW's first step is the rate times the sign of each gradient, and nothing else of the tower moves."""
    query, tower = problem.query, tiny_vit_encoder().image_tower
    norms = [parameter for part in tower.modules() if isinstance(part, nn.LayerNorm) for parameter in part.parameters()]
    assert len(norms) == len(norm_weights(tower)) == 14
    for parameter in norms:
        parameter.requires_grad_(True)
    encoder = query.encoder.changed(image=tower, identity="by hand")
    slopes = torch.autograd.grad(entropy(zero_shot_logits(query, encoder), exclusive=True), norms)
    with torch.no_grad():
        for parameter, slope in zip(norms, slopes, strict=True):
            parameter -= 1e-3 * slope / (slope.abs() + 1e-8)
        expected = zero_shot_logits(query, encoder)
    found = adapted(problem, steps=1, learning_rate=1e-3, batch=len(query)).answer(query).values
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((found - zero_shot_logits(query)).abs().max()) > 1e-2


def test_no_step_is_zero_shot_and_rows_are_taken_by_how_sure_they_are(problem: Problem) -> None:
    assert torch.equal(adapted(problem, steps=0).answer(problem.query).values, zero_shot_logits(problem.query))
    shares = zero_shot_logits(problem.query).softmax(1)
    row_entropy = -(shares * shares.log()).sum(1)[in_order(problem.query)]
    assert bool((row_entropy.diff() >= -1e-6).all())


def test_a_tower_without_norm_layers_moves_its_biases() -> None:
    assert norm_weights(tiny_encoder().image_tower) == ["stem.bias", "down.bias", "mix.bias", "out.bias"]
