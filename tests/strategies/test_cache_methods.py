"""Tip-Adapter, Tip-Adapter-F and nearest neighbours against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_vectors import world
from sklearn.neighbors import KNeighborsClassifier

from medtame import catalogue
from medtame.learning import caches
from medtame.learning.caches import SHARPNESSES, STRENGTHS
from medtame.types import Candidates, Problem


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def several(w, unknown: bool = True) -> Problem:
    candidates = Candidates(names=w.names, prompts=tuple((name,) for name in w.names), exclusive=False)
    targets = torch.nn.functional.one_hot(torch.as_tensor(w.labels), len(w.names)).float()
    if unknown:
        targets[::3, 1] = torch.nan
    return Problem(query=w.query(range(len(w.labels)), candidates=candidates), targets=targets)


@pytest.mark.parametrize("scale", [100.0, 25.0])
def test_tip_adapter_at_one_shot_is_the_papers_formula_relative_to_the_scale(scale):
    w = world(classes=3, scale=scale)
    rows = w.shots([1, 1, 1])
    adapted = method("tip_adapter").fit(w.problem(rows))
    assert not adapted.chosen_by_data
    said = adapted.answer(w.query(range(20))).values
    for i in range(20):
        f = w.encoder.images[i]
        for k in range(3):
            cache = sum(math.exp(-5.5 * scale / 100 * (1 - float(f @ w.encoder.images[j]))) for j in rows if w.labels[j] == k)
            slow = scale * float(f @ w.encoder.sentences[f"class {k}"]) + scale / 100 * cache
            assert float(said[i, k]) == pytest.approx(slow, abs=1e-3)


def plain_search(w, rows, groups, counts, scale):
    """The grid by loops: for every row a cache without its own patient, each class brought to its full weight."""
    losses = {}
    mass, classes = min(16.0, float(np.mean(counts))), len(counts)
    images = w.encoder.images[rows].double()
    texts = w.query([0]).texts().double()
    for beta in (SHARPNESSES * scale / 100).tolist():
        cache = np.zeros((len(rows), classes))
        for i in range(len(rows)):
            for k in range(classes):
                others = [j for j in range(len(rows)) if groups[j] != groups[i] and w.labels[rows[j]] == k]
                cache[i, k] = mass * np.mean([math.exp(-beta * (1 - float(images[i] @ images[j]))) for j in others])
        for alpha in (STRENGTHS * scale / 100).tolist():
            loss = 0.0
            for i in range(len(rows)):
                logits = scale * images[i] @ texts.T + alpha * torch.from_numpy(cache[i])
                k = int(w.labels[rows[i]])
                loss -= float(logits.log_softmax(0)[k]) / counts[k]
            losses[alpha, beta] = loss
    alpha = min(a for (a, _), loss in losses.items() if loss <= min(losses.values()) + 1e-3 * classes)
    return alpha, min((loss, b) for (a, b), loss in losses.items() if a == alpha)[1]


@pytest.mark.parametrize(("counts", "scale"), [((3, 3, 3), 100.0), ((5, 2, 3), 30.0)])
def test_the_search_finds_the_optimum_of_plain_loops(counts, scale):
    w = world(classes=3, each=10, width=12, noise=2.5, text_noise=3.0, scale=scale, seed=4)
    rows = w.shots(counts)
    groups = [str(row if i else rows[1]) for i, row in enumerate(rows)]  # the first two rows are of one patient
    groups = groups if counts[0] > 2 else [str(row) for row in rows]
    adapted = method("tip_adapter").fit(w.problem(rows, groups))
    assert adapted.chosen_by_data
    alpha, beta = plain_search(w, rows, groups, counts, scale)
    assert adapted.alpha == pytest.approx(alpha, rel=1e-5)
    assert adapted.beta == pytest.approx(beta, rel=1e-5)


def test_the_search_is_the_same_in_blocks(monkeypatch):
    w = world(classes=3, noise=2.0, text_noise=3.0)
    problem = w.problem(w.shots([7, 5, 9]))
    whole = method("tip_adapter").fit(problem)
    monkeypatch.setattr(caches, "AT_ONCE", 200)
    parts = method("tip_adapter").fit(problem)
    assert (parts.alpha, parts.beta) == (whole.alpha, whole.beta)
    assert torch.allclose(parts.answer(w.query(range(50))).values, whole.answer(w.query(range(50))).values, atol=1e-4)


def test_a_row_that_sees_itself_would_choose_otherwise():
    """Labels that images do not know: with its own entry in the cache each row would be right, without it none is."""
    w = world(classes=2, each=40, noise=0.5, text_noise=0.2)
    problem = w.problem(range(80))
    random = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(0))])
    text_right = replace(random, query=w.query(range(80)))
    adapted = method("tip_adapter").fit(text_right)
    features = w.encoder.images
    leaky = torch.exp(-adapted.beta * (1 - features @ features.T)) @ adapted.values
    assert adapted.alpha * (leaky.max() - leaky.min()) < 60, "no strength is found in noise"
    twice = w.problem([*range(40), *range(40)], [f"row {i}" for i in range(80)])  # every image is there twice, as two patients
    noise = torch.nn.functional.one_hot(torch.randint(2, (40,), generator=torch.Generator().manual_seed(1)), 2).float()
    leak = method("tip_adapter").fit(replace(twice, targets=torch.cat([noise, noise])))
    same = w.problem([*range(40), *range(40)], [f"row {i % 40}" for i in range(80)])
    kept = method("tip_adapter").fit(replace(same, targets=torch.cat([noise, noise])))
    assert leak.beta * leak.alpha > kept.beta * kept.alpha, "two copies of a patient's image do not see each other"


def test_nothing_is_searched_where_a_class_has_one_patient():
    w = world(classes=3)
    rows = w.shots([4, 4, 2])
    alone = method("tip_adapter").fit(w.problem(rows, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "i"]))
    assert not alone.chosen_by_data
    assert (alone.alpha, alone.beta) == (1.0, 5.5)
    assert method("tip_adapter").fit(w.problem(rows)).chosen_by_data
    assert not method("tip_adapter", search=False).fit(w.problem(rows)).chosen_by_data


def test_a_frequent_class_does_not_win_by_number_and_a_missing_one_keeps_zero_shot():
    w = world(classes=3)
    adapted = method("tip_adapter").fit(w.problem(w.shots([12, 3, 0])))
    assert torch.allclose(adapted.values.sum(0), torch.tensor([7.5, 7.5, 0.0]))
    query = w.query(range(180))
    assert torch.allclose(
        adapted.answer(query).values[:, 2], method("zero_shot").fit(w.problem([0, 60])).answer(query).values[:, 2], atol=1e-4
    )
    balanced = method("tip_adapter").fit(w.problem(w.shots([4, 4, 4])))
    assert torch.allclose(balanced.values, torch.nn.functional.one_hot(torch.arange(3).repeat_interleave(4)).float())
    many = method("tip_adapter", search=False).fit(w.problem(w.shots([40, 40, 40])))
    assert torch.allclose(many.values.sum(0), torch.tensor([16.0, 16.0, 16.0]), atol=1e-4)


def test_tip_adapter_where_several_may_hold():
    w = world(classes=2, each=30)
    problem = several(w)
    adapted = method("tip_adapter").fit(problem)
    assert (adapted.values[problem.targets == 1] > 0).all()
    assert (adapted.values[problem.targets == 0] < 0).all()
    assert (adapted.values[problem.targets.isnan()] == 0).all()
    assert torch.allclose(adapted.values.sum(0), torch.zeros(2), atol=1e-4), "yes and no weigh the same"
    said = adapted.answer(problem.query).values
    known = ~problem.targets.isnan()
    assert ((said > 0).float() == problem.targets)[known].float().mean() > 0.95


def test_tip_adapter_f_trains_keys_and_not_values():
    w = world(classes=3, noise=2.0, text_noise=3.0)
    problem = w.problem(w.shots([4, 4, 4]))
    start, end = (method("tip_adapter_f", steps=steps, search=False).fit(problem) for steps in (0, 60))
    free, searched = method("tip_adapter", search=False).fit(problem), method("tip_adapter_f", steps=1).fit(problem)
    assert (searched.alpha, searched.beta) == (method("tip_adapter").fit(problem).alpha, method("tip_adapter").fit(problem).beta)
    assert torch.equal(start.keys, free.keys)
    assert (start.alpha, start.beta) == (free.alpha, free.beta) == (end.alpha, end.beta)
    assert torch.equal(start.values, end.values)
    assert not torch.allclose(start.keys, end.keys, atol=1e-3)
    query = w.query(range(180))
    assert torch.allclose(start.answer(query).values, free.answer(query).values, atol=1e-4)
    labels = problem.targets.argmax(1)
    losses = [float(torch.nn.functional.cross_entropy(a.answer(problem.query).values, labels)) for a in (start, end)]
    assert losses[1] < 0.8 * losses[0]


def test_tip_adapter_f_is_the_plain_descent():
    w = world(classes=2, each=8, width=10, noise=3.0, text_noise=3.0, scale=50.0)
    rows = w.shots([1, 1])
    problem = w.problem(rows)
    keys = w.encoder.images[rows].clone().requires_grad_()
    optimiser, texts = torch.optim.AdamW([keys], lr=1.0, weight_decay=0.01), problem.query.texts()
    for number in range(1, 8):
        optimiser.param_groups[0]["lr"] = 0.05 * (0.5 if number == 1 else 0.5 * (1 + math.cos(math.pi * (number - 2) / 6)))
        loss = torch.zeros(())
        for i, row in enumerate(rows):
            f = w.encoder.images[row]
            affinity = torch.stack([torch.exp(-2.75 * (1 - f @ key)) for key in keys])
            logits = 50.0 * texts @ f + 0.5 * affinity
            loss = loss - logits.log_softmax(0)[i] / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    adapted = method("tip_adapter_f", steps=7, learning_rate=0.05).fit(problem)
    assert torch.allclose(adapted.keys, keys.detach(), atol=1e-4)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f", "k_nearest_neighbours"])
def test_shuffled_labels_teach_nothing_about_other_images(name):
    w = world(classes=4, text_noise=30.0)
    support, test = w.shots([20] * 4), np.flatnonzero(np.arange(240) % 60 >= 30)
    problem = w.problem(support)
    wrong = replace(problem, targets=problem.targets[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    right, shuffled = (w.balanced_accuracy(method(name).fit(p).answer(w.query(test)).values, test) for p in (problem, wrong))
    assert right > 0.75
    assert shuffled < 0.45


def test_neighbours_vote_as_in_scikit_learn():
    w = world(classes=3, noise=3.0)
    rows = w.shots([15, 10, 20])
    adapted = method("k_nearest_neighbours", neighbours=7).fit(w.problem(rows))
    said = adapted.answer(w.query(range(180))).values.exp().numpy()
    images = w.encoder.images.numpy().astype(float)
    reference = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = reference.fit(images[rows], w.labels[rows]).predict_proba(images)
    assert np.allclose(said, (expected + 1e-3) / (1 + 3e-3), atol=1e-3)
    assert np.allclose(said.sum(1), 1, atol=1e-5)


def test_fewer_rows_than_neighbours_all_vote_and_a_class_without_rows_is_never_answered():
    w = world(classes=3)
    adapted = method("k_nearest_neighbours", neighbours=50).fit(w.problem(w.shots([2, 1, 0])))
    said = adapted.answer(w.query(range(180))).values
    assert (said[:, 2] < -1000).all()
    f, keys = w.encoder.images[5], w.encoder.images[[0, 1, 60]]
    votes = [math.exp(float(f @ key) / 0.07) for key in keys]
    share = (votes[0] + votes[1]) / sum(votes)
    assert float(said[5, 0] - said[5, 1]) == pytest.approx(math.log((share + 1e-3) / (1 - share + 1e-3)), abs=1e-3)


def test_neighbours_that_are_unknown_do_not_vote():
    w = world(classes=2, each=30)
    problem = several(w)
    adapted = method("k_nearest_neighbours").fit(problem)
    said = adapted.answer(problem.query).values
    known = ~problem.targets.isnan()
    assert ((said > 0).float() == problem.targets)[known].float().mean() > 0.9
    f = w.encoder.images[0]
    similarity, nearest = (w.encoder.images @ f).topk(5)
    votes = (similarity / 0.07).softmax(0)
    yes = sum(float(v) for v, j in zip(votes, nearest, strict=True) if problem.targets[j, 1] == 1)
    no = sum(float(v) for v, j in zip(votes, nearest, strict=True) if problem.targets[j, 1] == 0)
    assert float(said[0, 1]) == pytest.approx(math.log((yes + 1e-3) / (no + 1e-3)), abs=1e-3)
