"""Volumes: learnt and answered slice by slice, given back in their own grid, measured as a whole."""

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from doubles import tiny_encoder
from medtame import run as path
from medtame import verbs
from medtame.data.manifest import read
from medtame.data.samples import ManifestSamples
from medtame.data.slices import OWNER
from medtame.report import files
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.segmentation import Segmentation, SegmentationFrame
from medtame.types import Grids, Predicted

ROTATED = np.array([[0.8, 0.0, -1.8, 10.0], [0.6, 0.0, 2.4, -20.0], [0.0, 2.0, 0.0, 30.0], [0, 0, 0, 1.0]])  # axes R, S, A; 1, 2, 3 mm


def ball(random, shape=(32, 6, 32), structure=(0, 5)):
    """Noise, and a bright ball on the slices of the second axis between two numbers."""
    numbers = random.integers(0, 80, shape)
    x, z = random.integers(10, 22, 2)
    i, _, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    mask = np.broadcast_to((i - x) ** 2 + (k - z) ** 2 < 60, shape).copy()
    mask[:, : structure[0]] = mask[:, structure[1] :] = False
    return np.where(mask, 220, numbers).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture
def scans(tmp_path):
    """Six volumes of four patients with a label map each: 1 the ball, 2 what is beside it; axial slices lie along the second axis."""
    random, names, columns = np.random.default_rng(0), [], {"image": [], "mask": []}
    for number in range(6):
        numbers, mask = ball(random, structure=(1, 5))
        for name, array in (("t1", numbers), ("tissue", mask + 2 * (np.roll(mask, 9, 0) & ~mask & 1))):
            image = nibabel.Nifti1Image(array, ROTATED)
            image.header.set_xyzt_units("mm")
            image.set_qform(ROTATED, 1)
            nibabel.save(image, tmp_path / f"{number}_{name}.nii.gz")
        columns["image"].append(f"{number}_t1.nii.gz")
        columns["mask"].append(f"{number}_tissue.nii.gz")
        names.append(f"patient {number // 2 * 2}" if number < 4 else f"patient {number}")
    return ManifestSamples(columns, np.array(names), tmp_path)


TASK = Segmentation(labels=("ball", "beside"), plane="axial", slices=4, size=32, side=8)


def frame(wants="grids", **changes):
    settings = {"structures": ("ball", "beside"), "slices": 4, "plane": "axial", **changes}
    return SegmentationFrame(wants, rows=6000, side=8, size=32, **settings)


def test_each_slice_is_asked_once_for_all_structures_with_its_neighbours(scans):
    lines = TASK.usable(scans)
    assert len(lines) == 12
    query = frame().query(lines.only(["image", "prompt"]), tiny_encoder())
    assert len(query) == 6 * 6 * 2
    assert len(np.unique(query.source)) == 6 * 6
    assert query.samples.column(OWNER)[:4] == [0, 1, 0, 1]
    assert query.samples.pixels(size=(32, 32)).shape == (72, 3, 32, 32)
    stored = nibabel.load(scans.root / "0_t1.nii.gz").get_fdata()
    own = query.samples.pictures()[0].read()[..., 1]
    assert np.array_equal(own, stored[::-1, 0, ::-1].T), "the first axial slice, front up, the right of the patient on the left"


def test_training_takes_at_most_so_many_slices_of_a_volume_half_of_them_with_the_structure(scans):
    lines = TASK.usable(scans)
    problem = frame().problem(lines, tiny_encoder(), 0)
    assert len(problem.query) == 12 * 4
    assert problem.targets.shape == (48, 1, 32, 32)
    marked = problem.targets.flatten(1).any(1).reshape(6, -1)
    assert marked.sum() == 12 * 2, "slices 1 to 4 of 6 are marked; two of four are learnt from, and the two without"
    again = frame().problem(lines, tiny_encoder(), 0)
    assert torch.equal(problem.targets, again.targets)
    assert len(frame(slices=100).problem(lines, tiny_encoder(), 0).query) == 12 * 6
    for target, mask in zip(problem.targets[:, 0], problem.query.samples.pictures(), strict=True):
        assert mask.geometry().height == target.shape[0] == 32


