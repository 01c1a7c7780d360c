"""Volumes slice by slice: what a slice shows, in which plane, and that a mask comes back where it was."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medtame.data import masks
from medtame.data.images import FilePicture
from medtame.data.manifest import read
from medtame.data.samples import ManifestSamples
from medtame.data.series import LabelPicture, SeriesPicture
from medtame.data.slices import OWNER, SlicePicture, Volume, balanced_slices, runs, sliced, spacing_of, whole
from medtame.errors import DataError, ImageError

ROTATION = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def saved(path, numbers, affine=None):
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4) if affine is None else affine), path)
    return FilePicture(path, path.name)


@pytest.fixture
def numbers():
    return np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.int16)


def test_channels_are_the_slice_and_its_neighbours_at_the_levels_of_the_whole_volume(tmp_path, numbers):
    volume = Volume.of(saved(tmp_path / "a.nii.gz", numbers))
    low, high = np.percentile(numbers, (0.5, 99.5))
    slow = np.clip((numbers - low) / (high - low), 0, 1)
    seen = [picture.array() for picture in volume.slices(context=1)]
    assert len(seen) == 4
    for k, (before, after) in enumerate([(0, 1), (0, 2), (1, 3), (2, 3)]):
        wanted = np.stack([slow[:, :, before].T, slow[:, :, k].T, slow[:, :, after].T], -1)
        np.testing.assert_allclose(seen[k], wanted, atol=1e-6)
    assert SlicePicture(volume, 2).array().shape == (5, 6, 1)
    two = SlicePicture(volume, 2, context=2).array()
    np.testing.assert_allclose(two[..., 0], slow[:, :, 0].T, atol=1e-6)


def test_eight_bits_stay_and_a_window_is_kept(tmp_path, numbers):
    eight = saved(tmp_path / "a.nii.gz", (numbers % 256).astype(np.uint8))
    assert np.array_equal(SlicePicture(Volume(eight), 1).read()[..., 0], (numbers % 256).astype(np.uint8)[:, :, 1].T)
    windowed = replace(saved(tmp_path / "b.nii.gz", numbers), window="400/200")
    np.testing.assert_allclose(
        SlicePicture(Volume(windowed), 1).array()[..., 0], np.clip((numbers[:, :, 1].T - 300) / 200, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ASL", "SRP"])
def test_planes_lie_as_a_radiologist_looks_at_them_whatever_the_stored_axes(tmp_path, codes):
    """In each plane the brightness falls along the rows and columns that the plane promises; cutting is undone exactly."""
    right, front, top = np.meshgrid(np.arange(5), np.arange(6), np.arange(7), indexing="ij")
    to = nibabel.orientations.axcodes2ornt(tuple(codes))
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt(("R", "A", "S")), to)
    affine = np.eye(4) @ nibabel.orientations.inv_ornt_aff(back, right.shape)
    made = {}
    for name, numbers in (("right", right), ("front", front), ("top", top)):
        stored = nibabel.orientations.apply_orientation(numbers, back).astype(np.uint8)
        made[name] = saved(tmp_path / f"{name}.nii.gz", stored, affine)
    for plane, (along, down, across) in {"axial": ("top", "front", "right"), "coronal": ("front", "top", "right")}.items():
        for name, axis, sign in ((along, 0, 1), (down, 1, -1), (across, 2, -1)):
            volume = Volume.of(made[name], plane)
            cut = volume.cut(volume.numbers()).astype(int)
            assert cut.shape == volume.shape()
            assert (np.diff(cut, axis=axis) == sign).all(), (plane, name)
            assert np.array_equal(volume.uncut(cut), volume.numbers())
    sagittal = Volume.of(made["front"], "sagittal")
    assert (np.diff(sagittal.cut(sagittal.numbers()).astype(int), axis=2) == -1).all()


def test_spacing_follows_the_plane(tmp_path, numbers):
    affine = np.eye(4)
    affine[:3, :3] = ROTATION @ np.diag([0.5, 2.0, 3.0])
    picture = saved(tmp_path / "a.nii.gz", numbers, affine)
    assert spacing_of(picture) == pytest.approx((3.0, 2.0, 0.5))
    assert SlicePicture(Volume.of(picture), 0).geometry().spacing_mm == pytest.approx((2.0, 0.5))
    coronal = SlicePicture(Volume.of(picture, "coronal"), 0)
    assert (coronal.geometry().height, coronal.geometry().width) == (4, 6)
    assert coronal.geometry().spacing_mm == pytest.approx((3.0, 0.5))


def test_a_slice_has_its_own_name_in_the_cache(tmp_path, numbers):
    picture = saved(tmp_path / "a.nii.gz", numbers)
    volume = Volume.of(picture)
    asked = [*volume.slices(), *volume.slices(1), *Volume.of(picture, "axial").slices(1)]
    assert len({one.digest() for one in asked}) == len(asked)
    again = Volume.of(FilePicture(picture.path, "another name"))
    assert SlicePicture(again, 2, 1).digest() == SlicePicture(volume, 2, 1).digest()


def test_runs_of_one_image():
    assert runs(list("aabbba")).tolist() == [0, 0, 2, 2, 2, 5]


def test_lines_of_a_volume_become_rows_slice_by_slice_and_other_lines_stay(tmp_path, numbers):
    saved(tmp_path / "a.nii", numbers)
    saved(tmp_path / "m.nii", (numbers > 500).astype(np.uint8))
    flat = saved(tmp_path / "flat.nii", numbers[:, :, :1])
    columns = {"image": ["a.nii", "a.nii", "flat.nii"], "mask": ["m.nii", None, None], "prompt": ["x", "y", "x"]}
    seen = sliced(ManifestSamples(columns, np.array(["p", "p", "q"]), tmp_path), "stored", 1, [np.array([0, 2]), None, None])
    assert seen.column(OWNER) == [0, 1, 1, 0, 1, 1, 2]
    assert [getattr(picture, "frame", None) for picture in seen.pictures()] == [0, 0, 1, 2, 2, 3, None]
    assert seen.groups.tolist() == ["p"] * 6 + ["q"]
    assert np.array_equal(seen.column("mask")[3].values(), (numbers[:, :, 2] > 500).T)
    assert seen.column("mask")[1] is None
    assert seen.pictures()[-1].name == flat.name


def test_slices_to_learn_from_are_half_with_and_half_without_capped_seeded_and_shared():
    shows = np.zeros(100, dtype=bool)
    shows[40:60] = True
    chosen = balanced_slices([shows, ~shows, shows & False, shows | True], 16, np.random.default_rng(0))
    assert [len(frames) for frames in chosen] == [16] * 4
    assert [int(shows[frames].sum()) for frames in chosen[:2]] == [8, 8]
    assert set(chosen[0]) == set(chosen[1])
    again = balanced_slices([shows], 16, np.random.default_rng(0))[0]
    assert np.array_equal(chosen[0], again)
    rare = shows & (np.arange(100) == 50)
    assert int(rare[balanced_slices([rare], 16, np.random.default_rng(0))[0]].sum()) == 1
    assert len(balanced_slices([shows[:5]], 16, np.random.default_rng(0))[0]) == 5


# ---- bad input --------------------------------------------------------------------------------------------------


def test_a_singular_affine_is_said_in_one_line(tmp_path, numbers):
    affine = np.diag([1.0, 1.0, 0.0, 1.0])
    image = nibabel.Nifti1Image(numbers, np.eye(4))
    image.header.set_sform(affine, code=1)
    image.header["pixdim"][1:4] = 1
    nibabel.save(nibabel.Nifti1Image(numbers, None, image.header), tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"a\.nii has a singular affine") as error:
        Volume.of(FilePicture(tmp_path / "a.nii", "a.nii"))
    assert "\n" not in str(error.value)


def series(folder, places):
    """A DICOM series with slices at these millimetres."""
    first = dcmread(get_testdata_file("CT_small.dcm"))
    for number, place in enumerate(places):
        first.SOPInstanceUID = f"1.2.3.{number}"
        first.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
        first.ImagePositionPatient = [0, 0, place]
        first.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        first.InstanceNumber = number + 1
        first.save_as(folder / f"{number}.dcm")


def test_a_series_without_gaps_is_a_volume_and_one_that_misses_slices_is_told(tmp_path):
    for name, places in (("whole", (0, 5, 10, 15)), ("gap", (0, 5, 15, 20))):
        (tmp_path / name).mkdir()
        series(tmp_path / name, places)
    (tmp_path / "m.csv").write_text("image\nwhole\ngap\n")
    good, gap = read(tmp_path / "m.csv").pictures()
    assert isinstance(good, SeriesPicture)
    volume = Volume.of(good)
    assert volume.shape() == (4, 128, 128)
    assert volume.spacing_mm()[0] == pytest.approx(5)
    middle = SlicePicture(volume, 3, context=1).array()
    assert np.array_equal(middle[..., 0], replace(good, frame=2).array()[..., 0])
    assert np.array_equal(middle[..., 2], replace(good, frame=3).array()[..., 0])
    with pytest.raises(ImageError, match="gap misses slices: they lie 5 mm apart, but 10 mm between number 1 and 2") as error:
        Volume.of(gap)
    assert "\n" not in str(error.value)


def test_masks_of_other_slices_other_places_or_unnamed_values_are_told(tmp_path, numbers):
    image = saved(tmp_path / "a.nii", numbers)
    few = saved(tmp_path / "few.nii", (numbers[:, :, :3] > 500).astype(np.uint8))
    moved = np.eye(4)
    moved[:3, 3] = (0, 0, 12)
    away = saved(tmp_path / "away.nii", (numbers > 500).astype(np.uint8), moved)
    late = (numbers > 500).astype(np.uint8)
    late[0, 0, 0] = 7  # not on the middle slice
    said = r"few\.nii has 3 slices and its image 4.*away\.nii lies up to 12\.0 mm away.*late\.nii holds the values"
    with pytest.raises(DataError, match=said):
        masks.check([few, away, saved(tmp_path / "late.nii", late)], [image] * 3)
    masks.check([saved(tmp_path / "good.nii", (numbers > 500).astype(np.uint8))], [image])


def test_values_of_label_maps_get_their_names_in_order(tmp_path, numbers):
    saved(tmp_path / "a.nii", numbers)
    saved(tmp_path / "m.nii", (numbers % 3).astype(np.uint8))
    given = ManifestSamples({"image": ["a.nii"], "mask": ["m.nii"]}, np.array(["p"]), tmp_path)
    made = masks.named(given, ["grey", "white"])
    assert made.column("prompt") == ["grey", "white"]
    assert isinstance(made.pictures("mask")[1], LabelPicture)
    assert np.array_equal(whole(made.pictures("mask")[1]), (numbers % 3 == 2).T)
    with pytest.raises(DataError, match=r"m\.nii holds the value 2, and 1 names were given"):
        masks.named(given, ["grey"])
    twice = masks.once(made.take([0, 1, 0]))
    assert len(twice) == 2
    assert twice.notes == ("1 lines say the same as another and count once.",)
