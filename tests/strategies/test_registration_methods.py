"""Registration methods on simulated pairs with a planted displacement, and on real pairs where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from medtame import catalogue, state
from medtame.data import manifest
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.metrics.registration import folding_percent
from medtame.strategies.base import Method
from medtame.tasks.registration import Registration, moved
from medtame.types import Adapted, Array, Grids, Query

METHODS = ("affine", "b_spline", "demons", "instance_optimisation")
DEFORMABLE = METHODS[1:]
QUICK: dict[str, dict[str, Any]] = {"affine": {}, "b_spline": {"iterations": 5}, "demons": {}, "instance_optimisation": {"steps": 8}}
HEIGHT, WIDTH = 72, 88
NOTHING: Any = None  # there is no encoder and nothing is fitted
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(float)
POINTS = np.stack(np.meshgrid(np.arange(16, WIDTH - 16, 8), np.arange(16, HEIGHT - 16, 8)), -1).reshape(-1, 2).astype(float)
SMOOTH = np.stack([3 * np.sin(ROWS / 14) + 1, 2.5 * np.cos(COLUMNS / 13) - 1])
SHEARED = np.stack([0.1 * (ROWS - 36) + 0.06 * (COLUMNS - 44), 0.08 * (COLUMNS - 44) - 0.05 * (ROWS - 36)])
SHIFTED = np.stack([np.full_like(ROWS, 5.0), np.full_like(ROWS, -3.0)])
STILL = np.zeros((2, HEIGHT, WIDTH))


def pair(displacement: Array, seed: int = 0) -> dict[str, Array]:
    """A simulated head, an ellipse with blobs, on a dark ground; fixed(x) = moving(x + u(x)); labels are three grey bands."""
    random = np.random.default_rng(seed)
    blobs = gaussian_filter(random.standard_normal((HEIGHT, WIDTH)), 3)
    inside = ((ROWS - 35.5) / 28) ** 2 + ((COLUMNS - 43.5) / 36) ** 2 <= 1
    moving = gaussian_filter(np.where(inside, 0.55 + 0.3 * blobs / np.abs(blobs).max(), 0.05), 0.7)
    labels = np.where(inside, 1 + np.digitize(blobs, np.quantile(blobs[inside], [0.35, 0.7])), 0)
    where = [ROWS + displacement[1], COLUMNS + displacement[0]]
    return {
        "moving": moving.astype(np.float32),
        "fixed": map_coordinates(moving, where, order=1, mode="nearest").astype(np.float32),
        "moving_labels": labels.astype(np.uint8),
        "fixed_labels": map_coordinates(labels, where, order=0, mode="constant").astype(np.uint8),
    }


def samples(*pairs: dict[str, Array]) -> ManifestSamples:
    columns = {name: [ArrayPicture(one[name], f"{name}-{i}") for i, one in enumerate(pairs)] for name in pairs[0]}
    return ManifestSamples(columns, np.array([f"case-{i}" for i in range(len(pairs))]))


def query_of(data: ManifestSamples) -> Query:
    return Registration().frame(data, "grids").query(Registration().given(data)[0], NOTHING)


def fitted(name: str, **settings: Any) -> Adapted:
    method: Method = catalogue.build(catalogue.METHODS, name, settings)
    return method.fit(NOTHING)  # nothing is read at fit


def pixels_of(name: str, *pairs: dict[str, Array], **settings: Any) -> list[Array]:
    """The displacements (2, H, W) in pixels."""
    data = samples(*pairs)
    query = query_of(data)
    answer = fitted(name, **settings).answer(query)
    assert isinstance(answer, Grids)
    assert answer.values.shape == (len(pairs), 2, HEIGHT, WIDTH)
    said = Registration().frame(data, "grids").read(query, answer)
    return [said.arrays[f"{i}/displacement"] for i in range(len(pairs))]


def dice(displacement: Array, one: dict[str, Array]) -> float:
    """A slow twin of the task's: mean over labels 1 to 3."""
    where = [ROWS + displacement[1], COLUMNS + displacement[0]]
    warped = map_coordinates(one["moving_labels"], where, order=0, mode="constant")
    return float(
        np.mean(
            [
                2 * ((warped == k) & (one["fixed_labels"] == k)).sum() / ((warped == k).sum() + (one["fixed_labels"] == k).sum())
                for k in (1, 2, 3)
            ]
        )
    )


def error(found: Array, true: Array) -> float:
    """Mean distance in pixels of the points that both displacements carry."""
    return float(np.linalg.norm(moved(POINTS, found) - moved(POINTS, true), axis=1).mean())


