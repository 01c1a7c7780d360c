"""DICOM series: their order, their middle, their geometry, what is left out, and whose they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medtame.data import splits
from medtame.data.images import FilePicture
from medtame.data.manifest import images_below, read
from medtame.data.series import LabelPicture, SeriesPicture, headers, natural, scan
from medtame.errors import DataError, ImageError

OBLIQUE = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]  # normal: (-0.6, 0.8, 0)
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])


def slice_file(path: Path, value: int, *, series: str = "1.2.3", size: tuple[int, int] = (4, 3), frames: int = 0, **elements: Any) -> Path:
    """A small MR slice, 8 bits, all of one value."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = MRImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SeriesInstanceUID, made.Modality, made.PatientID = series, "MR", "SECRET-1"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.Rows, made.Columns = size
    made.PixelSpacing = [2.0, 1.5]
    shape = (frames, *size) if frames else size
    if frames:
        made.NumberOfFrames = frames
    pixels = np.full(shape, value, np.uint8)
    if frames:
        pixels += np.arange(frames, dtype=np.uint8)[:, None, None]
    made.PixelData = pixels.tobytes()
    for name, given in elements.items():
        setattr(made, name, given)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def placed(mm: float, orientation: list[float] = OBLIQUE) -> dict[str, Any]:
    """The tags of a slice `mm` along the normal; the place also drifts within the plane, which must not matter."""
    normal = np.cross(orientation[:3], orientation[3:])
    place = mm * normal - 3 * mm * np.array(orientation[:3]) + np.array([10.0, 20.0, 30.0])
    return {"ImagePositionPatient": [f"{number:.6f}" for number in place], "ImageOrientationPatient": orientation}


def values(picture: Any) -> int:
    return int(picture.values()[0, 0])


def only(folder: Path) -> SeriesPicture:
    (found,) = scan(headers(sorted(folder.iterdir()))).series
    return SeriesPicture(found.paths, "one")


def test_slices_are_ordered_along_their_normal_whatever_names_and_numbers_say(tmp_path: Path) -> None:
    for rank, (mm, name) in enumerate([(-4.0, "d"), (-1.5, "b"), (0.0, "e"), (2.5, "a"), (7.0, "c")]):
        slice_file(tmp_path / f"{name}.dcm", rank, InstanceNumber=50 - rank, **placed(mm))
    series = only(tmp_path)
    assert [path.stem for path in series.paths] == ["d", "b", "e", "a", "c"]
    assert series.frames() == 5
    assert values(series) == 2  # the middle: 5 // 2
    picked = [SeriesPicture(series.paths, "one", frame) for frame in range(5)]
    assert [values(picture) for picture in picked] == [0, 1, 2, 3, 4]
    assert series.read().dtype == np.uint8
    assert np.allclose(series.array(), 2 / 255)
    for frame in (-1, 5):
        with pytest.raises(ImageError, match=rf"^one cannot be read: it has 5 slices, numbered from 0, and none is number {frame}$"):
            SeriesPicture(series.paths, "one", frame).read()


def test_the_middle_of_an_even_count_is_the_upper_one(tmp_path: Path) -> None:
    for rank in range(4):
        slice_file(tmp_path / f"{rank}.dcm", rank, **placed(rank))
    assert values(only(tmp_path)) == 2


def test_without_places_the_instance_number_orders_and_without_it_the_name(tmp_path: Path) -> None:
    for name, number in (("a", 3), ("b", 1), ("c", 2)):
        slice_file(tmp_path / "numbered" / name, number, InstanceNumber=number)
        slice_file(tmp_path / "still" / name, number, InstanceNumber=number, **placed(5.0))  # all at one place: a film
    assert [path.name for path in only(tmp_path / "numbered").paths] == ["b", "c", "a"]
    assert [path.name for path in only(tmp_path / "still").paths] == ["b", "c", "a"]
    for name in ("IM10", "IM9", "IM1"):
        slice_file(tmp_path / "named" / name, 0)
    assert [path.name for path in only(tmp_path / "named").paths] == ["IM1", "IM9", "IM10"]
    assert natural("s/IM2") < natural("s/IM10")


def test_slices_that_are_not_parallel_follow_the_instance_number(tmp_path: Path) -> None:
    turned = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
    slice_file(tmp_path / "a", 0, InstanceNumber=2, **placed(1.0))
    slice_file(tmp_path / "b", 0, InstanceNumber=1, **placed(9.0, turned))
    assert [path.name for path in only(tmp_path).paths] == ["b", "a"]


