"""Pictures that are more or less than a file: a DICOM series (several files), and one structure of a label map.

A series is ordered by place along the normal of its slices where all lie parallel, else by InstanceNumber, else by file name.
Headers are read for that and nothing of them is shown. Where files of a series differ in size the largest group of one size is
kept; where several lie at one place (time points, echoes, copies) the first is kept.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError

from medtame.data import dicom
from medtame.data.images import FilePicture
from medtame.data.worker import DAMAGED
from medtame.errors import ImageError
from medtame.types import Array, Geometry

_TAGS = ("SeriesInstanceUID", "SOPInstanceUID", "PatientID", "Modality", "Rows", "Columns", "NumberOfFrames")
_ORDER_TAGS = ("InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient")
_DAMAGED = (*DAMAGED, InvalidDicomError, BytesLengthException)
_VIEWS = frozenset({"CR", "DX", "MG", "IO", "PX", "RG"})  # projection radiography: the files of a series are views, not slices
_PARALLEL = 0.999
_SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class SeriesPicture:
    """One DICOM series, its files in the order of its slices. Satisfies `Picture`.

    `frame` chooses a slice from 0; by default the middle one, number n // 2. Where there is one file with many frames, these are
    its slices. `window` is an intensity window by name.
    """

    paths: tuple[Path, ...]
    name: str
    frame: int | None = None
    window: str = ""

    def shown(self) -> FilePicture:
        """The file of the chosen slice. Raises ImageError for a slice that is not there."""
        return self._slice(len(self.paths) // 2 if self.frame is None else self.frame)

    def _slice(self, index: int) -> FilePicture:
        if len(self.paths) == 1:
            return FilePicture(self.paths[0], self.name, self.frame, self.window)
        if not 0 <= index < len(self.paths):
            count = len(self.paths)
            raise ImageError(f"{self.name} cannot be read: it has {count} slices, numbered from 0, and none is number {index}")
        return FilePicture(self.paths[index], f"{self.name} (slice {index})", window=self.window)

    def windowed(self, window: str) -> SeriesPicture:
        """The same series, seen through another intensity window."""
        return replace(self, window=window)

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1 of the chosen slice. Raises ImageError."""
        return self.shown().array()

    def read(self) -> Array:
        """`array`, but uint8 where the slice was stored in 8 bits. Raises ImageError."""
        return self.shown().read()

    def frames(self) -> int:
        """How many slices there are: files, or the frames of a single file. Raises ImageError."""
        return len(self.paths) if len(self.paths) != 1 else self.shown().frames()

    def values(self) -> Array:
        """(H, W) the stored numbers of the chosen slice. Raises ImageError."""
        return self.shown().values()

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the chosen slice, as if its file stood alone."""
        return self.shown().digest()

    def geometry(self) -> Geometry:
        """Of the chosen slice; the affine's third column is as long as the way to the next slice (for the last: to the one before)."""
        own = self.shown().geometry()
        if len(self.paths) < 2 or own.affine is None:
            return own
        index = len(self.paths) // 2 if self.frame is None else self.frame
        other = self._slice(index + 1 if index + 1 < len(self.paths) else index - 1).geometry()
        if other.affine is None:
            return own
        affine, beside = np.array(own.affine), np.array(other.affine)
        normal, its = (matrix[:3, 2] / np.linalg.norm(matrix[:3, 2]) for matrix in (affine, beside))
        gap = abs(float((beside[:3, 3] - affine[:3, 3]) @ normal))
        if abs(float(normal @ its)) < _PARALLEL or gap < _SAME_PLACE_MM:
            return own
        affine[:3, 2] = normal * gap
        return replace(own, affine=tuple(tuple(float(number) for number in row) for row in affine))


