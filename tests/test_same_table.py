"""The same images as PNG, DICOM, NIfTI and MHA give the same table, patients known to DICOM only by their tag."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

import medtame
from medtame import encoders
from shop import family, written


def dicom(pixels, path, patient):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{int(path.stem)}"
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID, made.PatientID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, patient
    made.SeriesInstanceUID = f"1.2.4.{int(path.stem)}"
    made.Rows, made.Columns = pixels.shape
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel, made.PhotometricInterpretation = 7, 0, 1, "MONOCHROME2"
    made.PixelData = pixels.tobytes()
    made.save_as(path, enforce_file_format=True)


def copied(table, folder, suffix):
    """The data set of a table with every image as another kind of file; a DICOM copy loses its column patient."""
    folder.mkdir()
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        pixels, path = np.asarray(Image.open(table.parent / row["image"]).convert("L")), folder / f"{number:03d}.{suffix}"
        if suffix == "dcm":
            dicom(pixels, path, f"secret {row.pop('patient')}")
        elif suffix == "nii.gz":
            nibabel.save(nibabel.Nifti1Image(pixels.T[:, :, None].copy(), np.eye(4)), path)
        elif suffix == "mha":
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels[None]), str(path))
        else:
            Image.fromarray(pixels).save(path)
        row["image"] = path.name
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    table = written(tmp_path / "data")
    return {suffix: copied(table, tmp_path / suffix, suffix) for suffix in ("png", "dcm", "nii.gz", "mha")}


def test_all_kinds_of_file_give_the_table_of_png(tables, tmp_path):
    rows, said = {}, {}
    for suffix, table in tables.items():
        data = medtame.load(table)
        made = medtame.compare(data, "tiny", methods=["clap", "ridge_probe"], shots=(1, "all"), draws=3, out=tmp_path / f"out-{suffix}")
        rows[suffix] = [{key: value for key, value in row.items() if key != "fit_seconds"} for row in made.rows]
        said[suffix] = (tmp_path / f"out-{suffix}" / "report.html").read_text(encoding="utf-8") + str(made.record)
    for suffix in tables:
        assert rows[suffix] == rows["png"], suffix
    assert "grouped by the PatientID of the DICOM files" in said["dcm"]
    assert "secret" not in said["dcm"]