def test_the_affine_has_the_distance_between_slices_and_not_their_thickness(tmp_path: Path) -> None:
    for rank, mm in enumerate((0.0, 3.0, 7.0)):
        slice_file(tmp_path / f"{rank}.dcm", rank, SliceThickness=1.0, **placed(mm))
    series = only(tmp_path)
    towards = NORMAL * [-1, -1, 1]  # NIfTI points to right and anterior
    for frame, gap in ((0, 3.0), (1, 4.0), (2, 4.0)):
        place = SeriesPicture(series.paths, "one", frame).geometry()
        alone = FilePicture(series.paths[frame], "alone").geometry()
        affine, own = np.array(place.affine), np.array(alone.affine)
        assert np.allclose(affine[:3, 2], gap * towards, atol=1e-5)
        assert np.allclose(own[:3, 2], towards, atol=1e-5)
        assert np.array_equal(np.delete(affine, 2, 1), np.delete(own, 2, 1))
        assert (place.height, place.width, place.spacing_mm) == (4, 3, (2.0, 1.5))


def test_a_slice_of_a_series_is_its_file(tmp_path: Path) -> None:
    for rank in range(3):
        slice_file(tmp_path / f"{rank}.dcm", rank, **placed(rank))
    series = only(tmp_path)
    assert series.shown().path == series.paths[1]
    assert series.digest() == FilePicture(series.paths[1], "x").digest()
    windowed = series.windowed("40/80")
    assert windowed.shown().window == "40/80"
    assert (windowed.paths, windowed.name, series.window) == (series.paths, "one", "")
    assert windowed.digest() == FilePicture(series.paths[1], "x", window="40/80").digest() != series.digest()
    assert hash(series) == hash(SeriesPicture(series.paths, "one"))


def test_one_file_with_many_frames_has_these_as_slices(tmp_path: Path) -> None:
    series = SeriesPicture((slice_file(tmp_path / "a.dcm", 10, frames=5),), "one")
    assert series.frames() == 5
    assert values(series) == 12
    assert values(SeriesPicture(series.paths, "one", 4)) == 14


def test_other_sizes_copies_and_later_time_points_are_left_out_and_named(tmp_path: Path) -> None:
    for rank in range(3):
        slice_file(tmp_path / f"{rank}.dcm", rank, InstanceNumber=rank, **placed(rank))
        slice_file(tmp_path / f"later{rank}.dcm", 9, InstanceNumber=10 + rank, **placed(rank))
    slice_file(tmp_path / "scout.dcm", 9, size=(8, 8), **placed(9))
    found = scan(headers(sorted(tmp_path.iterdir())))
    assert [path.name for path in found.series[0].paths] == ["0.dcm", "1.dcm", "2.dcm"]
    assert found.notes(tmp_path) == [
        "1 DICOM file(s) have another size than most of their series and were left out: scout.dcm.",
        "3 DICOM file(s) lie where another slice of their series lies (time points, echoes or copies; the first is kept) and were left "
        "out: later0.dcm, later1.dcm, later2.dcm.",
    ]
    copies = tmp_path / "copies"
    slice_file(copies / "a.dcm", 1, InstanceNumber=1)
    slice_file(copies / "b.dcm", 2, InstanceNumber=2)
    (copies / "c.dcm").write_bytes((copies / "a.dcm").read_bytes())
    assert [path.name for path in only(copies).paths] == ["a.dcm", "b.dcm"]


def test_radiographs_of_one_series_are_views_and_stay_apart(tmp_path: Path) -> None:
    slice_file(tmp_path / "frontal.dcm", 1, Modality="DX")
    slice_file(tmp_path / "lateral.dcm", 2, Modality="DX")
    samples = read(tmp_path)
    assert samples.column("image") == ["frontal.dcm", "lateral.dcm"]
    assert "2 radiographs are a row each: files of their series are views, not slices." in samples.notes
    assert len(set(samples.groups)) == 1  # one patient


