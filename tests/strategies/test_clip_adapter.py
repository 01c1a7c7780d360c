"""CLIP-Adapter against plain layers, and its pitfalls: both ReLUs, no bias, mixed before it is normalised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from planted_vectors import unit, world
from torch import nn

from medtame import catalogue
from medtame.strategies.tuning.clip_adapter import adapted


def method(**settings):
    return catalogue.build(catalogue.METHODS, "clip_adapter", settings)


def test_it_is_a_bottleneck_with_a_relu_after_both_layers_mixed_before_normalising():
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator)
    layers = nn.Sequential(nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 8, bias=False), nn.ReLU())
    with torch.no_grad():
        layers[0].weight.copy_(down)
        layers[2].weight.copy_(up)
        vectors = unit(torch.randn(20, 8, generator=generator))
        mixed = 0.3 * layers(vectors) + 0.7 * vectors
        assert torch.allclose(adapted(vectors, down, up, 0.3), mixed / mixed.norm(dim=1, keepdim=True), atol=1e-6)
        late = 0.3 * unit(layers(vectors)) + 0.7 * vectors
        assert not torch.allclose(adapted(vectors, down, up, 0.3), unit(late), atol=1e-2)
    assert torch.allclose(adapted(7 * vectors, down, up, 0.3), adapted(vectors, down, up, 0.3), atol=1e-6), "no bias: length is nothing"


def test_it_trains_what_autograd_trains():
    w = world(classes=2, each=5, width=8, scale=30.0)
    problem = w.problem(range(10))
    start = method(steps=0).fit(problem)
    down, up = start.down.clone().requires_grad_(), start.up.clone().requires_grad_()
    assert down.shape == (2, 8)
    assert up.shape == (8, 2)
    optimiser = torch.optim.AdamW([down, up], lr=1.0, weight_decay=0.01)
    texts, images, labels = problem.query.texts(), w.encoder.images, torch.as_tensor(w.labels)
    for number in range(1, 4):
        optimiser.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + float(np.cos(np.pi * (number - 1) / 3)))
        mixed = 0.2 * torch.relu(torch.relu(images @ down.T) @ up.T) + 0.8 * images
        loss = nn.functional.cross_entropy(30.0 * unit(mixed) @ texts.T, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    end = method(steps=3, learning_rate=0.01).fit(problem)
    assert torch.allclose(end.down, down.detach(), atol=1e-4)
    assert torch.allclose(end.up, up.detach(), atol=1e-4)


def test_with_ratio_zero_it_is_zero_shot():
    w = world()
    query = w.query(range(50))
    zero_shot = catalogue.build(catalogue.METHODS, "zero_shot").fit(w.problem([0, 60]))
    said = method(ratio=0, steps=5).fit(w.problem(w.shots([2] * 4))).answer(query)
    assert torch.allclose(said.values, zero_shot.answer(query).values, atol=1e-3)


def test_its_steps_are_enough_to_leave_zero_shot():
    w = world(classes=4, noise=1.5, text_noise=3.0)
    support, test = w.shots([16] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    zero = w.balanced_accuracy(catalogue.build(catalogue.METHODS, "zero_shot").fit(problem).answer(w.query(test)).values, test)
    found = w.balanced_accuracy(method().fit(problem).answer(w.query(test)).values, test)
    assert found > zero + 0.1


def test_new_words_are_answered_by_their_own_text():
    w = world(classes=3)
    run = method(steps=20).fit(w.problem(w.shots([4, 4, 4])))
    other = replace(w, encoder=replace(w.encoder, sentences={"new": unit(torch.ones(48)), **w.encoder.sentences}))
    fewer = replace(other, names=("new", "class 1")).query(range(10))
    vectors = adapted(w.encoder.images[:10], run.down, run.up, run.ratio)
    assert torch.allclose(run.answer(fewer).values[:, 0], 100 * vectors @ unit(torch.ones(48)), atol=1e-3)


def test_shuffled_labels_teach_nothing_about_other_images():
    w = world(classes=4, text_noise=30.0)
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    orders = [torch.randperm(80, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    problems = [problem, *(replace(problem, targets=problem.targets[order]) for order in orders)]
    right, *shuffled = (w.balanced_accuracy(method().fit(p).answer(w.query(test)).values, test) for p in problems)
    assert right > 0.5
    assert np.mean(shuffled) < 0.37
