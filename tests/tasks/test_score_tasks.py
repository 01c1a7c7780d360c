"""Classification, retrieval and question answering: what is asked, what may be seen, how answers are read and measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame.errors import DataError
from medtame.tasks.classification import Classification
from medtame.tasks.image_text_retrieval import ImageTextRetrieval
from medtame.tasks.visual_question_answering import VisualQuestionAnswering, asks_yes_or_no
from medtame.types import Scores


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def test_class_order_comes_from_all_training_rows(encoder):
    train, _ = tiny("classification")
    task = Classification().settled(Classification().usable(train))
    few = train.take(train.rows_where("label", "dark")[:2])
    frame = task.frame(few, "scores")
    assert frame.names == ("bright", "dark", "nothing")
    assert frame.prompts[0] == ("an image of bright", "a medical image showing bright", "a scan of a patient with bright")
    assert frame.problem(few, encoder, 0).targets.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_scores_are_read_as_probabilities_and_measured_as_scikit_learn_does(encoder):
    _, test = tiny("classification")
    task = Classification()
    test = task.usable(test)
    frame = task.settled(test).frame(test, "scores")
    logits = torch.randn(len(test), 3, generator=torch.Generator().manual_seed(0))
    logits[3] = float("nan")
    said = frame.read(frame.query(test.only(["image"]), encoder), Scores(logits))
    assert said.table[3]["prediction"] == "refused"
    assert said.table[3]["warning"]
    assert np.allclose(np.delete(said.arrays["scores"], 3, 0).sum(1), 1)
    row = said.table[0]
    assert row["max_score"] == pytest.approx(max(row[f"score_{name}"] for name in frame.names))
    found = frame.measure(said, test)
    labels = test.column("label")
    guesses = [r["prediction"] for r in said.table]
    per_class = [np.mean([g == label for g, label in zip(guesses, labels, strict=True) if label == name]) for name in frame.names]
    assert found["balanced_accuracy"].value() == pytest.approx(float(np.mean(per_class)))
    kept = [i for i in range(len(test)) if i != 3]
    without = balanced_accuracy_score([labels[i] for i in kept], [guesses[i] for i in kept])
    assert found["balanced_accuracy"].value() <= without + 1e-9


def test_a_label_that_was_not_learnt_is_named(encoder):
    train, test = tiny("classification")
    task = Classification().settled(Classification().usable(train))
    frame = task.frame(train, "scores")
    said = frame.read(frame.query(test.only(["image"]), encoder), Scores(torch.zeros(len(test), 3)))
    with pytest.raises(DataError, match="'odd'"):
        frame.measure(said, test.replaced(label=["odd"] * len(test)))


def test_the_gallery_is_every_distinct_text_and_holds_no_order_of_truth(encoder):
    _, test = tiny("image_text_retrieval")
    task = ImageTextRetrieval()
    given, gallery = task.given(test)
    assert gallery == sorted(set(test.column("text")))
    with pytest.raises(DataError, match="may not see"):
        given.column("text")
    with pytest.raises(DataError, match="gallery"):
        task.frame(test, "scores").query(given, encoder, None)


def test_perfect_scores_retrieve_everything_although_texts_repeat(encoder):
    _, test = tiny("image_text_retrieval")
    task = ImageTextRetrieval()
    frame = task.frame(test, "scores")
    given, gallery = task.given(test)
    texts = np.array(test.column("text"))
    perfect = torch.from_numpy((texts[:, None] == np.array(gallery)[None]).astype(float))
    found = frame.measure(frame.read(frame.query(given, encoder, gallery), Scores(perfect)), test)
    assert found["recall_at_1_image_to_text"].value() == 1
    assert found["recall_at_1_text_to_image"].value() == 1
    assert found["mrr_text_to_image"].value() == 1
    chance = frame.measure(frame.read(frame.query(given, encoder, gallery), Scores(torch.zeros_like(perfect))), test)
    right = frame.right(frame.read(frame.query(given, encoder, gallery), Scores(perfect)), test)
    assert chance["recall_at_1_image_to_text"].value() == pytest.approx(right.mean(1).mean()), "texts of the case are right, too"


@pytest.mark.parametrize(
    ("question", "closed"),
    [
        ("Is there a lesion?", True),
        ("Are the lungs clear?", True),
        ("Is this CT or MR?", False),
        ("What is shown?", False),
        ("Does it cross the midline", True),
        ("", False),
    ],
)
def test_the_wording_tells_whether_yes_or_no_is_asked(question, closed):
    assert asks_yes_or_no(question) is closed


def test_a_closed_question_may_only_be_answered_with_yes_or_no(encoder):
    train, test = tiny("visual_question_answering")
    task = VisualQuestionAnswering()
    frame = task.frame(train, "scores")
    query = frame.query(task.given(test)[0], encoder)
    for question, allowed in zip(query.words, query.allowed, strict=True):
        names = [name for name, may in zip(frame.answers, allowed, strict=True) if may]
        assert names == (["no", "yes"] if question.startswith("is ") else list(frame.answers))
    with pytest.raises(DataError, match="may not see"):
        query.samples.column("answer")


def test_one_question_for_all_images_or_one_each(encoder):
    train, test = tiny("visual_question_answering")
    frame = VisualQuestionAnswering().frame(train, "scores")
    samples = test.only(["image"])
    assert frame.query(samples, encoder, ["what is shown"]).words == ("what is shown",) * len(test)
    with pytest.raises(DataError, match="2 questions"):
        frame.query(samples, encoder, ["a", "b"])


def test_answers_are_measured_by_kind_of_question(encoder):
    train, test = tiny("visual_question_answering")
    frame = VisualQuestionAnswering().frame(train, "scores")
    truth = torch.tensor([[float(answer == name) for name in frame.answers] for answer in test.column("answer")])
    said = frame.read(frame.query(test.only(["image", "question"]), encoder), Scores(truth))
    found = frame.measure(said, test)
    assert found["accuracy"].value() == found["closed_accuracy"].value() == found["open_exact_match"].value() == 1
    assert found["closed_accuracy"].defined == test.column("answer_type").count("closed")