def make_study(root: Path, patients: int = 4) -> None:
    """CLASS/PATIENT/SERIES/*.dcm: two series a patient, two patients a class."""
    for patient in range(patients):
        for number in range(2):
            folder = root / ("ill", "well")[patient % 2] / f"p{patient}" / f"s{number}"
            for rank in range(3):
                slice_file(folder / f"{rank}", rank, series=f"1.2.{patient}.{number}", PatientID=f"SECRET-{patient}", **placed(-rank))


def test_a_series_is_a_row_its_class_the_first_folder_and_its_patient_the_group(tmp_path: Path) -> None:
    make_study(tmp_path)
    samples = read(tmp_path)
    names = [f"{label}/p{patient}/s{number}" for label, ps in (("ill", (0, 2)), ("well", (1, 3))) for patient in ps for number in (0, 1)]
    assert [picture.name for picture in samples.pictures()] == names
    assert samples.column("label") == ["ill"] * 4 + ["well"] * 4
    assert [values(picture) for picture in samples.pictures()] == [1] * 8
    assert values(replace(samples.pictures()[0], frame=0)) == 2  # type: ignore[type-var]  # rank 2 lies lowest
    assert len(set(samples.groups)) == 4
    assert samples.groups[0] == samples.groups[1] != samples.groups[2]
    assert "SECRET" not in " ".join([*samples.groups, *samples.notes, *(str(picture) for picture in samples.pictures())])
    assert any(note.startswith("8 DICOM series of several files are a row each, seen by their middle slice") for note in samples.notes)
    assert samples.paths("image")[0] == tmp_path / "ill/p0/s0/1"
    folds = splits.folds(samples, samples.column("label"), seed=0)
    for train, test in folds.parts:
        assert not set(samples.groups[train]) & set(samples.groups[test])


def test_folders_of_patients_are_no_classes(tmp_path: Path) -> None:
    for patient in range(3):
        slice_file(tmp_path / f"Doe_{patient}" / "a.dcm", 0, series=f"1.{patient}", PatientID=f"SECRET-{patient}")
    samples = read(tmp_path)
    assert "label" not in samples
    assert "Each sub-folder holds one patient, so its name is no label: give a manifest for labels." in samples.notes
    slice_file(tmp_path / "Doe_0" / "b.dcm", 0, series="1.9", PatientID="SECRET-1")  # now a folder holds two: classes
    assert read(tmp_path).column("label") == ["Doe_0", "Doe_0", "Doe_1", "Doe_2"]


def test_a_series_id_used_twice_joins_neither_patients_nor_classes(tmp_path: Path) -> None:
    for folder, patient in (("a/x", "1"), ("a/y", "2"), ("b/x", "1")):
        for rank in range(2):
            slice_file(tmp_path / folder / f"{rank}.dcm", rank, PatientID=patient, **placed(rank))
    samples = read(tmp_path)
    assert [picture.name for picture in samples.pictures()] == ["a/x", "a/y", "b/x"]
    assert samples.column("label") == ["a", "a", "b"]


def test_split_folders_of_dicom_without_classes(tmp_path: Path) -> None:
    for part, patient in (("train", 1), ("train", 2), ("test", 3)):
        slice_file(tmp_path / part / f"{patient}.dcm", patient, series=f"1.{patient}", PatientID=str(patient))
    samples = read(tmp_path)
    assert samples.column("split") == ["test", "train", "train"]
    assert "label" not in samples


