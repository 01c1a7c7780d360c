"""Words of reports: marks of de-identification, sections by name, sentences, as Open-i, MIMIC-CXR and case collections write them."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest

from medtame.data.report_text import chosen, cleaned, sections, sentences


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("There are no XXXX of a pleural effusion.", "There are no of a pleural effusion."),
        ("Comparison XXXX, XXXX. Well-expanded lungs.", "Comparison. Well-expanded lungs."),
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("Left-sided dual-XXXX cardiac XXXX in stable position.", "Left-sided dual cardiac in stable position."),
        ("seen on [**2012-3-4**] at [**Hospital1 18**], stable", "seen on at, stable"),
        ("History: ___ year old woman (___), seen by Dr. ___.", "History: year old woman, seen by Dr."),
        ("<NAME> is a <AGE-free> patient, <DATE/>", "is a <AGE-free> patient"),
        ("XXXX XXXX", ""),
        ("Broken of the 4XXXX XXXX, XXXX's at XXXXPM.", "Broken of the 4 at."),
        ("No acute disease.. Stable scar. .", "No acute disease. Stable scar."),
        ("effusion, , or edema : ; none", "effusion, or edema: none"),
        ("clear ,\nno edema,\n\n  no mass ,", "clear,\nno edema,\nno mass"),
        ("[&lt;The heart is normal.&gt;] as described<BR>before", "[<The heart is normal.>] as described\nbefore"),
        ("A < 5 mm nodule, > 3 cm mass; (R>L), 46,XX, 1.4-1.7 cm", "A < 5 mm nodule, > 3 cm mass; (R>L), 46,XX, 1.4-1.7 cm"),
        ("Herz normal groß, T2-Signal erhöht.", "Herz normal groß, T2-Signal erhöht."),
    ],
)
def test_marks_go_and_nothing_else(given, expected):
    assert cleaned(given) == expected
    assert cleaned(expected) == expected  # what is clean stays


MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough.  R/O pneumonia

 COMPARISON:  Chest radiograph ___.

 FINDINGS:

 The lungs are clear.  Left knee: not seen.  The heart is normal,
 without effusion.

 IMPRESSION:

 1. No pneumonia.
 2. Stable 3 mm nodule.
"""


def test_sections_of_a_report():
    found = sections(MIMIC)
    assert list(found) == ["", "examination", "indication", "comparison", "findings", "impression"]
    assert found["comparison"] == "Chest radiograph ___."
    assert found["findings"].endswith("without effusion.")
    assert "Left knee: not seen." in found["findings"]


def test_sections_in_one_line():
    text = "Clinical history: fever. Findings: Right base opacity. Tip at T4: unchanged. Impression: pneumonia."
    assert sections(text) == {
        "clinical history": "fever.",
        "findings": "Right base opacity. Tip at T4: unchanged.",
        "impression": "pneumonia.",
    }
    assert sections("No heading at all: none.") == {"": "No heading at all: none."}
    assert sections("FINDINGS: one. ADDENDUM: two. FINDINGS: three.")["findings"] == "one.\nthree."


def test_chosen_sections():
    assert chosen(MIMIC, ["impression"]).startswith("1. No pneumonia.")
    both = chosen(MIMIC, ["Impression ", "findings"])
    assert both.index("No pneumonia") < both.index("The lungs are clear")  # in the order asked for
    assert chosen(MIMIC, ["conclusion"]) == MIMIC
    joined = "FINDINGS AND IMPRESSION: clear lungs. COMPARISON: none."
    assert chosen(joined, ["findings", "impression"]) == "clear lungs."


def test_sentences():
    assert sentences("1. Increased opacity. 2. Opacity on the left.") == ["Increased opacity.", "Opacity on the left."]
    assert sentences(sections(MIMIC)["impression"]) == ["No pneumonia.", "Stable 3 mm nodule."]
    assert sentences("The heart is\nnormal. 2 cm granuloma; no edema") == ["The heart is normal.", "2 cm granuloma;", "no edema"]
    assert sentences("Seen by Dr. Smith, approx. 3 cm vs. 4 cm before, at 1.5 T.") == [
        "Seen by Dr. Smith, approx. 3 cm vs. 4 cm before, at 1.5 T."
    ]
    assert sentences("no end") == ["no end"]
    assert sentences("3. \n\n..") == []


def test_real_reports_keep_their_words(real_data: Path):
    """Open-i's reports: no mark is left in a thousand texts, and no other word is lost."""
    with (real_data / "radiology_reports" / "reports.csv").open(encoding="utf-8") as file:
        texts = [row[column] for row in list(csv.DictReader(file))[:500] for column in ("findings", "impression")]
    marked = sum("XXXX" in text for text in texts)
    assert marked > 200
    for text in texts:
        bare = html.unescape(text).replace("x-XXXX", "x-ray").replace("-XXXX", "").replace("<BR>", " ")
        assert words_of(re.sub("X{4,}('s|PM)?", " ", bare)) == words_of(cleaned(text))


def words_of(text: str) -> list[str]:
    return [bare for word in text.split() if (bare := word.strip(".,;:()/"))]
