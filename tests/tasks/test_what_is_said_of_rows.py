"""What a manifest cannot teach or measure is a sentence: rows left out, structures and classes that are missing, flat images."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from medtame import load
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.types import Predicted
from medtame.verbs import BLANK, warned

SIDE = 16


@pytest.fixture
def folder(tmp_path):
    """Eight images with a square each, its mask, an empty mask and a black image."""
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 90, (SIDE, SIDE)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[4:9, number : number + 6] = 255
        Image.fromarray(np.maximum(pixels, mask // 2)).save(tmp_path / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / f"m{number}.png")
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint8)).save(tmp_path / "empty.png")
    return tmp_path


def table(folder, rows):
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def split(number):
    return "train" if number < 5 else "test"


def lines(**columns):
    """A row an image; a column is made of its number."""
    return [{"image": f"{k}.png", "split": split(k)} | {name: make(k) for name, make in columns.items()} for k in range(8)]


@pytest.mark.parametrize(
    ("task", "column", "columns"),
    [
        ("segmentation", "prompt", {"mask": lambda k: f"m{k}.png", "prompt": lambda k: "square" if k != 1 else ""}),
        ("image_text_retrieval", "text", {"text": lambda k: f"image {k}" if k != 1 else "  "}),
        ("visual_question_answering", "answer", {"question": lambda k: "What is seen?", "answer": lambda k: str(k % 2) if k != 1 else ""}),
    ],
)
def test_a_row_without_words_is_left_out_and_told_once(folder, task, column, columns):
    data = load(table(folder, lines(**columns)), task)
    assert len(data.samples) == 7
    said = f"1 of 8 rows have no {column} and are left out: fill the column {column!r} to use them."
    assert data.samples.notes.count(said) == 1
    assert not any("have no prompt" in note for note in load(table(folder, lines(**columns)[2:]), task).samples.notes)


def test_structures_that_no_training_image_has_are_named(folder):
    masks = {"mask": lambda k: f"m{k}.png", "prompt": lambda k: "square" if k < 7 else "round"}
    never = [row | {"mask": "empty.png", "prompt": "ghost"} for row in lines(**masks)]
    notes = load(table(folder, lines(**masks) + never), "segmentation").samples.notes
    assert "No training image has 'round': 1 test rows of it are not measured (task.unseen asks for it by its words)." in notes
    assert "All training masks of 'ghost' are empty: what is marked as such is a guess." in notes
    asked = load(table(folder, lines(**masks)), "segmentation", settings={"unseen": "round"}).samples.notes
    assert not any("No training image" in note or "are empty" in note for note in asked)


@pytest.mark.parametrize(("of_test", "lacking"), [("normal", "abnormal"), ("sick", "normal")])
def test_a_test_of_one_kind_measures_no_anomalies(folder, of_test, lacking):
    rows = lines(label=lambda k: "normal" if k < 5 else of_test)
    said = f"No test row is {lacking}, so nothing that needs both kinds can be measured: give some, or another split."
    assert said in load(table(folder, rows), "anomaly_detection").samples.notes
    mixed = [*rows[:7], rows[7] | {"label": "sick" if of_test == "normal" else "normal"}]
    assert said not in load(table(folder, mixed), "anomaly_detection").samples.notes


def test_classes_that_no_box_has_are_named_with_those_there_are(folder):
    rows = lines(label=lambda k: "square", xmin=lambda k: k, ymin=lambda k: 4, xmax=lambda k: k + 6, ymax=lambda k: 9)
    with pytest.raises(DataError, match="no box has the label nowhere; the labels are square: correct the name"):
        load(table(folder, rows), "object_detection", settings={"classes": "nowhere"})


def test_a_flat_image_is_warned_of_in_its_own_line_and_once(folder):
    samples = ManifestSamples({"image": ["empty.png", "0.png"]}, np.arange(2), folder)
    said = Predicted(table=[{"image": "empty.png", "prediction": "yes", "warning": ""}, {"image": "0.png", "prediction": "no"}], arrays={})
    once = warned(said, samples)
    assert once.table == [{"image": "empty.png", "prediction": "yes", "warning": BLANK}, {"image": "0.png", "prediction": "no"}]
    assert warned(once, samples).table == once.table
    assert warned(Predicted(table=[{"image": "empty.png", "warning": "no answer"}], arrays={}), samples).table == [
        {"image": "empty.png", "warning": f"no answer; {BLANK}"}
    ]
