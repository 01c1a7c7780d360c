"""All 57 files of volumes/files.csv: each reads as pydicom, nibabel or Pillow read it, or is refused, as the list says."""

from __future__ import annotations

import ast
import csv
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageOps
from pydicom import dcmread
from pydicom.pixels import pixel_array

from medtame.data.images import FilePicture
from medtame.errors import ImageError

SHAPE_OF_PILLOW = re.compile(r"^(\S+) \((\d+), (\d+)\)$")
SHAPE = re.compile(r"^(\(.*?\)) ([<>]?[a-z]+\d+)$")
# What we do where `expect` leaves it open or `measured` had no decoder. Everything else follows from these two columns.
READS_HERE = {
    "dicom/MR_small_jpeg_ls_lossless.dcm": ((64, 64), "int16"),  # pyjpegls or GDCM
    "dicom/JPEG2000.dcm": ((1024, 256), "int16"),
    "odd/one_pixel.png": None,
    "odd/thin.png": None,
    "odd/animated.gif": None,
}
REFUSED_HERE = {
    "dicom/MR_truncated.dcm",
    "dicom/no_meta_group_length.dcm",  # no pixels in it
    "dicom/no_meta.dcm",  # its first byte is a stray blank, so even by force pydicom finds no data set; a real one reads: test_codecs
    "odd/not_gzip.nii.gz",
}


@dataclass(frozen=True)
class Row:
    file: str
    expect: str
    measured: str
    path: Path

    @property
    def picture(self) -> FilePicture:
        return FilePicture(self.path, self.file)

    @property
    def reads(self) -> bool:
        if self.file in REFUSED_HERE or self.expect.startswith("must be refused"):
            return False
        return self.file in READS_HERE or self.expect.startswith(("reads", "handle"))


