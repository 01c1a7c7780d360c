"""Methods on frozen features, each against a slow twin, a closed form or scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import catalogue
from medtame.errors import DataError
from medtame.run import fitted
from medtame.strategies.tuning.clap import Clap, trust
from medtame.strategies.tuning.ridge_probe import leave_one_out, solved
from medtame.tasks.classification import Classification
from medtame.types import Candidates, Problem, Query


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def support():
    train, _ = tiny("classification")
    task = Classification()
    train = task.usable(train)
    return train, task.settled(train)


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def problem_of(support, encoder) -> Problem:
    train, task = support
    return task.frame(train, "scores").problem(train, encoder, 0)


def renamed(support, encoder) -> Problem:
    """The same rows under each other's names: what zero-shot says is wrong, so there is something to learn."""
    problem = problem_of(support, encoder)
    return replace(problem, targets=problem.targets.roll(1, 1))


def test_zero_shot_is_scale_times_cosine_plus_bias(support, encoder):
    problem = problem_of(support, encoder)
    said = method("zero_shot").fit(problem).answer(problem.query).values
    images = encoder.whole(problem.query.samples)
    for k, sentences in enumerate(problem.query.wanted.prompts):
        vectors = torch.stack([encoder.texts([sentence])[0] for sentence in sentences])
        mean = vectors.mean(0) / vectors.mean(0).norm()
        slow = torch.stack([20.0 * torch.dot(image, mean) - 0.5 for image in images])
        assert torch.allclose(said[:, k], slow, atol=1e-4)


def test_the_linear_probe_is_scikit_learns(support, encoder):
    problem = problem_of(support, encoder)
    said = method("linear_probe").fit(problem).answer(problem.query).values.softmax(1)
    labels = problem.targets.argmax(1).numpy()
    features = encoder.whole(problem.query.samples).numpy()
    model = LogisticRegression(C=100, max_iter=1000).fit(features, labels)
    assert np.allclose(said.numpy(), model.predict_proba(features), atol=2e-3)


def test_the_linear_probe_of_two_classes_is_scikit_learns(support, encoder):
    train, _ = support
    two = train.take(np.flatnonzero([label != "nothing" for label in train.column("label")]))
    task = Classification().settled(two)
    problem = task.frame(two, "scores").problem(two, encoder, 0)
    said = method("linear_probe").fit(problem).answer(problem.query).values.softmax(1)
    features, labels = encoder.whole(two).numpy(), problem.targets.argmax(1).numpy()
    assert np.allclose(said.numpy(), LogisticRegression(C=100, max_iter=1000).fit(features, labels).predict_proba(features), atol=2e-3)


def test_unknown_targets_carry_no_loss_where_several_may_hold(support, encoder):
    problem = problem_of(support, encoder)
    query = Query(
        wants="scores",
        samples=problem.query.samples,
        encoder=encoder,
        source=problem.query.source,
        candidates=Candidates(names=("a", "b"), prompts=(("a",), ("b",)), exclusive=False),
    )
    targets = (problem.targets[:, :2] > 0.5).float()
    targets[::3, 1] = float("nan")
    known = ~targets[:, 1].isnan()
    said = method("linear_probe").fit(Problem(query=query, targets=targets)).answer(query).values
    features = encoder.whole(problem.query.samples).numpy()
    model = LogisticRegression(C=100, max_iter=1000).fit(features[known.numpy()], targets[known, 1].numpy())
    assert np.allclose(said[:, 1].sigmoid().numpy(), model.predict_proba(features)[:, 1], atol=2e-3)


def test_the_nearest_prototype_is_the_class_mean(support, encoder):
    problem = problem_of(support, encoder)
    said = method("nearest_prototype").fit(problem).answer(problem.query).values
    features, labels = encoder.whole(problem.query.samples), problem.targets.argmax(1)
    for k in range(3):
        mean = features[labels == k].mean(0)
        slow = torch.stack([20.0 * torch.cosine_similarity(row, mean, dim=0) for row in features])
        assert torch.allclose(said[:, k], slow, atol=1e-4)


