"""DICOM files as the rest of the package sees them: what is one, and whose it is. `dicom_frames` reads them."""

from __future__ import annotations

from pathlib import Path

from medtame.data.sources import Source, on_disk, opened
from medtame.data.worker import DAMAGED, worker
from medtame.errors import ImageError

DEFLATED = b"1.2.840.10008.1.2.1.99"
META_BYTES = 4096  # the file meta information lies within
SUFFIXES = frozenset({"", ".dcm", ".dicom", ".ima"})


def is_dicom(source: Source) -> bool:
    """Whether the file says so itself: the letters DICM after 128 bytes."""
    with opened(source) as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def may_be_dicom(source: Source) -> bool:
    """Whether the file says so itself or by the end of its name: some files lack the preamble."""
    return is_dicom(source) or source.suffix.lower() in SUFFIXES - {""}


def is_deflated(source: Source) -> bool:
    """Whether the data set is compressed as a whole: a few bytes may fill the memory, so its header is read in the worker only."""
    with opened(source) as file:
        return DEFLATED in file.read(META_BYTES)


def patient_of(source: Source) -> bytes | None:
    """The stored bytes of PatientID, to tell patients apart and never to be shown; None where there are none."""
    try:
        if source.suffix.lower() not in SUFFIXES or (isinstance(source, Path) and not source.is_file()) or not may_be_dicom(source):
            return None
        with on_disk(source) as path:
            said, _ = worker().ask("dicom", "patient", path)
    except (ImageError, *DAMAGED):
        return None
    return bytes.fromhex(said["patient"]) or None
