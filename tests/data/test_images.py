"""Intensities, geometry and stored numbers of every format, against closed forms, the DICOM standard and SimpleITK."""

from __future__ import annotations

import csv
import gzip
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medtame.data.dicom import patient_of
from medtame.data.images import ArrayPicture, FilePicture
from medtame.errors import ImageError


def picture(path: Path, frame: int | None = None) -> FilePicture:
    return FilePicture(path, path.name, frame)


def save(image: Image.Image, path: Path, **options: Any) -> FilePicture:
    image.save(path, **options)
    return picture(path)


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def write_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> FilePicture:
    """A CT-like file; frames first, then rows and columns."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.PatientName, made.PatientID = "Secret^Person", "ID-4711"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.Rows, made.Columns = pixels.shape[-2:]
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return picture(path)


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """DICOM part 3, C.11.2.1.2.1, to 0..1, one value at a time."""
    out = np.empty(values.shape)
    for place, value in np.ndenumerate(values):
        if value <= centre - 0.5 - (width - 1) / 2:
            out[place] = 0
        elif value > centre - 0.5 + (width - 1) / 2:
            out[place] = 1
        else:
            out[place] = (value - (centre - 0.5)) / (width - 1) + 0.5
    return out


# ---- plain images ---------------------------------------------------------------------------------------------


def test_eight_bits_are_divided_by_255_and_grey_keeps_one_channel(tmp_path: Path) -> None:
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    colour = np.stack([grey, grey + 20, grey + 40], -1)
    for suffix in ("png", "tif", "bmp"):
        for pixels in (grey, colour):
            read = save(Image.fromarray(pixels), tmp_path / f"a.{suffix}").array()
            assert read.dtype == np.float32
            assert np.array_equal(read, (pixels / 255).astype(np.float32).reshape(10, 20, -1))


def test_sixteen_bits_run_from_percentile_to_percentile(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).permutation(np.arange(10_001, dtype=np.uint16))[:, None] + np.uint16(3000)
    read = save(Image.fromarray(pixels), tmp_path / "a.png").array()
    assert np.allclose(read[..., 0], np.clip((pixels - 3050.0) / 9900, 0, 1), atol=1e-6)  # 0.5 and 99.5 % of 3000 … 13000


def test_constant_and_almost_constant_images_warn_of_nothing(tmp_path: Path) -> None:
    almost = np.zeros((50, 50), np.uint16)
    almost[3, 4] = 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not save(Image.fromarray(np.full((4, 4), 700, np.uint16)), tmp_path / "a.png").array().any()
        kept = save(Image.fromarray(almost), tmp_path / "b.png").array()
    assert kept[3, 4, 0] == kept.sum() == 1


def test_nan_counts_as_the_lowest_value(tmp_path: Path) -> None:
    pixels = np.linspace(-5, 5, 1000, dtype=np.float32).reshape(20, 50)
    holed = pixels.copy()
    holed[10, 10], holed[11, 11] = np.nan, np.inf
    read = save(Image.fromarray(holed), tmp_path / "a.tif").array()
    assert (read[10, 10, 0], read[11, 11, 0]) == (0, 1)
    low, high = np.percentile(holed[np.isfinite(holed)].astype(np.float64), (0.5, 99.5))
    assert np.allclose(read[0], np.clip((pixels[0] - low) / (high - low), 0, 1)[:, None], atol=1e-6)


def test_palette_cmyk_and_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    saved = save(palette, tmp_path / "p.png")
    assert np.allclose(saved.array()[0] * 255, [[10, 20, 30], [40, 50, 60]])
    assert saved.values().tolist() == [[0, 1], [2, 1]]
    cmyk = save(Image.new("CMYK", (2, 2), (0, 255, 0, 0)), tmp_path / "c.tif").array()
    assert np.allclose(cmyk, np.broadcast_to([1, 0, 1], (2, 2, 3)))
    clear = save(Image.new("RGBA", (2, 2), (200, 100, 50, 51)), tmp_path / "r.png").array()
    assert np.allclose(clear[0, 0] * 255, [40, 20, 10])
    grey = save(Image.new("LA", (2, 2), (200, 51)), tmp_path / "l.png").array()
    assert grey.shape == (2, 2, 1)
    assert grey[0, 0, 0] * 255 == pytest.approx(40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_turns_pixels_values_and_geometry(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(15, dtype=np.uint8).reshape(3, 5)
    turned, rows, columns = orientation > 4, orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
    stored = (upright.T if turned else upright)[:: -1 if rows else 1, :: -1 if columns else 1]
    exif = Image.Exif()
    exif[274] = orientation
    read = save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    assert np.array_equal(read.values(), upright)
    assert np.allclose(read.array()[..., 0] * 255, upright)
    assert (read.geometry().height, read.geometry().width) == (3, 5)


def test_a_deep_tiff_where_white_is_zero_is_inverted(tmp_path: Path) -> None:
    pixels = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    plain = save(Image.fromarray(pixels), tmp_path / "a.tif").array()
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = raw.index(struct.pack("<HHIH", 262, 3, 1, 1))
    raw[at + 8] = 0
    (tmp_path / "b.tif").write_bytes(raw)
    assert np.allclose(picture(tmp_path / "b.tif").array(), 1 - plain, atol=1e-6)


def test_pages_are_chosen_by_frame_and_the_first_is_the_default(tmp_path: Path) -> None:
    pages = [Image.new("L", (3, 2), 10 * (page + 1)) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert picture(tmp_path / "a.tif").values()[0, 0] == 10
    assert picture(tmp_path / "a.tif", 2).values()[0, 0] == 30
    with pytest.raises(ImageError, match=r"^a\.tif cannot be read: it has 3 pages, numbered from 0, and none is number 3$"):
        picture(tmp_path / "a.tif", 3).array()


def test_stored_numbers_of_masks_and_instances(tmp_path: Path) -> None:
    instances = np.array([[0, 300], [65535, 7]], np.uint16)
    assert save(Image.fromarray(instances), tmp_path / "i.png").values().tolist() == instances.tolist()
    mask = np.array([[0, 255]], np.uint8)
    assert save(Image.fromarray(np.stack([mask] * 3, -1)), tmp_path / "m.png").values().tolist() == [[0, 255]]
    assert save(Image.fromarray(mask).convert("1"), tmp_path / "b.png").values().tolist() == [[0, 1]]
    with pytest.raises(ImageError, match=r"^c\.png cannot be read: its channels differ"):
        save(Image.new("RGB", (2, 2), (1, 2, 3)), tmp_path / "c.png").values()


# ---- DICOM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept", "dtype"), [(1, -1024, np.uint16), (2.5, 10, np.int16), (-1, 100, np.int16)])
def test_dicom_slope_and_window_follow_the_standard(tmp_path: Path, slope: float, intercept: float, dtype: type) -> None:
    pixels = np.linspace(0, 2000, 400).astype(dtype).reshape(20, 20)
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": [40, 9], "WindowWidth": [400, 9]}
    wanted = linear_window(pixels * float(slope) + intercept, 40, 400)
    assert np.allclose(write_dicom(tmp_path / "a.dcm", pixels, **elements).array()[..., 0], wanted, atol=1e-6)
    inverted = write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **elements)
    assert np.allclose(inverted.array()[..., 0], 1 - wanted, atol=1e-6)
    assert np.array_equal(inverted.values(), pixels)


def test_dicom_sigmoid_window(tmp_path: Path) -> None:
    pixels = np.arange(0, 4000, 10, dtype=np.int16).reshape(20, 20)
    read = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=2000, WindowWidth=500, VOILUTFunction="SIGMOID").array()
    assert np.allclose(read[..., 0], 1 / (1 + np.exp(-4 * (pixels - 2000.0) / 500)), atol=1e-5)


def test_dicom_table_comes_before_the_window(tmp_path: Path) -> None:
    table = item(LUTDescriptor=[4, 100, 16], LUTData=struct.pack("<4H", 0, 1000, 3000, 4000))
    elements = {"VOILUTSequence": Sequence([table]), "WindowCenter": 1, "WindowWidth": 2}
    read = write_dicom(tmp_path / "a.dcm", np.array([[0, 100, 101], [102, 103, 9999]], np.uint16), **elements).array()
    assert np.allclose(read[..., 0], [[0, 0, 0.25], [0.75, 1, 1]])


@pytest.mark.parametrize("elements", [{}, {"WindowCenter": 5, "WindowWidth": 0}])
def test_dicom_without_a_usable_window_uses_percentiles(tmp_path: Path, elements: dict[str, float]) -> None:
    pixels = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    low, high = np.percentile(pixels, (0.5, 99.5))
    wanted = np.clip((pixels - low) / (high - low), 0, 1)
    read = write_dicom(tmp_path / "a.dcm", pixels, **elements).array()[..., 0]
    inverted = write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **elements).array()[..., 0]
    assert np.allclose(read, wanted, atol=1e-6)
    assert np.allclose(inverted, 1 - wanted, atol=1e-6)


def test_dicom_frames_and_their_own_windows(tmp_path: Path) -> None:
    pixels = np.stack([np.full((4, 4), 100 * frame, np.uint16) for frame in range(5)])
    pixels[:, 0, 0] = 0
    frames = [item(FrameVOILUTSequence=Sequence([item(WindowCenter=100 * n + 0.5, WindowWidth=201)])) for n in range(5)]
    measures = Sequence([item(PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.5, 0.25])]))])
    elements = {"PerFrameFunctionalGroupsSequence": Sequence(frames), "SharedFunctionalGroupsSequence": measures}
    made = write_dicom(tmp_path / "a.dcm", pixels, **elements)
    assert made.values()[1, 1] == 200  # the middle one of five
    assert picture(tmp_path / "a.dcm", 4).values()[1, 1] == 400
    assert np.allclose([picture(tmp_path / "a.dcm", n).array()[1, 1, 0] for n in range(1, 5)], 0.5, atol=1e-6)
    assert made.geometry().spacing_mm == (0.5, 0.25)
    with pytest.raises(ImageError, match="it has 5 frames"):
        picture(tmp_path / "a.dcm", 5).array()


def test_dicom_affine_agrees_with_simpleitk(tmp_path: Path) -> None:
    turn = np.deg2rad(20)
    along_row, along_column = [np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]
    made = write_dicom(
        tmp_path / "a.dcm",
        np.arange(42, dtype=np.uint16).reshape(6, 7),
        PixelSpacing=[0.7, 0.4],
        SliceThickness=3,
        ImagePositionPatient=[-30.0, 12.0, 55.0],
        ImageOrientationPatient=[round(float(number), 10) for number in (*along_row, *along_column)],
    )
    place = made.geometry()
    assert (place.height, place.width, place.spacing_mm) == (6, 7, (0.7, 0.4))
    reference = sitk.ReadImage(str(tmp_path / "a.dcm"))
    for column, row in ((0, 0), (6, 0), (0, 5), (3, 4)):
        lps = np.array(reference.TransformIndexToPhysicalPoint((column, row, 0)))
        assert np.allclose(np.array(place.affine) @ [column, row, 0, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)


def test_a_broken_dicom_never_shows_a_tag(tmp_path: Path) -> None:
    made = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16))
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:-40])
    with pytest.raises(ImageError, match=r"^a\.dcm cannot be read") as caught:
        made.array()
    assert not any(secret in str(caught.value) for secret in ("Secret", "4711"))
    assert caught.value.__suppress_context__
    assert patient_of(made.path) == b"ID-4711"


# ---- NIfTI ----------------------------------------------------------------------------------------------------


def write_nifti(path: Path, data: np.ndarray, zooms: tuple[float, ...], unit: str = "mm") -> FilePicture:
    volume = nibabel.Nifti1Image(data, np.array([[0, -zooms[1], 0, 5], [zooms[0], 0, 0, -3], [0, 0, zooms[2], 8], [0, 0, 0, 1.0]]))
    volume.header.set_xyzt_units(unit)
    nibabel.save(volume, path)
    return picture(path)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_slices_keep_stored_axes(tmp_path: Path, suffix: str) -> None:
    data = np.random.default_rng(0).integers(0, 900, (5, 7, 4, 3)).astype(np.int16)
    made = write_nifti(tmp_path / f"a.{suffix}", data, (2, 3, 4))
    assert np.array_equal(made.values(), data[:, :, 2, 0].T)
    assert np.array_equal(picture(made.path, 1).values(), data[:, :, 1, 0].T)
    assert made.array().shape == (7, 5, 1)
    place = picture(made.path, 1).geometry()
    assert (place.height, place.width, place.spacing_mm) == (7, 5, (3, 2))
    whole = nibabel.load(made.path).affine
    assert np.allclose(np.array(place.affine) @ [4, 6, 0, 1], whole @ [4, 6, 1, 1])
    with pytest.raises(ImageError, match="it has 4 slices"):
        picture(made.path, 4).geometry()


def test_a_mask_written_with_the_geometry_lands_on_its_slice(tmp_path: Path) -> None:
    data = np.zeros((5, 7, 4), np.uint8)
    data[1, 2, 2] = 1
    made = write_nifti(tmp_path / "a.nii.gz", data, (2, 3, 4))
    back = nibabel.Nifti1Image(made.values().T[:, :, None], np.array(made.geometry().affine))
    there = np.argwhere(np.asarray(back.dataobj))[0]
    assert np.allclose(back.affine @ [*there, 1], nibabel.load(made.path).affine @ [1, 2, 2, 1])


def test_nifti_lengths_in_metres_become_millimetres(tmp_path: Path) -> None:
    made = write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), (0.002, 0.003, 0.001), "meter")
    assert made.geometry().spacing_mm == pytest.approx((3, 2))
    assert np.array(made.geometry().affine)[0, 3] == pytest.approx(5000)


def test_a_nifti_cut_short_is_refused_even_where_its_slice_is_there(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9000, (20, 20, 9)).astype(np.int16)
    for suffix in ("nii", "nii.gz"):
        made = write_nifti(tmp_path / f"a.{suffix}", data, (1, 1, 1))
        made.path.write_bytes(made.path.read_bytes()[:-200])
        with pytest.raises(ImageError, match=r"^a\.nii.* cannot be read"):
            made.array()
    raw = write_nifti(tmp_path / "b.nii", data, (1, 1, 1)).path.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]))  # two members, nothing missing
    assert np.array_equal(picture(tmp_path / "b.nii.gz").values(), data[:, :, 4].T)


# ---- what cannot be read --------------------------------------------------------------------------------------


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("empty.nii.gz", b"", "the file is empty"),
        ("text.png", b"image,label\n", "it is damaged"),
        ("bomb.png", bomb(), "it claims more than 178956970 pixels"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is damaged"),
        ("zeros.nii", bytes(400), "it is damaged"),
        ("only.dcm", bytes(128) + b"DICM", "it is"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path: Path, name: str, contents: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(contents)
    made = FilePicture(tmp_path / name, f"images/{name}")
    for read in (made.array, made.values):
        with pytest.raises(ImageError) as caught:
            read()
        assert str(caught.value).startswith(f"images/{name} cannot be read: {reason}")
        assert str(tmp_path) not in str(caught.value)


def test_cut_missing_and_nan_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    for suffix in ("png", "jpg", "tif", "bmp", "gif"):
        made = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
        made.path.write_bytes(made.path.read_bytes()[:600])
        with pytest.raises(ImageError, match=f"^a.{suffix} cannot be read"):
            made.array()
    with pytest.raises(ImageError, match=r"^gone\.png cannot be read: it is not there$"):
        picture(tmp_path / "gone.png").digest()
    with pytest.raises(ImageError, match=r"^nan\.tif cannot be read: it holds no number, only NaN$"):
        save(Image.fromarray(np.full((3, 3), np.nan, np.float32)), tmp_path / "nan.tif").array()


# ---- digests and arrays ---------------------------------------------------------------------------------------


def test_digest_names_bytes_and_frame_and_not_the_name(tmp_path: Path) -> None:
    for name, value in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        save(Image.new("L", (4, 4), value), tmp_path / name)
    a, b, c = (picture(tmp_path / name).digest() for name in ("a.png", "b.png", "c.png"))
    assert a == b != c
    assert picture(tmp_path / "a.png", 0).digest() != a


def test_an_array_is_an_image_too() -> None:
    floats = np.linspace(0.2, 0.7, 12, dtype=np.float32).reshape(3, 4)
    made = ArrayPicture(floats, "x")
    assert np.array_equal(made.array(), floats[..., None])
    assert np.allclose(ArrayPicture(np.full((2, 2), 51, np.uint8), "x").array(), 0.2)
    assert (made.geometry().height, made.geometry().width) == (3, 4)
    assert made.digest() == ArrayPicture(floats.copy(), "y").digest()
    assert made.digest() != ArrayPicture(floats.reshape(4, 3), "x").digest()
    assert made.digest() != ArrayPicture(floats.astype(np.float64), "x").digest()
    assert ArrayPicture(np.array([[3.0, 4.0]]), "x").values().tolist() == [[3, 4]]
    with pytest.raises(ImageError, match=r"^x: floats outside 0\.\.1"):
        ArrayPicture(floats * 2, "x").array()
    with pytest.raises(ImageError, match=r"^x: an image of shape \(2, 2, 4\)"):
        ArrayPicture(np.zeros((2, 2, 4)), "x")


def test_odd_real_files_read_or_refuse_as_expected(real_data: Path) -> None:
    with (real_data / "volumes" / "files.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom on the bad value representation
        for row in rows:
            try:
                pixels = FilePicture(real_data / "volumes" / row["file"], row["file"]).array()
                fine = (
                    pixels.dtype == np.float32
                    and pixels.min() >= 0
                    and pixels.max() <= 1
                    and not row["expect"].startswith("must be refused")
                )
            except ImageError:
                fine = not row["expect"].startswith(("reads:", "reads;", "reads upright")) and row["expect"] != "reads"
            if not fine:
                wrong.append(row["file"])
    assert len(rows) == 57
    assert not wrong