@pytest.fixture(scope="module")
def rows(real_data: Path) -> list[Row]:
    folder = real_data / "volumes"
    with (folder / "files.csv").open(encoding="utf-8") as file:
        return [Row(row["file"], row["expect"], row["measured"], folder / row["file"]) for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom, as the reference, on the bad value representation
        yield


def test_every_file_reads_or_is_refused_in_one_line(rows: list[Row]) -> None:
    assert len(rows) == 57
    assert sum(row.reads for row in rows) == 40
    for row in rows:
        picture = row.picture
        if row.reads:
            pixels = picture.array()
            assert pixels.dtype == np.float32
            assert pixels.shape[2] in (1, 3)
            assert np.isfinite(pixels).all(), row.file
            assert 0 <= pixels.min() <= pixels.max() <= 1, row.file
            if pixels.shape[2] == 1:
                assert picture.values().shape == pixels.shape[:2]
            assert (picture.geometry().height, picture.geometry().width) == pixels.shape[:2], row.file
            continue
        for read in (picture.read, picture.values, picture.geometry, picture.frames):
            if read in (picture.geometry, picture.frames) and row.file in ("dicom/MR_truncated.dcm", "odd/truncated.jpg"):
                continue  # the header is whole
            with pytest.raises(ImageError) as caught:
                read()
            assert str(caught.value).startswith(f"{row.file} cannot be read: ")
            assert "\n" not in str(caught.value)


def test_reasons_are_the_right_ones(rows: list[Row]) -> None:
    reasons = {"no pixel data": "without pixels|no pixels are found", "empty file": "the file is empty"}
    for row in rows:
        if row.reads:
            continue
        wanted = next((words for key, words in reasons.items() if key in row.expect), "it ")
        wanted = "the file is empty" if row.path.stat().st_size == 0 else wanted
        with pytest.raises(ImageError, match=wanted):
            row.picture.read()


def test_dicom_files_agree_with_pydicom(rows: list[Row]) -> None:
    checked = 0
    for row in rows:
        if not row.file.startswith("dicom/") or not row.reads:
            continue
        dataset = dcmread(row.path)
        count = int(dataset.get("NumberOfFrames") or 1)
        picture = row.picture
        assert picture.frames() == count
        for index in {count // 2, 0, count - 1}:
            reference = pixel_array(dataset, index=index)
            ours = FilePicture(row.path, row.file, index)
            if reference.ndim == 2:
                assert np.array_equal(ours.values(), reference), row.file
            else:
                shown = ours.read()
                same = np.array_equal(shown, reference) if reference.dtype == np.uint8 else shown.shape == reference.shape
                assert same, row.file
        measured = SHAPE.match(row.measured)
        shape, dtype = (ast.literal_eval(measured[1]), measured[2]) if measured else READS_HERE[row.file] or ((), "")
        assert pixel_array(dataset).shape == shape
        if reference.ndim == 2 and count == 1:
            assert picture.values().shape == shape
            assert picture.values().dtype.kind == np.dtype(dtype).kind
        spacing = dataset.get("PixelSpacing")
        if count == 1 and "SharedFunctionalGroupsSequence" not in dataset:
            wanted = None if not spacing else (float(spacing[0]), float(spacing[1]))
            assert picture.geometry().spacing_mm == wanted, row.file
        if picture.geometry().affine is not None and count == 1 and spacing:
            affine = np.array(picture.geometry().affine)
            corner = np.array(dataset.ImagePositionPatient, float) * (-1, -1, 1)
            assert np.allclose(affine[:3, 3], corner), row.file
            assert np.allclose(np.linalg.norm(affine[:3, :2], axis=0), [float(spacing[1]), float(spacing[0])], rtol=1e-4), row.file
        checked += 1
    assert checked == 20


def test_nifti_files_agree_with_nibabel(rows: list[Row]) -> None:
    checked = 0
    for row in rows:
        if ".nii" not in row.file or not row.reads:
            continue
        volume: Any = nibabel.load(row.path)
        shape = ast.literal_eval(SHAPE.match(row.measured)[1])  # type: ignore[index]
        assert volume.shape == shape
        data = np.asarray(volume.dataobj)
        while data.ndim > 3:
            data = data[..., 0]
        assert row.picture.frames() == shape[2]
        for index in {shape[2] // 2, 0, shape[2] - 1}:
            picture = FilePicture(row.path, row.file, index)
            assert np.array_equal(picture.values(), data[:, :, index].T), row.file
            place = picture.geometry()
            corner, opposite = ([0, 0, index, 1], [shape[0] - 1, shape[1] - 1, index, 1])
            for voxel in (corner, opposite):
                assert np.allclose(np.array(place.affine) @ [voxel[0], voxel[1], 0, 1], volume.affine @ voxel, atol=1e-6)
            zooms = volume.header.get_zooms()
            assert place.spacing_mm == pytest.approx((float(zooms[1]), float(zooms[0])))
        checked += 1
    assert checked == 8


def test_plain_files_agree_with_pillow(rows: list[Row]) -> None:
    checked = 0
    for row in rows:
        if not row.file.startswith("odd/") or not row.reads:
            continue
        with Image.open(row.path) as image:
            mode, width, height = SHAPE_OF_PILLOW.match(row.measured).groups()  # type: ignore[union-attr]
            assert (image.mode, image.size) == (mode, (int(width), int(height)))
            upright = ImageOps.exif_transpose(image)
            picture, read = row.picture, row.picture.read()
            assert read.shape[:2] == upright.size[::-1]
            assert picture.frames() == getattr(image, "n_frames", 1)
            if mode in ("L", "P", "CMYK"):
                wanted = np.asarray(upright if mode == "L" else upright.convert("RGB"))
                assert np.array_equal(read.squeeze(-1) if mode == "L" else read, wanted), row.file
                assert read.dtype == np.uint8
            elif mode == "RGBA":
                colours = np.asarray(image).astype(float)
                assert np.abs(read - colours[..., :3] * colours[..., 3:] / 255).max() <= 0.5 + 1e-6
            else:  # deeper than eight bits: contrast is kept
                stored = np.asarray(image).astype(float)
                low, high = np.percentile(stored, (0.5, 99.5))
                assert np.allclose(read[..., 0], np.clip((stored - low) / (high - low), 0, 1), atol=1e-6)
                assert read.std() > 0.1, row.file
        checked += 1
    assert checked == 12
