"""One frame of a DICOM file: decoded, its value transform and window applied, its place in the patient. Runs in the worker.

Overlays are not drawn; where one lies in unused bits of the pixels, these bits are cleared. JPEG Lossless, JPEG Extended of 12
bits, and what pydicom's plug-ins cannot decode go to SimpleITK's GDCM. A file without preamble is read if it is named .dcm,
.dicom or .ima and its pixels have the length that its header claims. Reasons never hold tag values: they may name a patient.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from medtame.data.dicom import is_dicom
from medtame.data.worker import MAX_PIXELS
from medtame.errors import ImageError

if TYPE_CHECKING:
    from medtame.types import Array

Dataset: TypeAlias = Any  # pydicom.Dataset: its attributes are made at run time

DAMAGED = (InvalidDicomError, BytesLengthException)
MAX_SPACING_MM = 100.0
MAX_INFLATED_BYTES = 1 << 29
_BLOCK_BYTES = 1 << 20
_META_AT = 144  # preamble, DICM, and the element that tells how long the rest of the meta information is
_OF_GDCM = frozenset([*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes])
_FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
)
_PATIENT_ID = 0x00100020


# ---- what the parent asks -------------------------------------------------------------------------------------


def patient(path: Path) -> tuple[dict[str, Any], None]:
    """The stored bytes of PatientID in hexadecimal, empty where there are none. Nothing after it is read."""
    _check_inflated(path)
    with path.open("rb") as file:
        dataset = read_partial(file, stop_when=lambda tag, vr, length: int(tag) > _PATIENT_ID, force=True)
        element = dataset.get_item(_PATIENT_ID)
    value = b"" if element is None or element.value is None else element.value
    raw = value if isinstance(value, bytes) else str(value).encode()
    return {"patient": raw.strip(b" \0").hex()}, None


def frames(path: Path) -> tuple[dict[str, Any], None]:
    return {"frames": _count(_read(path))}, None


def stored(path: Path, frame: int | None) -> tuple[dict[str, Any], Array]:
    """(H, W) or (H, W, 3): the decoded numbers of one frame, before any transform; YBR is turned into RGB."""
    return {}, _decoded(*_opened(path, frame))


def shown(path: Path, frame: int | None, own_window: bool) -> tuple[dict[str, Any], Array]:
    """One frame as it is to be seen: (H, W) or (H, W, 3).

    `unit`: it lies in 0..1 already (window, palette, one bit). Otherwise the numbers are after slope and intercept, or 8-bit as
    stored, and still need a window. `inverted`: what is high is dark (MONOCHROME1).
    """
    dataset, index = _opened(path, frame)
    pixels = _decoded(dataset, index)
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)[..., :3]
        if colours.dtype == np.uint8:
            return {"unit": False, "inverted": False}, colours
        return {"unit": True, "inverted": False}, (colours / np.iinfo(colours.dtype).max).astype(np.float32)
    if pixels.ndim == 3:
        return {"unit": False, "inverted": False}, pixels
    inverted = kind == "MONOCHROME1"
    if dataset.BitsAllocated == 1:
        return {"unit": True, "inverted": inverted}, pixels.astype(np.float32)
    pixels = apply_modality_lut(pixels, dataset)
    seen = _windowed(pixels, dataset) if own_window else None
    return {"unit": seen is not None, "inverted": inverted}, pixels if seen is None else seen


def geometry(path: Path, frame: int | None) -> tuple[dict[str, Any], None]:
    """Size, PixelSpacing and the affine from (column, row, slice) to millimetres, in the directions of NIfTI (RAS).

    ImagerPixelSpacing is not used: it holds at the detector, not in the patient. A spacing outside 0..100 mm is no spacing.
    """
    dataset, index = _opened(path, frame)
    spacing = _numbers(dataset.get("PixelSpacing"), 2)
    if spacing is not None and not (spacing.min() > 0 and spacing.max() <= MAX_SPACING_MM):
        spacing = None
    return {
        "height": int(dataset.Rows),
        "width": int(dataset.Columns),
        "spacing_mm": None if spacing is None else spacing.tolist(),
        "affine": None if spacing is None else _affine(dataset, spacing, index),
    }, None


# ---- the data set ---------------------------------------------------------------------------------------------


def _read(path: Path) -> Dataset:
    """The data set, with pixels, a size and a transfer syntax."""
    marked = is_dicom(path)
    _check_inflated(path)
    dataset: Dataset = dcmread(path, force=not marked)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(
            "it is a DICOM file without pixels" if marked else "it does not begin as a DICOM file, and no pixels are found in it"
        )
    if not 0 < int(dataset.Rows) * int(dataset.Columns) <= MAX_PIXELS:
        raise ImageError(f"it claims no pixels, or more than {MAX_PIXELS}")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        if "PixelData" not in dataset or len(dataset.PixelData) != (length := get_expected_length(dataset)) + length % 2:
            raise ImageError("it does not say how its pixels are stored, and their length does not fit; export it again")
        known = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = known if little else ExplicitVRBigEndian
    return dataset


def _check_inflated(path: Path) -> None:
    """Refuse a deflated data set that would grow beyond `MAX_INFLATED_BYTES`."""
    with path.open("rb") as file:
        if DeflatedExplicitVRLittleEndian.encode() not in file.read(1024):
            return
        file.seek(_META_AT + read_file_meta_info(path).FileMetaInformationGroupLength)
        inflater, grown = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflater.unconsumed_tail or file.read(_BLOCK_BYTES):
            grown += len(inflater.decompress(block, _BLOCK_BYTES))
            if grown > MAX_INFLATED_BYTES:
                raise ImageError(f"it grows to more than {MAX_INFLATED_BYTES >> 20} MiB when inflated")


def _count(dataset: Dataset) -> int:
    count = int(dataset.get("NumberOfFrames") or 1)
    if count < 1:
        raise ImageError(f"it claims {count} frames")
    return count


def _opened(path: Path, frame: int | None) -> tuple[Dataset, int]:
    """The data set, with what an enhanced file says of this frame lifted to its top, and the frame's number."""
    dataset = _read(path)
    count = _count(dataset)
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


