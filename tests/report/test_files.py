"""Masks as files: each lands on the pixels of its source, in the source's own geometry."""

from __future__ import annotations

import csv
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image

from medtame.data.samples import ManifestSamples
from medtame.report.files import write
from medtame.types import Predicted


def written(tmp_path, name, mask):
    """The table and the file of one mask of one image."""
    samples = ManifestSamples({"image": [name]}, np.arange(1), tmp_path)
    said = Predicted(table=[{"image": name, "structure": "left lung", "warning": ""}], arrays={"0/mask": mask})
    files = write(said, samples, tmp_path / "seen")
    with (tmp_path / "seen" / "predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert len(files) == 2
    assert files[1].endswith(row["file"])
    return row, files[1]


def test_a_picture_gets_a_png_of_its_size(tmp_path):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((20, 30), np.uint8)
    mask[3:7, 10:25] = 1
    _, file = written(tmp_path, "a.png", mask)
    assert np.array_equal(np.asarray(Image.open(file)), mask * 255)


def test_a_nifti_gets_a_mask_in_its_own_grid_on_the_slice_that_was_seen(tmp_path):
    data = np.zeros((12, 10, 6), np.int16)
    data[2:5, 7, 3] = 100
    affine = np.array([[0, 0, 4.0, -3], [2.0, 0, 0, 5], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "v.nii.gz")
    seen = ManifestSamples({"image": ["v.nii.gz"]}, np.arange(1), tmp_path).pictures()[0].array()[:, :, 0] > 0.5
    assert seen.sum() == 3
    _, file = written(tmp_path, "v.nii.gz", seen)
    back = nibabel.load(file)
    assert np.array_equal(np.asarray(back.dataobj) > 0, data > 0)
    assert np.array_equal(back.affine, affine)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_an_mha_or_nrrd_gets_one_slice_of_nifti_that_lies_on_it(tmp_path, suffix):
    voxels = np.zeros((5, 8, 9), np.int16)  # slices, rows, columns
    voxels[2, 3:5, 6] = 400
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"v.{suffix}"))
    seen = ManifestSamples({"image": [f"v.{suffix}"]}, np.arange(1), tmp_path).pictures()[0].array()[:, :, 0] > 0.5
    _, file = written(tmp_path, f"v.{suffix}", seen)
    back = nibabel.load(file)
    column, row, _ = np.argwhere(np.asarray(back.dataobj) > 0)[0]
    place = back.affine @ [column, row, 0, 1]
    true = np.array(image.TransformIndexToPhysicalPoint((6, 3, 2)))
    np.testing.assert_allclose(place[:3], true * [-1, -1, 1], atol=1e-6)  # LPS to RAS


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "examples_palette.dcm"])
def test_a_dicom_gets_a_segmentation_object_that_pydicom_reads_back(tmp_path, real_data, name):
    shutil.copy(real_data / "volumes" / "dicom" / name, tmp_path / name)
    source = pydicom.dcmread(tmp_path / name, stop_before_pixels=True)
    mask = np.zeros((source.Rows, source.Columns), np.uint8)
    mask[5 : source.Rows // 2, 3 : source.Columns // 3] = 1
    row, file = written(tmp_path, name, mask)
    made = pydicom.dcmread(file)
    assert made.Modality == "SEG"
    assert np.array_equal(made.pixel_array, mask)
    assert made.SegmentSequence[0].SegmentLabel == "left lung"
    assert made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert made.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
    if "PixelSpacing" in source:
        shared = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert list(shared.PixelSpacing) == list(source.PixelSpacing)
    if "ImagePositionPatient" in source:
        own = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
        assert list(own.ImagePositionPatient) == list(source.ImagePositionPatient)
    assert "research use only" in made.ContentDescription
    assert row["warning"] == ""


def test_a_dicom_without_the_tags_of_a_study_gets_one_too(tmp_path, real_data):
    bare = pydicom.dcmread(real_data / "volumes" / "dicom" / "MR_small.dcm")
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        if keyword in bare:
            delattr(bare, keyword)
    bare.save_as(tmp_path / "bare.dcm")
    mask = np.zeros((64, 64), np.uint8)
    mask[5:20, 30:50] = 1
    row, file = written(tmp_path, "bare.dcm", mask)
    assert np.array_equal(pydicom.dcmread(file).pixel_array, mask)
    assert row["warning"] == ""


def test_an_empty_mask_is_a_segmentation_too(tmp_path, real_data):
    shutil.copy(real_data / "volumes" / "dicom" / "MR_small.dcm", tmp_path / "a.dcm")
    _, file = written(tmp_path, "a.dcm", np.zeros((64, 64), np.uint8))
    assert pydicom.dcmread(file).pixel_array.sum() == 0


def test_frames_without_a_place_in_the_patient_get_a_png_and_the_row_says_so(tmp_path, real_data):
    shutil.copy(real_data / "volumes" / "dicom" / "examples_ybr_color.dcm", tmp_path / "us.dcm")
    mask = np.zeros((240, 320), np.uint8)
    mask[100:120, 50:80] = 1
    row, file = written(tmp_path, "us.dcm", mask)
    assert np.array_equal(np.asarray(Image.open(file)), mask * 255)
    assert "cannot carry a SEG" in row["warning"]
