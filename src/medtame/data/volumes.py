"""One slice of an NRRD, MHA or MHD file, and colour images of 16 bits a channel, through SimpleITK. Runs in the worker.

Slices are those along the third axis, stored axes and no flips, as in `nifti`. Pixels lie in the file itself; an .mhd file may
name one file beside it, in its own folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK

from medtame.data.text_headers import data_file, header
from medtame.data.worker import MAX_PIXELS, MAX_VOXELS
from medtame.errors import ImageError

if TYPE_CHECKING:
    from medtame.types import Array

DAMAGED: tuple[type[Exception], ...] = ()
MAX_SPACING_MM = 100.0
_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
_SPACING_FIELDS = ("elementspacing", "elementsize", "spacings", "space directions")
_META_NUMBERS = ("dimsize", "offset", "position", "origin", "elementspacing", "elementsize", "transformmatrix", "rotation", "orientation")


# ---- what the parent asks -------------------------------------------------------------------------------------


def frames(path: Path) -> tuple[dict[str, Any], None]:
    return {"frames": _depth(_opened(path))}, None


def stored(path: Path, frame: int | None) -> tuple[dict[str, Any], Array]:
    """(H, W), or (H, W, 3) for three channels: the stored numbers of the first time point."""
    reader = _opened(path)
    return {}, _slice(reader, _index(reader, frame))


def whole(path: Path) -> tuple[dict[str, Any], Array]:
    """(S, H, W), or (S, H, W, 3) for three channels: `stored` of all slices. Floats have at most 32 bits."""
    reader = _opened(path)
    size = reader.GetSize()
    if math.prod(size[:3]) > MAX_VOXELS:
        raise ImageError(f"it has more than {MAX_VOXELS} voxels; cut it into parts")
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
    pixels: Array = SimpleITK.GetArrayFromImage(reader.Execute())
    if np.iscomplexobj(pixels):
        raise ImageError("it holds complex numbers; save their magnitude")
    return {}, pixels.astype(np.float32) if pixels.dtype == np.float64 else pixels


def deep_colours(path: Path, page: int) -> tuple[dict[str, Any], Array]:
    """(H, W, 3) of a PNG or TIFF file with 16 bits a channel, of which Pillow keeps eight."""
    reader = _reader(path)
    return {}, _slice(reader, _index(reader, page))


def geometry(path: Path, frame: int | None) -> tuple[dict[str, Any], None]:
    """Size, spacing and the affine from (column, row, slice) to millimetres, in the directions of NIfTI (RAS)."""
    reader = _opened(path)
    size, spacing_mm, index = reader.GetSize(), reader.GetSpacing(), _index(reader, frame)
    said: dict[str, Any] = {"height": size[1], "width": size[0], "spacing_mm": None, "affine": None}
    if not any(name in header(path)[0] for name in _SPACING_FIELDS):
        return said, None
    said["spacing_mm"] = [spacing_mm[1], spacing_mm[0]]
    if len(size) > 2:
        affine = np.eye(4)
        affine[:3, :3] = np.array(reader.GetDirection()).reshape(len(size), len(size))[:3, :3] * np.array(spacing_mm[:3])
        affine[:3, 3] = np.array(reader.GetOrigin()[:3]) + affine[:3, 2] * index
        affine[:2] *= -1  # ITK points to left and posterior, NIfTI to right and anterior
        said["affine"] = affine.tolist() if np.linalg.det(affine[:3, :3]) != 0 else None
    return said, None


# ---- SimpleITK ------------------------------------------------------------------------------------------------


def _reader(path: Path) -> Any:
    """A reader that knows the header and a size that can be."""
    reader = SimpleITK.ImageFileReader()
    if path.suffix.lower() in _READERS:
        reader.SetImageIO(_READERS[path.suffix.lower()])
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) < 2 or min(size) < 1:
        raise ImageError(f"it has the shape {size}, no slice")
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"it claims more than {MAX_PIXELS} pixels")
    if reader.GetNumberOfComponents() not in (1, 3):
        raise ImageError(f"it has {reader.GetNumberOfComponents()} numbers a pixel; save one channel, or RGB")
    return reader


def _opened(path: Path) -> Any:
    """The reader, its header checked to be plausible and, where it tells, the file to be whole."""
    pixels_at = data_file(path)
    reader = _reader(path)
    lengths = reader.GetSpacing()[:3]
    if not all(0 < length <= MAX_SPACING_MM for length in lengths):
        raise ImageError(f"its header gives voxels of {', '.join(f'{length:g}' for length in lengths)} mm; mend the header")
    if not np.isfinite([*reader.GetOrigin(), *reader.GetDirection()]).all():
        raise ImageError("its place holds NaN or infinity; mend the header")
    numbers = [part for name in _META_NUMBERS for part in header(path)[0].get(name, "").split()]
    if not np.isfinite([float(part) for part in numbers]).all():  # SimpleITK takes what is no number for 0
        raise ImageError("its header holds NaN or infinity; mend the header")
    needed = _bytes_needed(path, reader)
    if needed is not None and pixels_at.stat().st_size < needed + (header(path)[1] if pixels_at == path else 0):
        raise ImageError("it is cut short")
    return reader


def _bytes_needed(path: Path, reader: Any) -> int | None:
    """How long a MetaImage file's pixels must be; None for NRRD, which SimpleITK always reads whole."""
    fields, _ = header(path)
    if "elementdatafile" not in fields:
        return None
    if fields.get("compresseddata", "").lower().startswith(("t", "1")):
        return int(fields["compresseddatasize"]) if "compresseddatasize" in fields else None
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    one = SimpleITK.Image([1] * len(size), reader.GetPixelIDValue(), channels if channels > 1 else 0)
    bytes_needed: int = math.prod(size) * channels * one.GetSizeOfPixelComponent()
    return bytes_needed


def _slice(reader: Any, index: int) -> Array:
    size = reader.GetSize()
    if len(size) > 2:
        reader.SetExtractIndex([0, 0, index, *[0] * (len(size) - 3)])
        reader.SetExtractSize([*size[:2], *[0] * (len(size) - 2)])
    pixels: Array = SimpleITK.GetArrayFromImage(reader.Execute())
    if np.iscomplexobj(pixels):
        raise ImageError("it holds complex numbers; save their magnitude")
    return pixels


def _depth(reader: Any) -> int:
    size = reader.GetSize()
    return int(size[2]) if len(size) > 2 else 1


def _index(reader: Any, frame: int | None) -> int:
    depth = _depth(reader)
    index = depth // 2 if frame is None else frame
    if not 0 <= index < depth:
        raise ImageError(f"it has {depth} slices, numbered from 0, and none is number {index}")
    return index
