"""Registration: what is asked, how a displacement is read, and metrics against planted truth and closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medtame import state
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.tasks.base import Frame
from medtame.tasks.registration import Registration, RegistrationFrame
from medtame.types import Array, Geometry, Grids, Predicted, Scores

HEIGHT, WIDTH = 40, 60
NO_ENCODER: Any = None  # registration uses none


@dataclass(frozen=True, eq=False)
class Spaced(ArrayPicture):
    """A picture that knows its spacing: rows of 2 mm, columns of 0.5 mm."""

    def geometry(self) -> Geometry:
        return Geometry(height=self.pixels.shape[0], width=self.pixels.shape[1], spacing_mm=(2.0, 0.5))


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Array:
    return np.random.default_rng(seed).random((height, width)).astype(np.float32)


def samples(n: int = 2, **columns: list[Any]) -> ManifestSamples:
    """n pairs; `columns` are added or replaced."""
    pictures = {name: [ArrayPicture(texture(100 * k + i), f"{name}-{i}") for i in range(n)] for k, name in enumerate(("moving", "fixed"))}
    return ManifestSamples({**pictures, **columns}, np.array([f"case-{i}" for i in range(n)]))


def square(row: int, column: int, value: int = 1, size: int = 10) -> Array:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[row : row + size, column : column + size] = value
    return labels


def labels_of(moving: Array, fixed: Array, n: int = 2) -> dict[str, list[Any]]:
    return {"moving_labels": [ArrayPicture(moving, "m")] * n, "fixed_labels": [ArrayPicture(fixed, "f")] * n}


def shift(x_pixels: float, y_pixels: float, n: int = 2, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.tensor([x_pixels / width, y_pixels / height])[None, :, None, None].expand(n, 2, height, width).clone()


def said(data: ManifestSamples, displacement: Tensor, frame: Frame | None = None) -> Predicted:
    frame = frame or Registration().frame(data, "grids")
    return frame.read(frame.query(Registration().given(data)[0], NO_ENCODER), Grids(displacement))


def measured(data: ManifestSamples, displacement: Tensor) -> dict[str, float]:
    frame = Registration().frame(data, "grids")
    return {name: statistic.value() for name, statistic in frame.measure(said(data, displacement), data).items()}


def landmark_files(folder: Path, moving: Array, fixed: Array) -> dict[str, list[Any]]:
    for name, points in (("moving", moving), ("fixed", fixed)):
        lines = [f"{i},{x},{y}" for i, (x, y) in enumerate(points)]
        (folder / f"{name}.csv").write_text("\n".join(["point,X,Y", *lines]), encoding="utf-8")
    return {f"{name}_landmarks": [str(folder / f"{name}.csv")] * 2 for name in ("moving", "fixed")}


# ---- the question and its answer ------------------------------------------------------------------------------


def test_a_query_holds_pairs_at_one_size_and_no_truth() -> None:
    data = samples(**labels_of(square(5, 5), square(5, 5)))
    frame = Registration().frame(data, "grids")
    query = frame.query(Registration().given(data)[0], NO_ENCODER)
    assert (query.wants, len(query), query.size) == ("grids", 2, (HEIGHT, WIDTH))
    assert torch.equal(query.pixels("fixed")[1, 0], torch.from_numpy(texture(101)))
    with pytest.raises(DataError, match="may not see 'moving_labels'"):
        query.samples.column("moving_labels")


def test_the_working_size_is_the_first_fixed_image_within_limits() -> None:
    big = samples(1, fixed=[ArrayPicture(texture(0, 640, 480), "big")])
    assert Registration().working_size(samples()) == (HEIGHT, WIDTH)
    assert Registration().working_size(big) == (320, 240)
    settled = Registration().settled(samples())
    assert settled.working_size(big) == (HEIGHT, WIDTH)  # a draw does not change it
    assert Registration(size=(32, 48)).working_size(big) == (32, 48)


def test_a_displacement_is_read_in_pixels_of_each_fixed_image() -> None:
    data = samples(fixed=[ArrayPicture(texture(1), "a"), ArrayPicture(texture(2, 80, 90), "b")])
    answer = said(data, shift(6, -2))
    assert [row["fixed"] for row in answer.table] == ["a", "b"]
    assert [row["moving"] for row in answer.table] == ["moving-0", "moving-1"]
    assert [row["folding_percent"] for row in answer.table] == [0, 0]
    first, second = answer.arrays["0/displacement"], answer.arrays["1/displacement"]
    assert first.dtype == np.float32
    assert first.shape == (2, HEIGHT, WIDTH)
    assert second.shape == (2, 80, 90)
    assert first[:, 7, 9] == pytest.approx([6, -2], abs=1e-5)
    assert second[:, 7, 9] == pytest.approx([9, -4], abs=1e-5)


def test_a_fold_is_told() -> None:
    field = shift(0, 0)
    field[1, 0, 10:20, 20:40] = 0.2
    rows = said(samples(), field).table
    assert rows[0]["folding_percent"] == 0
    assert rows[0]["warning"] == ""
    assert rows[1]["folding_percent"] > 0
    assert "folds" in rows[1]["warning"]


def test_other_answers_and_words_are_refused() -> None:
    data = samples()
    frame = Registration().frame(data, "grids")
    query = frame.query(data, NO_ENCODER)
    with pytest.raises(PairError, match="two maps"):
        frame.read(query, Scores(torch.zeros(2, 2)))
    with pytest.raises(PairError, match="two maps"):
        frame.read(query, Grids(torch.zeros(2, 1, HEIGHT, WIDTH)))
    with pytest.raises(PairError, match="no words"):
        frame.query(data, NO_ENCODER, ["heart"])


def test_the_loss_is_least_at_the_true_displacement() -> None:
    moving = texture(0)
    data = samples(1, moving=[ArrayPicture(moving, "m")], fixed=[ArrayPicture(np.roll(moving, (2, -3), (0, 1)), "f")])
    problem = Registration().frame(data, "grids").problem(data, NO_ENCODER, 0)
    assert problem.targets.shape == (1, 2, HEIGHT, WIDTH)
    assert problem.loss is not None
    losses = [float(problem.loss(shift(x, y, 1), problem.targets)) for x, y in ((3, -2), (0, 0), (-3, 2))]
    assert losses[0] < 0.2 < 0.8 < min(losses[1:])


def test_a_frame_is_saved_and_loaded(tmp_path: Path) -> None:
    frame = Registration().frame(samples(), "grids")
    state.save(frame, tmp_path, {})
    assert state.load(tmp_path, (Frame,), lambda spec: NO_ENCODER)[0] == frame == RegistrationFrame("grids", (HEIGHT, WIDTH))
    assert list(load_file(tmp_path / "weights.safetensors")) == ["none"]


# ---- metrics --------------------------------------------------------------------------------------------------


def test_dice_of_a_planted_shift() -> None:
    """Moving labels 4 px to the right of the fixed ones: the true displacement is +4 in x; the overlap before is 6 of 10 columns."""
    data = samples(**labels_of(square(5, 24) + square(25, 44, 3), square(5, 20) + square(25, 40, 3)))
    assert measured(data, shift(4, 0))["dice"] == 1
    assert measured(data, shift(0, 0))["dice"] == pytest.approx(0.6)
    assert measured(data, shift(-4, 0))["dice"] == pytest.approx(0.2)  # the wrong way
    assert measured(data, shift(0, 4))["dice"] == pytest.approx(2 * 6 * 6 / 200)
    assert next(iter(measured(data, shift(0, 0)))) == "dice"


def test_label_zero_does_not_count_and_a_label_of_one_side_counts_zero() -> None:
    data = samples(**labels_of(square(5, 20, 1), square(5, 20, 1) + square(25, 40, 2)))
    assert measured(data, shift(0, 0))["dice"] == pytest.approx(0.5)


def test_label_maps_may_have_another_size_than_their_images() -> None:
    fine = np.kron(square(6, 24), np.ones((2, 2), dtype=np.uint8))
    data = samples(moving_labels=[ArrayPicture(fine, "m")] * 2, fixed_labels=[ArrayPicture(square(6, 20), "f")] * 2)
    assert measured(data, shift(4, 0))["dice"] == 1
    data = samples(moving_labels=[ArrayPicture(square(6, 24), "m")] * 2, fixed_labels=[ArrayPicture(np.roll(fine, -8, 1), "f")] * 2)
    assert measured(data, shift(4, 0))["dice"] == 1


def test_landmarks_follow_the_displacement_at_the_fixed_points(tmp_path: Path) -> None:
    fixed = np.array([[10.0, 12.0], [30.5, 20.0], [50.0, 8.25]])
    data = samples(**landmark_files(tmp_path, fixed + np.array([3, -4]), fixed))
    found = measured(data, shift(3, -4))
    assert found["target_registration_error"] == pytest.approx(0, abs=1e-4)
    found = measured(data, shift(0, 0))
    assert found["target_registration_error"] == pytest.approx(5)
    assert found["relative_target_registration_error"] == pytest.approx(5 / np.hypot(HEIGHT, WIDTH))
    assert next(iter(found)) == "relative_target_registration_error"
    assert measured(data, shift(-3, 4))["target_registration_error"] == pytest.approx(10, rel=1e-4)
    ramp = shift(0, 0)
    ramp[:, 0] = (torch.arange(WIDTH) * 0.1 / WIDTH).expand(2, HEIGHT, WIDTH)  # moves x to 1.1 x
    data = samples(**landmark_files(tmp_path, fixed * (1.1, 1), fixed))
    assert measured(data, ramp)["target_registration_error"] == pytest.approx(0, abs=1e-4)


def test_lengths_are_millimetres_where_the_spacing_is_known(tmp_path: Path) -> None:
    fixed = np.array([[10.0, 12.0], [30.0, 20.0]])
    spaced = [Spaced(texture(i), f"s{i}") for i in range(2)]
    data = samples(fixed=spaced, **landmark_files(tmp_path, fixed + np.array([6, -2]), fixed))
    found = measured(data, shift(0, 0))
    assert found["target_registration_error"] == pytest.approx(5)  # 6 columns of 0.5 mm, 2 rows of 2 mm
    assert found["relative_target_registration_error"] == pytest.approx(5 / np.hypot(HEIGHT * 2, WIDTH * 0.5))


def test_a_moving_image_of_another_size_is_stretched_onto_the_fixed(tmp_path: Path) -> None:
    """The same picture at twice the resolution: nothing has to move, and its landmarks are at twice the place."""
    fixed = np.array([[10.0, 12.0], [30.0, 20.0]])
    files = landmark_files(tmp_path, 2 * fixed + 0.5, fixed)
    fine = [ArrayPicture(np.kron(texture(i), np.ones((2, 2), dtype=np.float32)), f"fine-{i}") for i in range(2)]
    doubled = np.kron(square(5, 20), np.ones((2, 2), dtype=np.uint8))
    data = samples(moving=fine, **files, **labels_of(doubled, square(5, 20)))
    found = measured(data, shift(0, 0))
    assert found["dice"] == 1
    assert found["target_registration_error"] == pytest.approx(0, abs=1e-6)


def test_regularity_is_that_of_the_metrics() -> None:
    data = samples(**labels_of(square(5, 20), square(5, 20)))
    assert measured(data, shift(3, 2))["log_jacobian_sd"] == pytest.approx(0, abs=1e-5)
    field = shift(0, 0)
    field[:, 0] = (-2 * torch.arange(WIDTH) / WIDTH).expand(2, HEIGHT, WIDTH)  # a mirror: every cell turns over
    assert measured(data, field)["folding_percent"] == 100


def test_pairs_without_truth_are_left_out() -> None:
    data = samples(moving_labels=[ArrayPicture(square(5, 24), "m"), None], fixed_labels=[ArrayPicture(square(5, 20), "f"), None])
    frame = Registration().frame(data, "grids")
    found = frame.measure(said(data, shift(0, 0)), data)
    assert found["dice"].value() == pytest.approx(0.6)
    assert found["dice"].defined == 1
    assert found["folding_percent"].defined == 2


def test_what_cannot_be_measured_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair has truth"):
        measured(samples(), shift(0, 0))
    files = landmark_files(tmp_path, np.ones((3, 2)), np.ones((2, 2)))
    with pytest.raises(DataError, match=r"moving\.csv has 3 landmarks, fixed\.csv 2"):
        measured(samples(**files), shift(0, 0))
    (tmp_path / "fixed.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"fixed\.csv is not a table of landmarks"):
        measured(samples(**files), shift(0, 0))
    with pytest.raises(DataError, match="needs the column 'moving'"):
        Registration().usable(samples().only(["fixed"]))
