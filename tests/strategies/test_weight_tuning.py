"""Weight tuning learns what is planted, leaves batch norm's statistics alone, and starts where it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contracts.tiny import tiny
from doubles import tiny_vit_encoder
from medtame import catalogue, encoders
from medtame.encoders.opened import opened
from medtame.encoders.towers import TowerEncoder
from medtame.errors import LearningError, PairError
from medtame.learning.fine_tuning import Sight, copied, with_values
from medtame.strategies.base import support_loss, zero_shot_logits
from medtame.strategies.tuning.bias_and_norm_tuning import small_weights
from medtame.strategies.tuning.full_fine_tuning import directed
from medtame.tasks.classification import Classification
from medtame.types import Problem

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 0.01},
    "bias_and_norm_tuning": {"learning_rate": 0.03},
    "last_blocks": {"learning_rate": 0.005, "blocks": 2},
    "full_fine_tuning": {"learning_rate": 0.003},
    "singular_value_tuning": {"learning_rate": 0.2},
}


def problems(encoder: TowerEncoder) -> tuple[Problem, Problem]:
    """Training and test rows."""
    task = Classification()
    train, test = (task.usable(samples) for samples in tiny("classification"))
    settled = task.settled(train)
    made = [settled.frame(samples, "scores").problem(samples, encoder, 0) for samples in (train, test)]  # type: ignore[union-attr]
    return made[0], made[1]


def turned(problem: Problem) -> Problem:
    """The same rows under each other's names, so that there is something to learn."""
    return replace(problem, targets=problem.targets.roll(1, 1))


def method(name: str, **settings: Any) -> Any:
    return catalogue.build(catalogue.METHODS, name, settings)


def right(logits: Tensor, targets: Tensor) -> float:
    return float((logits.argmax(1) == targets.argmax(1)).float().mean())


@pytest.fixture(scope="module")
def vit() -> TowerEncoder:
    return tiny_vit_encoder()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bias_and_norm_tuning"])
def test_a_transformer_learns_new_names_of_what_it_sees(name: str, vit: TowerEncoder) -> None:
    train, test = (turned(problem) for problem in problems(vit))
    assert right(zero_shot_logits(test.query), test.targets) < 0.4
    adapted = method(name, steps=60, batch=16, **METHODS[name]).fit(train)
    assert right(adapted.answer(test.query).values, test.targets) > 0.8


def test_biases_and_norms_mend_what_was_spoilt_in_them(vit: TowerEncoder) -> None:
    """Too few to turn a random network about, they undo noise of half their size that left it at chance."""
    own, drawn = dict(opened(vit.image_tower).named_parameters()), torch.Generator().manual_seed(0)
    noisy = {name: own[name] + 0.5 * torch.randn(own[name].shape, generator=drawn) for name in small_weights(vit.image_tower)}
    spoilt = vit.changed(image=with_values(vit.image_tower, noisy), identity="spoilt")
    train, test = problems(spoilt)
    assert right(zero_shot_logits(test.query), test.targets) < 0.4
    adapted = method("bias_and_norm_tuning", steps=120, batch=16, learning_rate=0.03).fit(train)
    assert right(adapted.answer(test.query).values, test.targets) > 0.8


@pytest.mark.parametrize("name", METHODS)
def test_with_no_step_it_answers_like_zero_shot(name: str, vit: TowerEncoder) -> None:
    train, test = problems(vit)
    settings = {"probe_steps": 0} if name == "full_fine_tuning" else {}
    adapted = method(name, steps=0, **settings).fit(train)
    torch.testing.assert_close(adapted.answer(test.query).values, zero_shot_logits(test.query), atol=2e-5, rtol=0)


def test_full_fine_tuning_starts_at_a_probe_on_frozen_vectors(vit: TowerEncoder) -> None:
    """With no step made, by hand: torch's own AdamW on what is added to the texts."""
    problem = turned(problems(vit)[0])
    start = method("full_fine_tuning", steps=0, probe_steps=30, probe_learning_rate=0.02).fit(problem)
    vectors, texts = problem.query.vectors(), problem.query.texts()
    head = torch.zeros_like(texts, requires_grad=True)
    optimiser = torch.optim.AdamW([head], lr=0.02, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + np.cos(np.pi * step / 30)))
    for _ in range(30):
        logits = 20.0 * vectors @ nn.functional.normalize(texts + head, dim=1).T - 0.5
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, problem.targets).backward()
        optimiser.step()
        schedule.step()
    torch.testing.assert_close(start.head, head.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(directed(texts, torch.zeros(3, 32)), nn.functional.normalize(texts, dim=-1))


def test_the_changed_tower_is_built_once_for_all_batches(vit: TowerEncoder) -> None:
    train, test = problems(vit)
    adapted = method("lora", steps=1).fit(train)
    first = adapted.built(vit)
    adapted.answer(test.query)
    assert adapted.built(vit) is first
    other = tiny_vit_encoder()
    assert adapted.built(other) is not first


def test_a_rate_far_too_high_is_one_line(vit: TowerEncoder) -> None:
    problem = turned(problems(vit)[0])
    with pytest.raises(LearningError, match=r"the loss of step \d+ of 20 is nan: lower learning_rate \(it is 1e\+30\)"):
        method("last_blocks", steps=20, learning_rate=1e30).fit(problem)


def test_too_many_blocks_are_refused(vit: TowerEncoder) -> None:
    problem = problems(vit)[0]
    for name in ("lora", "last_blocks"):
        with pytest.raises(PairError, match="blocks=7 were asked for and the encoder's tower has 3: give a number from 1 to 3"):
            method(name, blocks=7).fit(problem)


@pytest.fixture(scope="module")
def bundled() -> Problem:
    """Four images on the convolutional encoder that a user has."""
    train = problems(tiny_vit_encoder())[0].take([0, 1, 2, 3])
    return replace(train, query=replace(train.query, encoder=encoders.load("bundled")))


def test_batch_norm_keeps_its_statistics(bundled: Problem) -> None:
    encoder = bundled.query.encoder
    before = {name: buffer.clone() for name, buffer in encoder.image_tower.named_buffers()}
    assert any("running_mean" in name for name in before)
    adapted = method("full_fine_tuning", steps=1, probe_steps=1, batch=2, learning_rate=1e-3).fit(bundled)
    tower = adapted.encoder(encoder).image_tower
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, before[name])
    weights = dict(opened(encoder.image_tower).named_parameters())
    changed = [name for name, parameter in tower.named_parameters() if not torch.equal(parameter, weights[name])]
    assert len(changed) == len(weights)


def test_kept_inputs_of_a_stage_give_the_same_gradients(bundled: Problem) -> None:
    query = bundled.query
    inside = [name for name, _ in query.encoder.image_tower.named_parameters() if name.startswith("network.blocks.6.")]
    tower, named = copied(query.encoder.image_tower, inside)
    kept, full = Sight.of(query, tower, "network.blocks.6"), Sight.of(query, tower, None)
    assert kept.tokens is not None
    assert tuple(kept.tokens.shape) == (len(query.samples), 192, 7, 7)
    loss, rows = support_loss(query, bundled.targets), torch.tensor([3, 1])
    found, expected = (torch.autograd.grad(loss(see(rows), rows), list(named.values())) for see in (kept, full))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)
