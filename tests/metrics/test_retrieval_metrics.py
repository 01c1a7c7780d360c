"""Ranking against scikit-learn, and against a slow twin that tries every order of tied items."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from medtame.errors import MedtameError
from medtame.metrics.retrieval import retrieval
from medtame.types import Array


def in_order(right: Array) -> list[float]:
    """The metrics of one query whose items stand in their final order."""
    rank = int(np.flatnonzero(right)[0]) + 1
    gain = 1 / np.log2(np.arange(len(right)) + 2)
    return [rank <= 1, rank <= 5, rank <= 10, rank, 1 / rank, right @ gain / gain[: right.sum()].sum(), right[:10].mean()]


def slow_twin(scores: Array, right: Array) -> Array:
    """The mean over all orders of the items that keep falling scores."""
    orders = [order for order in permutations(range(len(scores))) if all(np.diff(scores[list(order)]) <= 0)]
    return np.mean([in_order(right[list(order)]) for order in orders], axis=0)


def values(scores: Array, right: Array) -> Array:
    return np.array([statistic.value() for statistic in retrieval(scores, right).values()])


@pytest.mark.parametrize("seed", range(40))
def test_ties_give_the_expectation_over_every_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 3, 7).astype(float), rng.random(7) < 0.4
    right[rng.integers(7)] = True
    np.testing.assert_allclose(values(scores[None], right[None]), slow_twin(scores, right), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tied", [True, False])
def test_ndcg_equals_scikit_learn(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (6, 30)).astype(float) if tied else rng.normal(size=(6, 30))
    right = rng.random((6, 30)) < 0.2
    right[:, 0] = True
    assert retrieval(scores, right)["ndcg"].value() == pytest.approx(ndcg_score(right, scores), abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_without_ties_all_equal_sorting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, right = rng.normal(size=(9, 40)), rng.random((9, 40)) < 0.1
    right[:, 3] = True
    rows = np.array([in_order(right[k][np.argsort(-scores[k])]) for k in range(9)])
    expected = rows.mean(0)
    expected[3] = np.median(rows[:, 3])
    np.testing.assert_allclose(values(scores, right), expected, atol=1e-12)


def test_constant_scores_are_at_chance() -> None:
    right = np.eye(50, dtype=bool)
    found = {name: statistic.value() for name, statistic in retrieval(np.zeros((50, 50)), right).items()}
    assert found["recall_at_1"] == pytest.approx(1 / 50)
    assert found["recall_at_5"] == pytest.approx(5 / 50)
    assert found["recall_at_10"] == pytest.approx(10 / 50)
    assert found["median_rank"] == pytest.approx(25.5)
    assert found["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 51)))
    assert found["precision_at_10"] == pytest.approx(1 / 50)


def test_perfect_scores_are_perfect_and_the_suffix_is_told() -> None:
    right = np.eye(12, dtype=bool)
    found = {name: statistic.value() for name, statistic in retrieval(right.astype(float), right, "_image_to_text").items()}
    assert found == pytest.approx(
        {
            "recall_at_1_image_to_text": 1,
            "recall_at_5_image_to_text": 1,
            "recall_at_10_image_to_text": 1,
            "median_rank_image_to_text": 1,
            "mrr_image_to_text": 1,
            "ndcg_image_to_text": 1,
            "precision_at_10_image_to_text": 0.1,
        }
    )


def test_a_refusal_is_last_a_nan_item_is_last_and_a_query_without_an_answer_is_left_out() -> None:
    right = np.zeros((3, 20), dtype=bool)
    right[:2, 4] = True
    scores = np.tile(-np.arange(20.0), (3, 1))
    scores[0] = np.nan
    found = retrieval(scores, right)
    assert [statistic.defined for statistic in found.values()] == [2] * 7
    np.testing.assert_allclose(found["median_rank"].arrays()["values"], [20, 5, np.nan])
    np.testing.assert_allclose(found["recall_at_5"].arrays()["values"], [0, 1, np.nan])
    scores[1, 4] = np.nan
    assert retrieval(scores[1:2], right[1:2])["median_rank"].value() == 20


def test_shapes_are_checked() -> None:
    with pytest.raises(MedtameError, match="queries, gallery"):
        retrieval(np.ones((2, 3)), np.ones((3, 2), dtype=bool))
