"""NRRD, MHA, MHD and NIfTI: the same slice, spacing and place from each, and headers that cannot be."""

from __future__ import annotations

import struct
from pathlib import Path

import mutator
import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from medtame.data.images import SUFFIXES, FilePicture
from medtame.errors import ImageError

TURN = np.deg2rad(25)
DIRECTION = np.array([[np.cos(TURN), 0, np.sin(TURN)], [0, -1, 0], [-np.sin(TURN), 0, np.cos(TURN)]])


def picture(path: Path, frame: int | None = None) -> FilePicture:
    return FilePicture(path, path.name, frame)


def turned(path: Path, data: np.ndarray, *, compressed: bool = False) -> Path:
    """(slices, rows, columns) with a rotation, unequal spacing and an origin, by SimpleITK."""
    image = SimpleITK.GetImageFromArray(data, isVector=data.ndim == 4)
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((-12.0, 30.0, 5.0))
    image.SetDirection(DIRECTION.ravel().tolist())
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd"])
def test_slices_and_places_are_those_of_nifti(tmp_path: Path, suffix: str, compressed: bool) -> None:
    data = mutator.scan(0, (6, 5, 7)).astype(np.int16) - 300
    made, reference = turned(tmp_path / f"a.{suffix}", data, compressed=compressed), turned(tmp_path / "a.nii.gz", data)
    assert picture(made).frames() == picture(reference).frames() == 6
    for frame in (None, 0, 5):
        ours, theirs = picture(made, frame), picture(reference, frame)
        assert np.array_equal(ours.values(), data[3 if frame is None else frame])
        assert np.array_equal(ours.values(), theirs.values())
        assert np.array_equal(ours.array(), theirs.array())
        assert ours.geometry().spacing_mm == pytest.approx(theirs.geometry().spacing_mm)
        assert ours.geometry().spacing_mm == pytest.approx((0.7, 0.5))
        assert np.allclose(ours.geometry().affine, theirs.geometry().affine, atol=1e-4)
    with pytest.raises(ImageError, match="it has 6 slices, numbered from 0, and none is number 6"):
        picture(made, 6).read()


def test_the_affine_is_nibabels_and_a_mask_lands_on_its_slice(tmp_path: Path) -> None:
    data = np.zeros((6, 5, 7), np.uint8)
    data[3, 2, 4] = 1
    made, whole = picture(turned(tmp_path / "a.mha", data)), nibabel.load(turned(tmp_path / "a.nii", data))
    back = nibabel.Nifti1Image(made.values().T[:, :, None], np.array(made.geometry().affine))
    there = np.argwhere(np.asarray(back.dataobj))[0]
    assert np.allclose(back.affine @ [*there, 1], whole.affine @ [4, 2, 3, 1], atol=1e-4)


def test_two_and_four_dimensions_colours_and_floats(tmp_path: Path) -> None:
    flat = mutator.scan()
    assert np.array_equal(picture(mutator.volume(tmp_path / "a.nrrd", flat)).values(), flat)
    assert picture(tmp_path / "a.nrrd").frames() == 1
    assert picture(tmp_path / "a.nrrd").geometry().affine is None
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(mutator.scan(k, (3, 5, 6))) for k in range(2)])
    SimpleITK.WriteImage(four, str(tmp_path / "b.mha"))
    assert np.array_equal(picture(tmp_path / "b.mha").values(), mutator.scan(0, (3, 5, 6))[1])  # the first time point
    colours = np.stack([mutator.scan(k, (4, 5, 6), 255) for k in range(3)], -1).astype(np.uint8)
    for suffix in ("mha", "nrrd"):
        assert np.array_equal(picture(turned(tmp_path / f"c.{suffix}", colours)).read(), colours[2])
    floats = (mutator.scan(1, (2, 5, 6)) / 7).astype(np.float32)
    assert np.array_equal(picture(turned(tmp_path / "d.mha", floats)).values(), floats[1])
    pairs = np.stack([colours[..., 0]] * 2, -1)
    with pytest.raises(ImageError, match="it has 2 numbers a pixel; save one channel, or RGB"):
        picture(turned(tmp_path / "e.mha", pairs)).read()


def test_a_file_that_tells_no_spacing_has_none(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 6 5\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(range(30)))
    assert picture(tmp_path / "a.nrrd").values().tolist() == np.arange(30).reshape(5, 6).tolist()
    assert picture(tmp_path / "a.nrrd").geometry().spacing_mm is None


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_cut_volumes_are_refused_even_where_the_slice_is_there(tmp_path: Path, suffix: str, compressed: bool) -> None:
    made = turned(tmp_path / f"a.{suffix}", mutator.scan(0, (6, 5, 7)), compressed=compressed)
    made.write_bytes(made.read_bytes()[:-30])
    with pytest.raises(ImageError, match=rf"^a\.{suffix} cannot be read"):
        picture(made, 0).read()


