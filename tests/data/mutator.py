"""Broken copies of image files: the originals that a test writes, and mutations of them from a seed. No test in here.

Every original carries a planted patient where its format has a place for one; `SECRETS` must never be seen in a message.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

SECRETS = ("Nemo", "4711")
NAME, PATIENT = "Nemo^Planted", "ID-4711"
HEADER_BYTES = 700  # most of the fields of every format lie in here
_EXTREMES = (0, 1, -1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, -0x80000000, 0x0FFFFFFF, 100_000)


# ---- originals ------------------------------------------------------------------------------------------------


def scan(seed: int = 0, shape: tuple[int, ...] = (40, 48), top: int = 900) -> np.ndarray:
    """Smooth in its last two axes with a little noise, 0 … top."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    waves = 0.5 + 0.4 * np.sin(rows / 5) * np.cos(columns / 7) + rng.uniform(-0.05, 0.05, shape)
    return np.rint(np.clip(waves, 0, 1) * top).astype(np.uint16)


def dicom(pixels: np.ndarray, **elements: Any) -> Dataset:
    """An uncompressed data set: grey (H, W), frames (N, H, W), or colour (H, W, 3)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3.4711"
    made.PatientName, made.PatientID = NAME, PATIENT
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        made.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.Rows, made.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.PixelSpacing, made.ImagePositionPatient, made.ImageOrientationPatient = [0.5, 0.7], [1, 2, 3], [1, 0, 0, 0, 1, 0]
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def written(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Save, compressed where pydicom can, else as that encoding."""
    if syntax in (RLELossless, JPEGLSLossless):
        dataset.compress(syntax)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}").byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def by_gdcm(pixels: np.ndarray, path: Path, compressor: str) -> Path:
    """JPEG Lossless ("JPEG") or JPEG 2000 by SimpleITK, with the planted patient."""
    image = SimpleITK.GetImageFromArray(pixels, isVector=pixels.ndim == 3)
    image.SetMetaData("0010|0010", NAME)
    image.SetMetaData("0010|0020", PATIENT)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.SetFileName(str(path))
    writer.KeepOriginalImageUIDOn()
    writer.Execute(image)
    dataset = dcmread(path)
    dataset.PatientName, dataset.PatientID = NAME, PATIENT
    dataset.save_as(path)
    return path


def baseline_jpeg(pixels: np.ndarray, path: Path, **elements: Any) -> Path:
    """JPEG by Pillow inside DICOM; colour pixels are YBR, as Pillow writes them."""
    coded = path.with_suffix(".jpg")
    Image.fromarray(pixels).save(coded, quality=95, subsampling=0)
    dataset = dicom(pixels, **elements)
    if pixels.ndim == 3:
        dataset.PhotometricInterpretation = "YBR_FULL"
    dataset.PixelData = encapsulate([coded.read_bytes()])
    dataset["PixelData"].is_undefined_length = True
    coded.unlink()
    return written(dataset, path, JPEGBaseline8Bit)


def boxed_jpeg2000(pixels: np.ndarray, path: Path) -> Path:
    """JPEG 2000 by Pillow, with the boxes of a .jp2 file, inside DICOM."""
    coded = path.with_suffix(".jp2")
    Image.fromarray(pixels).save(coded)
    dataset = dicom(pixels)
    dataset.PixelData = encapsulate([coded.read_bytes()])
    dataset["PixelData"].is_undefined_length = True
    coded.unlink()
    return written(dataset, path, JPEG2000Lossless)


def endless(boxed: bytes) -> bytes:
    """One byte inserted: the second box becomes 0 bytes long, and pydicom 3.0.2 looks for the third for ever."""
    at = boxed.index(b"ftyp") - 4
    return boxed[:at] + b"\0" + boxed[at:]


def nifti(path: Path, data: np.ndarray) -> Path:
    volume = nibabel.Nifti1Image(data, np.array([[-0.5, 0, 0, 9], [0, 0.7, 0, -8], [0, 0, 3, 7], [0, 0, 0, 1.0]]))
    volume.header["descrip"], volume.header["db_name"] = NAME.encode(), PATIENT.encode()
    nibabel.save(volume, path)
    return path


def volume(path: Path, data: np.ndarray, *, compressed: bool = False) -> Path:
    """NRRD, MHA or MHD by SimpleITK; `data` is (slices, rows, columns)."""
    image = SimpleITK.GetImageFromArray(data)
    image.SetSpacing((0.5, 0.7, 3.0)[: data.ndim])
    image.SetMetaData("Comment", NAME + PATIENT)
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


