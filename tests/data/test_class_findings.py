"""Files of findings: names and synonyms, what is refused, and the files that are shipped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import medtame
from medtame.data.class_findings import UNREVIEWED, ancestors, chosen, read, says
from medtame.errors import SettingsError

SHIPPED = Path(medtame.__file__).parent / "strategies" / "knowledge" / "findings"
FILES = sorted(SHIPPED.glob("*.json"))
SIX = {"blood_smear", "brain_mr", "breast_ultrasound", "chest_x_ray", "dermatology", "fundus"}


def written(folder: Path, content: object, name: str = "own.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_names_are_compared_without_case_hyphens_and_underscores(tmp_path):
    file = read(written(tmp_path, {"classes": {"covid-19": ["hazy"], "No finding": []}, "synonyms": {"healthy": "No finding"}}))
    assert file.of("COVID_19") == ("hazy",)
    assert file.known("healthy", "classes") == "No finding"
    assert file.missing(["covid 19", "Healthy", "nodule"], "classes") == ["nodule"]
    assert says("a COVID-19 opacity", "covid_19")
    assert not says("a nodular opacity", "nodule")


def test_a_class_that_is_missing_or_unknown_is_one_line_with_its_name_and_file(tmp_path):
    path = str(written(tmp_path, {"classes": {"tumour": ["a mass"], "normal": ["no mass"]}}))
    for names, words in ((("tumour", "normal", "cyst"), "own.json says nothing of the class 'cyst'"), (("tumour",), "speaks of 'normal'")):
        with pytest.raises(SettingsError, match=words) as caught:
            chosen(names, path, SHIPPED)
        assert "own.json" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert chosen(("tumour", "normal"), path, SHIPPED)[1] == "findings from own.json"


def test_a_shipped_file_may_speak_of_more_than_is_asked():
    found, said = chosen(("pneumonia", "no finding"), "chest_x_ray", SHIPPED)
    assert found is not None
    assert said == "findings from chest_x_ray.json"
    with pytest.raises(SettingsError, match=r"chest_x_ray.json says nothing of the class 'glioma'"):
        chosen(("pneumonia", "glioma"), "chest_x_ray", SHIPPED)


def test_which_images_they_are_is_not_guessed():
    found, said = chosen(("benign", "malignant"), "", SHIPPED)
    assert found is None
    assert "breast_ultrasound, dermatology" in said
    assert chosen(("benign", "malignant", "normal"), "", SHIPPED)[1] == "findings from breast_ultrasound.json"
    assert chosen(("yes", "no"), "", SHIPPED)[0] is None
    assert chosen(("mild", "moderate", "severe"), "", SHIPPED)[0] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no file of findings"),
        ([], "no file of findings"),
        ({"classes": {"a": "b"}}, "no file of findings"),
        ({"classes": {"a": [1]}}, "no file of findings"),
        ({"klasses": {}}, "klasses"),
        ({"classes": {"a": [" "]}}, "empty finding of 'a'"),
        ({"classes": {"a": [{"finding": "x", "sauce": "y"}]}}, "no file of findings"),
        ({"classes": {"a b": [], "A-B": []}}, "names the class 'A-B' twice"),
        ('{"classes": {"a": [], "a": []}}', "'a' is there twice"),
        ({"classes": {"a": []}, "synonyms": {"x": "b"}}, "synonym of 'b'"),
        ({"parents": {"a": "b", "b": "c", "c": "a"}}, "a kind of itself"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(SettingsError, match=words) as caught:
        read(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_names_the_shipped_ones():
    with pytest.raises(SettingsError, match="chest_x_ray"):
        chosen(("a", "b"), "no_such_file", SHIPPED)


def test_the_line_of_ancestors_ends_at_the_root():
    assert ancestors("a", {"a": "b", "b": "c"}) == ["a", "b", "c"]
    assert ancestors("z", {"a": "b"}) == ["z"]


def test_the_six_kinds_of_image_are_there():
    assert {path.stem for path in FILES} >= SIX


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_line_is_short_has_a_source_and_does_not_name_its_class(path):
    raw, file = json.loads(path.read_text(encoding="utf-8")), read(path)
    for name, lines in raw["classes"].items():
        assert lines, f"{name} has no finding"
        for line in lines:
            assert line["source"] == UNREVIEWED or any(mark in line["source"] for mark in ("doi:", "Journal")), line
            assert 2 <= len(line["finding"].split()) <= 14, line
            assert not any(says(line["finding"], one) for one in file.called(name)), f"{name}: {line['finding']}"
        assert len({line["finding"] for line in lines}) == len(lines)
    assert not file.missing(list(file.classes), "parents"), "every class has its place in the tree"
    roots = {ancestors(name, file.parents)[-1] for name in file.parents}
    assert len(roots) == 1, f"{path.stem} has the roots {roots}"


SETS = {
    "chest_xray/labels.csv": "chest_x_ray",
    "breast_ultrasound/labels.csv": "breast_ultrasound",
    "brain_tumour_yesno/labels.csv": "brain_mr",
    "covid_ct/labels.csv": "chest_ct",
    "mednist/labels.csv": "body_parts",
    "blood_cells/boxes.csv": "blood_smear",
}


@pytest.mark.parametrize(("manifest", "file"), SETS.items())
def test_the_classes_of_the_real_sets_are_covered_by_their_file_and_no_other(real_data, manifest, file):
    with (real_data / manifest).open(encoding="utf-8") as opened:
        names = sorted({row["label"] for row in csv.DictReader(opened)})
    assert chosen(names, "", SHIPPED)[1] == f"findings from {file}.json"


def test_skin_lesions_need_their_file_named(real_data):
    with (real_data / "skin_lesions" / "labels.csv").open(encoding="utf-8") as opened:
        names = sorted({row["label"] for row in csv.DictReader(opened)})
    assert chosen(names, "", SHIPPED)[0] is None
    assert chosen(names, "dermatology", SHIPPED)[0] is not None


def test_the_phantoms_classes_are_covered():
    from medtame.data.phantom_patients import CLASSES

    assert chosen(CLASSES, "", SHIPPED)[1] == "findings from brain_mr.json"
