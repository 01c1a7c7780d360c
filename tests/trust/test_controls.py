"""The controls against planted truth: methods that read words, that do not, and images that matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import catalogue
from medtame.metrics.intervals import Interval
from medtame.run import answer, fitted
from medtame.tasks.classification import Classification
from medtame.trust.controls import (
    ARMS,
    applicable,
    constant,
    paraphrased,
    random_code,
    reworded,
    reworded_problem,
    shuffled,
    verdict,
    with_images,
)

ARM = {arm.name: arm for arm in ARMS}


@pytest.fixture(scope="module")
def settled():
    encoder = tiny_encoder()
    train, test = (Classification().usable(samples) for samples in tiny("classification"))
    return encoder, Classification().settled(train), train, test


def accuracy(run, query, test):
    return run.frame.measure(run.frame.read(query, answer(run.adapted, query, "row")), test)["balanced_accuracy"].value()


def test_shuffled_words_ruin_what_reads_them_and_leave_what_does_not(settled):
    encoder, task, train, test = settled
    for name, reads in (("zero_shot", True), ("linear_probe", False)):
        run = fitted(train, task, catalogue.build(catalogue.METHODS, name), encoder)
        query = run.query(test)
        before, after = accuracy(run, query, test), accuracy(run, reworded(query, "shuffled_text"), test)
        assert before > 0.9
        assert (after < 0.34) is reads
        assert (after == before) is not reads


def test_one_sentence_for_all_leaves_zero_shot_at_chance(settled):
    encoder, task, train, test = settled
    run = fitted(
        train,
        task,
        catalogue.build(catalogue.METHODS, "zero_shot"),
        encoder,
        change=lambda problem: reworded_problem(problem, "constant_text"),
    )
    assert accuracy(run, reworded(run.query(test), "constant_text"), test) == pytest.approx(1 / 3)


def test_a_refit_asks_rows_without_labels_the_same_words(settled):
    encoder, task, train, test = settled
    frame = task.frame(train, "scores")
    problem = replace(frame.problem(train, encoder, 0), unlabelled=frame.query(task.given(test)[0], encoder))
    for arm in ("constant_text", "random_text", "shuffled_text"):
        changed = reworded_problem(problem, arm)
        assert changed.unlabelled.wanted == changed.query.wanted
        assert changed.unlabelled.wanted.prompts != problem.query.wanted.prompts
    assert reworded_problem(replace(problem, unlabelled=None), "shuffled_text").unlabelled is None


def test_an_image_of_grey_says_the_same_of_all(settled):
    encoder, task, train, test = settled
    run = fitted(train, task, catalogue.build(catalogue.METHODS, "linear_probe"), encoder)
    grey = run.predict(with_images(test, "blank_image", ("image",), 0))
    assert len({row["prediction"] for row in grey.table}) == 1
    mixed = with_images(test, "shuffled_image", ("image",), 0)
    assert sorted(picture.name for picture in mixed.pictures()) == sorted(picture.name for picture in test.pictures())
    assert mixed.column("label") == test.column("label")
    assert accuracy(run, run.query(mixed), test) < 0.7


def test_changes_of_words():
    sentences = ["a", "b", "c", "a"]
    assert shuffled(sentences) == ["b", "c", "a", "b"]
    assert len(set(constant(sentences))) == 1
    codes = random_code(sentences)
    assert codes[0] == codes[3]
    assert len(set(codes)) == 3
    assert all("a" in sentence for sentence in paraphrased(["a"]))


@pytest.mark.parametrize(
    ("arm", "low", "high", "said"),
    [
        ("constant_text", -0.1, 0.2, "no measurable benefit of the text"),
        ("constant_text", 0.1, 0.2, "the text helps"),
        ("constant_text", -0.3, -0.1, "the text as given does worse than the changed one"),
        ("shuffled_text", 0.1, 0.2, "the text is read"),
        ("shuffled_image", -0.1, 0.1, "no measurable effect: the image may not be read"),
        ("paraphrased_text", 0.1, 0.2, "the wording matters: another one does worse"),
        ("held_out_text", -0.1, 0.2, "no measurable loss from another wording"),
        ("constant_text", np.nan, np.nan, "no measurable benefit of the text"),
    ],
)
def test_verdicts_follow_the_interval(arm, low, high, said):
    assert verdict(ARM[arm], Interval((low + high) / 2, low, high, 10)) == said


def test_words_are_changed_only_where_a_method_reads_them(settled):
    encoder, task, train, test = settled
    query = task.frame(train, "scores").query(test.only(["image"]), encoder)
    none, rows, both = frozenset(), frozenset({"rows"}), frozenset({"rows", "candidates"})
    assert [applicable(ARM["constant_text"], query, reads) for reads in (none, rows, both)] == [False, False, True]
    asked = replace(query, words=("is it bright",) * len(query))
    assert [applicable(ARM["constant_text"], asked, reads) for reads in (none, rows, both)] == [False, True, True]
    assert [applicable(ARM["held_out_text"], asked, reads) for reads in (none, rows, both)] == [False, False, True]
    assert applicable(ARM["blank_image"], query, none)
