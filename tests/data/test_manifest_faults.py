"""Kinds of faults in a manifest, one test each: the error is one line and names the place, the value and the mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from medtame.data import splits
from medtame.data.manifest import read
from medtame.errors import MedtameError

SECRET = "Jane Doe 1980"
BOX = "image,xmin,ymin,xmax,ymax\n"
LISTS = "lists (training, validation, test)"


def file(root: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def csv(content: str | bytes, name: str = "labels.csv") -> Callable[[Path], Path]:
    return lambda root: file(root, name, content)


def given(content: Any, name: str = "labels.json") -> Callable[[Path], Path]:
    return lambda root: file(root, name, content)


def folder(*names: str, **contents: Any) -> Callable[[Path], Path]:
    """A folder `set` with pictures of these names, and files (dots written as __)."""

    def make(root: Path) -> Path:
        (root / "set").mkdir()
        for name in names:
            (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(root / "set" / name, format="PNG")
        for name, content in contents.items():
            file(root / "set", name.replace("__", ".").replace("SLASH", "/"), content)
        return root / "set"

    return make


def embedded(root: Path) -> Path:
    parquet.write_table(pyarrow.table({"picture": [{"bytes": b"x", "path": "a.png"}], "label": ["a"]}), root / "labels.parquet")
    return root / "labels.parquet"


def doubled(root: Path) -> Path:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a.png"]), pyarrow.array(["x"]), pyarrow.array(["y"])], ["image", "label", "label"])
    parquet.write_table(table, root / "labels.parquet")
    return root / "labels.parquet"


def coco(annotation: dict[str, Any]) -> dict[str, Any]:
    right = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}
    return {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [right, {**right, **annotation}],
    }


NNUNET = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".png"}

# name: (what is given, options of `read`, what the error must say: place, value, mend)
FAULTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], list[str]]] = {
    # paths
    "no such manifest": (lambda root: root / "gone.csv", {}, ["gone.csv is not there", "give a .csv, .tsv"]),
    "missing file": (csv("image\na.png\ngone.png\n"), {}, ["line 3: image gone.png is not there", "--root"]),
    "other case": (csv("image\nA.png\n"), {}, ["line 2: image A.png is not there (there is a.png)"]),
    "backslashes": (csv("image\nset\\a.png\n"), {}, ["line 2: image set\\a.png is not there (write / between folders)"]),
    "empty image": (csv("image,label\n,x\n"), {}, ["line 2: image is empty", "Fill the empty cells, or delete their rows"]),
    "climbing path": (csv("image\n../a.png\n"), {}, ["line 2: image ../a.png climbs out of the root", "absolute path", "--root"]),
    "mask is a folder": (
        lambda root: (folder()(root), file(root, "labels.csv", "image,mask\na.png,set\n"))[1],
        {},
        ["line 2: mask set is a folder, not a file", "Name a file"],
    ),
    "image is a folder": (
        lambda root: (folder("x.png")(root), file(root, "labels.csv", "image\nset\n"))[1],
        {},
        ["line 2: image set is a folder without a DICOM series", "Name a file, or a folder with the files of one DICOM series"],
    ),
    "a path with a line break": (csv('image\n"a\nb.png"\n'), {}, ["line 2: image a\\nb.png is not there"]),
    "a path that is too long": (csv("image\n" + "a" * 5000 + ".png\n"), {}, ["line 2: image aaaa", "… is not there", "--root"]),
    "a path with NUL": (given([{"image": "a\0.png"}]), {}, ["record 1: image a\\x00.png is not there"]),
    "root is no folder": (csv("image\na.png\n"), {"root": "/nowhere"}, ["the root /nowhere is not a folder", "give the folder"]),
    "root beside the folder": (
        lambda root: (folder("ill/a.png")(root), (root / "other").mkdir(), root / "set")[2],
        {"root": "other"},
        ["does not hold the folder", "leave --root out"],
    ),
    # columns
    "missing column": (csv("id,file\n1,a.png\n"), {}, ["labels.csv has no column 'image'; it has id, file", "--columns image=file"]),
    "half a pair": (csv("fixed\na.png\n"), {}, ["a column 'fixed' but none called 'moving'", "--columns moving=YOURS"]),
    "half a box in the header": (csv("image,xmin,ymin\na.png,1,1\n"), {}, ["only xmin, ymin of a box", "--columns xmax=YOURS"]),
    "duplicate column": (csv("image,label,label\na.png,x,y\n"), {}, ["more than one column called 'label'", "rename all but one"]),
    "duplicate Parquet column": (doubled, {}, ["more than one column called 'label'", "rename all but one"]),
    "unknown standard name": (csv("image,x\na.png,1\n"), {"columns": {"lable": "x"}}, ["'lable'", "Did you mean 'label'?"]),
    "unknown column": (csv("image,finding\na.png,1\n"), {"columns": {"label": "findng"}}, ["'findng'", "Did you mean 'finding'?"]),
    "a column mapped twice": (
        csv("image,x\na.png,1\n"),
        {"columns": {"label": "x", "text": "x"}},
        ["the column 'x' is mapped to label and to text", "give each standard name a column of its own"],
    ),
    # rows
    "ragged row": (
        csv("image,label\na.png,x\na.png,x,y\n"),
        {},
        ["line 3: 3 cells, but the header has 2", "put a cell that holds the separator in quotes"],
    ),
    "open quotes": (csv('image,label\na.png,x\na.png,"y\n'), {}, ["from line 3 on", "Close its quotes"]),
    "empty file": (csv(""), {}, ["labels.csv is empty", "its first line must name the columns"]),
    "header only": (csv("image,label\n"), {}, ["labels.csv has no rows", "write at least one below the header"]),
    "no number in a box": (
        csv(BOX + "a.png,1,1,2,2\na.png,1,left,2,2\n"),
        {},
        ["line 3: ymin 'left' is not a number", "Write corners in pixels"],
    ),
    "comma for a point": (csv("image;xmin;ymin;xmax;ymax\na.png;1,5;1;2;2\n"), {}, ["line 2: xmin '1,5' is not a number", "with a point"]),
    "infinite corner": (csv(BOX + "a.png,1,1,inf,2\n"), {}, ["line 2: xmax 'inf' is not a number"]),
    "turned box": (
        csv(BOX + "a.png,5,1,2,2\n"),
        {},
        ["line 2: a box with xmax < xmin", "(xmin 5, ymin 1, xmax 2, ymax 2)", "Write the smaller corner first"],
    ),
    "half a box": (csv(BOX + "a.png,1,1,2,\n"), {}, ["line 2: a box with an empty corner (ymax)", "Fill all four corners, or none"]),
    "only boxes without area": (csv(BOX + "a.png,1,1,1,1\n"), {}, ["no rows but boxes without area", "write xmin"]),
    "bad age": (csv(f"image,age,patient\na.png,{SECRET},{SECRET}\n"), {}, ["line 2: age is not a number", "Write age in years"]),
    # files
    "not UTF-8": (csv("image,label\na.png,x\na.png,Ödem\n".encode("latin-1")), {}, ["line 3 holds the byte 0xd6", "Save it as UTF-8"]),
    "UTF-16": (csv("image\na.png\n".encode("utf-16")), {}, ["labels.csv is no UTF-8 text but UTF-16", "Save it"]),
    "NUL byte": (csv("image,label\na.png,x\na.png,\0\n"), {}, ["line 3 holds a NUL character", "delete the character"]),
    "Excel named .csv": (
        csv(b"PK\x03\x04" + bytes(40)),
        {},
        ["no UTF-8 text but an Excel file or a ZIP archive", "Save it as a text table"],
    ),
    "image named .csv": (csv(b"\x89PNG\r\n\x1a\n" + bytes(40)), {}, ["a PNG image", "Save it as a text table"]),
    "a file of another kind": (csv("image\n", "labels.xlsx"), {}, ["labels.xlsx is no manifest", "give a .csv"]),
    "broken Parquet": (csv(b"PAR1" + bytes(40), "labels.parquet"), {}, ["labels.parquet cannot be read as Parquet", "write it again"]),
    "pictures inside Parquet under another name": (embedded, {}, ["labels.parquet has no column 'image'", "--columns image=picture"]),
    # JSON
    "broken JSON": (given('[{"image": "a.png"},\n {"image" "a.png"}]'), {}, ["line 2, column 11", "name it .jsonl"]),
    "deep JSON": (given("[" * 100_000), {}, ["labels.json is no JSON that can be read"]),
    "JSON of scalars": (given(["a.png", 3]), {}, ["record 1: a text, no object; record 2: a number, no object", 'such as {"image"']),
    "JSON of one value": (given("3"), {}, ["labels.json holds a single value", "give a list of objects"]),
    "columns of unequal length": (given({"image": ["a.png"], "label": ["x", "y"]}), {}, ["image 1, label 2", "give each row a value"]),
    "JSONL with a list": (given('{"image": "a.png"}\n["a.png"]\n', "l.jsonl"), {}, ["line 2: a list, no object", "Write objects"]),
    "JSONL with a broken line": (
        given('{"image": "a.png"}\n\n{"image"\n', "l.jsonl"),
        {},
        ["line 3: no JSON", "Write one whole object a line"],
    ),
    "an empty JSONL": (given("", "l.jsonl"), {}, ["l.jsonl has no rows"]),
    # COCO
    "unknown image_id": (given(coco({"image_id": 9})), {}, ["annotation 2: image_id 9 is not among the images", "Use an id of images"]),
    "unknown category_id": (
        given(coco({"category_id": 7})),
        {},
        ["annotation 2: category_id 7 is not among the categories", "Use an id of categories"],
    ),
    "bbox of three numbers": (
        given(coco({"bbox": [1, 2, 3]})),
        {},
        ["annotation 2: bbox [1, 2, 3] is not four numbers", "x, y, width, height"],
    ),
    "bbox of negative width": (
        given(coco({"bbox": [5, 2, -3, 1]})),
        {},
        ["annotation 2: a box with xmax < xmin", "(xmin 5, ymin 2, xmax 2, ymax 3)"],
    ),
    "one id twice": (
        given({**coco({}), "images": [{"id": 1, "file_name": "a.png"}] * 2}),
        {},
        ["images, entry 2: the id 1, which another has"],
    ),
    "COCO image that is not there": (
        given({"images": [{"id": 1, "file_name": "no.png"}], "annotations": []}),
        {},
        ["image 1: image no.png is not there"],
    ),
    # folders
    "folder without images": (folder(notes__txt="x"), {}, ["set has no image in a sub-folder", "give a manifest"]),
    "loose images": (folder("a.png"), {}, ["set has no image in a sub-folder", "Ignored, no images below a class: a.png"]),
    "a table beside class folders": (folder("ill/a.png", labels__csv="image\n"), {}, ["set holds labels.csv", "give that file"]),
    "a table inside a class folder": (
        folder("ill/a.png", illSLASHlabels__csv="image\n"),
        {},
        ["set holds ill/labels.csv", "give that file"],
    ),
    "metadata without file_name": (
        folder("a.png", metadata__csv="image,text\na.png,x\n"),
        {},
        ["metadata.csv has no column 'file_name'; it has image, text", "rename"],
    ),
    "metadata of a missing file": (
        folder("train/a.png", trainSLASHmetadata__csv="file_name\na.png\nb.png\n"),
        {},
        ["train/metadata.csv line 3: image train/b.png is not there"],
    ),
    "metadata that climbs": (
        folder("a.png", metadata__csv="file_name\n../../a.png\n"),
        {},
        ["metadata.csv line 2: image ../../a.png climbs out"],
    ),
    "nnU-Net without a label": (
        folder("imagesTr/A_0000.png", "imagesTr/A_0001.png", dataset__json=NNUNET),
        {},
        ["case A: labelsTr/A.png is not there", "Add the file, or take the case out"],
    ),
    "nnU-Net without a channel": (
        folder("imagesTr/A_0000.png", "labelsTr/A.png", dataset__json=NNUNET),
        {},
        ["case A: imagesTr/A_0001.png is not there", "Add the file"],
    ),
    "nnU-Net with a wrong label": (
        folder("imagesTr/A_0000.png", dataset__json={**NNUNET, "labels": {"liver": "one"}}),
        {},
        ["the label 'liver' has the value ['one']", "give whole numbers"],
    ),
    "nnU-Net without images": (folder("A_0000.png", dataset__json=NNUNET), {}, ["no imagesTr/CASE_0000.png", "correct file_ending"]),
    "dataset.json without lists": (
        folder("ill/a.png", dataset__json={"name": "x"}),
        {},
        [f"set/dataset.json has neither {LISTS}", "move the file away"],
    ),
    "a list entry without an image": (
        given({"training": [{"image": "a.png"}, {"label": 1}], "test": ["a.png", ""]}, "dataset.json"),
        {},
        ["training, entry 2: no image", "test, entry 2: no image", 'Write {"image"'],
    ),
    "BIDS without patients": (
        folder("ill/a.png", dataset_description__json={}),
        {},
        ["set looks like BIDS but has no folder sub-", "give the folder that holds sub-01"],
    ),
    "BIDS without anatomical images": (
        folder("sub-01/func/a.png", participants__tsv="participant_id\nsub-01\n"),
        {},
        ["no sub-…/anat/*.nii.gz", "give a manifest"],
    ),
    "participants without ids": (
        folder("sub-01/anat/a.nii.gz", participants__tsv="id\nsub-01\n"),
        {},
        ["no column 'participant_id'; it has id", "rename"],
    ),
    "ragged participants": (
        folder("sub-01/anat/a.nii.gz", participants__tsv="participant_id\tage\nsub-01\n"),
        {},
        ["participants.tsv has 1 bad row(s): line 2: 1 cells"],
    ),
    "age of a BIDS patient": (
        folder("sub-01/anat/a.nii.gz", participants__tsv=f"participant_id\tage\nsub-01\t{SECRET}\n"),
        {},
        ["file sub-01/anat/a.nii.gz: age is not a number", "Write age in years"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_one_line_with_its_place_its_value_and_its_mend(fault: str, tmp_path: Path) -> None:
    make, options, told = FAULTS[fault]
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    path = make(tmp_path)
    options = {name: tmp_path / value if name == "root" else value for name, value in options.items()}
    with pytest.raises(MedtameError) as caught:
        read(path, **options)
    message = str(caught.value)
    for part in told:
        assert part in message
    assert message.isprintable()
    assert "Jane" not in message


def test_an_image_in_train_and_in_test_is_named_with_its_lines_and_refused_by_the_split(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 9)).save(tmp_path / "b.png")
    samples = read(file(tmp_path, "labels.csv", "image,split\nb.png,train\na.png,train\na.png,val\na.png,Test\n"))
    assert "1 image(s) stand in train and in test: line 3 and line 5. Give each image one split." in samples.notes
    with pytest.raises(MedtameError, match=r"1 test image also in train.*Mend the column 'split' .*--allow-leakage") as refused:
        splits.split(samples)
    assert "a.png" not in str(refused.value)


def test_all_faults_of_a_file_stand_in_one_error(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MedtameError) as caught:
        read(file(tmp_path, "labels.csv", BOX + "no.png,1,1,2,2\na.png,x,1,2,2\n../a.png,3,1,2,2\n"))
    message = str(caught.value)
    assert message.startswith(
        "labels.csv has 3 bad row(s): line 2: image no.png is not there; line 3: xmin 'x' is not a number; line 4: a box"
    )
    assert "line 4: image ../a.png climbs out of the root" in message


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(FAULTS) >= 30
