"""One image, named but not yet read, and the intensity convention.

Intensities: 8-bit is divided by 255; 16-bit and float run from their 0.5 to their 99.5 percentile; DICOM follows its window
where it has one, after slope and intercept; MONOCHROME1 is inverted. Palette and CMYK become RGB, alpha lies on black, grey
keeps one channel, EXIF rotation is applied.

Slices: DICOM with several frames gives the middle one (number n // 2); NIfTI the middle slice of its third axis, of the first
time point, with stored axes and no flips: `data[:, :, k].T`, so the first axis runs along the columns. TIFF and GIF give their
first page. `frame` chooses another, counted from 0.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from PIL import Image, ImageOps
from pydicom.errors import BytesLengthException, InvalidDicomError

from medtame.data import dicom
from medtame.errors import ImageError
from medtame.types import Array, Geometry

CONVENTION = "1"  # part of every digest: raise it when `array` changes for any file
LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # no others: Pillow would hand an EPS file to Ghostscript
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_DAMAGED = (  # what Pillow, pydicom and nibabel raise on broken bytes
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    InvalidDicomError,
    BytesLengthException,
)


@dataclass(frozen=True)
class FilePicture:
    """An image file. `name` is what tables and messages show; `frame` chooses a frame, page or slice, from 0."""

    path: Path
    name: str
    frame: int | None = None

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1 after the intensity convention; C is 1 or 3. Raises ImageError."""
        return unit(self.read())

    def read(self) -> Array:
        """`array`, but uint8 in 0..255 where the image was stored in 8 bits. Raises ImageError."""
        with _reading(self.path, self.name):
            kind = _kind(self.path)
            if kind == "dicom":
                pixels, done = dicom.shown(self.path, self.frame)
                return _three_axes(pixels if done or pixels.dtype == np.uint8 else scaled(pixels))
            pixels = _nifti_slice(self.path, self.frame) if kind == "nifti" else _pillow_array(self.path, self.frame)
            return _three_axes(pixels if pixels.dtype == np.uint8 else scaled(pixels))

    def frames(self) -> int:
        """How many frames, pages or slices `frame` may choose from. Raises ImageError."""
        with _reading(self.path, self.name):
            return 1

    def values(self) -> Array:
        """(H, W) the stored numbers: palette indices, labels, instance numbers. DICOM is raw, NIfTI after its slope.

        Raises ImageError where three channels differ. Whole numbers stored as floats come back as integers.
        """
        with _reading(self.path, self.name):
            kind = _kind(self.path)
            if kind == "dicom":
                return _one_channel(dicom.stored(self.path, self.frame))
            if kind == "nifti":
                return _one_channel(_nifti_slice(self.path, self.frame))
            with _pillow(self.path, self.frame) as image:
                return _one_channel(np.asarray(image), alpha=image.mode in ("LA", "La", "PA", "RGBA", "RGBa"))

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the file's bytes and of how they are read."""
        with _reading(self.path, self.name), self.path.open("rb") as file:
            hasher = hashlib.sha256(f"medtame {CONVENTION} {_kind(self.path)} {self.frame}\n".encode())
            return hashlib.file_digest(file, lambda: hasher).hexdigest()

    def geometry(self) -> Geometry:
        """Size as `array` has it. The affine takes (column, row, slice) of this one slice to millimetres, in RAS.

        So a mask of this slice is written as `nibabel.Nifti1Image(mask.T[:, :, None], affine)`.
        """
        with _reading(self.path, self.name):
            kind = _kind(self.path)
            if kind == "dicom":
                return dicom.geometry(self.path, self.frame)
            if kind == "nifti":
                return _nifti_geometry(self.path, self.frame)
            with _pillow(self.path, self.frame) as image:
                return Geometry(height=image.height, width=image.width)


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """An image in memory: (H, W), (H, W, 1) or (H, W, 3). Floats lie in 0..1 already; integers follow the convention."""

    pixels: Array
    name: str

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
            raise ImageError(f"{self.name}: an image of shape {shape}; give (H, W), (H, W, 1) or (H, W, 3)")

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1; C is 1 or 3. Raises ImageError for floats outside 0..1."""
        if not np.issubdtype(self.pixels.dtype, np.floating):
            return _three_axes(scaled(self.pixels))
        if not (np.isfinite(self.pixels).all() and self.pixels.min() >= -1e-4 and self.pixels.max() <= 1 + 1e-4):
            raise ImageError(f"{self.name}: floats outside 0..1; scale them to 0..1, or give whole numbers")
        return _three_axes(np.clip(self.pixels, 0, 1).astype(np.float32))

    def read(self) -> Array:
        """`array`, but uint8 in 0..255 where that is what was given. Raises ImageError."""
        return _three_axes(self.pixels) if self.pixels.dtype == np.uint8 else self.array()

    def frames(self) -> int:
        return 1

    def values(self) -> Array:
        """(H, W) the numbers as given. Raises ImageError where three channels differ."""
        try:
            return _one_channel(self.pixels)
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from None

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of numbers, shape and type."""
        hasher = hashlib.sha256(f"medtame {CONVENTION} array {self.pixels.dtype.str} {self.pixels.shape}\n".encode())
        hasher.update(np.ascontiguousarray(self.pixels).tobytes())
        return hasher.hexdigest()

    def geometry(self) -> Geometry:
        return Geometry(height=self.pixels.shape[0], width=self.pixels.shape[1])


