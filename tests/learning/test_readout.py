"""The logistic readout is scikit-learn's, for any number of classes, missing classes and unknown labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medtame.errors import DataError
from medtame.learning.readout import logistic

X = np.random.default_rng(0).normal(size=(40, 5))


def model():
    return LogisticRegression(C=3.0, max_iter=500)


def one_hot(labels, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).float()


@pytest.mark.parametrize("classes", [2, 4])
def test_one_of_c_gives_scikit_learns_probabilities(classes):
    labels = np.arange(40) % classes
    weight, bias = logistic(X, one_hot(labels, classes), model, exclusive=True, never=-1e4)
    said = (torch.from_numpy(X).float() @ weight.T + bias).softmax(1)
    assert np.allclose(said.numpy(), model().fit(X, labels).predict_proba(X), atol=1e-5)


def test_a_class_without_a_row_is_never_answered():
    labels = np.arange(40) % 2 * 2
    weight, bias = logistic(X, one_hot(labels, 4), model, exclusive=True, never=-1e4)
    assert bias[[1, 3]].tolist() == [-1e4] * 2
    assert not weight[[1, 3]].any()
    said = (torch.from_numpy(X).float() @ weight.T + bias).softmax(1)
    assert np.allclose(said[:, [0, 2]].numpy(), model().fit(X, labels).predict_proba(X), atol=1e-5)


def test_unknown_labels_are_left_out_and_a_sure_candidate_is_never_answered():
    targets = torch.stack([torch.arange(40) % 2, torch.ones(40), (torch.arange(40) % 3 == 0)], 1).float()
    targets[::4, 0] = torch.nan
    weight, bias = logistic(X, targets, model, exclusive=False, never=-1e4)
    known = ~targets[:, 0].isnan().numpy()
    slow = model().fit(X[known], targets[known, 0].numpy() > 0.5)
    assert np.allclose(weight[0].numpy(), slow.coef_[0], atol=1e-5)
    assert bias[1] == -1e4
    with pytest.raises(DataError, match="positive and a negative"):
        logistic(X, targets[:, 1:2], model, exclusive=False, never=-1e4)
