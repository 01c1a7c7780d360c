"""Groups, planted leaks, and folds that keep groups and copies together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.data.splits import folds, groups_of, split
from medtame.errors import DataError


def samples_of(folder: Path, **columns: Any) -> ManifestSamples:
    """Files that the columns name are made, each with its own contents."""
    for number, name in enumerate(sorted({name for key in ("image", "fixed", "moving") for name in columns.get(key, []) if name})):
        if not (folder / name).exists():
            Image.new("L", (2, 2), number % 256).save(folder / name)
    size = len(next(iter(columns.values())))
    bare = ManifestSamples(columns, np.arange(size), folder)
    return ManifestSamples(columns, groups_of(bare)[0], folder)


def same(groups: np.ndarray) -> list[int]:
    """Groups as numbers by first appearance."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def write_dicom(path: Path, patient: str | None) -> None:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    if patient is not None:
        made.PatientID = patient
    made.save_as(path, enforce_file_format=True)


def test_the_first_of_the_group_columns_is_used_and_empty_cells_fall_back_to_the_image(tmp_path: Path) -> None:
    images = ["a.png", "b.png", "a.png", "./b.png"]
    groups, sentence = groups_of(samples_of(tmp_path, image=images, case=["1", "2", "1", "1"], patient=["x", None, "x", None]))
    assert same(groups) == [0, 1, 0, 1]
    assert sentence == "Rows are grouped by the column 'patient'. 2 rows without one are grouped by their image."
    groups, sentence = groups_of(samples_of(tmp_path, image=images, lesion=["1", "2", "1", "1"]))
    assert same(groups) == [0, 1, 0, 0]
    assert "'lesion'" in sentence


def test_rows_of_one_image_and_pairs_of_one_fixed_image_stay_together(tmp_path: Path) -> None:
    groups, sentence = groups_of(samples_of(tmp_path, image=["a.png", "b.png", "./a.png", f"{tmp_path}/b.png"]))
    assert same(groups) == [0, 1, 0, 1]
    assert sentence == "Rows are grouped by the image (no patient column)."
    groups, sentence = groups_of(samples_of(tmp_path, fixed=["a.png", "a.png", "b.png"], moving=["b.png", "c.png", "c.png"]))
    assert same(groups) == [0, 0, 1]
    assert "fixed image" in sentence


def test_dicom_patients_are_groups_and_their_ids_are_shown_nowhere(tmp_path: Path) -> None:
    for name, patient in (("a.dcm", "SECRET1"), ("b.dcm", "SECRET2 "), ("c", "SECRET1"), ("d.dcm", None), ("e.dcm", "SECRET2")):
        write_dicom(tmp_path / name, patient)
    samples = ManifestSamples({"image": ["a.dcm", "b.dcm", "c", "d.dcm", "e.dcm"]}, np.arange(5), tmp_path)
    groups, sentence = groups_of(samples)
    assert same(groups) == [0, 1, 0, 2, 1]
    assert groups.tolist() == groups_of(samples)[0].tolist()
    assert "SECRET" not in sentence + "".join(groups)
    assert sentence == "Rows are grouped by the PatientID of the DICOM files. 1 rows without one are grouped by their image."


def test_train_and_test_have_their_meaning_and_other_words_stand_aside(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, image=[f"{n}.png" for n in range(6)], split=["train", "Test", "val", "test", None, "bridge"])
    made = split(samples)
    assert made.train.tolist() == [0]
    assert made.test is not None
    assert made.test.tolist() == [1, 3]
    assert made.how == "The column 'split' names 1 training and 2 test rows. Not used: val 1, (empty) 1, bridge 1."
    assert samples.rows_where("split", "bridge").tolist() == [5]
    without = split(samples.take([0, 2]))
    assert without.test is None
    assert without.train.tolist() == [0]
    assert split(samples.only(["image"])).test is None
    assert split(samples.only(["image"])).train.tolist() == list(range(6))
    with pytest.raises(DataError, match=r"has no row 'train'; it has val, bridge\."):
        split(samples.take([2, 5]))


