"""Thousands of broken files: each reads or is one ImageError, soon, and no message or warning names the planted patient."""

from __future__ import annotations

import csv
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mutator
import pytest
from pydicom import dcmread

from medtame.data.dicom import patient_of
from medtame.data.images import FilePicture
from medtame.data.worker import worker
from medtame.errors import ImageError

READS = ("read", "values", "geometry", "frames", "digest")
MOST_S = 10.0
SMALL_BYTES = 50_000  # of a real file that is broken, so that the run stays short


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of each format, and one by one the small real files where they are at hand."""
    return mutator.originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def hasty() -> Iterator[None]:
    """Two seconds a file, so that a mutant that hangs costs little."""
    usual, worker().limit_s = worker().limit_s, 2.0
    yield
    worker().limit_s = usual


def faults(path: Path, secrets: tuple[str, ...] = mutator.SECRETS) -> Iterator[str]:
    """What is wrong with how a broken file is met, in words."""
    for what in READS:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                getattr(FilePicture(path, "mutant"), what)()
                said = ""
            except ImageError as error:
                said = str(error)
        if time.perf_counter() - start > MOST_S:
            yield f"{what} took {time.perf_counter() - start:.0f} s"
        if said and (not said.startswith("mutant cannot be read: ") or "\n" in said):
            yield f"{what} says {said!r}"
        spoken = " ".join([said, *(str(warning.message) for warning in heard)])
        if any(secret in spoken for secret in secrets):
            yield f"{what} names the patient"
    patient_of(path)


def broken(originals: list[Path], seeds: range, folder: Path, secrets: tuple[str, ...] = mutator.SECRETS) -> Counter[str]:
    """How often each fault occurs over one mutant a seed, the originals in turn."""
    found: Counter[str] = Counter()
    for seed in seeds:
        original = originals[seed % len(originals)]
        path = folder / original.name
        path.write_bytes(mutator.mutant(original, seed))
        found.update(f"{original.name}, seed {seed}: {fault}" for fault in faults(path, secrets))
    return found


def test_the_originals_read_and_the_mutants_are_repeatable(originals: list[Path]) -> None:
    assert len({path.suffix for path in originals}) >= 10
    for path in originals:
        assert not list(faults(path))
        assert FilePicture(path, "x").read().shape[:2] in ((40, 48), (20, 24))
        assert mutator.mutant(path, 3) == mutator.mutant(path, 3)
    assert sum(mutator.mutant(path, 1) != mutator.mutant(path, 2) for path in originals) == len(originals)
    planted = [path for path in originals if not path.name.endswith((".gz", ".bmp")) and b"Nemo" in path.read_bytes()]
    assert len(planted) >= 15


def test_the_check_finds_a_name_and_a_foreign_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mutator.written(mutator.dicom(mutator.scan()), tmp_path / "a.dcm")

    def leaks(self: FilePicture) -> None:
        raise ImageError(f"mutant cannot be read: {mutator.NAME}")

    monkeypatch.setattr(FilePicture, "geometry", leaks)
    assert list(faults(path)) == ["geometry names the patient"]
    monkeypatch.setattr(FilePicture, "frames", lambda self: {}["frames"])
    with pytest.raises(KeyError):
        list(faults(path))


@pytest.mark.usefixtures("hasty")
def test_some_mutants(originals: list[Path], tmp_path: Path) -> None:
    assert not broken(originals, range(500), tmp_path)


@pytest.mark.full
def test_five_thousand_mutants(originals: list[Path], tmp_path: Path) -> None:
    assert not broken(originals, range(5000), tmp_path)


@pytest.mark.full
def test_mutants_of_real_files(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "volumes"
    with (folder / "files.csv").open(encoding="utf-8") as file:
        small = [folder / row["file"] for row in csv.DictReader(file) if 0 < int(row["bytes"]) < SMALL_BYTES]
    patients = [dcmread(path, force=True, stop_before_pixels=True) for path in small if path.suffix == ".dcm"]
    names = {str(patient.get(tag, "")) for patient in patients for tag in ("PatientName", "PatientID")}
    secrets = tuple(name for name in names if len(name) > 3)
    assert len(secrets) >= 3
    assert not broken(small, range(1000), tmp_path, secrets)
