"""Wording against sacrebleu and rouge-score, findings against sentences with a known meaning, answers after normalising."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from medtame.errors import MedtameError
from medtame.metrics.answers import answers, normalised, token_f1
from medtame.metrics.text import bleu4, finding_f1, findings_in, hallucination_rate, omission_rate, reports, rouge_l

VOCABULARY = {
    "pleural effusion": ("pleural effusion", "effusion"),
    "pericardial effusion": ("pericardial effusion",),
    "pneumothorax": ("pneumothorax", "pneumothoraces"),
    "cardiomegaly": ("cardiomegaly", "enlarged heart", "heart is enlarged"),
    "fracture": ("fracture",),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion.", {"pleural effusion"}),
        ("BILATERAL EFFUSIONS ARE SEEN", {"pleural effusion"}),
        ("No effusion or pneumothorax.", set()),
        ("There is no evidence of pneumothorax.", set()),
        ("The lungs are clear without effusion.", set()),
        ("Cardiomegaly without effusion.", {"cardiomegaly"}),
        ("Negative for fracture.", set()),
        ("Lungs are clear of pneumothorax, or pleural effusion.", set()),
        ("Pneumothorax is not seen.", set()),
        ("A fracture is not clearly identified.", set()),
        ("Effusion is absent.", set()),
        ("Pneumothorax has been ruled out.", set()),
        ("No pneumothorax, but the heart is enlarged.", {"cardiomegaly"}),
        ("No effusion; fracture of the fifth rib.", {"fracture"}),
        ("There is no fracture, however an effusion is present.", {"pleural effusion"}),
        ("No abnormality except cardiomegaly.", {"cardiomegaly"}),
        ("No pneumothorax. Fracture of a rib.", {"fracture"}),
        ("No pneumothorax\nCardiomegaly", {"cardiomegaly"}),
        ("There is no evidence of\npneumothorax.", set()),
        ("No significant change in the effusion.", {"pleural effusion"}),
        ("No fracture on this view. Known fracture of T5 is stable.", {"fracture"}),
        ("Pericardial effusion.", {"pericardial effusion"}),
        ("Fractured sternotomy wires; noisy film.", set()),
        ("Nodule of 1.5 cm and an effusion.", {"pleural effusion"}),
        ("", set()),
    ],
)
def test_findings_are_read_with_their_negation(text: str, expected: set[str]) -> None:
    assert findings_in(text, VOCABULARY) == expected


def test_a_wording_may_belong_to_two_findings_and_must_not_be_empty() -> None:
    assert findings_in("opacity", {"a": ("opacity",), "b": ("opacity",)}) == {"a", "b"}
    for empty in ({}, {"a": ()}, {"a": (" ",)}):
        with pytest.raises(MedtameError, match="vocabulary"):
            findings_in("opacity", empty)


def test_labels_of_real_reports_agree_with_the_indexers(real_data: Path) -> None:
    """Against the manual MeSH labels of the Indiana reports: with the negation rules far better than matching words."""
    path = real_data / "radiology_reports" / "reports.csv"
    if not path.is_file():
        pytest.skip("the radiology reports are not here")
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"] and row["mesh"]][:1500]
    text = [f"{row['findings']} {row['impression']}" for row in rows]
    found = [findings_in(one, VOCABULARY) for one in text]
    for finding, mesh, precision in (("cardiomegaly", "Cardiomegaly", 0.9), ("pleural effusion", "Pleural Effusion", 0.5)):
        true, said = np.array([mesh in row["mesh"] for row in rows]), np.array([finding in one for one in found])
        assert (said & true).sum() / true.sum() > 0.8
        assert (said & true).sum() / said.sum() > precision
    named = np.array(["effusion" in one.lower() for one in text])
    assert (named & true).sum() / named.sum() < 0.1, "most reports name an effusion to deny it"


def texts(seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    words = np.array(["no", "acute", "effusion", "heart", "lung", ",", "is", "clear", "normal", ".", "Left"])
    said, true = ([" ".join(rng.choice(words, rng.integers(low, 14))) for _ in range(15)] for low in (0, 1))
    return said, true


@pytest.mark.parametrize("seed", range(30))
def test_bleu_and_rouge_equal_their_libraries(seed: int) -> None:
    said, true = texts(seed)
    scorer = RougeScorer(["rougeL"])
    latin = [k for k, text in enumerate(true) if any(letter.isalpha() for letter in text)]
    assert bleu4(said, true).value() == pytest.approx(corpus_bleu(said, [true]).score, abs=1e-9)
    assert bleu4(true, true).value() == pytest.approx(corpus_bleu(true, [true]).score, abs=1e-9)
    assert rouge_l(said, true).value() == pytest.approx(
        np.mean([scorer.score(true[k], said[k])["rougeL"].fmeasure for k in latin]), abs=1e-9
    )


def test_findings_are_counted_over_all_rows() -> None:
    said = [{"a", "b"}, set(), {"c"}, set()]
    true = [{"a"}, {"b"}, {"c"}, set()]
    assert finding_f1(said, true).value() == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert hallucination_rate(said, true).value() == pytest.approx(1 / 3)
    assert omission_rate(said, true).value() == pytest.approx(1 / 3)
    assert (finding_f1(said, true).defined, hallucination_rate(said, true).defined, omission_rate(said, true).defined) == (3, 2, 3)
    assert np.isnan(hallucination_rate([set()], [{"a"}]).value())


def test_a_report_that_invents_and_one_that_is_silent() -> None:
    true = ["There is a fracture. No pneumothorax.", "Cardiomegaly."]
    same, silent = reports(true, true, VOCABULARY), reports(["Normal."] * 2, true, VOCABULARY)
    assert list(same) == ["finding_f1", "hallucination_rate", "omission_rate", "bleu4", "rouge_l"]
    assert [same[name].value() for name in ("finding_f1", "hallucination_rate", "omission_rate", "rouge_l")] == [1, 0, 0, 1]
    assert (silent["finding_f1"].value(), silent["omission_rate"].value()) == (0, 1)
    invented = reports(["Fracture and pneumothorax.", "Cardiomegaly."], true, VOCABULARY)
    assert invented["hallucination_rate"].value() == pytest.approx(1 / 3)
    with pytest.raises(MedtameError, match="1 texts said but 2"):
        reports(["a"], true, VOCABULARY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left lobe. ", "left lobe"),
        ("  CLOSED  ", "closed"),
        ("Two", "2"),
        ("ten lesions", "10 lesions"),
        ("an X-ray", "x ray"),
        ("Crohn's disease", "crohns disease"),
        ("1.5 cm, approx.", "1.5 cm approx"),
        ("1,000", "1000"),
        ("A", "a"),
        ("+", "+"),
        ("yes!", "yes"),
        ("Järvinen_test", "järvinen test"),
        ("", ""),
    ],
)
def test_answers_are_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected
    assert normalised(expected) == expected


def test_answers_are_measured_by_type() -> None:
    said = ["Yes.", "no", "left lung", "the liver", "yes, there is", "x"]
    true = ["yes", "yes", "the left lower lung", "Liver", "yes", ""]
    found = answers(said, true, ["CLOSED ", "closed", "open", "OPEN", "closed", "open"])
    assert list(found) == ["accuracy", "closed_accuracy", "open_exact_match", "token_f1"]
    assert (found["accuracy"].value(), found["accuracy"].defined) == (pytest.approx(2 / 5), 5)
    assert found["closed_accuracy"].value() == pytest.approx(1 / 3)
    assert found["open_exact_match"].value() == pytest.approx(1 / 2)
    assert found["token_f1"].value() == pytest.approx(np.mean([1, 0, 2 * 2 / 5, 1, 2 * 1 / 4]))
    assert answers(["yes"], ["yes"], [None])["closed_accuracy"].defined == 0
    with pytest.raises(MedtameError, match="one of each"):
        answers(["a"], ["a", "b"], [None])


def test_token_f1_counts_a_word_as_often_as_it_stands() -> None:
    assert token_f1("mass mass mass", "mass") == pytest.approx(2 * 1 / 4)
    assert token_f1("", "mass") == 0
    assert np.isnan(token_f1("mass", ""))
