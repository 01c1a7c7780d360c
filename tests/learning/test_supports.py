"""What a support allows, and how its rows count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtame.learning.supports import balance, balanced_loss, leaves_one_out, midway, present, rows_a_class

NAN = float("nan")
ONE = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
SEVERAL = torch.tensor([[1.0, 1, 1], [0, 1, NAN], [1, 1, 0], [NAN, 1, 0]])


def test_a_class_is_there_with_a_row_or_with_a_row_on_both_sides():
    assert present(ONE, exclusive=True).tolist() == [True, True, False]
    assert present(SEVERAL, exclusive=False).tolist() == [True, False, True]


def test_every_class_counts_the_same():
    assert torch.allclose(balance(ONE, exclusive=True), torch.tensor([[1 / 3, 0, 0], [1 / 3, 0, 0], [1 / 3, 0, 0], [0, 1, 0]]))
    assert torch.allclose(balance(SEVERAL, exclusive=False), torch.tensor([[0.5, 0, 1], [-1, 0, 0], [0.5, 0, -0.5], [0, 0, -0.5]]))


def test_rows_a_class_are_a_mean_and_at_most_sixteen():
    assert rows_a_class(ONE, exclusive=True) == 2.0
    assert rows_a_class(SEVERAL, exclusive=False) == 1.5
    assert rows_a_class(torch.eye(2).repeat(100, 1), exclusive=True) == 16.0


def test_the_balanced_loss_is_a_sum_over_classes_of_mean_losses():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    fast = balanced_loss(logits, balance(ONE, exclusive=True), exclusive=True)
    slow = [-float(part.log_softmax(1)[:3, 0].mean() + part.log_softmax(1)[3, 1]) for part in logits]
    assert fast.tolist() == pytest.approx(slow, rel=1e-5)
    fast = balanced_loss(logits, balance(SEVERAL, exclusive=False), exclusive=False)
    slow = [
        -float(p.sigmoid()[[0, 2], 0].log().mean() + (1 - p.sigmoid()[1, 0]).log() + p.sigmoid()[0, 2].log())
        - float((1 - p.sigmoid()[[2, 3], 2]).log().mean())
        for p in logits
    ]
    assert fast.tolist() == pytest.approx(slow, rel=1e-5)


def test_two_patients_of_every_class_allow_a_choice():
    targets = torch.eye(3)[[0, 0, 1, 1]]
    assert leaves_one_out(targets, np.array(["a", "b", "c", "d"]), exclusive=True)
    assert not leaves_one_out(targets, np.array(["a", "a", "c", "d"]), exclusive=True)
    assert not leaves_one_out(torch.eye(3)[[0, 0, 1]], np.array(["a", "b", "c"]), exclusive=True)
    several = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert leaves_one_out(several, np.array(["a", "b", "a", "b"]), exclusive=False)
    assert not leaves_one_out(several, np.array(["a", "b", "c", "c"]), exclusive=False)


def test_midway_is_between_yes_and_no():
    logits = torch.tensor([[10.0, 1, 5], [2, 1, 9], [20, 1, 1], [7, 1, 2]])
    assert midway(logits, SEVERAL, exclusive=False).tolist() == pytest.approx([-(15 + 2) / 2, 0, -(5 + 1.5) / 2])
    assert midway(logits, ONE, exclusive=True).tolist() == [0, 0, 0]
