"""DICOM files as the rest of the package sees them: what is one, and whose it is. `dicom_frames` reads them."""

from __future__ import annotations

from pathlib import Path

from medtame.data.worker import DAMAGED, worker
from medtame.errors import ImageError

DEFLATED = b"1.2.840.10008.1.2.1.99"
META_BYTES = 4096  # the file meta information lies within
SUFFIXES = frozenset({"", ".dcm", ".dicom", ".ima"})


def is_dicom(path: Path) -> bool:
    """Whether the file says so itself: the letters DICM after 128 bytes."""
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def may_be_dicom(path: Path) -> bool:
    """Whether the file says so itself or by the end of its name: some files lack the preamble."""
    return is_dicom(path) or path.suffix.lower() in SUFFIXES - {""}


def is_deflated(path: Path) -> bool:
    """Whether the data set is compressed as a whole: a few bytes may fill the memory, so its header is read in the worker only."""
    with path.open("rb") as file:
        return DEFLATED in file.read(META_BYTES)


def patient_of(path: Path) -> bytes | None:
    """The stored bytes of PatientID, to tell patients apart and never to be shown; None where there are none."""
    try:
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or not may_be_dicom(path):
            return None
        said, _ = worker().ask("dicom", "patient", path)
    except (ImageError, *DAMAGED):
        return None
    return bytes.fromhex(said["patient"]) or None
