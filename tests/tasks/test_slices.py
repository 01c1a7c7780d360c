"""Several slices of a volume: which ones are asked, how their scores become one answer, and that a shot stays a volume."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from doubles import tiny_encoder
from medtame import run as path
from medtame.data.samples import ManifestSamples
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.classification import Classification, by_slice, means, owners, spread
from medtame.types import Scores


def test_slices_are_the_middles_of_equal_parts():
    assert [spread(count, 1) for count in (1, 2, 7, 8)] == [[0], [1], [3], [4]]  # count // 2, as an image without the setting has it
    assert spread(9, 3) == [1, 4, 7]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 5) == [0, 1]  # fewer slices than asked: each once


def test_the_mean_of_the_logits_is_each_samples_own():
    logits = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, -1.0]])
    assert means(logits, np.array([0, 0, 1])).tolist() == [[2.0, 1.0], [5.0, -1.0]]


@pytest.fixture
def volumes(tmp_path):
    """Four volumes of ten slices, bright in their lower or upper half, and a flat picture among them."""
    random = np.random.default_rng(0)
    for number in range(4):
        voxels = random.integers(0, 60, (16, 16, 10)).astype(np.uint8)
        voxels[:, :, : 5 if number % 2 else 10] += 150
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{number}.nii.gz")
    Image.fromarray(random.integers(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "flat.png")
    names = [*(f"{number}.nii.gz" for number in range(4)), "flat.png"]
    return ManifestSamples({"image": names, "label": ["whole", "half", "whole", "half", "whole"]}, np.array(names), tmp_path)


def test_a_row_a_slice_and_one_for_a_flat_picture(volumes):
    seen = by_slice(volumes, 4)
    assert owners(seen).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert [getattr(picture, "frame", None) for picture in seen.pictures()[:5]] == [1, 3, 6, 8, 1]
    assert seen.groups[4] == "1.nii.gz"
    levels = [picture.read().mean() for picture in seen.pictures()[4:8]]
    assert min(levels[:2]) > max(levels[2:]) + 100  # the planted half


def test_the_answer_is_the_mean_over_slices_asked_one_by_one(volumes):
    task, encoder = Classification(slices=3), tiny_encoder()
    task = task.settled(task.usable(volumes))
    run = path.fitted(volumes, task, ZeroShot(), encoder)
    said = run.predict(volumes)
    assert [row["image"] for row in said.table] == volumes.column("image")
    one = path.fitted(volumes, Classification().settled(volumes), ZeroShot(), encoder)
    for row, name in enumerate(volumes.column("image")[:4]):
        logits = []
        for frame in spread(10, 3):
            picture = by_slice(volumes, 10).take([row * 10 + frame]).pictures()[0]
            assert (picture.name, picture.frame) == (name, frame)
            alone = ManifestSamples({"image": [picture]}, np.arange(1))
            answer = path.answer(one.adapted, one.query(alone), "row")
            assert isinstance(answer, Scores)
            logits.append(answer.values[0])
        expected = torch.stack(logits).mean(0).softmax(0).double().numpy()
        np.testing.assert_allclose(said.arrays["scores"][row], expected, atol=1e-6)


def test_support_slices_are_rows_with_their_volumes_label_and_measures_count_volumes(volumes):
    task = Classification(slices=2)
    task = task.settled(task.usable(volumes))
    problem = task.frame(volumes, "scores").problem(volumes, tiny_encoder(), 0)
    assert problem.targets.argmax(1).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1]
    run = path.fitted(volumes, task, LinearProbe(), tiny_encoder())
    assert run.measure(volumes)["balanced_accuracy"].value() == 1.0
    assert len(run.predict(volumes).table) == 5