def test_a_patient_on_both_sides_is_refused_and_not_named(tmp_path: Path) -> None:
    images, parts = [f"{n}.png" for n in range(5)], ["train", "train", "test", "test", "test"]
    samples = samples_of(tmp_path, image=images, patient=["Jane Doe", "b", "Jane Doe", "Jane Doe", "c"], split=parts)
    with pytest.raises(DataError, match=r"overlap: 1 group in both \(2 test rows\)\. Mend .* --allow-leakage") as caught:
        split(samples)
    assert "Jane" not in str(caught.value)
    made = split(samples, allow_leakage=True)
    assert made.warnings == ["Train and test overlap: 1 group in both (2 test rows)."]
    assert made.test is not None
    assert len(made.test) == 3


def test_a_copied_file_is_found_and_another_of_its_size_is_not(tmp_path: Path) -> None:
    images, parts = [f"{n}.bmp" for n in range(4)], ["train", "train", "test", "test"]
    samples = samples_of(tmp_path, image=images, split=parts)
    assert len({(tmp_path / name).stat().st_size for name in images}) == 1
    assert not split(samples).warnings
    (tmp_path / "3.bmp").write_bytes((tmp_path / "0.bmp").read_bytes())
    with pytest.raises(DataError, match=r"1 test image also in train, byte for byte"):
        split(samples)
    pictures = [ArrayPicture(np.full((2, 2), value, np.uint8), f"made {n}") for n, value in enumerate((1, 2, 2, 3))]
    with pytest.raises(DataError, match=r"1 test image also in train, byte for byte"):
        split(samples.replaced(image=pictures))


def test_a_scan_that_is_fixed_in_train_and_moving_in_test_is_a_leak(tmp_path: Path) -> None:
    columns = {"fixed": ["a.png", "c.png"], "split": ["train", "test"]}
    assert not split(samples_of(tmp_path, moving=["b.png", "d.png"], **columns)).warnings
    with pytest.raises(DataError, match=r"1 test image also in train, byte for byte"):
        split(samples_of(tmp_path, moving=["b.png", "a.png"], **columns))


def test_folds_keep_groups_and_copies_together_and_deal_labels_evenly(tmp_path: Path) -> None:
    images = [f"{n}.png" for n in range(60)]
    samples = samples_of(tmp_path, image=images, patient=[str(n // 2) for n in range(60)])
    (tmp_path / "41.png").write_bytes((tmp_path / "7.png").read_bytes())  # patients 20 and 3
    labels = ["ill" if n % 6 < 2 else "well" for n in range(60)]
    made = folds(samples, labels, seed=3)
    assert len(made.parts) == 5
    assert not made.notes
    assert sorted(np.concatenate([test for _, test in made.parts]).tolist()) == list(range(60))
    for train, test in made.parts:
        assert sorted([*train, *test]) == list(range(60))
        assert not set(samples.groups[train]) & set(samples.groups[test])
        assert (7 in test) == (41 in test)
        assert 2 <= sum(labels[row] == "ill" for row in test) <= 6  # 4 if perfectly even
    again, other = folds(samples, labels, seed=3), folds(samples, labels, seed=4)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made.parts, again.parts, strict=True))
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(made.parts, other.parts, strict=True))


def test_fewer_groups_give_fewer_folds_and_one_gives_none(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, image=[f"{n}.png" for n in range(6)], patient=list("aabbcc"))
    made = folds(samples, ["x", "x", "x", "x", "x", "rare"], seed=0)
    assert len(made.parts) == 3
    assert made.notes == ["3 folds instead of 5: there are 3 groups.", "Fewer rows than folds, so missing from some: 'rare'."]
    with pytest.raises(DataError, match=r"2 rows in 1 group\(s\) make no folds"):
        folds(samples.take([0, 1]), seed=0)
