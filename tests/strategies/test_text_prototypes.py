"""Probes that start at the text: each against a plain descent by autograd, and what a class without rows keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_vectors import unit, world

from medtame import catalogue
from medtame.strategies.tuning.cross_modal_probe import text_rows
from medtame.types import Candidates, Problem

F = torch.nn.functional
PROBES = ("text_initialised_probe", "cross_modal_probe", "task_residual")


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def cosine_decay(number: int, steps: int) -> float:
    """The learning rate's factor of a step with one step of warm-up."""
    return 0.5 if number == 1 else 0.5 * (1 + float(np.cos(np.pi * (number - 2) / (steps - 1))))


def descended(start, loss, optimiser, rate, steps):
    """Class weights after plain steps of the whole support."""
    weights = start.clone().requires_grad_(True)
    optimiser = optimiser([weights])
    for number in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = rate * cosine_decay(number, steps)
        optimiser.zero_grad()
        loss(weights).backward()
        optimiser.step()
    return weights.detach()


def cross_entropy(vectors, weights, labels, scale):
    logits = torch.stack([torch.stack([scale * f @ w / w.norm() for w in weights]) for f in vectors])
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()


def test_the_text_initialised_probe_is_descent_from_the_texts():
    w = world(classes=3, each=6, width=8, scale=40.0)
    problem = w.problem(range(18))
    texts, images, labels = problem.query.texts(), w.encoder.images, w.labels.tolist()
    slow = descended(
        texts,
        lambda v: cross_entropy(images, v, labels, 40.0),
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
        5e-3,
        9,
    )
    adapted = method("text_initialised_probe", steps=9, learning_rate=5e-3).fit(problem)
    assert (texts + adapted.shift - slow).abs().max() < 1e-4
    assert adapted.shift.norm() > 0.05
    expected = 40.0 * images @ unit(slow).T
    assert torch.allclose(adapted.answer(problem.query).values, expected, atol=1e-2)


def test_the_task_residual_is_adam_on_the_residual_alone():
    w = world(classes=3, each=6, width=8, scale=40.0)
    problem = w.problem(range(18))
    texts, images, labels = problem.query.texts(), w.encoder.images, w.labels.tolist()
    slow = descended(
        torch.zeros_like(texts),
        lambda x: cross_entropy(images, texts + 0.3 * x, labels, 40.0),
        lambda p: torch.optim.Adam(p, lr=1.0),
        1e-2,
        9,
    )
    adapted = method("task_residual", steps=9, learning_rate=1e-2, alpha=0.3).fit(problem)
    assert torch.allclose(adapted.residual, slow, atol=1e-4)
    assert torch.allclose(adapted.answer(problem.query).values, 40.0 * images @ unit(texts + 0.3 * slow).T, atol=1e-3)


def test_the_cross_modal_probe_learns_from_images_and_sentences_alike():
    w = world(classes=2, each=5, width=8, scale=30.0)
    more = {"a second sentence": unit(torch.randn(8, generator=torch.Generator().manual_seed(3)))}
    w = replace(w, encoder=replace(w.encoder, sentences=w.encoder.sentences | more))
    candidates = Candidates(names=w.names, prompts=(("class 0", "a second sentence"), ("class 1",)))
    problem = w.problem(range(10), candidates=candidates)
    texts, images = problem.query.texts(), w.encoder.images
    sentences = [w.encoder.sentences[s] for s in ("class 0", "a second sentence", "class 1")]

    def loss(weights):
        of_images = cross_entropy(images, weights, w.labels.tolist(), 30.0)
        first = cross_entropy(sentences[:2], weights, [0, 0], 30.0)  # the mean of its two sentences: a class counts once
        second = cross_entropy(sentences[2:], weights, [1], 30.0)
        return of_images / 2 + (first + second) / 4

    slow = descended(texts, loss, lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.0), 1e-2, 6)
    decayed = method("cross_modal_probe", steps=6, learning_rate=1e-2).fit(problem)
    assert torch.allclose(texts + decayed.shift, slow, atol=2e-3)  # AdamW pulls the shift to zero by .01 of the step
    alone = method("text_initialised_probe", steps=6, learning_rate=1e-2).fit(problem)
    assert not torch.allclose(alone.shift, decayed.shift, atol=2e-3)


def test_sentences_say_yes_or_no_of_their_own_candidate_only_where_several_may_hold():
    w = world(classes=2, each=2, width=4)
    sentences = w.encoder.sentences | {"no class 1": unit(torch.ones(4)), "no class 0": unit(-torch.ones(4))}
    w = replace(w, encoder=replace(w.encoder, sentences=sentences))
    several = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), negatives=(("no class 0",), ("no class 1",)), exclusive=False)
    vectors, targets = text_rows(w.query(range(4), candidates=several))
    assert vectors.shape == (4, 4)
    assert np.array_equal(targets.numpy(), [[1, np.nan], [np.nan, 1], [0, np.nan], [np.nan, 0]], equal_nan=True)