@dataclass(frozen=True)
class LabelPicture:
    """One structure of a label map: `values` is 1 where the map holds one of `numbers`, else 0. Satisfies `Picture`."""

    path: Path
    name: str
    numbers: tuple[int, ...]
    frame: int | None = None

    def shown(self) -> FilePicture:
        """The label map itself."""
        return FilePicture(self.path, self.name, self.frame)

    def values(self) -> Array:
        """(H, W) uint8, 1 inside. Raises ImageError."""
        return np.isin(self.shown().values(), self.numbers).astype(np.uint8)

    def array(self) -> Array:
        """(H, W, 1) float32, 1 inside."""
        return self.values()[..., None].astype(np.float32)

    def read(self) -> Array:
        """(H, W, 1) uint8, 255 inside."""
        return self.values()[..., None] * np.uint8(255)

    def frames(self) -> int:
        return self.shown().frames()

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the label map and the numbers."""
        return hashlib.sha256(f"{self.shown().digest()} {self.numbers}".encode()).hexdigest()

    def geometry(self) -> Geometry:
        return self.shown().geometry()


# ---- files to series ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """The files of one series, in order."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Scan:
    """What a heap of DICOM files holds: its series, and the files that were left out and why."""

    series: list[Series] = field(default_factory=list)
    no_pixels: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    other_size: list[Path] = field(default_factory=list)
    same_place: list[Path] = field(default_factory=list)
    views: int = 0

    def joined(self, other: Scan) -> Scan:
        """Both heaps as one."""
        return Scan(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def notes(self, root: Path) -> list[str]:
        """A sentence for each kind of file that was left out; file names only."""
        said = {
            "hold no pixels": self.no_pixels,
            "cannot be read as DICOM": self.unreadable,
            "have another size than most of their series": self.other_size,
            "lie where another slice of their series lies (time points, echoes or copies; the first is kept)": self.same_place,
        }
        notes = [_left_out(files, why, root) for why, files in said.items() if files]
        return notes + ([f"{self.views} radiographs are a row each: files of their series are views, not slices."] if self.views else [])


def _left_out(files: Sequence[Path], why: str, root: Path) -> str:
    first = ", ".join(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in sorted(files)[:3])
    return f"{len(files)} DICOM file(s) {why} and were left out: {first}" + (" …" if len(files) > 3 else "") + "."


def patient_of(path: Path) -> bytes | None:
    """As `dicom.patient_of`, also for files whose names end in a number for a suffix, as scanners write them. Never to be shown."""
    if not path.suffix[1:].isdecimal():
        return dicom.patient_of(path)
    header = _header(path)
    return header.patient.encode() or None if header is not None else None


def headers(files: Iterable[Path]) -> dict[Path, Header | None]:
    """What order and grouping need of each file; None where it cannot be read as DICOM."""
    return {path: _header(path) for path in files}


def scan(headers: Mapping[Path, Header | None]) -> Scan:
    """Group DICOM files to series: by SeriesInstanceUID and patient; a file without one, and a radiograph, stands alone."""
    found = Scan()
    held: dict[tuple[str, ...], list[Header]] = {}
    views: Counter[str] = Counter()
    for path, header in headers.items():
        if header is None:
            found.unreadable.append(path)
        elif not (header.rows and header.columns):
            found.no_pixels.append(path)
        else:
            view = header.modality in _VIEWS
            views[header.series] += view
            alone = view or not header.series
            held.setdefault((str(path),) if alone else (header.series, header.patient), []).append(header)
    for together in held.values():
        found.series.append(_ordered(together, found))
    return replace(found, views=sum(count for series, count in views.items() if series and count > 1))


@dataclass(frozen=True)
class Header:
    """The tags of one file that order and group it. `patient` and the UIDs are never to be shown."""

    path: Path
    series: str
    instance: str
    patient: str
    modality: str
    rows: int
    columns: int
    number: int | None
    place: tuple[float, ...] | None  # ImagePositionPatient, 3 numbers in mm
    directions: tuple[float, ...] | None  # ImageOrientationPatient, 6 numbers


def _header(path: Path) -> Header | None:
    try:
        if dicom.is_deflated(path):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings may quote values
            read: Any = dcmread(path, stop_before_pixels=True, force=not dicom.is_dicom(path), specific_tags=[*_TAGS, *_ORDER_TAGS])
            series, instance, patient, modality = (str(read.get(tag) or "").strip(" \0") for tag in _TAGS[:4])
            rows, columns = (int(read.get(tag) or 0) for tag in _TAGS[4:6])
            number = _numbers(read.get("InstanceNumber"), 1)
            place, directions = _numbers(read.get("ImagePositionPatient"), 3), _numbers(read.get("ImageOrientationPatient"), 6)
    except _DAMAGED:
        return None
    whole = None if number is None else int(number[0])
    return Header(path, series, instance, patient, modality, rows, columns, whole, place, directions)


def _numbers(value: Any, wanted: int) -> tuple[float, ...] | None:
    """Finite numbers of a DICOM value, or None where there are not just as many."""
    listed = [value] if wanted == 1 else list(value or ())
    try:
        numbers = tuple(float(part) for part in listed)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == wanted and np.isfinite(numbers).all() else None


def _ordered(headers: list[Header], found: Scan) -> Series:
    """One series in order; what does not belong is listed in `found`."""
    headers = sorted(headers, key=lambda header: natural(str(header.path)))
    sizes = Counter((header.rows, header.columns) for header in headers)
    size = max(sizes, key=lambda one: sizes[one])
    found.other_size.extend(header.path for header in headers if (header.rows, header.columns) != size)
    headers = [header for header in headers if (header.rows, header.columns) == size]
    if all(header.number is not None for header in headers):
        headers.sort(key=lambda header: header.number or 0)
    along = _along_normal(headers)
    if along is not None:
        order = np.argsort(along, kind="stable")
        headers, along = [headers[i] for i in order], along[order]
        new = np.diff(along, prepend=-np.inf) > _SAME_PLACE_MM
    else:
        instances = [header.instance or str(header.path) for header in headers]
        first: dict[str, int] = {}
        new = np.array([first.setdefault(instance, i) == i for i, instance in enumerate(instances)])
    found.same_place.extend(header.path for header, kept in zip(headers, new, strict=True) if not kept)
    return Series(tuple(header.path for header, kept in zip(headers, new, strict=True) if kept))


def _along_normal(headers: Sequence[Header]) -> Array | None:
    """(N,) mm along the common normal; None where slices have no place, are not parallel, or all lie at one place."""
    places, directions = [header.place for header in headers], [header.directions for header in headers]
    if len(headers) < 2 or None in places or None in directions:
        return None
    axes = np.array(directions, dtype=float)
    normals = np.cross(axes[:, :3], axes[:, 3:])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    if lengths.min() < 0.5:
        return None
    normals /= lengths
    along = np.array(places, dtype=float) @ normals[0]
    if (normals @ normals[0]).min() < _PARALLEL or np.ptp(along) < _SAME_PLACE_MM:
        return None
    return np.asarray(along)


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts IM2 before IM10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text)]
