"""docs/your_data.md is run: each example's files are made, its command is run, and the rows that it promises are compared."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from medtame import cli
from medtame.data import manifest

PAGE = Path(__file__).parents[1] / "docs" / "your_data.md"


@dataclass(frozen=True)
class Example:
    title: str
    files: dict[str, str]  # name -> content, of tables
    images: list[str]
    command: list[str]
    rows: list[dict[str, str]]


def examples() -> list[Example]:
    """The sections of the page that hold a worked example."""
    found = []
    worked = PAGE.read_text(encoding="utf-8").split("a worked example each")[1].split("\n## ")[0]
    for section in worked.split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        blocks = re.findall(r"```(\w+) ?(\S*)\n(.*?)```", text, re.S)
        files = {name: content for kind, name, content in blocks if name and name != "files"}
        listed = [line for _, name, content in blocks if name == "files" for line in content.split()]
        command = next(shlex.split(content) for kind, _, content in blocks if kind == "bash")
        table = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines()
            if line[:1] == "|"
        ]
        rows = [dict(zip(table[0], cells, strict=True)) for cells in table[2:]]
        named = [row["image"] for row in rows] if not listed else []
        found.append(Example(title, files, listed or named, command, rows))
    return found


def written(path: Path, number: int) -> None:
    """An image of the kind that its name says; no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    if path.suffix == ".png":
        Image.fromarray(random.integers(0, 255, (16, 16)).astype(np.uint8)).save(path)
    elif path.suffix == ".dcm":
        dicom(path, number).save_as(path, enforce_file_format=True)
    elif path.name.endswith(".nii.gz"):
        voxels = random.integers(0, 3, (8, 8, 6)) if "labels" in str(path) else random.integers(0, 255, (8, 8, 6))
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4)), path)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(random.integers(0, 255, (6, 8, 8)).astype(np.int16)), str(path))


def packed(folder: Path) -> None:
    """A folder becomes an archive of its files."""
    members = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    with tarfile.open(folder, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def dicom(path: Path, number: int) -> FileDataset:
    """A slice; those of one folder are one series of one patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    series = int(re.findall(r"\d+", path.parent.name)[0])
    made.SeriesInstanceUID, made.PatientID, made.InstanceNumber = f"1.2.4.{series}", f"patient {series}", number
    made.Rows = made.Columns = 16
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel, made.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    made.PixelData = np.random.default_rng(number).integers(0, 900, (16, 16)).astype(np.uint16).tobytes()
    return made


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.title)
def test_a_worked_example_gives_its_rows(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    for name, content in example.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    for number, name in enumerate(dict.fromkeys(example.images)):
        written(Path(name), number)
    for folder in {path.parent for path in Path().rglob("*.tar/*")}:
        packed(folder)
    samples = manifest.read(example.command[2])
    shown = {name: [getattr(value, "name", value) for value in samples.column(name)] for name in example.rows[0]}
    got = [{name: "" if values[row] is None else str(values[row]) for name, values in shown.items()} for row in range(len(samples))]
    assert got == example.rows
    sides = [8 if name.endswith((".nii.gz", ".nrrd", ".mha")) else 16 for name in shown["image"]]
    assert [picture.read().shape[:2] for picture in samples.pictures()] == [(side, side) for side in sides]
    monkeypatch.setattr(sys, "argv", example.command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code in (0, 1, None), said.err  # these sets are tiny: `check` may ask to look at them, but they are usable
    assert str(len(example.rows)) in said.out


def test_every_kind_of_manifest_has_an_example():
    assert len(examples()) == 12
