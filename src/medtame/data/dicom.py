"""DICOM files: one frame decoded, its value transform and window applied, its place in the patient.

Messages never hold tag values: they may name a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from medtame.errors import ImageError
from medtame.types import Array, Geometry

Dataset: TypeAlias = Any  # pydicom.Dataset: its attributes are made at run time

MAX_PIXELS = 178_956_970  # of one frame; the limit above which Pillow, too, speaks of a decompression bomb
SUFFIXES = frozenset({"", ".dcm", ".dicom", ".ima"})
_FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)
_PATIENT_ID = 0x00100020


def is_dicom(path: Path) -> bool:
    """Whether the file says so itself: the letters DICM after 128 bytes."""
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def patient_of(path: Path) -> bytes | None:
    """The stored bytes of PatientID, to tell patients apart and never to be shown; None where there are none."""
    try:
        if path.suffix.lower() not in SUFFIXES or not is_dicom(path):
            return None
        element = dcmread(path, stop_before_pixels=True, specific_tags=[_PATIENT_ID]).get_item(_PATIENT_ID)
    except (OSError, ValueError, AttributeError, LookupError, EOFError, TypeError, InvalidDicomError, BytesLengthException):
        return None
    value = b"" if element is None or element.value is None else element.value
    raw = value if isinstance(value, bytes) else str(value).encode()
    return raw.strip(b" \0") or None


def stored(path: Path, frame: int | None) -> Array:
    """(H, W) or (H, W, 3): the decoded numbers of one frame, before any transform; YBR is turned into RGB."""
    dataset, index = _opened(path, frame)
    return _decoded(dataset, index)


def shown(path: Path, frame: int | None) -> tuple[Array, bool]:
    """One frame as it is to be seen, and whether it already lies in 0..1 (window, palette, one bit).

    Otherwise the values are after slope and intercept and still need the intensity convention. MONOCHROME1 is inverted.
    """
    dataset, index = _opened(path, frame)
    pixels = _decoded(dataset, index)
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)[..., :3]
        return (colours / np.iinfo(colours.dtype).max).astype(np.float32), True
    if pixels.ndim == 3:
        return pixels, False
    if dataset.BitsAllocated == 1:
        unit: Array | None = pixels.astype(np.float32)
    else:
        pixels = apply_modality_lut(pixels, dataset)
        unit = _windowed(pixels, dataset)
    inverted = kind == "MONOCHROME1"
    if unit is not None:
        return (1 - unit if inverted else unit), True
    return (-pixels.astype(np.float64) if inverted else pixels), False


def geometry(path: Path, frame: int | None) -> Geometry:
    """Size, PixelSpacing and the affine from (column, row, slice) to millimetres, in the directions of NIfTI (RAS).

    ImagerPixelSpacing is not used: it holds at the detector, not in the patient.
    """
    dataset, _ = _opened(path, frame)
    spacing = _numbers(dataset.get("PixelSpacing"), 2)
    usable = spacing if spacing is not None and spacing.min() > 0 else None
    return Geometry(
        height=int(dataset.Rows),
        width=int(dataset.Columns),
        spacing_mm=None if usable is None else (float(usable[0]), float(usable[1])),
        affine=None if usable is None else _affine(dataset, usable),
    )


def _opened(path: Path, frame: int | None) -> tuple[Dataset, int]:
    """The data set, with what an enhanced file says of this frame lifted to its top, and the frame's number."""
    dataset: Dataset = dcmread(path)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("it is a DICOM file without pixels")
    if int(dataset.Rows) * int(dataset.Columns) > MAX_PIXELS:
        raise ImageError(f"it claims more than {MAX_PIXELS} pixels")
    count = int(dataset.get("NumberOfFrames") or 1)
    index = count // 2 if frame is None else frame
    if not 0 <= index < count:
        raise ImageError(f"it has {count} frames, numbered from 0, and none is number {index}")
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *own[index : index + 1]]:
        for macro in _FRAME_MACROS:
            for item in (group.get(macro) or [])[:1]:
                for element in item:
                    dataset.add(element)
    return dataset, index


def _decoded(dataset: Dataset, index: int) -> Array:
    return np.asarray(pixel_array(dataset, index=index))


def _windowed(pixels: Array, dataset: Dataset) -> Array | None:
    """(H, W) in 0..1 by the first VOI table or window; None where the file has none that can be used."""
    if dataset.get("VOILUTSequence"):
        entries, first, _ = (int(value) for value in dataset.VOILUTSequence[0].LUTDescriptor)
        last = first + (entries or 2**16) - 1
        table = apply_voi_lut(np.arange(first, last + 1), dataset)
        seen = apply_voi_lut(np.clip(np.rint(pixels), first, last).astype(np.int64), dataset)
        low, high = float(table.min()), float(table.max())
    else:
        width = _numbers(dataset.get("WindowWidth"), 1)
        centre = _numbers(dataset.get("WindowCenter"), 1)
        smallest = 1.0 if str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR" else 1e-9
        if width is None or centre is None or width[0] < smallest:
            return None
        with np.errstate(over="ignore"):  # a sigmoid far outside its window
            seen = apply_voi_lut(pixels, dataset)
            low, high = (float(end) for end in apply_voi_lut(np.array([-1e30, 1e30]), dataset))
    if low == high:
        return None
    return np.asarray(np.clip((seen - low) / (high - low), 0, 1), dtype=np.float32)


def _numbers(value: Any, wanted: int) -> Array | None:
    """The first `wanted` finite numbers of a DICOM value, or None."""
    if value is None or value == "":
        return None
    listed = [value] if np.isscalar(value) or not hasattr(value, "__len__") else list(value)
    numbers = np.array([float(part) for part in listed[:wanted]])
    return numbers if len(numbers) == wanted and np.isfinite(numbers).all() else None


def _affine(dataset: Dataset, spacing: Array) -> tuple[tuple[float, ...], ...] | None:
    position = _numbers(dataset.get("ImagePositionPatient"), 3)
    directions = _numbers(dataset.get("ImageOrientationPatient"), 6)
    if position is None or directions is None:
        return None
    thickness = _numbers(dataset.get("SliceThickness"), 1)
    along_row, along_column = directions[:3], directions[3:]
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = np.cross(along_row, along_column) * (1.0 if thickness is None or thickness[0] <= 0 else thickness[0])
    affine[:3, 3] = position
    affine[:2] *= -1  # DICOM points to left and posterior, NIfTI to right and anterior
    return tuple(tuple(float(number) for number in row) for row in affine)
