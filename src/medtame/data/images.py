"""One image, named but not yet read, and the intensity convention.

Intensities: 8-bit is divided by 255; 16-bit and float run from their 0.5 to their 99.5 percentile; DICOM follows its window
where it has one, after slope and intercept; MONOCHROME1 is inverted. A named window (`windows`) takes the place of both, except
for 8-bit images and colours. Palette and CMYK become RGB, alpha lies on black, grey keeps one channel, EXIF rotation is applied.
16 bits a channel are kept for RGB in PNG and TIFF, not with alpha or EXIF rotation, where Pillow gives the upper eight.

Slices: DICOM with several frames gives the middle one (number n // 2); NIfTI, NRRD and MHA the middle slice of the third axis, of
the first time point, with stored axes and no flips: `data[:, :, k].T`, so the first axis runs along the columns. TIFF and GIF
give their first page. `frame` chooses another, counted from 0.

PNG, JPEG, TIFF, BMP and GIF are read here; all others, and what may hang or crash a decoder, in the process of `worker`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from medtame.data import decode, windows
from medtame.data.dicom import may_be_dicom
from medtame.data.intensity import scaled
from medtame.data.sources import Content, Source, on_disk, opened
from medtame.data.text_headers import data_file
from medtame.data.worker import DAMAGED, MAX_PIXELS, Kind, worker
from medtame.errors import ImageError
from medtame.types import Array, Geometry

CONVENTION = "2"  # part of every digest: raise it when `array` changes for any file
_VOLUMES = (".nrrd", ".mha", ".mhd")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", *_VOLUMES)
_ORIENTATION = 274  # the EXIF tag
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # no others: Pillow would hand an EPS file to Ghostscript


@dataclass(frozen=True)
class FilePicture:
    """An image file. `name` is what tables and messages show; `frame` chooses a frame, page or slice, from 0.

    `window` is an intensity window by name (`windows.named`); none means the file's own. Raises UnknownNameError.
    """

    path: Path
    name: str
    frame: int | None = None
    window: str = ""

    def __post_init__(self) -> None:
        windows.named(self.window)

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1 after the intensity convention; C is 1 or 3. Raises ImageError."""
        return unit(self.read())

    def read(self) -> Array:
        """`array`, but uint8 in 0..255 where the image was stored in 8 bits. Raises ImageError."""
        with reading(self.path, self.name):
            return shown(self.path, self.frame, self.window)

    def frames(self) -> int:
        """How many frames, pages or slices `frame` may choose from. Raises ImageError."""
        with reading(self.path, self.name):
            return frames(self.path)

    def kind(self) -> Kind | None:
        """Which reader of the worker its file needs; None for PNG, JPEG, TIFF, BMP and GIF. Raises ImageError."""
        with reading(self.path, self.name):
            return _kind(self.path)

    def volume(self) -> Array:
        """(S, H, W) or (S, H, W, 3) the stored numbers of all slices of a NIfTI, NRRD or MHA file. Raises ImageError."""
        with reading(self.path, self.name):
            kind = _kind(self.path)
            if kind not in ("nifti", "volumes"):
                raise ImageError("it is no NIfTI, NRRD or MHA file, so its slices are read one by one")
            return worker().pixels(kind, "whole", self.path)[1]

    def values(self) -> Array:
        """(H, W) the stored numbers: palette indices, labels, instance numbers. DICOM is raw, NIfTI after its slope.

        Raises ImageError where three channels differ. Whole numbers stored as floats come back as integers.
        """
        with reading(self.path, self.name):
            return values(self.path, self.frame)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the file's bytes (for .mhd, its data file's too) and of how they are read."""
        with reading(self.path, self.name):
            return digest(self.path, self.frame, self.window)

    def geometry(self) -> Geometry:
        """Size as `array` has it. The affine takes (column, row, slice) of this one slice to millimetres, in RAS.

        So a mask of this slice is written as `nibabel.Nifti1Image(mask.T[:, :, None], affine)`.
        """
        with reading(self.path, self.name):
            return geometry(self.path, self.frame)


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
            return three_axes(scaled(self.pixels))
        if not (np.isfinite(self.pixels).all() and self.pixels.min() >= -1e-4 and self.pixels.max() <= 1 + 1e-4):
            raise ImageError(f"{self.name}: floats outside 0..1; scale them to 0..1, or give whole numbers")
        return three_axes(np.clip(self.pixels, 0, 1).astype(np.float32))

    def read(self) -> Array:
        """`array`, but uint8 in 0..255 where that is what was given. Raises ImageError."""
        return three_axes(self.pixels) if self.pixels.dtype == np.uint8 else self.array()

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


# ---- one image, wherever its bytes lie ------------------------------------------------------------------------


def shown(source: Source, frame: int | None, window_name: str) -> Array:
    """What `FilePicture.read` gives. Failures are those of decoders; see `reading`."""
    kind, window = _kind(source), windows.named(window_name)
    if kind is None:
        plain = decode.plain(source) if frame is None else None
        if plain is not None:
            return plain
        pixels, inverted = _pillow_array(source, frame)
        return three_axes(_seen(pixels, window, inverted=inverted))
    with on_disk(source) as path:
        if kind != "dicom":
            return three_axes(_seen(worker().pixels(kind, "stored", path, frame=frame)[1], window))
        own_window = window_name in ("", windows.FILES_OWN)
        said, pixels = worker().pixels(kind, "shown", path, frame=frame, own_window=own_window)
    if said["unit"]:
        return three_axes(1 - pixels if said["inverted"] else pixels)
    return three_axes(_seen(pixels, window if pixels.ndim == 2 else None, inverted=said["inverted"]))


def frames(source: Source) -> int:
    kind = _kind(source)
    if kind is not None:
        with on_disk(source) as path:
            return int(worker().ask(kind, "frames", path)[0]["frames"])
    with _page(source, None) as image:
        return int(getattr(image, "n_frames", 1))


def values(source: Source, frame: int | None) -> Array:
    kind = _kind(source)
    if kind is not None:
        with on_disk(source) as path:
            return _one_channel(worker().pixels(kind, "stored", path, frame=frame)[1])
    with _pillow(source, frame) as image:
        return _one_channel(np.asarray(image), alpha=image.mode in ("LA", "La", "PA", "RGBA", "RGBa"))


def digest(source: Source, frame: int | None, window_name: str) -> str:
    """The same for the same bytes, in a file of their own or inside another."""
    kind = _kind(source)
    hasher = hashlib.sha256(f"medtame {CONVENTION} {kind} {frame} {window_name or windows.FILES_OWN}\n".encode())
    beside = [data_file(source)] if kind == "volumes" and isinstance(source, Path) else []
    for part in dict.fromkeys([source, *beside]):
        with opened(part) as file:
            hashlib.file_digest(file, lambda: hasher)  # type: ignore[arg-type]
    return hasher.hexdigest()


def geometry(source: Source, frame: int | None) -> Geometry:
    kind = _kind(source)
    if kind is None:
        with _pillow(source, frame) as image:
            return Geometry(height=image.height, width=image.width)
    with on_disk(source) as path:
        said, _ = worker().ask(kind, "geometry", path, frame=frame)
    spacing, affine = said["spacing_mm"], said["affine"]
    return Geometry(
        height=said["height"],
        width=said["width"],
        spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        affine=None if affine is None else tuple(map(tuple, affine)),
    )


def unit(pixels: Array) -> Array:
    """What `read` gives as float32 in 0..1."""
    return (pixels / np.float32(255)).astype(np.float32) if pixels.dtype == np.uint8 else pixels


def _seen(pixels: Array, window: windows.Window | None, *, inverted: bool = False) -> Array:
    """Stored numbers as they are to be seen, same shape: uint8 stays uint8, others go through the window or the convention."""
    if pixels.dtype == np.uint8:
        return 255 - pixels if inverted else pixels
    if window is None or pixels.dtype == np.bool_:
        return scaled(pixels, inverted=inverted)
    seen = window.unit(pixels)
    return 1 - seen if inverted else seen


@contextmanager
def reading(source: Source, name: str) -> Iterator[None]:
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
        raise ImageError(f"{name} cannot be read: it claims more than {MAX_PIXELS} pixels") from None
    except DAMAGED:
        empty = not source.data if isinstance(source, Content) else source.is_file() and source.stat().st_size == 0
        known = "PNG, JPEG, TIFF, BMP, GIF, DICOM, NIfTI, NRRD or MHA"
        reason = "the file is empty" if empty else f"it is damaged, cut short, or no {known} image"
        raise ImageError(f"{name} cannot be read: {reason}") from None


def _kind(source: Source) -> Kind | None:
    """Which reader of the worker a file needs; None for those that Pillow reads."""
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise ImageError("it is a folder or a device, no file")
    name = source.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(_VOLUMES):
        return "volumes"
    return "dicom" if may_be_dicom(source) else None


def three_axes(pixels: Array) -> Array:
    """(H, W) or (H, W, C) to (H, W, C)."""
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _one_channel(pixels: Array, *, alpha: bool = False) -> Array:
    """(H, W), whole numbers as integers; alpha, where there is one, is left out."""
    if pixels.ndim == 3:
        colours = pixels[..., :-1] if alpha else pixels
        if not (colours == colours[..., :1]).all():
            raise ImageError("its channels differ, so it is no mask; save one channel")
        pixels = colours[..., 0]
    return whole_numbers(pixels)


def whole_numbers(pixels: Array) -> Array:
    """Integers where all numbers are whole."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating) and np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all():
        return pixels.astype(np.int64)
    return pixels