@pytest.mark.parametrize(
    ("name", "planted", "dice_gain", "error_left"),
    [
        ("affine", SHEARED, 0.2, 0.1),
        ("b_spline", SMOOTH, 0.3, 0.15),
        ("demons", SMOOTH, 0.3, 0.1),
        ("instance_optimisation", SMOOTH, 0.3, 0.1),
    ],
)
def test_a_planted_displacement_is_found(name: str, planted: Array, dice_gain: float, error_left: float) -> None:
    """Dice rises by `dice_gain` at least, and of the landmark error at most the share `error_left` is left; nothing folds."""
    one = pair(planted)
    (found,) = pixels_of(name, one)
    assert dice(found, one) > dice(STILL, one) + dice_gain
    assert error(found, planted) < error_left * error(STILL, planted)
    assert error(-found, planted) > error(STILL, planted)  # the other way round is worse than nothing
    assert folding_percent(found) == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_shift_is_recovered_within_half_a_pixel(name: str) -> None:
    (found,) = pixels_of(name, pair(SHIFTED))
    x, y = np.median(found[:, 20:-20, 20:-20], axis=(1, 2))
    assert (x, y) == (pytest.approx(5, abs=0.5), pytest.approx(-3, abs=0.5))
    assert error(found, SHIFTED) < 0.5


@pytest.mark.parametrize("name", METHODS)
def test_equal_images_hardly_move(name: str) -> None:
    (found,) = pixels_of(name, pair(STILL))
    assert error(found, STILL) < (0.3 if name == "b_spline" else 0.1)


@pytest.mark.parametrize("name", METHODS)
def test_pairs_stand_alone_and_answers_repeat(name: str) -> None:
    """Bit for bit, in another order, among others and alone."""
    query = query_of(samples(pair(SHIFTED, 1), pair(SMOOTH, 2)))
    adapted = fitted(name, **QUICK[name])
    together = adapted.answer(query).values
    assert torch.equal(adapted.answer(query.take([1, 0])).values, together[[1, 0]])
    assert torch.equal(adapted.answer(query.take([1])).values, together[[1]])


@pytest.mark.parametrize("name", METHODS)
def test_only_plain_settings_are_saved(name: str, tmp_path: Path) -> None:
    adapted = fitted(name)
    state.save(adapted, tmp_path, {})
    assert state.load(tmp_path, (Adapted,), lambda spec: NOTHING)[0] == adapted


@pytest.mark.parametrize("name", METHODS)
def test_truth_and_colour_do_not_change_the_answer(name: str) -> None:
    """Label maps are not seen; three equal channels are one."""
    one = pair(SHIFTED)
    (grey,) = pixels_of(name, one, **QUICK[name])
    colour = {**one, "fixed": np.repeat(one["fixed"][..., None], 3, 2), "fixed_labels": np.zeros_like(one["fixed_labels"])}
    (found,) = pixels_of(name, colour, **QUICK[name])
    assert np.abs(found - grey).max() < 0.05


@pytest.mark.parametrize("name", METHODS)
def test_an_image_of_one_grey_value_is_refused(name: str) -> None:
    blank = {**pair(STILL), "moving": np.full((HEIGHT, WIDTH), 0.4, dtype=np.float32)}
    with pytest.raises(DataError, match="moving-0 has one grey value"):
        pixels_of(name, blank)


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_query_gives_an_empty_answer(name: str) -> None:
    empty = query_of(samples(pair(STILL))).take([])
    assert fitted(name).answer(empty).values.shape == (0, 2, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", DEFORMABLE)
def test_real_brain_pairs_come_closer(name: str, real_data: Path) -> None:
    """Two training pairs: tissue Dice rises and little folds."""
    data = manifest.read(real_data / "brain_pairs" / "pairs.csv")
    data = data.take(data.rows_where("split", "train")[:2])
    frame = Registration().frame(data, "grids")
    query = frame.query(Registration().given(data)[0], NOTHING)
    before, after = (
        frame.measure(frame.read(query, answer), data) for answer in (Grids(torch.zeros(2, 2, 182, 217)), fitted(name).answer(query))
    )
    assert before["dice"].value() == pytest.approx(np.mean([float(v) for v in data.column("dice_before")]), abs=0.002)
    assert after["dice"].value() > before["dice"].value() + {"b_spline": 0.01, "demons": 0.06, "instance_optimisation": 0.08}[name]
    assert after["folding_percent"].value() < 0.5