def unit(pixels: Array) -> Array:
    """What `read` gives as float32 in 0..1."""
    return (pixels / np.float32(255)).astype(np.float32) if pixels.dtype == np.uint8 else pixels


def scaled(pixels: Array) -> Array:
    """The intensity convention for plain numbers: float32 in 0..1, same shape. NaN counts as the lowest value.

    Raises ImageError where no number is finite. A constant 16-bit or float image becomes zeros.
    """
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return (pixels / np.float32(255)).astype(np.float32)
    numbers = pixels.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        raise ImageError("it holds no number, only NaN")
    if not finite.all():
        lowest, highest = numbers[finite].min(), numbers[finite].max()
        numbers = np.nan_to_num(numbers, nan=lowest, neginf=lowest, posinf=highest)
    low, high = np.percentile(numbers[finite], (LOW_PERCENT, HIGH_PERCENT))
    if low == high:  # almost constant: what little differs is kept
        low, high = numbers.min(), numbers.max()
    if low == high:
        return np.zeros(pixels.shape, dtype=np.float32)
    between: Array = np.clip((numbers - low) / (high - low), 0, 1).astype(np.float32)
    return between


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Every failure becomes one line with the manifest's name. Libraries' own words are dropped: they may quote tags."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name} cannot be read: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{name} cannot be read: it is not there") from None
    except PermissionError:
        raise ImageError(f"{name} cannot be read: no permission") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} cannot be read: it claims more than {dicom.MAX_PIXELS} pixels") from None
    except _DAMAGED:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "the file is empty" if empty else "it is damaged, cut short, or no PNG, JPEG, TIFF, BMP, GIF, DICOM or NIfTI image"
        raise ImageError(f"{name} cannot be read: {reason}") from None


def _kind(path: Path) -> str:
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return "nifti"
    return "dicom" if dicom.is_dicom(path) else "picture"


def _three_axes(pixels: Array) -> Array:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _one_channel(pixels: Array, *, alpha: bool = False) -> Array:
    """(H, W), whole numbers as integers; alpha, where there is one, is left out."""
    if pixels.ndim == 3:
        colours = pixels[..., :-1] if alpha else pixels
        if not (colours == colours[..., :1]).all():
            raise ImageError("its channels differ, so it is no mask; save one channel")
        pixels = colours[..., 0]
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating) and np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all():
        return pixels.astype(np.int64)
    return pixels


