"""LP++ against plain loops with autograd, its step sizes, and its pitfalls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_vectors import world

from medtame import catalogue
from medtame.learning.loop import finish
from medtame.strategies.tuning.lp_plus_plus import LpPlusPlus, step_sizes
from medtame.types import Candidates, Problem


def plain(images, texts, labels, counts, scale, steps, accumulate=False):
    """Weights, biases and blends by autograd, class by class, from the paper's equations."""
    n, classes = len(images), len(texts)
    ones = torch.cat([images, torch.ones(n, 1)], 1)
    rate = 4 * n / float(np.linalg.eigvalsh((ones.T @ ones).double().numpy())[-1])
    rate_alpha = n / (4 * max(sum(float(f @ t) ** 2 for f in images) for t in texts))
    mean_count = min(16, np.mean(counts))
    means = torch.stack([images[labels == k].mean(0) for k in range(classes)])
    w, b = (mean_count * means).clone().requires_grad_(), torch.zeros(classes, requires_grad=True)
    own = np.mean([float((images[labels == k] @ texts[k]).mean()) for k in range(classes)])
    alpha = torch.full((classes,), max(0.0, 2.5 * scale * own), requires_grad=True)
    optimiser = torch.optim.SGD([w, b], lr=rate, momentum=0.9)
    for number in range(1, steps + 1):
        logits = images @ w.T + b + alpha * (images @ texts.T)
        optimiser.zero_grad()
        if not accumulate:
            alpha.grad = None
        torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels)).backward()
        optimiser.step()
        if number % 10 == 0:
            with torch.no_grad():
                alpha -= rate_alpha * alpha.grad
    return w.detach(), b.detach(), alpha.detach()


@pytest.mark.parametrize("counts", [(6, 6, 6), (9, 2, 5)])
def test_it_is_the_plain_descent_with_true_counts(counts):
    w = world(classes=3, each=10, width=12, noise=2.0, scale=60.0)
    rows = w.shots(counts)
    problem = w.problem(rows)
    images, labels, texts = w.encoder.images[rows], w.labels[rows], problem.query.texts()
    weight, bias, alpha = plain(images, texts, labels, counts, 60.0, 40)
    adapted = LpPlusPlus(steps=40).fit(problem)
    assert torch.allclose(adapted.alpha, alpha, rtol=1e-3, atol=1e-3)
    test = w.encoder.images
    slow = test @ weight.T + bias + alpha * (test @ texts.T)
    fast = adapted.answer(w.query(range(30))).values
    assert torch.allclose(fast.log_softmax(1), slow.log_softmax(1), atol=2e-2)
    accumulated = plain(images, texts, labels, counts, 60.0, 40, accumulate=True)[2]
    assert not torch.allclose(accumulated, alpha, atol=1e-2), "the twin tells a gradient that adds up from one that is zeroed"


def test_the_step_sizes_come_from_the_data():
    features, cosine = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.rand(20, 3)
    of_weight, of_alpha = step_sizes(features, cosine)
    assert of_weight == pytest.approx(80 / float(torch.linalg.matrix_norm(features, 2)) ** 2, rel=1e-5)
    assert of_alpha == pytest.approx(20 / (4 * max((cosine[:, k] ** 2).sum().item() for k in range(3))), rel=1e-5)
    assert step_sizes(features.T, cosine)[0] == pytest.approx(24 / float(torch.linalg.matrix_norm(features, 2)) ** 2, rel=1e-5)


def test_the_loss_falls_and_the_last_step_is_kept():
    w = world(classes=4, noise=2.0)
    losses = [step.loss for step in LpPlusPlus().learn(w.problem(w.shots([8] * 4)))]
    assert len(losses) == 300
    assert losses[-1] < 0.1 * losses[0]
    assert np.isfinite(losses).all()
    assert max(losses[250:]) < 2 * losses[-1] + 1e-6, "the step is not too long: it does not swing at the end"


def test_it_stays_steady_where_features_have_no_common_direction():
    """Without the constant in the step size the bias diverges here."""
    w = world(classes=4, width=64)
    images = torch.nn.functional.normalize(w.encoder.images - w.encoder.images.mean(0), dim=-1)
    w = replace(w, encoder=replace(w.encoder, images=images))
    losses = [step.loss for step in LpPlusPlus().learn(w.problem(w.shots([4, 4, 4, 30])))]
    assert losses[-1] < losses[0]
    assert max(losses[100:]) < losses[0] + 0.1


def test_resumed_it_ends_at_the_same_bits():
    problem = world(classes=3).problem(range(0, 180, 7))
    whole = LpPlusPlus(steps=25).fit(problem)
    states = [step.state for step in LpPlusPlus(steps=25).learn(problem)]
    for at in (8, 9, 10, 23):  # around a step of the blend; a state is asked for after later steps were made
        part = finish(LpPlusPlus(steps=25).learn(problem, resume=states[at]()))
        assert torch.equal(part.weight, whole.weight)
        assert torch.equal(part.alpha, whole.alpha)


def test_a_class_without_rows_is_judged_by_its_text_alone():
    w = world(classes=4, noise=1.0, text_noise=0.3)
    adapted = LpPlusPlus().fit(w.problem(w.shots([6, 6, 6, 0])))
    said = adapted.answer(w.query(range(240))).values
    cosine = w.encoder.images @ w.encoder.sentences["class 3"]
    assert torch.allclose(said[:, 3], adapted.alpha[:3].mean() * cosine, atol=1e-4)
    image_part = said - adapted.alpha * (w.encoder.images @ w.query([0]).texts().T)
    assert image_part[:, :3].mean(1).abs().max() < 1e-3, "the others are taken against their mean"


def test_texts_that_point_away_are_left_out_not_turned_round():
    w = world(classes=3, text_noise=0.0)
    away = {name: -text for name, text in w.encoder.sentences.items()}
    w = replace(w, encoder=replace(w.encoder, sentences=away, images=-w.encoder.images @ torch.eye(48)))
    w = replace(w, encoder=replace(w.encoder, images=-w.encoder.images))
    start = LpPlusPlus(steps=0).fit(w.problem(w.shots([4] * 3)))
    assert (start.alpha >= 0).all()


def test_several_may_hold_with_unknown_labels():
    w = world(classes=2, each=30)
    several = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), exclusive=False)
    targets = torch.nn.functional.one_hot(torch.as_tensor(w.labels), 2).float()
    targets[::3, 1] = torch.nan
    problem = Problem(query=w.query(range(60), candidates=several), targets=targets)
    said = LpPlusPlus().fit(problem).answer(problem.query).values
    assert ((said > 0).float() == targets)[~targets.isnan()].float().mean() > 0.95
    moved = replace(problem, targets=targets.where(~targets.isnan(), torch.nan))
    assert torch.equal(LpPlusPlus().fit(moved).answer(problem.query).values, said)


def test_shuffled_labels_teach_nothing_about_other_images():
    w = world(classes=4, text_noise=30.0)
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    wrong = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    right, shuffled = (
        w.balanced_accuracy(catalogue.build(catalogue.METHODS, "lp_plus_plus").fit(p).answer(w.query(test)).values, test)
        for p in (problem, wrong)
    )
    assert right > 0.8
    assert shuffled < 0.45
