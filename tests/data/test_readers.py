"""What each format becomes: the rows, written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medtame.data.manifest import is_manifest, read
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), value).save(path)
    return path


def volume(path: Path, data: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    return path


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(samples: ManifestSamples, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(samples.column(name) for name in names), strict=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    return tmp_path


# ---- JSON, JSONL ----------------------------------------------------------------------------------------------


def test_json_in_three_forms_holds_the_same_as_csv(data: Path) -> None:
    records = [{"image": "0.png", "label": "a", "age": 61, "case": "007"}, {"image": "1.png", "label": None, "age": 3.5, "case": 8.0}]
    write(data / "a.csv", "image,label,age,case\n0.png,a,61,007\n1.png,,3.5,8\n")
    write(data / "list.json", records)
    write(data / "columns.json", {name: [record[name] for record in records] for name in records[0]})
    write(data / "lines.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, records)) + "\r\n\r\n")
    wanted = [("0.png", "a", 61.0, "007"), ("1.png", None, 3.5, "8")]
    for name in ("a.csv", "list.json", "columns.json", "lines.jsonl"):
        assert rows(read(data / name), "image", "label", "age", "case") == wanted


def test_records_may_lack_keys_lists_are_joined_and_deeper_values_are_named(data: Path) -> None:
    records = [{"image": "0.png", "labels": ["a", "b"], "objects": {"x": 1}}, {"image": "1.png", "site": "x", "parts": [[1]]}]
    samples = read(write(data / "a.json", records))
    assert rows(samples, "image", "labels", "site") == [("0.png", "a|b", None), ("1.png", None, "x")]
    assert "objects" not in samples
    assert "Left out, for they hold more than a cell: objects, parts." in samples.notes


def test_what_is_a_manifest_by_its_name() -> None:
    assert all(is_manifest(Path(f"a.{suffix}")) for suffix in ("csv", "TSV", "parquet", "json", "jsonl"))
    assert not any(is_manifest(Path(f"a.{suffix}")) for suffix in ("png", "dcm", "xlsx"))


# ---- COCO -----------------------------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    """Two images with boxes and outlines, one without anything."""
    return {
        "images": [{"id": 7, "file_name": "0.png", "patient": "p1"}, {"id": 8, "file_name": "1.png"}, {"id": 9, "file_name": "2.png"}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 3, "name": "platelet"}],
        "annotations": [
            {"id": 1, "image_id": 8, "category_id": 1, "bbox": [1, 2, 10, 20], "segmentation": [[1, 2, 3, 4, 5, 6]]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0.5, 0, 2, 1.25]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [3, 3, 1, 1], "keypoints": [1]},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 3], "iscrowd": 1, "segmentation": {"counts": [1], "size": [4, 3]}},
        ],
        **changes,
    }


def test_coco_boxes(data: Path) -> None:
    samples = read(write(data / "boxes.json", coco()))
    assert rows(samples, "image", "label", "xmin", "ymin", "xmax", "ymax", "patient") == [
        ("0.png", "platelet", 0.5, 0.0, 2.5, 1.25, "p1"),
        ("0.png", "cell", 3.0, 3.0, 4.0, 4.0, "p1"),
        ("1.png", "cell", 1.0, 2.0, 11.0, 22.0, None),
        ("2.png", None, None, None, None, None, None),
    ]
    assert "2 segmentations (outlines or run-length masks) were left out; their boxes were read." in samples.notes
    assert "1 annotations have key points, which were left out." in samples.notes
    assert "1 crowd annotations (iscrowd) were left out." in samples.notes


def test_coco_captions(data: Path) -> None:
    captions = [{"image_id": 7, "caption": "a dark square"}, {"image_id": 7, "caption": "nothing"}, {"image_id": 9, "caption": "x"}]
    samples = read(write(data / "captions.json", {"images": coco()["images"], "annotations": captions}))
    assert rows(samples, "image", "text") == [("0.png", "a dark square"), ("0.png", "nothing"), ("1.png", None), ("2.png", "x")]
    assert "label" not in samples


def test_the_real_chest_boxes_come_back_from_coco(real_data: Path, tmp_path: Path) -> None:
    table = read(real_data / "chest_boxes" / "boxes.csv")
    images, labels = sorted(set(table.column("image"))), sorted(set(table.column("label")))
    corners = rows(table, "image", "label", "xmin", "ymin", "xmax", "ymax")
    made = {
        "images": [{"id": number, "file_name": str(real_data / "chest_boxes" / name)} for number, name in enumerate(images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(labels)],
        "annotations": [
            {"image_id": images.index(image), "category_id": labels.index(label), "bbox": [x, y, X - x, Y - y]}
            for image, label, x, y, X, Y in corners
        ],
    }
    samples = read(write(tmp_path / "boxes.json", made))
    back = [(image.partition("chest_boxes/")[2], *rest) for image, *rest in rows(samples, "image", "label", "xmin", "ymin", "xmax", "ymax")]
    assert sorted(back) == sorted(corners)


# ---- Hugging Face imagefolder ---------------------------------------------------------------------------------


def test_image_folder_with_metadata_a_part(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "validation/c.png", "train/extra.png"):
        picture(tmp_path / name)
    write(
        tmp_path / "train" / "metadata.jsonl", '{"file_name": "a.png", "text": "one"}\n{"file_name": "b.png", "text": "two", "site": "x"}\n'
    )
    write(tmp_path / "validation" / "metadata.csv", "file_name,text\nc.png,three\n")
    samples = read(tmp_path)
    assert rows(samples, "image", "text", "site", "split") == [
        ("train/a.png", "one", None, "train"),
        ("train/b.png", "two", "x", "train"),
        ("validation/c.png", "three", None, "val"),
    ]
    assert "label" not in samples
    assert "Read train/metadata.jsonl: 2 rows with file_name, text, site." in samples.notes
    assert "Read validation/metadata.csv: 1 rows with file_name, text." in samples.notes
    assert "Ignored, not in the metadata: train/extra.png." in samples.notes


def test_image_folder_with_one_metadata_file_takes_class_and_split_from_folders(tmp_path: Path) -> None:
    for name in ("train/ill/1.png", "test/well/2.png"):
        picture(tmp_path / name)
    write(tmp_path / "metadata.csv", "file_name,sex\ntrain/ill/1.png,F\ntest/well/2.png,M\n")
    samples = read(tmp_path)
    assert rows(samples, "image", "label", "split", "sex") == [
        ("train/ill/1.png", "ill", "train", "F"),
        ("test/well/2.png", "well", "test", "M"),
    ]
    write(tmp_path / "metadata.csv", "file_name,label\ntrain/ill/1.png,mine\ntest/well/2.png,yours\n")
    assert read(tmp_path).column("label") == ["mine", "yours"]


def test_image_folder_without_metadata_is_a_class_a_folder(tmp_path: Path) -> None:
    for name in ("training/ill/1.png", "validation/well/2.png", "test/ill/3.png"):
        picture(tmp_path / name)
    samples = read(tmp_path)
    assert rows(samples, "image", "label", "split") == [
        ("test/ill/3.png", "ill", "test"),
        ("training/ill/1.png", "ill", "train"),
        ("validation/well/2.png", "well", "val"),
    ]


# ---- nnU-Net and MONAI ----------------------------------------------------------------------------------------


def nnunet(root: Path, labels: dict[str, Any], channels: int = 1) -> np.ndarray[Any, Any]:
    """Cases A and B with a label map of three values; one case to be tested."""
    stored = np.random.default_rng(0).integers(0, 3, (5, 4, 3)).astype(np.uint8)
    for case in ("A", "B"):
        for channel in range(channels):
            volume(root / f"imagesTr/{case}_{channel:04d}.nii.gz", stored.astype(np.int16) + channel)
        volume(root / f"labelsTr/{case}.nii.gz", stored)
    for channel in range(channels):
        volume(root / f"imagesTs/C_{channel:04d}.nii.gz", stored.astype(np.int16))
    names = {str(channel): f"T{channel + 1}" for channel in range(channels)}
    write(root / "dataset.json", {"channel_names": names, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"})
    return stored


def test_nnunet_gives_a_row_a_case_and_structure_whose_mask_is_its_value(tmp_path: Path) -> None:
    stored = nnunet(tmp_path, {"background": 0, "liver": 1, "tumour": 2})
    for samples in (read(tmp_path), read(tmp_path / "dataset.json")):
        assert rows(samples, "image", "prompt", "case", "split") == [
            ("imagesTr/A_0000.nii.gz", "liver", "A", "train"),
            ("imagesTr/A_0000.nii.gz", "tumour", "A", "train"),
            ("imagesTr/B_0000.nii.gz", "liver", "B", "train"),
            ("imagesTr/B_0000.nii.gz", "tumour", "B", "train"),
            ("imagesTs/C_0000.nii.gz", None, "C", "test"),
        ]
        masks = samples.take(range(4)).pictures("mask")
        for mask, value in zip(masks, (1, 2, 1, 2), strict=True):
            assert np.array_equal(mask.values(), value == stored[:, :, 1].T)  # the middle slice, as the image's
        assert [mask.name for mask in masks] == ["labelsTr/A.nii.gz"] * 2 + ["labelsTr/B.nii.gz"] * 2
        assert np.array_equal(samples.pictures()[0].values(), stored[:, :, 1].T)
        assert samples.column("mask")[4] is None
        assert "A row a case and structure; the mask holds the pixels with its values: liver = 1, tumour = 2." in samples.notes
        assert len(set(samples.groups)) == 3


def test_nnunet_regions_ignore_and_channels(tmp_path: Path) -> None:
    stored = nnunet(tmp_path, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, channels=2)
    samples = read(tmp_path)
    assert samples.column("prompt")[:2] == ["whole", "core"]
    whole, core = samples.take([0, 1]).pictures("mask")
    assert np.array_equal(whole.values(), stored[:, :, 1].T > 0)
    assert np.array_equal(core.values(), stored[:, :, 1].T == 2)
    assert "The label 'ignore' (3) is no structure; its pixels count as outside." in samples.notes
    assert "Of 2 channels (T1, T2) the first is read." in samples.notes


def test_nnunet_rows_are_learnt_from_by_the_segmentation_task(tmp_path: Path) -> None:
    from medtame.tasks.segmentation import Segmentation

    nnunet(tmp_path, {"background": 0, "liver": 1, "tumour": 2})
    usable = Segmentation().usable(read(tmp_path))
    assert len(usable) == 4
    assert Segmentation().settled(usable).structures == ("liver", "tumour")  # type: ignore[attr-defined]


def test_decathlon_lists_give_a_row_a_structure(tmp_path: Path) -> None:
    stored = nnunet(tmp_path, {"background": 0})
    listed = {
        "labels": {"0": "background", "1": "left atrium", "2": "wall"},
        "training": [{"image": "./imagesTr/A_0000.nii.gz", "label": "./labelsTr/A.nii.gz"}],
        "test": ["./imagesTs/C_0000.nii.gz"],
    }
    write(tmp_path / "dataset.json", listed)
    for samples in (read(tmp_path), read(tmp_path / "dataset.json")):
        assert rows(samples, "image", "prompt", "case", "split") == [
            ("imagesTr/A_0000.nii.gz", "left atrium", "A_0000", "train"),
            ("imagesTr/A_0000.nii.gz", "wall", "A_0000", "train"),
            ("imagesTs/C_0000.nii.gz", None, "C_0000", "test"),
        ]
        assert np.array_equal(samples.take([1]).pictures("mask")[0].values(), stored[:, :, 1].T == 2)


def test_monai_lists_of_classes_and_of_unnamed_masks(data: Path) -> None:
    listed = {
        "training": [{"image": "0.png", "label": 1, "patient": "x", "fold": 0}, {"image": ["1.png", "0.png"], "label": [0, 1]}],
        "validation": [{"image": "2.png", "label": "ill"}],
    }
    samples = read(write(data / "dataset.json", listed))
    assert rows(samples, "image", "label", "labels", "patient", "split") == [
        ("0.png", "1", None, "x", "train"),
        ("1.png", None, "0|1", None, "train"),
        ("2.png", "ill", None, None, "val"),
    ]
    assert "1 entries have several image files (channels); the first of each is read." in samples.notes
    samples = read(write(data / "list.json", {"training": [{"image": "0.png", "label": "3.png"}]}))
    assert samples.pictures("mask")[0].values().max() == 3
    assert 'Masks have no names: add "labels": {"1": "liver"} to the file to segment by name.' in samples.notes


# ---- BIDS -----------------------------------------------------------------------------------------------------


def bids(root: Path) -> None:
    made = np.zeros((3, 3, 3), np.int16)
    for name in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-b/anat/sub-01_ses-b_T1w", "sub-02/anat/sub-02_FLAIR"):
        volume(root / f"{name}.nii.gz", made)
    for name in ("sub-01/ses-a/func/sub-01_task-rest_bold", "sub-02/anat/sub-02_label-lesion_mask", "derivatives/sub-01/anat/x_T1w"):
        volume(root / f"{name}.nii.gz", made)
    write(root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.9.0"})
    write(root / "participants.tsv", "participant_id\tage\tsex\tgroup\tdx\nsub-01\t34\tF\tcontrol\tnone\nsub-02\t89+\tn/a\tpatient\tMS\n")


def test_bids_takes_the_patient_from_the_path_and_the_rest_from_participants(tmp_path: Path) -> None:
    bids(tmp_path)
    samples = read(tmp_path)
    assert rows(samples, "image", "patient", "study", "modality", "age", "sex", "label") == [
        ("sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", "01", "a", "T1w", 34.0, "F", "control"),
        ("sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", "01", "b", "T1w", 34.0, "F", "control"),
        ("sub-02/anat/sub-02_FLAIR.nii.gz", "02", None, "FLAIR", 89.0, None, "patient"),
    ]
    assert samples.groups.tolist() == ["patient 01", "patient 01", "patient 02"]
    assert "1 images outside anat and 1 masks were left out." in samples.notes
    assert "The label is the column 'group' of participants.tsv; name another with --columns label=YOURS." in samples.notes
    assert "The age 89+ was read as 89." in samples.notes
    assert read(tmp_path, columns={"label": "dx"}).column("label") == ["none", "none", "MS"]


def test_bids_without_participants_or_with_unknown_ones(tmp_path: Path) -> None:
    bids(tmp_path)
    write(tmp_path / "participants.tsv", "participant_id\tdiagnosis\n01\tMS\n")
    samples = read(tmp_path)
    assert samples.column("label") == ["MS", "MS", None]
    assert "1 of 2 patients are not in participants.tsv." in samples.notes
    (tmp_path / "participants.tsv").unlink()
    assert "There is no participants.tsv, so nothing is known of the patients." in read(tmp_path).notes


# ---- tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_the_byte_order_mark_change_nothing(data: Path, ending: str, mark: str) -> None:
    text = mark + ending.join(["image,label,note", '0.png,a,"two', 'lines"', "", "1.png,b,x", ""])
    (data / "a.csv").write_bytes(text.encode())
    samples = read(data / "a.csv")
    assert rows(samples, "image", "label") == [("0.png", "a"), ("1.png", "b")]
    assert samples.column("note") == [f"two{ending}lines", "x"]


def test_formulas_stay_text(data: Path) -> None:
    cells = ['=cmd|" /C calc"!A0', "+1+1", "@SUM(1)", "-2"]
    lines = [f'{n}.png,"{cell.replace(chr(34), chr(34) * 2)}"\n' for n, cell in enumerate(cells)]
    assert read(write(data / "a.csv", "image,label\n" + "".join(lines))).column("label") == cells


def test_boxes_without_area_are_left_out_and_named(data: Path) -> None:
    text = "image,label,xmin,ymin,xmax,ymax\n0.png,a,1,1,2,2\n0.png,a,1,1,1,2\n1.png,a,,,,\n2.png,b,3,4,5,4\n"
    samples = read(write(data / "a.csv", text))
    assert rows(samples, "image", "xmax") == [("0.png", 2.0), ("1.png", None)]
    assert "2 boxes without area were left out: lines 3, 5." in samples.notes
    assert len(samples.groups) == 2


def test_text_alone_is_enough_where_there_is_a_report(data: Path) -> None:
    samples = read(write(data / "a.csv", "id,findings,impression\n1,clear lungs,normal\n2,a nodule,follow up\n"))
    assert samples.column("findings") == ["clear lungs", "a nodule"]
    assert "There is no image column: the rows are text only." in samples.notes
    assert len(set(samples.groups)) == 2
    with pytest.raises(DataError, match=r"no column 'image'; it has file, findings\. Name yours: --columns image=file"):
        read(write(data / "b.csv", "file,findings\n0.png,clear lungs\n"))


def test_names_that_differ_only_by_case_or_spaces_are_named(data: Path) -> None:
    samples = read(write(data / "a.csv", "image,label\n0.png,No finding\n1.png,no  finding\n2.png,No finding\n3.png,nodule\n"))
    assert (
        "label: 'No finding' (2 rows) and 'no  finding' (1 rows) differ only by case or spaces: if they are one, write them alike."
        in samples.notes
    )
    assert not any("differ only" in note for note in read(write(data / "b.csv", "image,label\n0.png,a\n1.png,b\n")).notes)


def test_a_million_cells_are_looked_up_once_a_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medtame.data.readers.paths import Finder

    asked: list[str] = []
    one = Finder._one
    monkeypatch.setattr(Finder, "_one", lambda self, cell, *rest: (asked.append(cell), one(self, cell, *rest))[1])
    samples = read(write(data / "a.csv", "image,label\n" + "".join(f"{n % 4}.png,a\n" for n in range(2000))))
    assert len(samples) == 2000
    assert asked == ["0.png", "1.png", "2.png", "3.png"]


# ---- real sets ------------------------------------------------------------------------------------------------


def test_real_sets_that_did_not_load_before(real_data: Path) -> None:
    cells = read(real_data / "blood_cells" / "boxes.csv")
    assert len(cells) == 3552 - 2
    assert "2 boxes without area were left out: lines 962, 1676." in cells.notes
    reports = read(real_data / "radiology_reports" / "reports.csv")
    assert len(reports) == 3826
    assert reports.column("impression")[0] == "Normal chest x-XXXX."