def test_the_whole_volume_comes_back_in_its_own_grid(scans, tmp_path):
    """Planted: an answer that is the truth of each axial slice must be the stored label map, voxel for voxel, and lie where it lies."""
    lines = TASK.usable(scans).take([0, 1, 2, 3])
    query = frame().query(lines.only(["image", "prompt"]), tiny_encoder())
    truth = [nibabel.load(scans.root / f"{number}_tissue.nii.gz") for number in (0, 1)]
    logits = []
    for row, picture in enumerate(query.samples.pictures()):
        line = query.samples.column(OWNER)[row]
        labels = np.asarray(truth[line // 2].dataobj)[::-1, picture.frame, ::-1].T
        logits.append(np.where(labels == line % 2 + 1, 1.0, -1.0))
    said = frame().read(query, Grids(torch.tensor(np.array(logits), dtype=torch.float32)[:, None]))
    assert [(row["image"], row["structure"]) for row in said.table] == [
        (f"{number}_t1.nii.gz", name) for number in (0, 1) for name in ("ball", "beside")
    ]
    written = files.write(said, lines, tmp_path / "out")
    for line, file in enumerate(written[1:]):
        back, source = nibabel.load(file), truth[line // 2]
        assert np.array_equal(back.get_fdata(), np.asarray(source.dataobj) == line % 2 + 1)
        np.testing.assert_allclose(back.affine, ROTATED, atol=1e-6)
        assert back.header.get_zooms() == pytest.approx((1, 2, 3))
        assert (back.header["qform_code"], back.header["sform_code"]) == (source.header["qform_code"], source.header["sform_code"])
        assert back.header.get_xyzt_units()[0] == "mm"
        assert said.table[line]["voxels"] == back.get_fdata().sum()
        assert said.table[line]["volume_mm3"] == pytest.approx(back.get_fdata().sum() * 6)
    found = frame().measure(said, lines)
    assert [found[name].value() for name in ("dice", "iou", "hd95_mm", "surface_dice")] == [1, 1, 0, 1]


def test_a_volume_is_measured_as_a_whole_and_in_millimetres(tmp_path):
    """A bar of 4 slices moved by 2 slices of 3 mm: half overlaps. The mean over slices would be 1/3 (2 of 6 slices right, 4 wrong)."""
    mask = np.zeros((10, 12, 9), dtype=np.uint8)
    mask[3:6, 4:7, 1:5] = 1
    for name, numbers in (("image", mask * 100), ("mask", mask)):
        nibabel.save(nibabel.Nifti1Image(numbers, np.diag([0.5, 2.0, 3.0, 1.0])), tmp_path / f"{name}.nii")
    truth = ManifestSamples({"image": ["image.nii"], "mask": ["mask.nii"], "prompt": ["ball"]}, np.array(["a"]), tmp_path)
    moved = Predicted(table=[], arrays={"0/mask": np.roll(mask, 2, 2).T})
    found = frame(plane="stored").measure(moved, truth)
    assert found["dice"].value() == pytest.approx(0.5)
    assert found["iou"].value() == pytest.approx(1 / 3)
    assert found["hd95_mm"].value() == pytest.approx(6.0)


def test_a_fitted_run_finds_the_ball_and_measures_a_row_a_volume(scans):
    lines = TASK.usable(scans).take(range(0, 12, 2))
    task = Segmentation(plane="axial", slices=4, size=32, side=8).settled(lines)
    run = path.fitted(lines.take([0, 1, 2, 3]), task, LinearProbe(), tiny_encoder())
    test = lines.take([4, 5])
    assert not set(test.groups) & set(lines.groups[:4])
    measured = run.measure(test)
    assert measured["dice"].defined == 2
    assert measured["dice"].value() > 0.6
    whole = run.frame.measure(run.predict(test), test)
    for name, statistic in measured.items():
        np.testing.assert_array_equal(statistic.arrays()["values"], whole[name].arrays()["values"])
    assert run.predict(test).arrays["0/mask"].shape == (32, 6, 32)


@pytest.mark.parametrize("method", [LinearProbe(), ZeroShot()], ids=["reads no words", "reads words"])
def test_one_volume_that_has_no_place_in_space_costs_itself_alone(scans, method):
    lines = TASK.usable(scans).take(range(0, 12, 2))
    task = Segmentation(plane="axial", slices=4, size=32, side=8).settled(lines)
    run = path.fitted(lines.take([0, 1, 2, 3]), task, method, tiny_encoder())
    broken = nibabel.load(scans.root / "4_t1.nii.gz")
    broken.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(broken.dataobj), None, broken.header), scans.root / "flat.nii.gz")
    asked = ManifestSamples({"image": ["5_t1.nii.gz", "flat.nii.gz"]}, np.arange(2), scans.root)
    said = verbs.predicted(run, asked, None)
    assert [row["image"] for row in said.table] == ["5_t1.nii.gz", "flat.nii.gz"]
    assert "singular affine" in said.table[1]["warning"]
    alone = run.predict(asked.take([0])).arrays["0/mask"]
    assert np.array_equal(said.arrays["0/mask"], alone)
    assert alone.any() or isinstance(method, ZeroShot)


def test_a_dicom_series_is_answered_by_a_nifti_of_all_its_slices(tmp_path):
    """Stored (slice, row, column); in space the patient's left and back are positive in DICOM and negative in NIfTI."""
    (tmp_path / "scan").mkdir()
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 2.0]
    for number in range(3):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        dataset.ImagePositionPatient, dataset.InstanceNumber = [10, 20, 30 + 4 * number], number + 1
        dataset.save_as(tmp_path / "scan" / f"{number}.dcm")
    (tmp_path / "m.csv").write_text("image\nscan\n")
    samples = read(tmp_path / "m.csv")
    asked = frame(structures=("ball",), plane="stored").query(samples, tiny_encoder(), ["ball"])
    logits = torch.full((3, 1, 32, 32), -1.0)
    logits[1] = 1.0
    said = frame(plane="stored").read(asked, Grids(logits))
    _, file = files.write(said, samples, tmp_path / "out")
    back = nibabel.load(file)
    assert back.shape == (128, 128, 3)
    assert [float(back.get_fdata()[:, :, k].mean()) for k in range(3)] == [0, 1, 0]
    np.testing.assert_allclose(back.affine, [[-2, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])
    assert said.table[0]["volume_mm3"] == 128 * 128 * 0.5 * 2 * 4