# ---- pixels ---------------------------------------------------------------------------------------------------


def _decoded(dataset: Dataset, index: int) -> Array:
    try:
        pixels = np.asarray(pixel_array(dataset, index=index))
    except (RuntimeError, NotImplementedError):  # no plug-in, or none that can
        if dataset.file_meta.TransferSyntaxUID not in _OF_GDCM:
            raise
        from medtame.data.gdcm import decoded

        pixels = decoded(dataset, index)
    size = (int(dataset.Rows), int(dataset.Columns))
    if pixels.shape not in (size, (*size, 3)):
        raise ImageError(f"its pixels have the shape {pixels.shape}; grey or three colours of {size} are wanted")
    return _without_overlay(pixels, dataset)


def _without_overlay(pixels: Array, dataset: Dataset) -> Array:
    """Clears the bits that are not the pixel's where the file says that an overlay lies in them."""
    if not any(dataset.get((group, 0x0102), None) and dataset[group, 0x0102].value for group in range(0x6000, 0x6020, 2)):
        return pixels
    bits = pixels.dtype.itemsize * 8
    above, unused = bits - 1 - int(dataset.HighBit), bits - int(dataset.BitsStored)
    if pixels.dtype.kind not in "iu" or not 0 <= above <= unused < bits:
        return pixels
    cleared: Array = (pixels << above) >> unused
    return cleared


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


# ---- place ----------------------------------------------------------------------------------------------------


def _numbers(value: Any, wanted: int) -> Array | None:
    """The first `wanted` finite numbers of a DICOM value, or None."""
    if value is None or value == "":
        return None
    listed = [value] if np.isscalar(value) or not hasattr(value, "__len__") else list(value)
    numbers = np.array([float(part) for part in listed[:wanted]])
    return numbers if len(numbers) == wanted and np.isfinite(numbers).all() else None


def _affine(dataset: Dataset, spacing: Array, index: int) -> list[list[float]] | None:
    """4 x 4; None where the file does not say where this frame lies."""
    position = _numbers(dataset.get("ImagePositionPatient"), 3)
    directions = _numbers(dataset.get("ImageOrientationPatient"), 6)
    if position is None or directions is None:
        return None
    along_row, along_column = directions[:3], directions[3:]
    normal = np.cross(along_row, along_column)
    if _count(dataset) > 1 and not dataset.get("PerFrameFunctionalGroupsSequence"):
        offsets = _numbers(dataset.get("GridFrameOffsetVector"), _count(dataset))
        if offsets is None:
            return None
        position = position + normal * offsets[index]
    thickness = _numbers(dataset.get("SliceThickness"), 1)
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = normal * (1.0 if thickness is None or thickness[0] <= 0 else thickness[0])
    affine[:3, 3] = position
    affine[:2] *= -1  # DICOM points to left and posterior, NIfTI to right and anterior
    whole: list[list[float]] = affine.tolist()
    return whole if np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0 else None