# ---- PNG, JPEG, TIFF, BMP, GIF --------------------------------------------------------------------------------


@contextmanager
def _pillow(source: Source, frame: int | None) -> Iterator[Image.Image]:
    """The opened page, upright."""
    with _page(source, frame) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        yield image


@contextmanager
def _page(source: Source, frame: int | None) -> Iterator[ImageFile.ImageFile]:
    """The opened page, its pixels not yet read."""
    file = BytesIO(source.data) if isinstance(source, Content) else source
    with Image.open(file, formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"it claims more than {MAX_PIXELS} pixels")
        if frame is not None:
            count = getattr(image, "n_frames", 1)
            if not 0 <= frame < count:
                raise ImageError(f"it has {count} pages, numbered from 0, and none is number {frame}")
            image.seek(frame)
        parts = [tile.extents for tile in image.tile if tile.extents is not None] if image.format == "TIFF" else []
        if parts and sum((right - left) * (lower - upper) for left, upper, right, lower in parts) < image.width * image.height:
            raise ImageError("it claims more rows than it holds")
        yield image


def _pillow_array(source: Source, frame: int | None) -> tuple[Array, bool]:
    """(H, W) or (H, W, 3), 8-bit unless deeper, and whether high is dark."""
    with _page(source, frame) as image:
        deep = image.mode == "RGB" and "RGB;16" in str(image.tile)
        colours = _deep_colours(source, frame, image.size) if deep and image.getexif().get(_ORIENTATION, 1) == 1 else None
        if colours is not None:
            return colours, False
    with _pillow(source, frame) as image:
        if image.mode.startswith(("I", "F")):
            white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0  # Pillow inverts 8-bit TIFF itself, deeper ones not
            return np.asarray(image), white_is_zero
        if image.has_transparency_data:
            grey = image.mode in ("1", "L", "LA", "La")
            layered = np.asarray(image.convert("LA" if grey else "RGBA"))
            on_black = ((layered[..., :-1].astype(np.uint16) * layered[..., -1:] + 127) // 255).astype(np.uint8)
            return on_black[..., 0] if grey else on_black, False
        return np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB")), False


def _deep_colours(source: Source, frame: int | None, size: tuple[int, int]) -> Array | None:
    """(H, W, 3) uint16; None where SimpleITK gives no such pixels, as of tiled TIFF."""
    try:
        with on_disk(source) as path:
            _, pixels = worker().pixels("volumes", "deep_colours", path, page=frame or 0)
    except (ImageError, ValueError):
        return None
    return pixels if pixels.dtype == np.uint16 and pixels.shape == (size[1], size[0], 3) else None
