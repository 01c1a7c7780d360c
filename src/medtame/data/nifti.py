"""One slice of a NIfTI file: stored axes and no flips, `data[:, :, k].T` of the first time point. Runs in the worker."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medtame.data.worker import MAX_PIXELS, MAX_VOXELS
from medtame.errors import ImageError

if TYPE_CHECKING:
    from medtame.types import Array

DAMAGED = (ImageFileError, HeaderDataError, WrapStructError)
MAX_SPACING_MM = 100.0
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def frames(path: Path) -> tuple[dict[str, Any], None]:
    return {"frames": _depth(_opened(path))}, None


def stored(path: Path, frame: int | None) -> tuple[dict[str, Any], Array]:
    """(H, W), or (H, W, 3) for stored RGB, after slope and intercept."""
    volume = _opened(path)
    extra = len(volume.shape) - 3
    plane = _index(volume, frame)
    where = (slice(None), slice(None)) if extra < 0 else (slice(None), slice(None), plane, *[0] * extra)
    data = np.asarray(volume.dataobj[where])
    if data.dtype.names:
        return {}, np.stack([data[channel].T for channel in data.dtype.names[:3]], -1)
    if np.iscomplexobj(data):
        raise ImageError("it holds complex numbers; save their magnitude")
    if data.dtype.itemsize > 8:
        data = data.astype(np.float64)
    return {}, data.T


def whole(path: Path) -> tuple[dict[str, Any], Array]:
    """(S, H, W), or (S, H, W, 3) for stored RGB: `stored` of all slices. Floats have at most 32 bits."""
    volume = _opened(path)
    if math.prod(volume.shape[:3]) > MAX_VOXELS:
        raise ImageError(f"it has more than {MAX_VOXELS} voxels; cut it into parts")
    data = np.asarray(volume.dataobj[(slice(None),) * 3 + (0,) * (len(volume.shape) - 3)])
    if data.dtype.names:
        return {}, np.stack([data[channel].T for channel in data.dtype.names[:3]], -1)
    if np.iscomplexobj(data):
        raise ImageError("it holds complex numbers; save their magnitude")
    return {}, data.T.astype(np.float32) if data.dtype.kind == "f" and data.dtype.itemsize > 4 else data.T


def geometry(path: Path, frame: int | None) -> tuple[dict[str, Any], None]:
    volume = _opened(path)
    spacing_mm, affine = _spacing_mm(volume), np.array(volume.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, 2] * _index(volume, frame)
    affine[:3] *= _unit_mm(volume)
    return {
        "height": int(volume.shape[1]),
        "width": int(volume.shape[0]),
        "spacing_mm": [spacing_mm[1], spacing_mm[0]] if min(spacing_mm[:2]) > 0 else None,
        "affine": affine.tolist() if _spans_space(affine) else None,
    }, None


def _opened(path: Path) -> Any:
    """The volume, checked to be whole and its header to be plausible."""
    volume: Any = nibabel.load(path, mmap=False)
    shape = volume.shape
    if len(shape) < 2 or min(shape) < 1:
        raise ImageError(f"it has the shape {shape}, no slice")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ImageError(f"it claims more than {MAX_PIXELS} pixels")
    spacing_mm = _spacing_mm(volume)
    if not all(0 <= length <= MAX_SPACING_MM for length in spacing_mm):
        raise ImageError(f"its header gives voxels of {', '.join(f'{length:g}' for length in spacing_mm)} mm; mend the header")
    if not np.isfinite(volume.affine).all():
        raise ImageError("its affine holds NaN or infinity; mend the header")
    _check_length(path, volume.dataobj.offset + math.prod(shape) * volume.dataobj.dtype.itemsize)
    return volume


def _spans_space(affine: Array) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod())


def _depth(volume: Any) -> int:
    return int(volume.shape[2]) if len(volume.shape) > 2 else 1


def _index(volume: Any, frame: int | None) -> int:
    depth = _depth(volume)
    index = depth // 2 if frame is None else frame
    if not 0 <= index < depth:
        raise ImageError(f"it has {depth} slices, numbered from 0, and none is number {index}")
    return index


def _unit_mm(volume: Any) -> float:
    return _MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)


def _spacing_mm(volume: Any) -> list[float]:
    """Of the two or three axes in space; 0 where the file does not say."""
    return [float(zoom) * _unit_mm(volume) for zoom in volume.header.get_zooms()[:3]]


def _check_length(path: Path, needed: int) -> None:
    """Refuse a volume cut short. A gzip file tells its length in its last four bytes; in doubt it is read as far as needed."""
    if path.suffix.lower() != ".gz":
        held = path.stat().st_size
    else:
        with path.open("rb") as file:
            file.seek(-4, 2)
            if struct.unpack("<I", file.read(4))[0] == needed % 2**32:
                return
        held = 0
        with gzip.open(path) as file:
            while held < needed and (block := file.read(1 << 20)):
                held += len(block)
    if held < needed:
        raise ImageError("it is cut short")
