"""SS-Text and SS-Text-U against the closed form by loops, Sinkhorn's marginals, and where the unlabelled rows come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_vectors import unit, world

from medtame import catalogue
from medtame.errors import PairError
from medtame.strategies.tuning.ss_text_unlabelled import shares, transported
from medtame.types import Candidates, Problem


def method(name="ss_text", **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


@pytest.mark.parametrize("shrinkage", ["uniform", "adaptive"])
@pytest.mark.parametrize("scale", [100.0, 14.0])
def test_it_is_the_closed_form(shrinkage, scale):
    w = world(classes=3, scale=scale)
    counts = [5, 2, 0]
    rows = w.shots(counts)
    said = method(shrinkage=shrinkage).fit(w.problem(rows)).answer(w.query(range(180))).values
    for k in range(3):
        text, total = w.encoder.sentences[f"class {k}"].clone(), sum(counts)
        if counts[k]:
            strength = 1 / total if shrinkage == "uniform" else 1 / counts[k]
            for row in rows[w.labels[rows] == k]:
                text += scale / (total * strength) * w.encoder.images[row]
        assert torch.allclose(said[:, k], scale * w.encoder.images @ (text / text.norm()), atol=1e-3)


def test_its_prototypes_minimise_the_penalised_linear_loss():
    """- 1/N sum of scale f.w_y + sum of lambda_k / 2 |w_k - t_k|^2, by descent."""
    w = world(classes=2, each=8, width=6, scale=10.0)
    rows = w.shots([4, 2])
    adapted, texts = method().fit(w.problem(rows)), w.query([0]).texts()
    strength = torch.tensor([1 / 4, 1 / 2])
    weights = texts.clone().requires_grad_()
    for _ in range(400):
        linear = sum(10.0 * w.encoder.images[row] @ weights[w.labels[row]] for row in rows) / 6
        loss = -linear + (strength[:, None] / 2 * (weights - texts).square()).sum()
        (slope,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.5 * slope).detach().requires_grad_()
    assert torch.allclose(texts + adapted.shift, weights, atol=1e-3)


def test_shrinkage_is_not_below_a_thousandth():
    w = world(classes=2, each=1500, width=4)
    adapted = method(shrinkage="uniform").fit(w.problem(range(3000)))
    total = w.encoder.images[:1500].sum(0)
    assert torch.allclose(adapted.shift[0], 100 / (3000 * 1e-3) * total, rtol=1e-3)


def test_fewer_rows_stay_nearer_to_the_text_when_adaptive():
    w = world(classes=2)
    adapted = method().fit(w.problem(w.shots([9, 1])))
    assert adapted.shift[0].norm() > 20 * adapted.shift[1].norm()
    uniform = method(shrinkage="uniform").fit(w.problem(w.shots([9, 1])))
    assert uniform.shift[0].norm() < 9.1 * uniform.shift[1].norm()


@pytest.mark.parametrize("name", ["ss_text", "ss_text_unlabelled"])
def test_where_several_may_hold_rows_without_count_against(name):
    w = world(classes=2, each=30)
    candidates = Candidates(names=w.names, prompts=(("class 0",), ("class 1",)), exclusive=False)
    targets = torch.nn.functional.one_hot(torch.as_tensor(w.labels), 2).float()
    targets[::3, 1] = torch.nan
    problem = Problem(query=w.query(range(60), candidates=candidates), targets=targets)
    if name == "ss_text_unlabelled":
        problem = replace(problem.take([0, 1, 2, 40, 41, 42]), unlabelled=w.query(range(60), candidates=candidates))
    said = method(name).fit(problem).answer(w.query(range(60), candidates=candidates)).values
    assert ((said > 0).float() == torch.nn.functional.one_hot(torch.as_tensor(w.labels), 2)).float().mean() > 0.95


def test_sinkhorn_meets_both_marginals_and_does_not_overflow():
    random = torch.Generator().manual_seed(0)
    share = torch.tensor([0.5, 0.3, 0.2])
    codes = transported(5 * torch.randn(200, 3, generator=random), share, 500)
    assert torch.allclose(codes.sum(1), torch.ones(200), atol=1e-5)
    assert torch.allclose(codes.mean(0), share, atol=1e-3)
    cosines = torch.randn(50, 3, generator=random).clamp(-1, 1)
    plain = (cosines * 20).double().exp()
    for _ in range(10):
        plain = plain / plain.sum(0) * share.double()
        plain = plain / plain.sum(1, keepdim=True)
    assert torch.allclose(transported(cosines * 20, share, 10), plain.float(), atol=1e-4)
    huge = transported(1000 * cosines, share, 10)
    assert torch.isfinite(huge).all()
    assert torch.allclose(huge.sum(1), torch.ones(50), atol=1e-5)


def test_shares_are_of_the_support_with_a_quarter_of_the_rarest_for_a_missing_class():
    targets = torch.eye(3)[[0, 0, 0, 0, 1, 1]]
    assert torch.allclose(shares(targets, exclusive=True), torch.tensor([4, 2, 0.5]) / 6.5)


def test_the_unlabelled_form_is_three_rounds_of_dealing_and_placing():
    w = world(classes=3, scale=30.0, noise=2.0)
    rows, pool = w.shots([3, 2, 0]), np.arange(20, 180, 3)
    problem = replace(w.problem(rows), unlabelled=w.query(pool))
    adapted = method("ss_text_unlabelled").fit(problem)
    assert adapted.unlabelled_rows == len(pool)
    texts, images = problem.query.texts().double(), w.encoder.images.double()
    seen = torch.zeros_like(texts)
    for k, count in enumerate([3, 2, 0]):
        for row in rows[w.labels[rows] == k]:
            seen[k] += 30.0 * count / (2 * 5) * images[row]
    share = np.array([3, 2, 0.5]) / 5.5
    weights = texts.clone()
    for _ in range(3):
        plan = np.exp(30.0 * (images[pool] @ torch.nn.functional.normalize(weights, dim=1).T).numpy())
        for _ in range(10):
            plan = plan / plan.sum(0) * share
            plan = plan / plan.sum(1, keepdims=True)
        weights = texts + seen + 30.0 / len(pool) * torch.from_numpy(plan).T @ images[pool]
    said = adapted.answer(w.query(range(180))).values
    slow = 30.0 * images @ torch.nn.functional.normalize(weights, dim=1).T
    assert torch.allclose(said.double(), slow, atol=1e-2)


def test_without_unlabelled_rows_it_is_ss_text_with_half_the_weight_on_images():
    w = world(classes=3)
    problem = w.problem(w.shots([3, 2, 4]))
    adapted = method("ss_text_unlabelled").fit(problem)
    assert adapted.unlabelled_rows == 0
    assert torch.allclose(adapted.shift, method().fit(problem).shift / 2, rtol=1e-4)


def test_it_never_reads_the_rows_that_it_is_asked_about():
    w = world(classes=3)
    problem = replace(w.problem(w.shots([2, 2, 2])), unlabelled=w.query(range(20, 180, 4)))
    adapted = method("ss_text_unlabelled").fit(problem)
    test = w.query(range(3, 180, 4))
    whole = adapted.answer(test).values
    alone = torch.cat([adapted.answer(test.take([row])).values for row in range(len(test))])
    assert torch.allclose(whole, alone, atol=1e-4)
    assert catalogue.settings_class(catalogue.METHODS, "ss_text_unlabelled").unlabelled
    assert not catalogue.settings_class(catalogue.METHODS, "ss_text").unlabelled


def test_unlabelled_rows_about_other_classes_are_refused():
    w = world(classes=3)
    other = replace(w, names=("class 0", "class 1"))
    with pytest.raises(PairError, match="answers only"):
        method("ss_text_unlabelled").fit(replace(w.problem(w.shots([2, 2, 2])), unlabelled=other.query([5, 6])))


def test_at_one_shot_unlabelled_rows_help_and_labels_alone_are_below_zero_shot():
    """The order of the literature where text knows the classes and one image does not stand for them."""
    scores = {name: [] for name in ("zero_shot", "nearest_prototype", "ss_text", "ss_text_unlabelled")}
    for seed in range(5):
        w = world(classes=5, each=120, width=128, noise=2.5, text_noise=0.5, seed=seed)
        test = np.flatnonzero(np.arange(600) % 120 >= 60)
        pool = np.flatnonzero((np.arange(600) % 120 >= 10) & (np.arange(600) % 120 < 40))
        problem = replace(w.problem(w.shots([1] * 5)), unlabelled=w.query(pool))
        for name, found in scores.items():
            found.append(w.balanced_accuracy(method(name).fit(problem).answer(w.query(test)).values, test))
    mean = {name: float(np.mean(found)) for name, found in scores.items()}
    assert mean["ss_text_unlabelled"] > mean["zero_shot"] > mean["ss_text"] + 0.05
    assert mean["ss_text"] > mean["nearest_prototype"] - 0.05


@pytest.mark.parametrize("name", ["ss_text", "ss_text_unlabelled"])
def test_shuffled_labels_teach_nothing_about_other_images(name):
    w = world(classes=4, text_noise=30.0)
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    wrong = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    right, shuffled = (w.balanced_accuracy(method(name).fit(p).answer(w.query(test)).values, test) for p in (problem, wrong))
    assert right > 0.8
    assert shuffled < 0.45


def test_a_rows_own_words_change_the_text_that_is_shifted():
    w = world(classes=2, each=4, width=8, scale=10.0)
    asked = {"first": unit(torch.arange(8.0)), "second": unit(-(torch.arange(8.0) ** 2))}
    w = replace(w, encoder=replace(w.encoder, sentences=w.encoder.sentences | asked))
    problem = w.problem(range(8), words=("first", "second") * 4)
    adapted = method().fit(problem)
    said = adapted.answer(problem.query).values
    text = unit(asked["second"] + w.encoder.sentences["class 1"])
    assert float(said[3, 1]) == pytest.approx(10.0 * float(w.encoder.images[3] @ unit(text + adapted.shift[1])), abs=1e-3)
