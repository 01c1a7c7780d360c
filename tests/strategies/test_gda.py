"""GDA against the paper's formula by plain inverses, scikit-learn, and its pitfalls: few rows, rare classes, missing classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_vectors import world
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from medtame import catalogue
from medtame.learning.supports import balance
from medtame.strategies.tuning.gda import STRENGTHS, discriminant, whitened
from medtame.types import Candidates, Problem, dealt


def method(**settings):
    return catalogue.build(catalogue.METHODS, "gda", settings)


@pytest.mark.parametrize("rows", [6, 90])
def test_the_precision_is_the_papers_with_fewer_or_more_rows_than_numbers(rows):
    random = np.random.default_rng(0)
    deviations, means = random.normal(size=(rows, 20)) * np.linspace(0.2, 2, 20), random.normal(size=(3, 20))
    deviations -= deviations.mean(0)
    covariance = deviations.T @ deviations / (rows - 1)
    precision = 20 * np.linalg.pinv((rows - 1) * covariance + np.trace(covariance) * np.eye(20))
    slow = means @ (precision / (np.trace(precision) / 20))
    assert np.allclose(whitened(torch.from_numpy(means), torch.from_numpy(deviations), "ridge")[0], slow)
    spread = whitened(torch.from_numpy(means), torch.from_numpy(deviations), "ridge")[1]
    assert spread == pytest.approx(np.trace(precision @ deviations.T @ deviations) / (np.trace(precision) / 20))


@pytest.mark.parametrize("rows", [6, 90])
def test_ledoit_wolf_is_scikit_learns(rows):
    random = np.random.default_rng(1)
    deviations, means = random.normal(size=(rows, 20)) * np.linspace(0.2, 2, 20), random.normal(size=(3, 20))
    precision = LedoitWolf(assume_centered=True).fit(deviations).precision_
    slow = means @ (precision / (np.trace(precision) / 20))
    assert np.allclose(whitened(torch.from_numpy(means), torch.from_numpy(deviations), "ledoit_wolf")[0], slow, rtol=1e-4, atol=1e-6)


def test_without_shrinkage_to_speak_of_it_is_linear_discriminant_analysis():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 2000)
    features = random.normal(size=(3, 5))[labels] + random.normal(size=(6000, 5)) * [1, 2, 0.5, 1, 3]
    targets = torch.nn.functional.one_hot(torch.as_tensor(labels), 3).float()
    weight, bias = discriminant(torch.from_numpy(features), targets, "ridge", exclusive=True)
    model = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(features, labels)
    said = (features @ weight.numpy().T + bias.numpy()).argmax(1)
    assert (said == model.predict(features)).mean() > 0.998


def test_at_one_shot_it_is_the_nearest_mean_beside_zero_shot():
    w = world(classes=3, scale=40.0)
    rows = w.shots([1, 1, 1])
    adapted = method(alpha=0.3).fit(w.problem(rows))
    assert not adapted.chosen_by_data
    assert adapted.alpha == 0.3
    said = adapted.answer(w.query(range(180))).values
    images = w.encoder.images
    slow = 40.0 * images @ w.query([0]).texts().T - 0.3 * 40.0 / 2 * torch.cdist(images, images[rows]).square()
    assert torch.allclose(said.log_softmax(1), slow.log_softmax(1), atol=1e-3)


def test_the_strength_is_the_best_of_folds_by_patient():
    w = world(classes=3, each=12, noise=2.5, text_noise=3.0)
    rows = w.shots([6, 4, 8])
    groups = [str(row // 2) for row in rows]  # pairs of rows are of one patient
    problem = w.problem(rows, groups, seed=5)
    adapted = method(folds=3).fit(problem)
    assert adapted.chosen_by_data
    labels, fold = w.labels[rows], dealt(np.array(groups), w.labels[rows], np.arange(len(rows)), 3, 5)
    weights, losses = balance(problem.targets, exclusive=True), []
    for alpha in STRENGTHS:
        total = 0.0
        for held in range(3):
            out, rest = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
            assert not {groups[i] for i in out} & {groups[i] for i in rest}
            part = method(alpha=float(alpha)).fit(problem.take(rest))
            fixed = discriminant(w.encoder.images[rows[rest]], problem.targets[rest], "ridge", exclusive=True)
            logits = 100 * w.encoder.images[rows[out]] @ problem.query.texts().T
            logits = logits + 100 * float(alpha) * (w.encoder.images[rows[out]] @ fixed[0].T + fixed[1])
            total -= float((weights[out] * logits.log_softmax(1)).sum())
            assert part.weight.shape == adapted.weight.shape
        losses.append(total)
    assert adapted.alpha == pytest.approx(float(STRENGTHS[int(np.argmin(losses))]))
    assert len(labels) == 18


def test_a_rare_class_does_not_lose_for_being_rare():
    """Two classes, one known by 2 rows and one by 60: without taking the noise off the shorter mean wins nearly everywhere."""
    w = world(classes=2, each=100, width=96, noise=3.0, text_noise=30.0, seed=3)
    weight, bias = discriminant(w.encoder.images[w.shots([2, 60])], torch.eye(2)[[0] * 2 + [1] * 60], "ridge", exclusive=True)
    test = np.flatnonzero(np.arange(200) % 100 >= 60)
    said = (w.encoder.images[test] @ weight.T + bias).argmax(1).numpy()
    shares = [(said[w.labels[test] == k] == k).mean() for k in range(2)]
    assert min(shares) > 0.4
    assert np.mean(shares) > 0.65


def test_priors_are_uniform_or_of_the_support():
    w = world(classes=3)
    problem = w.problem(w.shots([10, 4, 0]))
    plain, weighted = (method(prior=prior).fit(problem).answer(w.query(range(9))).values for prior in ("uniform", "empirical"))
    assert torch.allclose(weighted - plain, torch.log(torch.tensor([11.0, 5.0, 1.0]) / 17).expand(9, 3), atol=1e-3)


def test_a_class_without_rows_keeps_its_zero_shot_logit():
    w = world(classes=3)
    query = w.query(range(180))
    zero = catalogue.build(catalogue.METHODS, "zero_shot").fit(w.problem([0, 60])).answer(query).values
    said = method().fit(w.problem(w.shots([5, 3, 0]))).answer(query).values
    assert torch.allclose(said[:, 2], zero[:, 2], atol=1e-4)
    assert torch.allclose((said - zero)[:, :2].mean(1), torch.zeros(180), atol=1e-3), "the others are taken against their mean"


@pytest.mark.parametrize("shrinkage", ["ridge", "ledoit_wolf"])
def test_several_may_hold_with_unknown_labels(shrinkage):
    w = world(classes=2, each=30)
    candidates = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), exclusive=False)
    targets = torch.nn.functional.one_hot(torch.as_tensor(w.labels), 2).float()
    targets[::3, 1] = torch.nan
    problem = Problem(query=w.query(range(60), candidates=candidates), targets=targets)
    said = method(shrinkage=shrinkage).fit(problem).answer(problem.query).values
    assert ((said > 0).float() == targets)[~targets.isnan()].float().mean() > 0.95


def test_shuffled_labels_teach_nothing_about_other_images():
    w = world(classes=4, text_noise=30.0)
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    wrong = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    right, shuffled = (w.balanced_accuracy(method().fit(p).answer(w.query(test)).values, test) for p in (problem, wrong))
    assert right > 0.8
    assert shuffled < 0.45
