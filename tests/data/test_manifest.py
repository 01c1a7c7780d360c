"""Manifests: what is kept, what is refused, and how it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtame.data import splits
from medtame.data.manifest import read
from medtame.errors import DataError, UnknownNameError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images/0.png … 5.png, no two alike."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("L", (4, 3), number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def table(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cells_stay_text_stripped_nfc_and_empty_is_none(images: Path) -> None:
    text = "image,label,patient,note\nimages/0.png, NA ,007,e\u0301\nimages/1.png,,1.0,\n"
    for encoding in ("utf-8", "utf-8-sig"):
        samples = read(table(images, text, encoding=encoding))
        assert samples.column("label") == ["NA", None]
        assert samples.column("patient") == ["007", "1.0"]
        assert samples.column("note") == ["\u00e9", None]
        assert "1 of 2 rows have no label." in samples.notes


def test_csv_tsv_semicolons_and_parquet_hold_the_same(images: Path) -> None:
    frame = pd.DataFrame({"image": ["images/0.png", "images/1.png"], "label": ["a", None], "age": [61.0, np.nan], "case": [7, 8]})
    frame.to_csv(images / "a.csv", index=False)
    frame.to_csv(images / "a.tsv", index=False, sep="\t")
    frame.to_csv(images / "b.csv", index=False, sep=";")
    frame.to_parquet(images / "a.parquet")
    held = [read(images / name) for name in ("a.csv", "a.tsv", "b.csv", "a.parquet")]
    for samples in held:
        assert {name: samples.column(name) for name in frame} == {
            "image": ["images/0.png", "images/1.png"],
            "label": ["a", None],
            "age": [61.0, None],
            "case": ["7", "8"],
        }
    assert "Columns are separated by semicolons." in held[2].notes


def test_an_index_column_without_a_name_is_left_out(images: Path) -> None:
    pd.DataFrame({"image": ["images/0.png"]}).to_csv(images / "a.csv")
    samples = read(images / "a.csv")
    assert list(samples.columns) == ["image"]
    assert "1 unnamed column(s) were left out." in samples.notes


def test_a_mapped_column_wins_and_keeps_its_own_name(images: Path) -> None:
    path = table(images, "file,text,caption\nimages/0.png,mine,yours\n")
    samples = read(path, columns={"image": "file", "text": "caption"})
    assert samples.column("text") == ["yours"]
    assert samples.column("caption") == ["yours"]
    assert samples.column("image") == samples.column("file") == ["images/0.png"]
    with pytest.raises(UnknownNameError, match="Did you mean 'caption'"):
        read(path, columns={"text": "captoin"})
    with pytest.raises(UnknownNameError, match="Did you mean 'caption'"):
        read(path, columns={"captions": "caption"})


def test_boxes_and_ages_become_numbers_and_an_image_without_boxes_is_kept(images: Path) -> None:
    samples = read(table(images, "image,xmin,ymin,xmax,ymax,age\nimages/0.png,1,2,3.5,4,60\nimages/1.png,,,,,\n"))
    assert samples.column("xmax") == [3.5, None]
    assert samples.column("age") == [60.0, None]


def test_all_bad_rows_are_told_at_once_with_their_lines(images: Path) -> None:
    text = (
        "image,xmin,ymin,xmax,ymax,age,label\n"
        "images/0.png,1,1,2,2,50,a\n"
        'images/gone.png,1,1,2,2,50,"two\nlines"\n'
        "\n"
        "../images/0.png,1,1,2,2,50,a\n"
        "images/../../x.png,1,1,2,2,50,a\n"
        ",1,1,2,2,50,a\n"
        "images/1.png,left,1,2,2,50,a\n"
        "images/2.png,3,1,2,2,50,a\n"
        "images/3.png,1,,2,2,50,a\n"
        "images/4.png,1,1,2,2,Mr Secret,a\n"
        "images,1,1,2,2,nan,a\n"
    )
    assert refusal(table(images, text)) == (
        "labels.csv has 9 bad row(s): line 3: image images/gone.png is not there; "
        "line 6: image ../images/0.png climbs out of the root; line 7: image images/../../x.png climbs out of the root; "
        "line 8: image is empty; line 9: xmin 'left' is not a number; "
        "line 10: a box with xmax < xmin or ymax < ymin (xmin 3, ymin 1, xmax 2, ymax 2); "
        "line 11: a box with an empty corner (ymin); line 12: age is not a number; "
        "line 13: age is not a number; line 13: image images is a folder without a DICOM series."
        " Paths start from the manifest's folder, or from --root. Give an absolute path, or the folder above with --root."
        " Fill the empty cells, or delete their rows. Write corners in pixels, with a point before decimals."
        " Write the smaller corner first. Fill all four corners, or none. Write age in years as a number, or leave it empty."
        " Name a file, or a folder with the files of one DICOM series."
    )


def test_at_most_twenty_faults_are_shown(images: Path) -> None:
    told = refusal(table(images, "image\n" + "".join(f"no/{number}.png\n" for number in range(27))))
    assert told.startswith("labels.csv has 27 bad row(s): line 2: image no/0.png is not there;")
    assert "line 21: image no/19.png is not there; and 7 more." in told
    assert "no/20.png" not in told


def test_every_path_column_is_checked_and_may_be_empty_unless_it_is_the_image(images: Path) -> None:
    samples = read(table(images, "image,mask,fov\nimages/0.png,images/1.png,\n"))
    assert samples.column("fov") == [None]
    assert "line 2: fixed_landmarks images/x.csv is not there" in refusal(
        table(images, "fixed,moving,fixed_landmarks\nimages/0.png,images/1.png,images/x.csv\n")
    )


def test_root_and_absolute_paths(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = table(elsewhere, f"image\n0.png\n{images}/images/1.png\n./2.png\n")
    samples = read(path, root=images / "images")
    assert samples.column("image")[0] == "0.png"
    assert [picture.values()[0, 0] for picture in samples.pictures()] == [0, 1, 2]
    assert "0.png is not there" in refusal(path)
    assert "is not a folder" in refusal(path, root=images / "nowhere")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "labels.csv is empty: its first line must name the columns"),
        ("image,label\n", "labels.csv has no rows"),
        ("image,label,label\nimages/0.png,a,b\n", "more than one column called 'label'"),
        ("id,file\n1,images/0.png\n", "has no column 'image'; it has id, file. Name yours: --columns image=file"),
        ("fixed,label\nimages/0.png,a\n", "has a column 'fixed' but none called 'moving'"),
        ("image,xmin,ymin\nimages/0.png,1,1\n", "has only xmin, ymin of a box"),
        ("image,label\nimages/0.png\n", "line 2: 1 cells, but the header has 2"),
        ('image,label\nimages/0.png,"a\n', "cannot be read as a table"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(images: Path, text: str, told: str) -> None:
    assert told in refusal(table(images, text))


def test_other_files_and_encodings_are_refused(images: Path) -> None:
    assert "is not UTF-8" in refusal(table(images, "image,label\nimages/0.png,Lungenödem\n", encoding="latin-1"))
    assert "is no manifest" in refusal(table(images, "image\n", name="labels.xlsx"))
    assert "cannot be read as Parquet" in refusal(table(images, "image\n", name="labels.parquet"))
    assert "is not there" in refusal(images / "gone.csv")


def test_a_folder_a_class(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("b/1.png", "a/2.png", "a/deeper/3.png", "loose.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(data / name)
    (data / "a" / "notes.txt").write_text("x")
    (data / "a" / ".DS_Store").write_text("x")
    samples = read(data)
    assert samples.column("image") == ["a/2.png", "a/deeper/3.png", "b/1.png"]
    assert samples.column("label") == ["a", "a", "b"]
    assert "Ignored, no images below a class: loose.png, a/notes.txt." in samples.notes
    assert "split" not in samples
    (data / "labels.csv").write_text("image\n")
    assert "holds labels.csv: give that file" in refusal(data)
    (tmp_path / "empty").mkdir()
    assert "has no image in a sub-folder" in refusal(tmp_path / "empty")


def test_train_and_test_folders_are_parts_and_not_classes(tmp_path: Path) -> None:
    for name in ("train/ill/1.png", "train/well/2.png", "test/ill/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    samples = read(tmp_path)
    held = sorted(zip(samples.column("image"), samples.column("label"), samples.column("split"), strict=True))
    assert held == [("test/ill/3.png", "ill", "test"), ("train/ill/1.png", "ill", "train"), ("train/well/2.png", "well", "train")]


@pytest.mark.parametrize(
    ("manifest", "columns", "rows", "groups", "test"),
    [
        ("chest_xray/labels.csv", {}, 480, 480, 240),
        ("medpix/cases.csv", {"text": "caption"}, 760, 464, 149),
        ("brain_pairs/pairs.csv", {}, 58, None, 12),
        ("chest_structures/masks.csv", {}, 320, 48, 131),
        ("vqa_rad/questions.csv", {}, 1420, 200, 321),
    ],
)
def test_real_sets_are_read_and_their_splits_do_not_leak(
    real_data: Path, manifest: str, columns: dict[str, str], rows: int, groups: int | None, test: int
) -> None:
    samples = read(real_data / manifest, columns=columns)
    assert len(samples) == rows
    assert groups is None or len(set(samples.groups)) == groups
    made = splits.split(samples)
    assert made.test is not None
    assert len(made.test) == test
    assert not made.warnings
    if columns:
        assert samples.column("text") == samples.column("caption")
