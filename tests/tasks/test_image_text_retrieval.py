"""Retrieval as a task: several right answers, chance and gallery told, queries with words, bad input one line each."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import catalogue
from medtame.comparison.strips import plane, spread, strips
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.metrics.retrieval import chance_recall, first_ranks
from medtame.run import meet
from medtame.tasks.image_text_retrieval import ImageTextRetrieval, ImageTextRetrievalFrame
from medtame.types import Scores

TASK = ImageTextRetrieval()
FRAME = ImageTextRetrievalFrame("scores")


def rows(texts: list[str | None], cases: list[str], **more: list[str | None]) -> ManifestSamples:
    random = np.random.default_rng(0)
    pictures = [ArrayPicture(random.random((16, 16, 1)).astype(np.float32), f"image-{k}") for k in range(len(texts))]
    return ManifestSamples({"image": pictures, "text": texts, **more}, np.array(cases))


def said(samples: ManifestSamples, scores: list[list[float]]):
    given, gallery = TASK.given(samples)
    return FRAME.read(FRAME.query(given, tiny_encoder(), gallery), Scores(torch.tensor(scores)))


def values(samples: ManifestSamples, scores: list[list[float]]) -> dict[str, float]:
    return {name: found.value() for name, found in FRAME.measure(said(samples, scores), samples).items()}


def test_texts_of_the_case_and_equal_texts_are_right() -> None:
    """Gallery a b c; rows: a (case 1), b (case 1), c (case 2), a (case 3). Each score is the lowest for a row's own text."""
    samples = rows(["a", "b", "c", "a"], ["1", "1", "2", "3"])
    found = values(samples, [[0, 1, 0.5], [1, 0, 0.5], [1, 0.9, 0], [1, 0.9, 0.8]])
    assert found["mrr_image_to_text"] == pytest.approx(np.mean([1, 1, 1 / 3, 1]))
    right = FRAME.right(said(samples, np.zeros((4, 3)).tolist()), samples)
    np.testing.assert_array_equal(right, [[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert found["gallery_texts"] == 3
    assert found["gallery_images"] == 4


def test_a_text_finds_every_image_of_its_cases() -> None:
    samples = rows(["a", "b", "c", "a"], ["1", "1", "2", "3"])
    scores = [[0.2, 0.9, 0.5], [0.9, 0.2, 0.5], [0.5, 0.5, 0.1], [0.1, 0.1, 0.9]]
    # a: images 1 0.9 (case 1, right) -> 1;  b: image 0 0.9 (case 1, right) -> 1;  c: image 3, 0, 1 before 2 -> 4;  a again -> 1
    assert values(samples, scores)["mrr_text_to_image"] == pytest.approx(np.mean([1, 1, 1 / 4, 1]))


def test_own_counts_the_own_text_alone() -> None:
    names = [f"text {k:02d}" for k in range(24)]
    samples = rows(names, [str(k // 2) for k in range(24)])
    partner = np.eye(24)[np.arange(24) ^ 1] + 0.5 * (1 - np.eye(24))  # the other text of the case is first, the own one last
    found = values(samples, partner.tolist())
    assert found["recall_at_10_image_to_text"] == 1
    assert found["recall_at_10_text_to_image"] == 1
    assert found["recall_at_10_own_image_to_text"] == 0
    assert found["recall_at_10_own_text_to_image"] == 0


def test_chance_equals_counting_every_order() -> None:
    for size, right, cut in ((5, 1, 2), (6, 2, 3), (6, 5, 2), (4, 2, 10)):
        relevant = np.arange(size) < right
        hits = [relevant[list(order)][:cut].any() for order in permutations(range(size))]
        assert chance_recall(relevant[None], cut)[0] == pytest.approx(np.mean(hits))
    assert np.isnan(chance_recall(np.zeros((1, 5), dtype=bool), 2)[0])


def test_constant_scores_are_at_the_chance_that_is_told() -> None:
    samples = rows([f"text {k % 20:02d}" for k in range(30)], [str(k // 3) for k in range(30)])
    found = values(samples, np.zeros((30, 20)).tolist())
    for way in ("image_to_text", "text_to_image"):
        assert found[f"recall_at_10_{way}"] == pytest.approx(found[f"chance_recall_at_10_{way}"])


def test_first_ranks_are_those_of_the_median() -> None:
    scores, right = np.array([[3.0, 2, 1], [1, 2, 3], [0, 0, 0]]), np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    np.testing.assert_allclose(first_ranks(scores, right), [2, 1, 2])


def test_targets_share_a_row_among_the_texts_of_its_case() -> None:
    problem = FRAME.problem(rows(["a", "b", "c", "a"], ["1", "1", "2", "3"]), tiny_encoder(), 0)
    np.testing.assert_allclose(problem.targets.numpy(), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1], [1, 0, 0]])


def test_a_query_may_have_words_and_never_the_text() -> None:
    samples = rows(["a", "b"], ["1", "2"], query=["fever", None])
    given, gallery = TASK.given(samples)
    assert FRAME.query(given, tiny_encoder(), gallery).words == ("fever", "")
    with pytest.raises(DataError, match="may not see"):
        given.column("text")


def test_the_table_ranks_images_for_one_text() -> None:
    samples = rows(["a", "b", "c"], ["1", "2", "3"]).only(("image",))
    found = FRAME.read(FRAME.query(samples, tiny_encoder(), ["a mass"]), Scores(torch.tensor([[0.1], [0.9], [0.5]])))
    assert [row["image_rank_for_text_1"] for row in found.table] == [3, 1, 2]
    assert [row["text_1"] for row in found.table] == ["a mass"] * 3


# ---- bad input ------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "images", "said"),
    [
        ([], 2, "gallery"),
        (["a", "  "], 2, "text 2 of 2 in the gallery is empty"),
        (["a", "b", "a"], 2, "holds 'a' twice"),
        (["a"], 1, "one text and one image"),
    ],
)
def test_a_bad_gallery_is_one_line(words: list[str], images: int, said: str) -> None:
    samples = rows(["a", "b"][:images], ["1", "2"][:images]).only(("image",))
    with pytest.raises(DataError, match=said) as error:
        FRAME.query(samples, tiny_encoder(), words)
    one_line(error)


def test_a_gallery_of_one_measures_nothing() -> None:
    samples = rows(["a", "a"], ["1", "2"])
    with pytest.raises(DataError, match=r"gallery of 1 text\(s\) and 2 image\(s\)") as error:
        values(samples, [[0.0], [1.0]])
    one_line(error)


def test_one_text_for_all_training_rows_is_named() -> None:
    with pytest.raises(DataError, match="all 3 training rows have the same text") as error:
        FRAME.problem(rows(["a", "a", "a"], ["1", "2", "3"]), tiny_encoder(), 0)
    one_line(error)


def test_empty_captions_are_left_out_and_all_of_them_empty_is_named() -> None:
    assert len(TASK.usable(rows(["a", None, "  ", "b"], ["1", "2", "3", "4"]))) == 2
    with pytest.raises(DataError, match="'text' is empty in all 2 rows"):
        TASK.usable(rows([" ", "  "], ["1", "2"]))
    with pytest.raises(DataError, match="'text'"):
        TASK.usable(rows([None, None], ["1", "2"]))


def test_a_text_outside_the_gallery_is_named() -> None:
    samples = rows(["a", "b"], ["1", "2"])
    found = said(samples, [[1, 0], [0, 1]])
    with pytest.raises(DataError, match="'new' is not in the gallery"):
        FRAME.measure(found, samples.replaced(text=["a", "new"]))


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("linear_probe", "words that fit never saw"),
        ("ridge_probe", "words that fit never saw"),
        ("optimal_transport", "needs one_label"),
        ("transductive", "needs one_label"),
    ],
)
def test_who_cannot_rank_unseen_texts_is_refused_with_the_reason(method: str, reason: str) -> None:
    with pytest.raises(PairError, match=reason) as error:
        meet(TASK, catalogue.build(catalogue.METHODS, method))
    one_line(error)
    assert "linear_maps" in str(error.value)


# ---- what the report shows ------------------------------------------------------------------------------------


def test_strips_mark_the_right_answers_and_give_the_rank() -> None:
    samples = rows(["a", "b", "c", "d"], ["1", "2", "3", "4"])
    scores = np.array([[4.0, 1, 2, 3], [4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]])
    found = said(samples, scores.tolist())
    shown = strips(found, samples, FRAME.right(found, samples), [f"row {k}" for k in range(4)])
    assert len(shown) == 4 + 4 + 2
    assert shown[0]["caption"] == "image asks; first right text at 1 of 4. 1. RIGHT: a; 2. wrong: d; 3. wrong: c"
    assert shown[3]["caption"].startswith("image asks; first right text at 4 of 4.")
    assert all(one["thumbnail"] for one in shown)
    assert not any("image-" in one["caption"] + one["image"] for one in shown), "no name of a file is told"


def test_shown_queries_are_spread_from_the_best_to_the_worst() -> None:
    assert spread(np.array([5.0, 1, 9, 3, 7, 2, 8])) == [1, 3, 4, 2]


def test_the_joint_map_places_what_scores_high_together() -> None:
    scores = np.kron(np.eye(2), np.ones((3, 2)))  # two blocks
    images, texts = plane(scores)
    assert np.sign(images[0, 0]) == np.sign(texts[0, 0]) != np.sign(images[5, 0])
    centred = scores - 0.5
    np.testing.assert_allclose(images @ texts.T, centred, atol=1e-9)


def test_the_tiny_set_has_texts_of_several_images() -> None:
    _, test = tiny("image_text_retrieval")
    assert len(set(test.column("text"))) < len(test)