# ---- PNG, JPEG, TIFF, BMP, GIF --------------------------------------------------------------------------------


@contextmanager
def _pillow(path: Path, frame: int | None) -> Iterator[Image.Image]:
    """The opened page, upright."""
    with Image.open(path, formats=_FORMATS) as image:
        if frame is not None:
            count = getattr(image, "n_frames", 1)
            if not 0 <= frame < count:
                raise ImageError(f"it has {count} pages, numbered from 0, and none is number {frame}")
            image.seek(frame)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        yield image


def _pillow_array(path: Path, frame: int | None) -> Array:
    """(H, W) or (H, W, 3), 8-bit unless grey and deeper."""
    with _pillow(path, frame) as image:
        if image.mode.startswith(("I", "F")):
            pixels = np.asarray(image)
            white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0  # Pillow inverts 8-bit TIFF itself, deeper ones not
            return -pixels.astype(np.float64) if white_is_zero else pixels
        if image.has_transparency_data:
            grey = image.mode in ("1", "L", "LA", "La")
            layered = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.float64)
            on_black = np.rint(layered[..., :-1] * layered[..., -1:] / 255).astype(np.uint8)
            return on_black[..., 0] if grey else on_black
        return np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))


# ---- NIfTI ----------------------------------------------------------------------------------------------------


def _nifti(path: Path, frame: int | None) -> tuple[Any, int]:
    """The opened volume, checked to be whole, and the number of the slice."""
    volume: Any = nibabel.load(path, mmap=False)
    shape = volume.shape
    if len(shape) < 2 or 0 in shape:
        raise ImageError(f"it has the shape {shape}, no slice")
    if shape[0] * shape[1] > dicom.MAX_PIXELS:
        raise ImageError(f"it claims more than {dicom.MAX_PIXELS} pixels")
    depth = shape[2] if len(shape) > 2 else 1
    index = depth // 2 if frame is None else frame
    if not 0 <= index < depth:
        raise ImageError(f"it has {depth} slices, numbered from 0, and none is number {index}")
    _check_length(path, volume.dataobj.offset + math.prod(shape) * volume.dataobj.dtype.itemsize)
    return volume, index


def _check_length(path: Path, needed: int) -> None:
    """Refuse a volume cut short. A gzip file tells its length in its last four bytes; in doubt it is read to the end."""
    if path.suffix.lower() != ".gz":
        held = path.stat().st_size
    else:
        with path.open("rb") as file:
            file.seek(-4, 2)
            if struct.unpack("<I", file.read(4))[0] == needed % 2**32:
                return
        with gzip.open(path) as file:
            held = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
    if held < needed:
        raise ImageError("it is cut short")


def _nifti_slice(path: Path, frame: int | None) -> Array:
    """(H, W), or (H, W, 3) for stored RGB: `data[:, :, k].T` of the first time point, after slope and intercept."""
    volume, index = _nifti(path, frame)
    extra = len(volume.shape) - 3
    where = (slice(None), slice(None)) if extra < 0 else (slice(None), slice(None), index, *[0] * extra)
    data = np.asarray(volume.dataobj[where])
    if data.dtype.names:
        return np.stack([data[channel].T for channel in data.dtype.names[:3]], -1)
    if np.iscomplexobj(data):
        raise ImageError("it holds complex numbers; save their magnitude")
    return np.ascontiguousarray(data.T)


def _nifti_geometry(path: Path, frame: int | None) -> Geometry:
    volume, index = _nifti(path, frame)
    unit = _MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    column_mm, row_mm = (float(zoom) * unit for zoom in volume.header.get_zooms()[:2])
    affine = np.array(volume.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, 2] * index
    affine[:3] *= unit
    known = column_mm > 0 and row_mm > 0
    return Geometry(
        height=volume.shape[1],
        width=volume.shape[0],
        spacing_mm=(row_mm, column_mm) if known else None,
        affine=tuple(tuple(float(number) for number in row) for row in affine),
    )