def test_an_mhd_file_is_read_with_the_file_beside_it_and_no_other(tmp_path: Path) -> None:
    data = mutator.scan(0, (6, 5, 7))
    made = turned(tmp_path / "a.mhd", data)
    before = picture(made).digest()
    raw = bytearray((tmp_path / "a.raw").read_bytes())
    raw[7] ^= 1
    (tmp_path / "a.raw").write_bytes(raw)
    assert picture(made).digest() != before  # the pixels are part of it
    (tmp_path / "inner").mkdir()
    text = made.read_text()
    for named in ("../a.raw", str(tmp_path / "a.raw"), "LIST", "a%02d.raw 1 6 1"):
        (tmp_path / "inner" / "b.mhd").write_text(text.replace("a.raw", named))
        for read in ("read", "geometry", "frames", "values", "digest"):
            with pytest.raises(ImageError, match=r"^b\.mhd cannot be read: its pixels lie in several files or in another folder"):
                getattr(picture(tmp_path / "inner" / "b.mhd"), read)()
    (tmp_path / "c.nrrd").write_text("NRRD0004\ntype: uint16\ndimension: 3\nsizes: 7 5 6\nencoding: raw\ndata file: a.raw\n\n")
    with pytest.raises(ImageError, match="its pixels lie in several files or in another folder"):
        picture(tmp_path / "c.nrrd").read()
    (tmp_path / "d.mha").write_bytes(b"Comment = long\n" * 5000 + text.encode())
    with pytest.raises(ImageError, match=r"^d\.mha cannot be read: its header has no end$"):
        picture(tmp_path / "d.mha").read()
    (tmp_path / "a.raw").unlink()
    with pytest.raises(ImageError, match=r"^a\.mhd cannot be read: the file with its pixels is not beside it$"):
        picture(made).read()


@pytest.mark.parametrize(("old", "new"), [("= 0.5", "= 5000"), ("Offset = -12", "Offset = nan"), ("DimSize = 7 5 6", "DimSize = 7 0 6")])
def test_meta_headers_that_cannot_be(tmp_path: Path, old: str, new: str) -> None:
    made = turned(tmp_path / "a.mha", mutator.scan(0, (6, 5, 7)))
    broken = made.read_bytes().replace(old.encode(), new.encode(), 1)
    assert broken != made.read_bytes()
    made.write_bytes(broken)
    with pytest.raises(ImageError, match=r"^a\.mha cannot be read"):
        picture(made).geometry()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("pixdim", [1, 1, 500, 1, 1, 1, 1, 1], "its header gives voxels of 1, 500, 1 mm; mend the header"),
        ("pixdim", [1, 1, np.nan, 1, 1, 1, 1, 1], "cannot be read"),
        ("srow_x", [np.nan, 0, 0, 0], "its affine holds NaN or infinity; mend the header"),
        ("dim", [3, 7, 5, 0, 1, 1, 1, 1], "cannot be read"),
        ("dim", [3, 7, 5, 900, 1, 1, 1, 1], "cannot be read"),
    ],
)
def test_nifti_headers_that_cannot_be(tmp_path: Path, field: str, value: list[float], reason: str) -> None:
    made = mutator.nifti(tmp_path / "a.nii", mutator.scan(0, (6, 5, 7)).T.astype(np.int16))
    raw = bytearray(made.read_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    header[field] = value
    raw[:348] = header.binaryblock
    made.write_bytes(raw)
    for read in ("read", "geometry"):
        with pytest.raises(ImageError, match=reason):
            getattr(picture(made), read)()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_keeps_its_low_byte(tmp_path: Path, suffix: str) -> None:
    grey = mutator.scan(top=300)  # nothing of it is left in the upper byte but 0 and 1
    colour = np.stack([grey, grey // 2, 300 - grey], -1)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colour, isVector=True), str(tmp_path / f"a.{suffix}"))
    read = picture(tmp_path / f"a.{suffix}").read()
    low, high = np.percentile(colour, (0.5, 99.5))
    assert np.allclose(read, np.clip((colour - low) / (high - low), 0, 1), atol=1e-6)
    assert np.asarray(Image.open(tmp_path / f"a.{suffix}")).max() <= 1  # what Pillow alone would have left


def test_folders_are_searched_for_the_new_kinds() -> None:
    assert {".nrrd", ".mha", ".mhd"} <= set(SUFFIXES)


def test_pages_of_tiff_and_gif_are_counted(tmp_path: Path) -> None:
    pages = [Image.fromarray(mutator.scan(k, top=255).astype(np.uint8)) for k in range(4)]
    for suffix in ("tif", "gif"):
        pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
        assert picture(tmp_path / f"a.{suffix}").frames() == 4
    pages[0].save(tmp_path / "a.png")
    assert picture(tmp_path / "a.png").frames() == 1


def test_a_tiff_that_claims_more_rows_than_it_holds_is_refused(tmp_path: Path) -> None:
    Image.fromarray(mutator.scan()).save(tmp_path / "a.tif")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = raw.index(struct.pack("<HHI", 257, 4, 1) if struct.pack("<HHI", 257, 4, 1) in raw else struct.pack("<HHI", 257, 3, 1))
    raw[at : at + 12] = struct.pack("<HHII", 257, 4, 1, 1 << 20)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(ImageError, match=r"^a\.tif cannot be read: it claims more rows than it holds$"):
        picture(tmp_path / "a.tif").read()
