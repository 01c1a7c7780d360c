"""Which option words choose: a table of answers, with what is no answer at all."""

from __future__ import annotations

import pytest

from medtame.learning.spoken_choice import chosen, held, listed, markers_of, named, options_of, spoken

LUNGS = ["normal", "pneumonia", "viral pneumonia", "pleural effusion"]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("pneumonia", "pneumonia"),
        ("Pneumonia.", "pneumonia"),
        ("**Viral Pneumonia**", "viral pneumonia"),
        ("B", "pneumonia"),
        ("(D)", "pleural effusion"),
        ("B) pneumonia", "pneumonia"),
        ("Answer: C", "viral pneumonia"),
        ("The answer is B.", "pneumonia"),
        ("The image shows a viral pneumonia of the left lung.", "viral pneumonia"),
        ("pleural-effusion", "pleural effusion"),
        ("pleural_effusion", "pleural effusion"),
        ("Normal, no pneumonia", "normal"),
        ("This is not normal, but pneumonia.", "pneumonia"),
        ("not normal: pneumonia", "pneumonia"),
        ("No effusion, normal.", "normal"),
        ("Pneumonia rather than pleural effusion", "pneumonia"),
        ("A normal chest", "normal"),
        ("<think>maybe pneumonia or B</think>\nnormal", "normal"),
        ("not pneumonia", None),
        ("There is no evidence of pneumonia.", None),
        ("Pneumonia is absent.", None),
        ("pneumonia is not seen", None),
        ("pneumonia: no", None),
        ("Pneumonia can be ruled out", None),
        ("This isn't pneumonia", None),
        ("without pleural effusion, pneumonia or anything else", None),
        ("neither pneumonia nor pleural effusion", None),
        ("pneumonia or pleural effusion", None),
        ("pneumonia, viral pneumonia", None),
        ("A) pneumonia", None),  # the marker of one, the name of another
        ("I am sorry, but I cannot help with medical images.", None),
        ("I cannot tell whether this is pneumonia.", None),
        ("It is unclear if there is pneumonia", None),
        ("I am unable to diagnose pneumonia from an image", None),
        ("Pneumonia remains uncertain", None),
        ("As an AI I can’t diagnose viral pneumonia", None),
        ("The image shows a **normal** chest X-ray with no signs of pneumonia.", "normal"),
        ("<think>it is normal", None),
        ("abnormal", None),
        ("E", None),
        ("pneumonias", None),
        ("", None),
    ],
)
def test_an_answer_chooses_one_option_or_none(answer: str, wanted: str | None) -> None:
    found = chosen(answer, LUNGS)
    assert (None if found is None else LUNGS[found]) == wanted


@pytest.mark.parametrize(
    ("answer", "options", "wanted"),
    [
        ("No, there is no yes to this", ["no", "yes"], "no"),
        ("Yes. No effusion is seen.", ["no", "yes"], "yes"),
        ("no finding", ["no finding", "nodule"], "no finding"),
        ("There is no finding here", ["no finding", "finding"], "no finding"),
        ("tumour", ["no tumour", "tumour"], "tumour"),
        ("no tumour", ["no tumour", "tumour"], "no tumour"),
        ("There is no evidence of a tumour", ["no tumour", "tumour"], None),
        ("2", ["1", "2", "3"], "2"),
        ("b", ["a", "b"], "b"),
        ("B", ["a", "b"], "b"),
        ("+", ["+", "-"], "+"),
        ("an image", ["an image", "an image"], None),
    ],
)
def test_options_that_look_like_markers_denials_or_each_other(answer: str, options: list[str], wanted: str | None) -> None:
    found = chosen(answer, options)
    assert (None if found is None else options[found]) == wanted


def test_equal_options_are_told_apart_by_their_marker_alone() -> None:
    assert chosen("B", ["an image", "an image"]) == 1
    assert chosen("B) an image", ["an image", "an image"]) == 1


def test_the_order_of_options_does_not_matter() -> None:
    for answer in ("viral pneumonia", "no effusion, normal", "pneumonia rather than pleural effusion"):
        turned = LUNGS[1:] + LUNGS[:1]
        first, second = chosen(answer, LUNGS), chosen(answer, turned)
        assert first is not None
        assert second is not None
        assert LUNGS[first] == turned[second]


def test_several_may_hold() -> None:
    assert held("pneumonia\npleural effusion", LUNGS) == {1, 3}
    assert held("B) pneumonia\nD) pleural effusion", LUNGS) == {1, 3}
    assert held("B\nD", LUNGS) == {1, 3}
    assert held("none", LUNGS) == frozenset()
    assert held("None.", LUNGS) == frozenset()
    assert held("pneumonia, no pleural effusion", LUNGS) == {1}
    assert held("I cannot answer", LUNGS) is None
    assert held("", LUNGS) is None


def test_a_list_that_is_denied_is_denied_to_its_end() -> None:
    assert named("no normal, pneumonia or pleural effusion", LUNGS) == frozenset()
    assert named("no pneumonia. pleural effusion.", LUNGS) == {3}


def test_markers_never_look_like_an_option() -> None:
    assert markers_of(LUNGS) == ["A", "B", "C", "D"]
    assert markers_of(["a", "b"]) == ["1", "2"]
    assert markers_of(["a", "2"]) == []
    assert markers_of([f"word{k}" for k in range(27)])[-1] == "27"
    assert listed(["a", "2"]) == "- a\n- 2"


def test_the_template_of_the_prompts_is_taken_off_and_other_sentences_stay() -> None:
    names = ("left lung", "right lung")
    assert options_of(names, [["an image of left lung"], ["an image of right lung"]]) == list(names)
    assert options_of(names, [["an image of right lung"], ["an image of left lung"]]) == ["right lung", "left lung"]  # changed owners
    assert options_of(names, [["said so: left lung."], ["said so: right lung."]]) == list(names)
    assert options_of(names, [["an image"], ["an image"]]) == ["an image", "an image"]
    assert options_of(("a b", "c"), [["opacity"], ["clear lungs"]]) == ["opacity", "clear lungs"]


def test_thoughts_are_left_out() -> None:
    assert spoken(" <think>a</think> b ") == "b"
    assert spoken("<think>a b") == ""