def test_a_cell_may_name_a_folder_with_one_series(tmp_path: Path) -> None:
    make_study(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\nill/p0/s0,a\nwell/p1/s1/,b\n")
    samples = read(tmp_path / "labels.csv")
    assert [picture.name for picture in samples.pictures()] == ["ill/p0/s0", "well/p1/s1/"]
    assert [values(picture) for picture in samples.pictures()] == [1, 1]
    assert len(set(samples.groups)) == 2
    (tmp_path / "labels.csv").write_text("image,label\nill/p0,a\n")
    with pytest.raises(DataError, match=r"line 2: image ill/p0 is a folder with 2 DICOM series\. Give each series a row and a folder"):
        read(tmp_path / "labels.csv")


def test_a_series_reached_through_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "elsewhere", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan").symlink_to(tmp_path / "elsewhere" / "ill" / "p0" / "s0")
    (tmp_path / "data" / "labels.csv").write_text("image\nscan\n")
    with pytest.raises(DataError, match="line 2: image scan leads out of the root through a link"):
        read(tmp_path / "data" / "labels.csv")
    (tmp_path / "data" / "labels.csv").write_text(f"image\n{tmp_path}/data/scan\n")
    assert values(read(tmp_path / "data" / "labels.csv").pictures()[0]) == 1


def test_a_folder_of_series_through_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "elsewhere", 4)
    (tmp_path / "data").mkdir()
    for name in ("ill", "well"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(DataError, match="image ill/p0/s0 leads out of the root through a link"):
        read(tmp_path / "data")
    assert len(read(tmp_path / "data", root=tmp_path)) == 8


def test_scanner_names_that_end_in_numbers_are_read_and_grouped(tmp_path: Path) -> None:
    for name, patient in (("1.2.840.1", "A"), ("1.2.840.2", "B"), ("1.2.840.3", "A")):
        slice_file(tmp_path / name, 0, series=name, PatientID=f"SECRET-{patient}")
    samples = read(tmp_path)
    assert samples.column("image") == ["1.2.840.1", "1.2.840.2", "1.2.840.3"]
    assert samples.groups[0] == samples.groups[2] != samples.groups[1]


def test_all_images_below_a_folder_with_its_series_joined(tmp_path: Path) -> None:
    make_study(tmp_path, 1)
    slice_file(tmp_path / "alone.dcm", 0, series="9.9")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    found = images_below(tmp_path)
    assert [getattr(one, "name", one) for one in found] == [f"{tmp_path}/a.png", f"{tmp_path}/alone.dcm", "ill/p0/s0", "ill/p0/s1"]
    assert [len(one.paths) for one in found if isinstance(one, SeriesPicture)] == [3, 3]


def test_the_same_series_on_both_sides_is_a_leak(tmp_path: Path) -> None:
    for part, name, number in (("train", "a", 1), ("test", "b", 2), ("train", "c", 3)):
        for rank in range(3):
            slice_file(tmp_path / part / name / f"{rank}.dcm", rank + 9 * number, series=f"1.{number}", PatientID="", **placed(rank))
    assert len(splits.split(read(tmp_path)).train) == 2
    for rank in range(3):
        (tmp_path / "test" / "b" / f"{rank}.dcm").write_bytes((tmp_path / "train" / "a" / f"{rank}.dcm").read_bytes())
    with pytest.raises(DataError, match="1 test image also in train, byte for byte"):
        splits.split(read(tmp_path))


def test_a_structure_of_a_label_map(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2], [2, 3, 1]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "map.png")
    for numbers in ((1,), (2, 3), (9,)):
        picture = LabelPicture(tmp_path / "map.png", "map.png", numbers)
        wanted = np.array([[int(value) in numbers for value in row] for row in stored])
        assert np.array_equal(picture.values(), wanted)
        assert np.array_equal(picture.array()[..., 0], wanted.astype(np.float32))
        assert np.array_equal(picture.read()[..., 0], wanted * 255)
    assert len({LabelPicture(tmp_path / "map.png", "map.png", numbers).digest() for numbers in ((1,), (2, 3))}) == 2
    assert picture.geometry().width == 3


def test_the_real_series_is_one_row_in_the_order_of_its_numbers(real_data: Path) -> None:
    samples = read(real_data / "volumes" / "dicom")
    (series,) = [picture for picture in samples.pictures() if isinstance(picture, SeriesPicture)]
    assert [path.stem for path in series.paths] == [f"series_{n}" for n in (4558, 4528, 4588, 4467, 4618, 4678, 4648)]
    assert [int(dcmread(path).InstanceNumber) for path in series.paths] == [1, 2, 3, 4, 5, 6, 7]  # a radial scout: no common normal
    assert series.shown().path.stem == "series_4467"
    assert series.array().shape == (16, 16, 1)
    kept = {path.name for picture in samples.pictures() for path in getattr(picture, "paths", [getattr(picture, "path", None)])}
    assert not kept & {"rtplan.dcm", "rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm"}


def test_a_relative_folder_has_the_patients_of_an_absolute_one(tmp_path, monkeypatch, real_data):
    (tmp_path / "set" / "ill").mkdir(parents=True)
    for path in (real_data / "volumes" / "dicom").glob("series_*.dcm"):
        (tmp_path / "set" / "ill" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for given in ("set", tmp_path / "set"):
        found = read(given)
        assert any("PatientID" in note for note in found.notes)
        assert [str(group) for group in found.groups] == ["DICOM patient 1"]
