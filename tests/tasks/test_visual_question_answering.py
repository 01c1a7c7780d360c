"""Answers by ranking: what wording allows, what exchanging images shows, and what is told of rows that cannot count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import run as path
from medtame.data.images import ArrayPicture
from medtame.data.questions import kind_of, offered
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.metrics.answers import abstention, by_type, consistency, surest_half
from medtame.strategies.baselines.image_only import ImageOnly
from medtame.strategies.baselines.majority_by_question import MajorityByQuestion
from medtame.strategies.baselines.question_only import QuestionOnly
from medtame.strategies.fusion.question_image_product import QuestionImageProduct
from medtame.tasks.visual_question_answering import VisualQuestionAnswering, exchanged, types_of
from medtame.types import Scores


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def opposed(patients: int, seed: int) -> ManifestSamples:
    """Grey images, light or dark, each asked twice: the same image means yes to one question and no to the other."""
    random = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        light = bool(patient % 2)
        level = (0.75 if light else 0.25) + 0.02 * random.standard_normal((32, 32, 1))
        picture = ArrayPicture(level.clip(0, 1).astype(np.float32), f"{seed}-{patient}")
        for asked, yes in (("is the picture light", light), ("is the picture dark", not light)):
            rows.append((picture, asked, "yes" if yes else "no", f"{seed}-{patient}"))
    image, question, answer, who = zip(*rows, strict=True)
    return ManifestSamples({"image": image, "question": question, "answer": answer}, np.array(who))


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is there a lesion?", "yes_no"),
        ("In which plane was this taken: axial or coronal?", "plane"),
        ("Is this a CT or an MR image?", "modality"),
        ("How many lesions are there?", "count"),
        ("Where is the mass?", "place"),
        ("What organ is shown?", "organ"),
        ("Is it solid or cystic?", "choice"),
        ("What is seen?", "other"),
    ],
)
def test_the_kind_of_a_question_is_told_by_its_words(question, kind):
    assert kind_of(question) == kind


def test_an_offered_choice_is_found_word_by_word_and_the_longest_counts():
    answers = ["axial", "contrast ct", "ct", "mr", "sagittal", "yes"]
    assert offered("Is this a CT or an MR image?", answers) == [2, 3]
    assert offered("A contrast CT or MR?", answers) == [1, 3]
    assert offered("Is this CT?", answers) == []
    assert offered("Is the atrial wall sagittally bent or not?", answers) == []


def test_a_choice_allows_what_it_offers_and_an_unseen_answer_is_a_candidate(encoder):
    samples = opposed(4, 0).replaced(question=["is it left or right", "what is it"] * 4, answer=["left", "right", "both", "mass"] * 2)
    frame = VisualQuestionAnswering(answers=("A cyst.",)).frame(samples, "scores")
    assert frame.answers == ("both", "cyst", "left", "mass", "right")
    query = frame.query(samples.only(("image", "question")), encoder)
    assert query.allowed[0].tolist() == [True, False, True, False, True]
    assert query.allowed[1].all()
    assert frame.problem(samples, encoder, 0).targets.sum(0).tolist() == [2, 0, 2, 2, 2]


def test_each_image_is_exchanged_for_one_of_another_patient(encoder):
    samples = opposed(7, 1)
    changed = exchanged(samples, 0)
    before, after = samples.column("image"), changed.column("image")
    owner = {id(image): group for image, group in zip(before, samples.groups, strict=True)}
    assert all(owner[id(image)] != group for image, group in zip(after, samples.groups, strict=True))
    assert all(after[k] is after[k + 1] for k in range(0, len(after), 2)), "both questions see the same other image"
    assert exchanged(samples.take([0, 1]), 0) is None


def test_only_what_meets_question_and_image_solves_opposed_questions_and_its_reliance_is_seen(encoder):
    """Neither side alone tells yes from no, nor does a sum of both: reliance is what is lost with other images."""
    train, test, task = opposed(24, 2), opposed(16, 3), VisualQuestionAnswering()
    task = task.settled(train)
    found = {type(m).__name__: path.fitted(train, task, m, encoder).measure(test) for m in (QuestionImageProduct(), QuestionOnly())}
    assert found["QuestionImageProduct"]["accuracy"].value() > 0.95
    assert found["QuestionImageProduct"]["visual_reliance"].value() > 0.3
    assert found["QuestionOnly"]["accuracy"].value() < 0.7
    assert found["QuestionOnly"]["visual_reliance"].value() == 0
    assert list(found["QuestionOnly"])[:5] == ["accuracy", "closed_accuracy", "open_exact_match", "token_f1", "visual_reliance"]


def test_majority_and_image_only_are_what_they_say(encoder):
    train, test = tiny("visual_question_answering")
    task = VisualQuestionAnswering()
    run = path.fitted(train, task, MajorityByQuestion(), encoder)
    asked, answers = train.column("question"), train.column("answer")
    for row in run.predict(test).table:
        same = [a for q, a in zip(asked, answers, strict=True) if kind_of(q) == kind_of(row["question"])]
        assert same.count(row["prediction"]) == max(same.count(one) for one in set(same))
    run = path.fitted(train, task, ImageOnly(), encoder)
    first = run.answer(run.query(test, ["what is shown"])).values
    assert torch.equal(first, run.answer(run.query(test, ["which one do you see"])).values)


def test_paraphrases_types_and_abstention_by_hand():
    said, linked = ["Yes", "yes.", "no", "left", "right"], ["a", "a", "a", "b", None]
    assert consistency(said, linked, ["p", "q", "r", "s", "t"]).arrays()["values"][:3].tolist() == [0.5, 0.5, 0]
    assert consistency(said, linked, ["p", "P?", "r", "s", "t"]).arrays()["values"][:3].tolist() == [0, 0, 0]
    exact, sure = np.array([1.0, 0.0, 1.0, np.nan, 0.0]), np.array([0.9, 0.2, 0.8, 1.0, 0.4])
    assert surest_half(exact, sure).value() == 1
    assert abstention(exact, sure, (0.5, 0.75, 1.0)) == [(0.5, 1.0), (0.75, pytest.approx(2 / 3)), (1.0, 0.5)]
    typed = by_type(exact, [("A",), ("A", "B"), ("B",), ("A",), ()], ("A", "B", "C"))
    assert [typed[f"accuracy/{name}"].value() for name in "AB"] == [0.5, 0.5]
    assert typed["accuracy/C"].defined == 0


def test_question_types_come_from_the_manifest_or_from_words():
    samples = opposed(2, 4).replaced(question_type=["PRES, POS", None, " SIZE ", "PRES"])
    assert types_of(samples) == [("POS", "PRES"), ("yes_no",), ("SIZE",), ("PRES",)]
    assert VisualQuestionAnswering().settled(samples).question_types == ("PRES", "POS", "SIZE", "yes_no")


def test_rows_that_cannot_count_are_told_and_the_others_kept():
    samples = opposed(3, 5)
    asked, said = samples.column("question"), samples.column("answer")
    samples = samples.replaced(
        question=["  ", *asked[1:]], answer=[said[0], None, *said[2:]], answer_type=["closed"] * 4 + ["CLOSED ", "both"]
    )
    kept = VisualQuestionAnswering().usable(samples)
    assert len(kept) == 4
    assert kept.notes == (
        "answer_type is neither open nor closed in 1 rows (such as 'both'): they count in accuracy and token_f1 only.",
        "1 of 6 rows have no question and are left out: fill the column 'question' to use them.",
        "1 of 6 rows have no answer and are left out: fill the column 'answer' to use them.",
    )


@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_column_without_any_word_is_one_line(column):
    with pytest.raises(DataError, match=f"the column '{column}' is empty in all 6 rows"):
        VisualQuestionAnswering().usable(opposed(3, 6).replaced(**{column: [" "] * 6}))


def test_an_empty_question_is_refused_when_asked(encoder):
    samples = opposed(2, 7)
    frame = VisualQuestionAnswering().frame(samples, "scores")
    with pytest.raises(DataError, match="1 of 4 questions are empty"):
        frame.query(samples.only(("image",)), encoder, ["a", " ", "b", "c"])


def test_confidence_is_the_probability_of_what_is_said(encoder):
    samples = opposed(2, 8)
    frame = VisualQuestionAnswering().frame(samples, "scores")
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [float("nan")] * 2, [0.0, 0.0]])
    said = frame.read(frame.query(samples.only(("image", "question")), encoder), Scores(logits))
    assert [row["prediction"] for row in said.table] == ["no", "yes", "refused", "no"]
    assert said.table[0]["confidence"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert said.table[2]["warning"] == "no answer"


def test_images_without_a_question_say_how_one_is_asked(encoder):
    samples = opposed(8, 0)
    fitted = path.fitted(samples, VisualQuestionAnswering(), QuestionOnly(), encoder)
    with pytest.raises(DataError, match=r"^nothing is asked of these images: say it in words, such as --question 'Is it normal\?'$"):
        fitted.predict(samples.only(("image",)))
