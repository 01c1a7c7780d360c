"""`medtame predict` on what people have: several folders, broken files among good ones, names as they were typed."""

from __future__ import annotations

import csv
import io
import json

import pytest

from medtame.run import open as open_run
from test_bad_input import medtame, shop  # noqa: F401


@pytest.fixture
def run(shop, medtame):  # noqa: F811
    """A fitted run, with two folders of images beside it, one image of which is broken."""
    assert medtame("adapt", shop, "--encoder", "tiny", "--method", "linear_probe", "--out", "run")[0] == 0
    for folder, numbers in (("first", (0, 1)), ("second", (2, 3))):
        (shop.parent.parent / folder).mkdir()
        for number in numbers:
            source = shop.parent / "images" / f"{number:03d}.png"
            (shop.parent.parent / folder / source.name).write_bytes(source.read_bytes())
    return shop.parent.parent


def test_several_folders_and_files_have_their_names_as_given(run, medtame):  # noqa: F811
    code, out, _ = medtame("predict", "run", "first", "second", "first/000.png")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["image"] for row in rows] == ["first/000.png", "first/001.png", "second/002.png", "second/003.png", "first/000.png"]
    assert rows[0] == rows[-1]


def test_a_broken_image_is_a_row_with_a_warning_and_the_rest_is_predicted(run, medtame):  # noqa: F811
    _, before, _ = medtame("predict", "run", "second", "--json")
    (run / "first" / "000.png").write_bytes(b"not an image")
    code, out, err = medtame("predict", "run", "first", "second", "--json")
    table = json.loads(out)["table"]
    assert code == 0
    assert [row["image"] for row in table] == ["first/001.png", "second/002.png", "second/003.png", "first/000.png"]
    for row, alone in zip(table[1:3], json.loads(before)["table"], strict=True):
        assert row["prediction"] == alone["prediction"]
        assert row["max_score"] == pytest.approx(alone["max_score"], abs=1e-5)
    assert table[-1]["prediction"] == ""
    assert "first/000.png" in table[-1]["warning"]
    assert "1 of 4 rows could not be read, the first of them first/000.png" in err
    (run / "first" / "001.png").write_bytes(b"")
    code, out, err = medtame("predict", "run", "first")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_a_missing_file_among_others_is_a_row_with_a_warning(run, medtame):  # noqa: F811
    _, before, _ = medtame("predict", "run", "second", "--json")
    code, out, err = medtame("predict", "run", "second", "nowhere.png", "nowhere_too.png", "--json")
    table = json.loads(out)["table"]
    assert code == 0
    assert table[:2] == json.loads(before)["table"]
    why = "cannot be read: it is not there"
    assert table[2:] == [{"image": name, "prediction": "", "warning": f"{name} {why}"} for name in ("nowhere.png", "nowhere_too.png")]
    assert "2 of 4 rows could not be read, the first of them nowhere.png" in err
    assert open_run("run").predict(["second/002.png", "nowhere.png", "second/003.png"]).table == table[:3]
    assert medtame("predict", "run", "nowhere.png", "nowhere_too.png")[2].count("\n") == 1


def test_an_error_is_json_too_where_json_was_asked_for(run, medtame):  # noqa: F811
    code, out, err = medtame("predict", "run", "nowhere.png", "--json")
    assert code == 2
    assert json.loads(out) == {"schema": 1, "error": "there is no file or folder nowhere.png: correct the path"}
    assert err == "medtame: there is no file or folder nowhere.png: correct the path\n"
    code, out, _ = medtame("predict", "run", "--odd", "--json")
    assert (code, sorted(json.loads(out))) == (2, ["error", "schema"])


def test_a_manifest_stands_alone(run, medtame):  # noqa: F811
    code, _, err = medtame("predict", "run", "data/labels.csv", "first")
    assert code == 2
    assert "is a manifest and stands beside 1 more" in err
