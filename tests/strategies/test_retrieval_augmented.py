"""The nearest support rows vote by label or by what was written about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, query, samples, unit

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame.errors import DataError
from medtame.strategies.base import REFUSED
from medtame.strategies.knowledge.retrieval_augmented import RetrievalAugmented
from medtame.tasks.classification import Classification
from medtame.types import Problem

NAMES = ("a", "b", "c")


def asked(n=12, **more):
    encoder = PlantedEncoder(unit(noise(n + 4, 6)))
    return query(encoder, NAMES, samples(n), **more), query(encoder, NAMES, samples(4, start=n), **more)


def shares(image, keys, scale, k):
    cosine = [float(image @ key) for key in keys]
    near = sorted(range(len(keys)), key=lambda i: -cosine[i])[:k]
    weights = np.exp([scale * (cosine[i] - max(cosine)) for i in near])
    return near, weights / weights.sum()


def targets_of(labels):
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


def test_labels_vote_by_softmax_of_scaled_cosines():
    support, test = asked()
    labels = [i % 3 for i in range(12)]
    said = RetrievalAugmented(neighbours=5).fit(Problem(query=support, targets=targets_of(labels))).answer(test).values
    images = support.encoder.images
    for row in range(4):
        near, weights = shares(images[12 + row], images[:12], 20.0, 5)
        for k in range(3):
            vote = sum(w for i, w in zip(near, weights, strict=True) if labels[i] == k)
            assert float(said[row, k]) == pytest.approx(np.log(vote + 1e-3), abs=1e-4)


def test_unknown_labels_have_no_vote_where_several_may_hold():
    support, test = asked(exclusive=False)
    targets = (noise(12, 3, seed=4) > 0).float()
    targets[::3, 1] = torch.nan
    said = RetrievalAugmented(neighbours=5).fit(Problem(query=support, targets=targets)).answer(test).values
    images = support.encoder.images
    for row in range(4):
        near, weights = shares(images[12 + row], images[:12], 20.0, 5)
        pairs = [(w, float(targets[i, 1])) for i, w in zip(near, weights, strict=True) if not targets[i, 1].isnan()]
        yes, no = sum(w for w, y in pairs if y == 1), sum(w for w, y in pairs if y == 0)
        assert float(said[row, 1]) == pytest.approx(np.log(yes + 1e-3) - np.log(no + 1e-3), abs=1e-3)


def test_a_class_without_a_support_row_is_never_answered_by_labels():
    support, test = asked()
    said = RetrievalAugmented().fit(Problem(query=support, targets=targets_of([0, 1] * 6))).answer(test).values
    assert (said[:, 2] == REFUSED).all()


def test_texts_are_compared_with_the_classes_and_rows_without_one_are_not_asked():
    support, test = asked()
    reports = [None if i % 4 == 0 else f"report {i}" for i in range(12)]
    problem = Problem(query=support, targets=targets_of([i % 3 for i in range(12)]), reports=reports)
    said = RetrievalAugmented(neighbours=4).fit(problem).answer(test).values
    encoder, told = support.encoder, [i for i in range(12) if reports[i]]
    for row in range(4):
        near, weights = shares(encoder.images[12 + row], [encoder.images[i] for i in told], 20.0, 4)
        for k, name in enumerate(NAMES):
            pairs = zip(near, weights, strict=True)
            mean = sum(w * float(encoder.texts([reports[told[i]]])[0] @ encoder.texts([name])[0]) for i, w in pairs)
            assert float(said[row, k]) == pytest.approx(20.0 * mean - 0.5, abs=1e-3)
    off = RetrievalAugmented(neighbours=4, use_texts=False).fit(problem)
    assert len(off.reports) == 0


def test_reports_reach_fit_and_never_a_query():
    train, test = tiny("classification")
    told = {"text": [f"a {label} disc" for label in train.column("label")]}
    task = Classification()
    train = task.usable(train.replaced(**told))
    task = task.settled(train)
    frame = task.frame(train, "scores")
    problem = frame.problem(train, tiny_encoder(), 0)
    assert problem.reports == train.column("text")
    assert problem.take([2, 0]).reports == [problem.reports[2], problem.reports[0]]
    given, _ = task.given(test.replaced(text=["truth"] * len(test)))
    for hidden in (problem.query.samples, frame.query(given, tiny_encoder()).samples):
        assert "text" not in hidden
        with pytest.raises(DataError, match="may not see 'text'"):
            hidden.column("text")
