"""Intensity windows by name: closed forms on every format that has more than eight bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mutator
import nibabel
import numpy as np
import pytest
from PIL import Image

from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.intensity import percentiles, scaled
from medtame.data.samples import ManifestSamples
from medtame.data.windows import WINDOWS, Window, named
from medtame.errors import ImageError, SettingsError, UnknownNameError

UNITS = np.linspace(-1200, 3000, 40 * 48).reshape(40, 48).round()


def slow(units: np.ndarray, centre: float, width: float) -> np.ndarray:
    """One value at a time."""
    out = np.empty(units.shape)
    for place, value in np.ndenumerate(units):
        out[place] = min(1.0, max(0.0, (value - (centre - width / 2)) / width))
    return out


def ct(path: Path, **elements: object) -> Path:
    """HU = 2 × stored - 1200, with a window of its own."""
    stored = ((UNITS + 1200) / 2).astype(np.uint16)
    own = {"RescaleSlope": 2, "RescaleIntercept": -1200, "WindowCenter": 300, "WindowWidth": 100}
    return mutator.written(mutator.dicom(stored, **(own | elements)), path)


def units_of(path: Path) -> np.ndarray:
    return np.floor((UNITS + 1200) / 2) * 2 - 1200 if path.suffix == ".dcm" else UNITS


def written(folder: Path) -> dict[str, Path]:
    """The same units in every format that can hold them."""
    signed = UNITS.astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(signed.T[:, :, None], np.eye(4)), folder / "a.nii.gz")
    Image.fromarray(UNITS.astype(np.float32)).save(folder / "a.tif")
    for suffix in ("nrrd", "mha"):
        mutator.volume(folder / f"a.{suffix}", signed[None])
    ct(folder / "a.dcm")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_a_named_window_is_linear_between_its_ends(tmp_path: Path, name: str) -> None:
    window = WINDOWS[name]
    for path in written(tmp_path).values():
        read = FilePicture(path, path.name, window=name).array()
        assert read.shape == (40, 48, 1)
        assert np.allclose(read[..., 0], slow(units_of(path), window.centre, window.width), atol=1e-5), path.name
        as_numbers = FilePicture(path, path.name, window=f"{window.centre}/{window.width}").array()
        assert np.array_equal(as_numbers, read)


def test_what_radiologists_expect_to_see() -> None:
    air, fat, water, liver, cortex = -1000, -100, 0, 60, 1500
    assert named("lung") == Window(-600, 1500)
    seen = {name: window.unit(np.array([air, fat, water, liver, cortex])) for name, window in WINDOWS.items()}
    assert all((np.diff(values) >= 0).all() for values in seen.values())
    assert seen["bone"][4] > 0.9  # cortex is nearly white
    assert seen["bone"][3] < 0.4
    for name in ("abdomen", "liver", "mediastinum"):
        assert 0.5 < seen[name][3] < 0.8  # liver is light grey, air black, bone white
        assert (seen[name][0], seen[name][4]) == (0, 1)
    assert seen["lung"][0] < 0.3 < 0.7 < seen["lung"][2]


def test_deep_png_and_tiff_go_through_the_window_and_eight_bits_do_not(tmp_path: Path) -> None:
    deep = (UNITS + 1200).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        read = FilePicture(tmp_path / f"deep.{suffix}", "x", window="1500/1000").array()[..., 0]
        assert np.allclose(read, slow(UNITS + 1200, 1500, 1000), atol=1e-6)
        eight = mutator.scan(top=255).astype(np.uint8)
        Image.fromarray(eight).save(tmp_path / f"eight.{suffix}")
        for name in ("lung", "percentile", "40/400"):
            assert np.array_equal(FilePicture(tmp_path / f"eight.{suffix}", "x", window=name).read()[..., 0], eight)


def test_dicom_is_the_files_own_window_and_percentile_ignores_it(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm")
    units = units_of(path)
    own = np.clip((units - 299.5) / 99 + 0.5, 0, 1)  # DICOM part 3, C.11.2.1.2.1
    for name in ("", "dicom"):
        assert np.allclose(FilePicture(path, "a", window=name).array()[..., 0], own, atol=1e-6)
    low, high = np.percentile(units, (0.5, 99.5))
    percentile = FilePicture(path, "a", window="percentile").array()[..., 0]
    assert np.allclose(percentile, np.clip((units - low) / (high - low), 0, 1), atol=1e-6)
    near = FilePicture(path, "a", window="300/100").array()[..., 0]
    assert 0 < np.abs(near - own).max() < 0.011  # the standard's half unit


def test_white_is_zero_is_inverted_after_the_window(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    read = FilePicture(path, "a", window="brain").array()[..., 0]
    assert np.allclose(read, 1 - slow(units_of(path), 40, 80), atol=1e-5)


def test_colours_are_left_as_they_are(tmp_path: Path) -> None:
    eight = mutator.scan(top=255).astype(np.uint8)
    path = mutator.written(mutator.dicom(np.stack([eight] * 3, -1)), tmp_path / "a.dcm")
    assert np.array_equal(FilePicture(path, "a", window="brain").read(), FilePicture(path, "a").read())


def test_nan_and_infinity_go_to_the_ends(tmp_path: Path) -> None:
    pixels = np.array([[np.nan, -np.inf, np.inf, 40]], np.float32)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert FilePicture(tmp_path / "a.tif", "a", window="brain").array()[0, :, 0].tolist() == [0, 0, 1, 0.5]
    Image.fromarray(pixels[:, :1]).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"^b cannot be read: it holds no number, only NaN$"):
        FilePicture(tmp_path / "b.tif", "b", window="brain").array()


def test_percentiles_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 199, 1000):
        for low, high, dtype in ((0, 65535, np.uint16), (-32768, 32767, np.int16), (-100, 100, np.int8), (5, 9, np.uint16)):
            pixels = rng.integers(low, high, size, endpoint=True).astype(dtype)
            assert percentiles(pixels) == pytest.approx(tuple(np.percentile(pixels.astype(float), (0.5, 99.5))))
    pixels = rng.normal(size=(3_000, 3_000)).astype(np.float32)  # several blocks
    low, high = percentiles(pixels)
    assert np.allclose(scaled(pixels), np.clip((pixels - low) / (high - low), 0, 1), atol=1e-6)
    assert np.allclose(scaled(pixels, inverted=True), 1 - scaled(pixels), atol=1e-6)
    assert scaled(np.array([[np.nan, 0, 10]]), inverted=True).tolist() == [[0, 1, 0]]


def test_unknown_names_and_numbers_that_show_nothing() -> None:
    with pytest.raises(UnknownNameError, match=r"no intensity window is called 'lungs'\. Did you mean 'lung'\?.*abdomen.*percentile"):
        FilePicture(Path("a.dcm"), "a", window="lungs")
    for name in ("40", "40/", "/", "a/b", "40/400/2"):
        with pytest.raises(UnknownNameError, match="CENTRE/WIDTH as 40/400"):
            named(name)
    for name in ("40/0", "40/-3", "nan/3", "40/inf"):
        with pytest.raises(SettingsError, match="shows nothing: give centre/width with a width above 0, as 40/400"):
            named(name)
    assert named(" -600/1500") == named("-600/1500") == WINDOWS["lung"]


def test_the_digest_names_the_window(tmp_path: Path) -> None:
    made = FilePicture(ct(tmp_path / "a.dcm"), "a")
    digests = [replace(made, window=name).digest() for name in ("", "dicom", "lung", "brain", "percentile", "40/80")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_a_manifest_hands_its_window_to_its_pictures(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Own:
        name: str = "own"
        window: str = ""

        def windowed(self, window: str) -> Own:
            return replace(self, window=window)

    ct(tmp_path / "a.dcm")
    held = ArrayPicture(np.zeros((2, 2)), "held")
    samples = ManifestSamples({"image": ["a.dcm", Own(), held]}, np.arange(3), tmp_path, window="bone")
    file, own, same = samples.pictures()
    assert (file.window, own.window, same is held) == ("bone", "bone", True)  # type: ignore[attr-defined]
    plain = replace(samples, window="")
    assert [picture.window for picture in plain.pictures()[:2]] == ["", ""]  # type: ignore[attr-defined]
    assert samples.pictures()[0].digest() != plain.pictures()[0].digest()
    seen = samples.take([0]).pixels()
    assert np.allclose(seen[0, 0].numpy(), slow(units_of(tmp_path / "a.dcm"), 400, 1800), atol=1e-5)