def plain(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """By Pillow, with the patient in the text that the format allows."""
    if path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Patient", NAME + PATIENT)
    if path.suffix in (".jpg", ".gif"):
        options["comment"] = NAME + PATIENT
    if path.suffix == ".tif":
        options["description"] = NAME + PATIENT
    Image.fromarray(pixels).save(path, **options)
    return path


def originals(folder: Path) -> list[Path]:
    """One small file of each format, written into a folder."""
    grey, eight, frames = scan(), scan(1, top=255).astype(np.uint8), scan(2, (3, 20, 24))
    colour = np.stack([eight, 255 - eight, eight // 2], -1)
    stack = scan(3, (4, 20, 24)).astype(np.int16)
    makers: dict[str, Callable[[Path], object]] = {
        "raw.dcm": lambda path: written(dicom(grey, WindowCenter=400, WindowWidth=300, RescaleSlope=2, RescaleIntercept=-9), path),
        "implicit.dcm": lambda path: written(dicom(frames), path, ImplicitVRLittleEndian),
        "big.dcm": lambda path: written(dicom(grey), path, ExplicitVRBigEndian),
        "deflated.dcm": lambda path: written(dicom(grey), path, DeflatedExplicitVRLittleEndian),
        "rle.dcm": lambda path: written(dicom(grey), path, RLELossless),
        "rle_frames.dcm": lambda path: written(dicom(frames), path, RLELossless),
        "jpegls.dcm": lambda path: written(dicom(grey), path, JPEGLSLossless),
        "jpeg.dcm": lambda path: baseline_jpeg(colour, path),
        "lossless.dcm": lambda path: by_gdcm(grey, path, "JPEG"),
        "jpeg2000.dcm": lambda path: by_gdcm(grey, path, "JPEG2000"),
        "boxed.dcm": lambda path: boxed_jpeg2000(eight, path),
        "plain.nii": lambda path: nifti(path, stack.T),
        "packed.nii.gz": lambda path: nifti(path, stack.T),
        "plain.nrrd": lambda path: volume(path, stack),
        "packed.nrrd": lambda path: volume(path, stack, compressed=True),
        "plain.mha": lambda path: volume(path, stack),
        "packed.mha": lambda path: volume(path, stack, compressed=True),
        "grey.png": lambda path: plain(path, eight),
        "deep.png": lambda path: plain(path, grey),
        "colour.jpg": lambda path: plain(path, colour),
        "deep.tif": lambda path: plain(path, grey),
        "packed.tif": lambda path: plain(path, colour, compression="tiff_lzw"),
        "float.tif": lambda path: plain(path, (grey / 900).astype(np.float32), compression="tiff_adobe_deflate"),
        "two.gif": lambda path: plain(path, eight, save_all=True, append_images=[Image.fromarray(255 - eight)]),
        "grey.bmp": lambda path: plain(path, eight),
    }
    for name, maker in makers.items():
        maker(folder / name)
    return [folder / name for name in makers]


# ---- mutations ------------------------------------------------------------------------------------------------


def mutant(original: Path, seed: int) -> bytes:
    """A broken copy. The same original and seed give the same bytes; half of the gzip files are broken inside, and half of the
    PNG files have their checksums set right again, so that what lies behind them is reached too.
    """
    rng = np.random.default_rng([seed, *original.name.encode()])
    data = original.read_bytes()
    if original.name.endswith(".gz") and rng.random() < 0.5:
        return gzip.compress(_broken(gzip.decompress(data), rng), 1, mtime=0)
    broken = _broken(data, rng)
    return _with_checksums(broken) if original.suffix == ".png" and rng.random() < 0.5 else broken


def _with_checksums(png: bytes) -> bytes:
    at, parts = 8, [png[:8]]
    while at + 12 <= len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        body = png[at + 4 : at + 8 + size]
        parts.append(png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts)


def _broken(data: bytes, rng: np.random.Generator) -> bytes:
    kinds = (_flipped, _flipped, _inserted, _deleted, _cut, _field, _field, _number, _swapped)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        data = kinds[rng.integers(len(kinds))](data, rng)
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Half of the time in the header."""
    return int(rng.integers(max(1, min(len(data), HEADER_BYTES if rng.random() < 0.5 else len(data)))))


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        if changed:
            changed[_place(data, rng)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _inserted(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 5))) + data[at:]


def _deleted(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 9)) :]


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _field(data: bytes, rng: np.random.Generator) -> bytes:
    """Two or four bytes become a number at the edge of what fits, in either byte order."""
    at, size, order = _place(data, rng) & ~1, int(rng.choice([2, 4])), str(rng.choice(["little", "big"]))
    number = int(rng.choice(_EXTREMES)) % 256**size
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """A number written in text (DICOM, NRRD, MHA) becomes another; elsewhere a float of the header does."""
    found = list(re.finditer(rb"\d+(\.\d+)?", data[:HEADER_BYTES]))
    if not found:
        at = _place(data, rng) & ~3
        return data[:at] + struct.pack("<f", float(rng.choice([0, -1, np.nan, np.inf, 1e30]))) + data[at + 4 :]
    chosen = found[rng.integers(len(found))]
    other = (b"0", b"-1", b"99999999999", b"nan", b"1e40", b"65536", b"..", b"")[rng.integers(8)]
    return data[: chosen.start()] + other + data[chosen.end() :]


def _swapped(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece of the file is copied over another."""
    size, source, target = int(rng.integers(4, 64)), _place(data, rng), _place(data, rng)
    return data[:target] + data[source : source + size] + data[target + size :]
