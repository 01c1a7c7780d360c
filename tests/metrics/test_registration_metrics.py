"""Displacements of known shape: affine maps, planted folds, planted errors of landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from medtame.errors import MedtameError
from medtame.metrics.registration import (
    folding_percent,
    label_dice,
    log_jacobian_sd,
    registration,
    relative_target_registration_error,
    target_registration_error,
)
from medtame.types import Array

Y, X = np.mgrid[:21, :31].astype(float)


def affine(matrix: Array) -> Array:
    """The displacement (2, H, W) whose map is the matrix, in (x, y)."""
    return np.einsum("ij,jhw->ihw", np.asarray(matrix) - np.eye(2), np.stack([X, Y]))


@pytest.mark.parametrize("matrix", [np.eye(2), [[1.3, 0.2], [-0.1, 0.8]], [[0, -1], [1, 0]]])
def test_affine_maps_neither_fold_nor_vary(matrix: Array) -> None:
    assert folding_percent(affine(matrix)) == 0
    assert log_jacobian_sd(affine(matrix)) == pytest.approx(0, abs=1e-9)


def test_a_reflection_and_a_collapse_fold_everywhere() -> None:
    for matrix in ([[-1, 0], [0, 1]], [[1, 0], [0, 0]]):
        assert folding_percent(affine(np.array(matrix))) == 100
        assert np.isnan(log_jacobian_sd(affine(np.array(matrix))))


def test_a_stretch_of_known_size_gives_its_spread() -> None:
    """Left half as it is, right half twice as wide: half the cells have log area 0, half log 2."""
    field = np.stack([np.maximum(X - 15, 0), np.zeros_like(X)])
    assert folding_percent(field) == 0
    assert log_jacobian_sd(field) == pytest.approx(np.log(2) / 2)


def test_a_smooth_field_equals_its_analytic_jacobian() -> None:
    field = np.stack([3 * np.sin(X / 8) * np.cos(Y / 9), 2 * np.cos(X / 10) * np.sin(Y / 7)])
    y, x = Y[:-1, :-1] + 0.5, X[:-1, :-1] + 0.5
    xx, xy = 1 + 3 / 8 * np.cos(x / 8) * np.cos(y / 9), -3 / 9 * np.sin(x / 8) * np.sin(y / 9)
    yx, yy = -2 / 10 * np.sin(x / 10) * np.sin(y / 7), 1 + 2 / 7 * np.cos(x / 10) * np.cos(y / 7)
    assert log_jacobian_sd(field) == pytest.approx(np.log(xx * yy - xy * yx).std(), abs=2e-3)


def test_one_moved_pixel_folds_the_cells_around_it() -> None:
    field = np.zeros((2, 21, 31))
    field[0, 10, 10] = 1.5
    assert folding_percent(field) == pytest.approx(100 * 2 / (20 * 30))
    assert (1 + np.gradient(field[0], axis=1)).min() > 0, "central differences do not see this fold"


def test_landmark_errors_in_pixels_in_mm_and_relative() -> None:
    fixed = np.array([[1.0, 2.0], [5.0, 5.0], [np.nan, 0.0]])
    moved = fixed + np.array([3.0, 4.0])
    assert target_registration_error(moved, fixed) == pytest.approx(5)
    assert target_registration_error(moved, fixed, spacing_mm=(0.5, 2.0)) == pytest.approx(np.hypot(3 * 2, 4 * 0.5))
    assert relative_target_registration_error(moved, fixed, (30, 40)) == pytest.approx(5 / 50)
    assert relative_target_registration_error(moved, fixed, (30, 40), (2.0, 2.0)) == pytest.approx(5 / 50)
    assert np.isnan(target_registration_error(np.empty((0, 2)), np.empty((0, 2))))


def test_label_dice_is_over_labels_present_in_either() -> None:
    moved, fixed = np.zeros((2, 4, 4), dtype=int)
    moved[0], fixed[0] = 1, 1
    fixed[1] = 2
    assert label_dice(moved, fixed, (1, 2, 3)) == pytest.approx((1 + 0) / 2)
    assert np.isnan(label_dice(moved, fixed, (7,)))


def test_rows_become_means_and_units_are_not_mixed() -> None:
    field, labels = np.zeros((2, 30, 40)), np.ones((30, 40), dtype=int)
    fixed = np.array([[1.0, 1.0], [9.0, 9.0]])
    points = [(fixed + np.array([0, 4.0]), fixed), (fixed, fixed), None]
    found = registration([field] * 3, [None, (labels, labels), None], points, (1,), [(0.5, 0.5)] * 3)
    assert list(found) == ["dice", "target_registration_error", "relative_target_registration_error", "folding_percent", "log_jacobian_sd"]
    assert (found["dice"].value(), found["dice"].defined) == (1, 1)
    assert (found["target_registration_error"].value(), found["target_registration_error"].defined) == (1, 2)
    assert found["relative_target_registration_error"].value() == pytest.approx(4 / 50 / 2)
    mixed = registration([field] * 3, None, points, (), [(0.5, 0.5), None, None])
    assert mixed["target_registration_error"].value() == pytest.approx(2)
    assert "dice" not in mixed


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(MedtameError, match=r"\(2, H, W\)"):
        folding_percent(np.zeros((3, 4, 4)))
    with pytest.raises(MedtameError, match="points"):
        target_registration_error(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(MedtameError, match="one of each"):
        registration([np.zeros((2, 4, 4))], [None, None])