@pytest.mark.parametrize("name", ["text_initialised_probe", "task_residual"])
def test_a_class_without_rows_keeps_exactly_its_text(name):
    w = world(classes=3)
    adapted = method(name, steps=50).fit(w.problem(w.shots([4, 4, 0])))
    query = w.query(range(180))
    said = adapted.answer(query).values
    assert torch.allclose(said[:, 2], 100.0 * w.encoder.images @ w.encoder.sentences["class 2"], atol=1e-3)
    assert not torch.allclose(said[:, 0], 100.0 * w.encoder.images @ w.encoder.sentences["class 0"], atol=1.0)


def test_sentences_alone_teach_the_cross_modal_probe_a_class_without_rows():
    w = world(classes=3, text_noise=0.2)
    adapted = method("cross_modal_probe").fit(w.problem(w.shots([4, 4, 0])))
    said = adapted.answer(w.query(range(180))).values
    assert (said.argmax(1)[w.labels == 2] == 2).float().mean() > 0.5


@pytest.mark.parametrize("name", PROBES)
def test_a_rows_own_words_change_the_text_that_is_shifted(name):
    w = world(classes=2, each=6, width=8)
    asked = {"first question": unit(torch.arange(8.0)), "second question": unit(-(torch.arange(8.0) ** 2))}
    w = replace(w, encoder=replace(w.encoder, sentences=w.encoder.sentences | asked))
    words = tuple(list(asked)[i % 2] for i in range(12))
    problem = w.problem(range(12), words=words)
    start = method(name, steps=0).fit(problem).answer(problem.query).values
    assert torch.allclose(start, method("zero_shot").fit(problem).answer(problem.query).values, atol=1e-5)
    adapted = method(name, steps=30).fit(problem)
    shift = adapted.shift if name != "task_residual" else adapted.alpha * adapted.residual
    for row in range(12):
        for k in range(2):
            text = unit(asked[words[row]] + w.encoder.sentences[f"class {k}"])
            slow = 100.0 * w.encoder.images[row] @ unit(text + shift[k])
            assert float(adapted.answer(problem.query).values[row, k]) == pytest.approx(float(slow), abs=1e-3)


@pytest.mark.parametrize("name", [*PROBES, "clap"])
def test_yes_or_no_problems_are_learnt_and_unknown_labels_carry_no_loss(name):
    w = world(classes=2, each=30, text_noise=1.0)
    settings = {"constraint": 0.05} if name == "clap" else {}  # at its own it may not go far from its text
    several = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), exclusive=False)
    targets = F.one_hot(torch.as_tensor(w.labels), 2).float()
    targets[::3, 1] = torch.nan
    problem = Problem(query=w.query(range(60), candidates=several), targets=targets)
    said = method(name, **settings).fit(problem).answer(problem.query).values
    known = ~targets.isnan()
    assert ((said > 0).float() == targets)[known].float().mean() > 0.9


def test_clap_cuts_yes_from_no_midway_before_it_learns():
    w = world(classes=2, each=30, text_noise=0.1)
    several = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), exclusive=False)
    problem = Problem(query=w.query(range(60), candidates=several), targets=F.one_hot(torch.as_tensor(w.labels), 2).float())
    said = method("clap", steps=0).fit(problem).answer(problem.query).values
    zero_shot = method("zero_shot").fit(problem).answer(problem.query).values
    for k in range(2):
        middle = (zero_shot[w.labels == k, k].mean() + zero_shot[w.labels != k, k].mean()) / 2
        assert torch.allclose(said[:, k], zero_shot[:, k] - middle, atol=1e-3)


@pytest.mark.parametrize("name", PROBES)
def test_shuffled_labels_teach_nothing_about_other_images(name):
    w = world(classes=4, text_noise=30.0)  # texts that know nothing
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    right = w.balanced_accuracy(method(name).fit(problem).answer(w.query(test)).values, test)
    wrong = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    shuffled = w.balanced_accuracy(method(name).fit(wrong).answer(w.query(test)).values, test)
    assert right > 0.6
    assert shuffled < 0.45


@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_clap_is_never_far_below_zero_shot_and_near_a_good_text(scale):
    for seed in range(4):
        w = world(classes=5, width=128, noise=2.0, text_noise=0.7, scale=scale, seed=seed)
        support, test = w.shots([1] * 5), np.flatnonzero(np.arange(300) % 60 >= 20)
        zero = w.balanced_accuracy(method("zero_shot").fit(w.problem(support)).answer(w.query(test)).values, test)
        clap = w.balanced_accuracy(method("clap").fit(w.problem(support)).answer(w.query(test)).values, test)
        assert clap > zero - 0.01


def test_claps_constraint_is_as_strong_beside_any_scale():
    """What it gives up at K = 16 to a probe without constraint where the texts are poor."""
    w = world(classes=5, width=128, noise=2.0, text_noise=6.0)
    support, test = w.shots([16] * 5), np.flatnonzero(np.arange(300) % 60 >= 20)
    free = method("clap", constraint=0).fit(w.problem(support))
    held = method("clap").fit(w.problem(support))
    assert w.balanced_accuracy(free.answer(w.query(test)).values, test) > w.balanced_accuracy(held.answer(w.query(test)).values, test)
    texts = w.query([0]).texts()
    tight = method("clap", constraint=20).fit(w.problem(support))
    moved = [float((adapted.prototypes - texts).norm()) for adapted in (free, held, tight)]
    assert moved[0] > 1.1 * moved[1] > 1.2 * moved[2]
