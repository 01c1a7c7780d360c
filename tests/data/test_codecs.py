"""DICOM in all its encodings: the stored numbers come back, by pydicom or by GDCM, and are transformed once."""

from __future__ import annotations

import warnings
from pathlib import Path

import mutator
import numpy as np
import pydicom.data
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medtame.data import gdcm
from medtame.data.dicom import patient_of
from medtame.data.images import FilePicture
from medtame.errors import ImageError

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless]


def picture(path: Path, frame: int | None = None) -> FilePicture:
    return FilePicture(path, path.name, frame)


def lossless_frames(frames: np.ndarray, path: Path, **elements: object) -> Path:
    """JPEG Lossless with several frames: each written alone by GDCM, then encapsulated together."""
    coded = [get_frame(dcmread(mutator.by_gdcm(frame, path, "JPEG")).PixelData, 0, number_of_frames=1) for frame in frames]
    dataset = mutator.dicom(frames, **elements)
    dataset.PixelData = encapsulate(coded)
    dataset["PixelData"].is_undefined_length = True
    return mutator.written(dataset, path, JPEGLosslessSV1)


# ---- stored numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.keyword)
def test_every_encoding_gives_the_stored_numbers(tmp_path: Path, syntax: str) -> None:
    grey, eight, frames = mutator.scan(top=60_000), mutator.scan(top=255).astype(np.uint8), mutator.scan(2, (3, 9, 14))
    assert np.array_equal(picture(mutator.written(mutator.dicom(grey), tmp_path / "a.dcm", syntax)).values(), grey)
    signed = (grey.astype(np.int32) - 30_000).astype(np.int16)
    if syntax != JPEGLSLossless:  # pyjpegls writes no signed pixels
        assert np.array_equal(picture(mutator.written(mutator.dicom(signed), tmp_path / "s.dcm", syntax)).values(), signed)
    colour = np.stack([eight, 255 - eight, eight // 2], -1)
    assert np.array_equal(picture(mutator.written(mutator.dicom(colour), tmp_path / "c.dcm", syntax)).read(), colour)
    several = mutator.written(mutator.dicom(frames), tmp_path / "f.dcm", syntax)
    assert picture(several).frames() == 3
    assert np.array_equal(picture(several).values(), frames[1])
    assert np.array_equal(picture(several, 2).values(), frames[2])


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("low", [0, -400])
def test_lossless_jpeg_and_jpeg_2000_by_simpleitk(tmp_path: Path, compressor: str, low: int) -> None:
    grey = (mutator.scan(top=4000).astype(np.int32) + low).astype(np.int16 if low else np.uint16)
    read = picture(mutator.by_gdcm(grey, tmp_path / "a.dcm", compressor)).values()
    assert np.array_equal(read, grey)
    eight = mutator.scan(top=255).astype(np.uint8)
    colour = np.stack([eight, 255 - eight, eight // 2], -1)
    assert np.array_equal(picture(mutator.by_gdcm(colour, tmp_path / "c.dcm", compressor)).read(), colour)


def test_lossless_jpeg_with_several_frames(tmp_path: Path) -> None:
    frames = mutator.scan(4, (5, 30, 22), 4000)
    path = lossless_frames(frames, tmp_path / "a.dcm")
    assert picture(path).frames() == 5
    assert all(np.array_equal(picture(path, index).values(), frames[index]) for index in range(5))
    with pytest.raises(ImageError, match="it has 5 frames, numbered from 0, and none is number 5"):
        picture(path, 5).read()


def test_baseline_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    eight = mutator.scan(top=255).astype(np.uint8)
    for pixels in (eight, np.stack([eight, 255 - eight, eight // 2], -1)):
        read = picture(mutator.baseline_jpeg(pixels, tmp_path / "a.dcm")).read()
        Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, subsampling=0)
        difference = np.abs(read.squeeze().astype(int) - np.asarray(Image.open(tmp_path / "a.jpg")))
        assert difference.max() <= (1 if pixels.ndim == 3 else 0)


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "examples_jpeg2k.dcm",
        "examples_ybr_color.dcm",
    ],
)
def test_gdcm_gives_what_pydicom_gives(name: str) -> None:
    dataset = dcmread(SHIPPED / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pixel_array(dataset, index=0)
    assert np.array_equal(gdcm.decoded(dataset, 0), reference)


def test_what_pydicom_cannot_decode_is_read_all_the_same() -> None:
    lossy = picture(SHIPPED / "JPEG-lossy.dcm").values()  # JPEG Extended, 12 bits
    assert (lossy.shape, lossy.dtype, lossy.max() < 2**12, lossy.max() > 2**8) == ((1024, 256), np.uint16, True, True)
    assert picture(SHIPPED / "SC_rgb_jpeg_gdcm.dcm").read().shape == (100, 100, 3)  # JPEG Lossless
    reference = pixel_array(dcmread(SHIPPED / "SC_rgb_rle.dcm"))  # the same picture
    assert np.array_equal(picture(SHIPPED / "SC_rgb_jpeg_gdcm.dcm").read(), reference)


def test_gdcm_turns_ybr_into_rgb_as_pydicom_does(tmp_path: Path) -> None:
    eight = mutator.scan(top=255).astype(np.uint8)
    ybr = np.stack([eight, 255 - eight, eight // 2 + 64], -1)
    path = mutator.by_gdcm(ybr, tmp_path / "a.dcm", "JPEG")
    dataset = dcmread(path)
    dataset.PhotometricInterpretation = "YBR_FULL"
    dataset.save_as(path)
    wanted = convert_color_space(ybr, "YBR_FULL", "RGB")
    assert np.abs(picture(path).read().astype(int) - wanted).max() <= 1


# ---- transforms -----------------------------------------------------------------------------------------------


def test_gdcm_applies_no_slope_of_its_own(tmp_path: Path) -> None:
    grey = mutator.scan(5, (1, 30, 22), 4000)
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 1000, "WindowWidth": 3000}
    packed = picture(lossless_frames(grey, tmp_path / "a.dcm", **elements))
    raw = picture(mutator.written(mutator.dicom(grey[0], **elements), tmp_path / "b.dcm"))
    assert np.array_equal(packed.values(), grey[0])
    assert np.array_equal(packed.array(), raw.array())
    units = grey[0] * 2.0 - 1024
    assert np.allclose(packed.array()[..., 0], np.clip((units - 999.5) / 2999 + 0.5, 0, 1), atol=1e-6)


def test_white_is_zero_in_eight_bits_too(tmp_path: Path) -> None:
    eight = mutator.scan(top=200).astype(np.uint8)
    read = picture(mutator.written(mutator.dicom(eight, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm"))
    assert read.read().dtype == np.uint8
    assert np.array_equal(read.read()[..., 0], 255 - eight)
    assert np.array_equal(read.values(), eight)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_its_colours(tmp_path: Path, bits: int) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    table = np.array([[0, 100, 255, 7], [10, 20, 30, 7], [255, 128, 0, 7]], np.uint16) * (257 if bits == 16 else 1)
    made = mutator.dicom(indices, PhotometricInterpretation="PALETTE COLOR")
    for colour, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, bits])
        setattr(made, f"{colour}PaletteColorLookupTableData", entries.astype(f"<u{bits // 8}").tobytes())
    read = picture(mutator.written(made, tmp_path / "a.dcm"))
    unit = table / (257 if bits == 16 else 1) / 255
    assert np.allclose(read.array(), unit.T[indices], atol=1e-6)
    assert read.values().tolist() == indices.tolist()


def test_sixteen_bit_colour_keeps_its_depth(tmp_path: Path) -> None:
    grey = mutator.scan(top=60_000)
    colour = np.stack([grey, grey // 2, grey // 3], -1)
    read = picture(mutator.written(mutator.dicom(colour), tmp_path / "a.dcm", RLELossless)).read()
    low, high = np.percentile(colour, (0.5, 99.5))
    assert np.allclose(read, np.clip((colour - low) / (high - low), 0, 1), atol=1e-6)


def test_one_bit_pixels(tmp_path: Path) -> None:
    mask = mutator.scan(top=2) > 0
    made = mutator.dicom(mask.astype(np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
    read = picture(mutator.written(made, tmp_path / "a.dcm"))
    assert np.array_equal(read.array()[..., 0], mask)
    assert np.array_equal(read.values(), mask)


def test_overlays_are_not_drawn_and_cleared_from_the_pixels(tmp_path: Path) -> None:
    grey = mutator.scan(top=4000)
    drawn = grey.copy()
    drawn[3:9, 4:20] |= 0x8000
    signed = (grey.astype(np.int32) - 2000).astype(np.int16)
    for pixels, wanted in ((drawn, grey), ((signed & 0x0FFF) | 0x7000, signed)):
        made = mutator.dicom(pixels, BitsStored=12, HighBit=11)
        made.add_new((0x6000, 0x0102), "US", 15)
        assert np.array_equal(picture(mutator.written(made, tmp_path / "a.dcm")).values(), wanted)
    beside = mutator.dicom(grey)
    beside.add_new((0x6000, 0x0010), "US", 40)
    beside.add_new((0x6000, 0x0011), "US", 48)
    beside.add_new((0x6000, 0x0102), "US", 0)
    beside.add_new((0x6000, 0x3000), "OW", b"\xff" * 240)
    plain = picture(mutator.written(mutator.dicom(grey), tmp_path / "b.dcm"))
    assert np.array_equal(picture(mutator.written(beside, tmp_path / "c.dcm")).array(), plain.array())


# ---- without a preamble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_data_set_without_preamble_reads_by_its_name(tmp_path: Path, syntax: str) -> None:
    grey = mutator.scan(top=4000)
    whole = mutator.written(mutator.dicom(grey), tmp_path / "whole.dcm", syntax).read_bytes()
    bare = whole[144 + int.from_bytes(whole[140:144], "little") :]
    (tmp_path / "bare.dcm").write_bytes(bare)
    assert np.array_equal(picture(tmp_path / "bare.dcm").values(), grey)
    assert picture(tmp_path / "bare.dcm").geometry().spacing_mm == (0.5, 0.7)
    assert patient_of(tmp_path / "bare.dcm") == mutator.PATIENT.encode()
    (tmp_path / "bare.png").write_bytes(bare)
    with pytest.raises(ImageError, match=r"^bare\.png cannot be read: it is damaged"):
        picture(tmp_path / "bare.png").read()
    (tmp_path / "cut.dcm").write_bytes(bare[:-2])
    with pytest.raises(ImageError, match=r"^cut\.dcm cannot be read"):
        picture(tmp_path / "cut.dcm").read()
    (tmp_path / "more.dcm").write_bytes(bare.replace(b"\x28\x00\x11\x00", b"\x28\x00\x11\x08", 1))  # no Columns any more
    with pytest.raises(ImageError, match=r"^more\.dcm cannot be read"):
        picture(tmp_path / "more.dcm").read()


def test_text_named_dcm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.dcm").write_text(f"{mutator.NAME} was here\n" * 20)
    with pytest.raises(ImageError, match=r"^notes\.dcm cannot be read: it does not begin as a DICOM file"):
        picture(tmp_path / "notes.dcm").read()
    assert patient_of(tmp_path / "notes.dcm") is None


# ---- place ----------------------------------------------------------------------------------------------------


def test_frames_of_a_dose_grid_lie_at_their_offsets(tmp_path: Path) -> None:
    frames = mutator.scan(2, (3, 20, 24))
    path = mutator.written(mutator.dicom(frames, GridFrameOffsetVector=[0, 2.5, 7.5]), tmp_path / "a.dcm")
    places = [np.array(picture(path, index).geometry().affine)[:3, 3] for index in range(3)]
    assert np.allclose(places, [[-1, -2, 3], [-1, -2, 5.5], [-1, -2, 10.5]])
    unknown = picture(mutator.written(mutator.dicom(frames), tmp_path / "b.dcm"), 1).geometry()
    assert (unknown.affine, unknown.spacing_mm) == (None, (0.5, 0.7))


@pytest.mark.parametrize("spacing", [[0, 0.5], [-1, 1], [1e6, 1]])
def test_a_spacing_that_cannot_be_is_no_spacing(tmp_path: Path, spacing: list[float]) -> None:
    place = picture(mutator.written(mutator.dicom(mutator.scan(), PixelSpacing=spacing), tmp_path / "a.dcm")).geometry()
    assert (place.spacing_mm, place.affine, place.height, place.width) == (None, None, 40, 48)