@pytest.mark.parametrize("width", [20, 4])
def test_leave_one_out_equals_the_explicit_loop(width):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, width)), random.normal(size=(9, 2))
    penalties = torch.tensor([0.03, 0.5, 8.0], dtype=torch.float64)
    fast = leave_one_out(torch.from_numpy(x - x.mean(0)), torch.from_numpy(y - y.mean(0)), penalties)
    for penalty, found in zip(penalties.tolist(), fast.tolist(), strict=True):
        errors = []
        for i in range(9):
            rest = np.delete(np.arange(9), i)
            errors.append((Ridge(alpha=penalty).fit(x[rest], y[rest]).predict(x[i : i + 1])[0] - y[i]) ** 2)
        assert found == pytest.approx(float(np.mean(errors)), rel=1e-6)
        centred = torch.from_numpy(x - x.mean(0)), torch.from_numpy(y - y.mean(0))
        assert np.allclose(solved(*centred, penalty).numpy().T, Ridge(alpha=penalty).fit(x, y).coef_)


def test_the_ridge_probe_is_scikit_learns_ridge_times_the_scale(support, encoder):
    problem = problem_of(support, encoder)
    adapted = method("ridge_probe").fit(problem)
    features = encoder.whole(problem.query.samples).numpy().astype(float)
    slow = Ridge(alpha=adapted.penalty).fit(features, problem.targets.numpy()).predict(features)
    assert adapted.chosen_by_data
    assert np.allclose(adapted.answer(problem.query).values.numpy(), 20.0 * slow, atol=1e-3)


def test_one_row_a_class_chooses_no_penalty(support, encoder):
    problem = problem_of(support, encoder)
    labels = problem.targets.argmax(1)
    few = problem.take([int((labels == k).nonzero()[0, 0]) for k in range(3)])
    adapted = method("ridge_probe", penalty=0.7).fit(few)
    assert not adapted.chosen_by_data
    assert adapted.penalty == 0.7


def test_trust_is_the_mean_zero_shot_probability_of_the_true_class():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    targets = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    probability = logits.softmax(1)
    first = (probability[0, 0] + probability[2, 0]) / 2
    second = probability[1, 1]
    assert torch.allclose(trust(logits, targets), torch.stack([first, second, (first + second) / 2]))


def test_clap_stays_near_the_text_under_a_strong_constraint_and_leaves_it_without(support, encoder):
    problem = problem_of(support, replace(encoder, scale=2.0))
    texts = problem.query.texts()
    moved = {}
    for constraint in (0.0, 1.0, 1000.0):
        adapted = Clap(constraint=constraint, learning_rate=1e-3, steps=300).fit(problem)
        moved[constraint] = float((adapted.prototypes - texts).norm())
    assert moved[1000.0] < 0.1 * moved[1.0]
    assert moved[1.0] < moved[0.0]


def test_a_class_without_a_row_keeps_near_its_text_in_clap(support, encoder):
    problem = renamed(support, encoder)
    few = problem.take(np.flatnonzero(problem.targets[:, 2].numpy() == 0))
    adapted = Clap().fit(few)
    drift = (adapted.prototypes - problem.query.texts()).norm(dim=1)
    assert drift[2] < drift[:2].min()


def test_coop_learns_the_support_and_moves_only_its_context(support, encoder):
    problem = renamed(support, encoder)
    start = method("coop", steps=0).fit(problem)
    learnt = method("coop", steps=60).fit(problem)
    labels = problem.targets.argmax(1)

    def loss(adapted):
        return float(torch.nn.functional.cross_entropy(adapted.answer(problem.query).values, labels))

    assert loss(learnt) < 0.7 * loss(start)
    assert torch.equal(start.ids, learnt.ids)
    assert not torch.equal(start.context, learnt.context)


def test_the_question_alone_answers_what_the_question_tells(encoder):
    train, test = tiny("visual_question_answering")
    task = catalogue.build(catalogue.TASKS, "visual_question_answering")
    run = fitted(train, task, method("question_only"), encoder)
    said = run.predict(test)
    blank = run.predict(test.replaced(image=[test.pictures()[0]] * len(test)))
    assert [row["prediction"] for row in said.table] == [row["prediction"] for row in blank.table]
    closed = [row["prediction"] in ("yes", "no") for row in said.table if row["question"].startswith("is ")]
    assert all(closed)


def test_one_class_alone_is_refused(support, encoder):
    problem = problem_of(support, encoder)
    alone = problem.take(np.flatnonzero(problem.targets[:, 0].numpy() == 1))
    for name in ("linear_probe", "ridge_probe", "clap", "coop", "lora", "last_blocks", "full_fine_tuning", "nearest_prototype"):
        with pytest.raises(DataError, match="one class"):
            method(name).fit(alone)
