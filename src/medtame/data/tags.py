"""What the headers of DICOM files say, without their values: which identifying tags are filled, the modality, who is who.

Patients and studies leave this file as running numbers only. No message and no result holds a value of a tag.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError

from medtame.data import dicom
from medtame.data.sources import Source, opened
from medtame.data.worker import DAMAGED
from medtame.errors import ImageError

IDENTIFYING = frozenset(  # of the Basic Application Level Confidentiality Profile, DICOM PS3.15 table E.1-1
    (
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientBirthName",
        "PatientMotherBirthName",
        "MedicalRecordLocator",
        "PatientInsurancePlanCodeSequence",
        "CountryOfResidence",
        "RegionOfResidence",
        "Occupation",
        "MilitaryRank",
        "BranchOfService",
        "ResponsiblePerson",
        "ResponsibleOrganization",
        "PatientComments",
        "AdditionalPatientHistory",
        "InstitutionName",
        "InstitutionAddress",
        "InstitutionalDepartmentName",
        "ReferringPhysicianName",
        "ReferringPhysicianAddress",
        "ReferringPhysicianTelephoneNumbers",
        "PerformingPhysicianName",
        "PhysiciansOfRecord",
        "NameOfPhysiciansReadingStudy",
        "RequestingPhysician",
        "OperatorsName",
        "ScheduledPerformingPhysicianName",
        "StationName",
        "DeviceSerialNumber",
        "AccessionNumber",
        "AdmissionID",
        "CurrentPatientLocation",
        "PersonName",
        "PersonAddress",
        "PersonTelephoneNumbers",
    )
)
PSEUDONYMS = frozenset({"PatientName", "PatientID"})  # still filled, with made-up values, where a file says that it was de-identified
PRIVATE = "private tags"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_BROKEN = (*DAMAGED, ImageError, InvalidDicomError, BytesLengthException)


@dataclass(frozen=True)
class Header:
    """One DICOM file. `patient` and `study` are running numbers, None where the tag is empty.

    `burned_in`: the file says that its pixels hold text, or is of a kind that usually does and does not say.
    """

    modality: str
    identifying: frozenset[str]
    burned_in: bool
    patient: int | None
    study: int | None


def headers(paths: Sequence[Path | Callable[[], Source] | None]) -> list[Header | None]:
    """A header a path, or what gives the bytes of one; None where there is no path, no DICOM file, or none that can be read."""
    patients: dict[str, int] = {}
    studies: dict[str, int] = {}
    return [_header(path, patients, studies) for path in paths]


def _header(path: Path | Callable[[], Source] | None, patients: dict[str, int], studies: dict[str, int]) -> Header | None:
    try:
        source = path if path is None or isinstance(path, Path) else path()
        if source is None or (isinstance(source, Path) and not source.is_file()) or not dicom.may_be_dicom(source):
            return None
        if dicom.is_deflated(source):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            with opened(source) as file:
                dataset = dcmread(file, stop_before_pixels=True, force=not dicom.is_dicom(source))
            return Header(
                modality=_modality(dataset),
                identifying=_identifying(dataset),
                burned_in=_may_hold_text(dataset),
                patient=_numbered(dataset, "PatientID", patients),
                study=_numbered(dataset, "StudyInstanceUID", studies),
            )
    except _BROKEN:
        return None


def _identifying(dataset: Any) -> frozenset[str]:
    """Keywords of tags that are filled, at any depth; private ones under one name."""
    declared = _text(dataset, "PatientIdentityRemoved").upper() == "YES"
    found = set()
    for element in dataset.iterall():
        if element.tag.is_private:
            found.add(PRIVATE)
        elif element.keyword in IDENTIFYING and not (declared and element.keyword in PSEUDONYMS) and _says_something(element.value):
            found.add(element.keyword)
    return frozenset(found)


def _says_something(value: Any) -> bool:
    """Whether a value is neither empty nor the usual word for one that was taken out."""
    letters = "".join(letter for letter in str(value or "").casefold() if letter.isalnum())
    return bool(letters) and not letters.startswith(("anon", "deidentified", "removed"))


def _modality(dataset: Any) -> str:
    """A code string such as CT; anything that does not look like one is unknown, for it may be anything."""
    code = _text(dataset, "Modality").upper()
    return code if 0 < len(code) <= 4 and code.isascii() and code.isalpha() else "unknown"


def _may_hold_text(dataset: Any) -> bool:
    """BurnedInAnnotation says YES, or says nothing in ultrasound or secondary capture, where text is usual."""
    said = _text(dataset, "BurnedInAnnotation").upper()
    usual = _modality(dataset) == "US" or _text(dataset, "SOPClassUID").startswith(SECONDARY_CAPTURE)
    return said == "YES" or (not said and usual)


def _numbered(dataset: Any, keyword: str, known: dict[str, int]) -> int | None:
    value = _text(dataset, keyword)
    return known.setdefault(value, len(known) + 1) if value else None


def _text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")
