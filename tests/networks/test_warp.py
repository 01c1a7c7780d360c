"""Warping, spline fields and registration losses against closed forms, slow twins and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates
from torch import Tensor

from medtame.errors import MedtameError
from medtame.metrics.registration import folding_percent
from medtame.networks.warp import bending, centres, crowding, in_pixels, local_correlation, resized_field, smooth_field, warp


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def shift(x_pixels: float, y_pixels: float, height: int, width: int) -> Tensor:
    return torch.tensor([x_pixels / width, y_pixels / height])[None, :, None, None].expand(1, 2, height, width)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_no_displacement_changes_nothing(mode: str) -> None:
    image = random(2, 3, 9, 14)
    assert torch.allclose(warp(image, torch.zeros(2, 2, 9, 14), mode), image, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -2), (-4, 1)])
def test_a_shift_by_whole_pixels_pulls_back(mode: str, x: int, y: int) -> None:
    """Pixel (r, c) of the answer is pixel (r + y, c + x) of the moving image: x is along the width."""
    image = random(1, 1, 12, 17)
    warped = warp(image, shift(x, y, 12, 17), mode)
    rows, columns = np.arange(4, 8), np.arange(5, 12)
    assert torch.allclose(warped[0, 0][np.ix_(rows, columns)], image[0, 0][np.ix_(rows + y, columns + x)], atol=1e-5)


def test_warp_equals_scipy_also_onto_another_grid() -> None:
    image, field = random(1, 1, 20, 30), 0.1 * (random(1, 2, 15, 11) - 0.5)
    y, x = np.meshgrid(centres(15), centres(11), indexing="ij")
    where = [(y + field[0, 1].numpy()) * 20 - 0.5, (x + field[0, 0].numpy()) * 30 - 0.5]
    slow = map_coordinates(image[0, 0].numpy(), where, order=1, mode="nearest")
    assert np.allclose(warp(image, field)[0, 0].numpy(), slow, atol=1e-5)


def test_nearest_makes_no_new_labels_and_outside_is_background() -> None:
    labels = torch.full((1, 1, 8, 8), 7.0)
    labels[..., 4:] = 3
    assert set(warp(labels, 0.02 * random(1, 2, 8, 8), "nearest").unique().tolist()) <= {0.0, 3.0, 7.0}
    assert warp(labels, shift(3, 0, 8, 8), "nearest")[0, 0, 0].tolist() == [7, 3, 3, 3, 3, 0, 0, 0]


def test_fractions_survive_a_resize() -> None:
    field = smooth_field(0.1 * random(1, 2, 5, 5), (40, 60))
    direct = smooth_field(0.1 * random(1, 2, 5, 5), (80, 120))
    inner = np.s_[..., 2:-2, 2:-2]
    assert torch.allclose(resized_field(field, (80, 120))[inner], direct[inner], atol=1e-3)
    assert torch.allclose(in_pixels(shift(3, -2, 6, 9))[0, :, 0, 0], torch.tensor([3.0, -2.0]))


def test_a_displacement_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(MedtameError, match=r"must be \(images, 2, H, W\)"):
        warp(random(2, 1, 5, 5), torch.zeros(1, 2, 5, 5))


def test_smooth_field_is_the_cubic_b_spline() -> None:
    """Against SciPy's B-spline with uniform knots, along each axis; constant and linear knots are reproduced."""
    knots = random(1, 2, 7, 6)
    rows, columns = (
        BSpline.design_matrix(n_centres, np.arange(-3, k + 1) / (k - 3), 3).toarray()
        for n_centres, k in ((centres(23).double().numpy(), 7), (centres(31).double().numpy(), 6))
    )
    slow = np.einsum("rh,nkhw,cw->nkrc", rows, knots.double().numpy(), columns)
    assert np.allclose(smooth_field(knots, (23, 31)).numpy(), slow, atol=1e-5)
    assert torch.allclose(smooth_field(torch.full((1, 2, 4, 5), 0.3), (9, 8)), torch.tensor(0.3), atol=1e-6)
    line = torch.linspace(-0.5, 1.5, 5).expand(1, 2, 4, 5)  # knots a spacing of 1/2 apart, the first one outside
    assert torch.allclose(smooth_field(line, (6, 10))[0, 0, 0], centres(10), atol=1e-6)
    with pytest.raises(MedtameError, match="at least 4"):
        smooth_field(torch.zeros(1, 2, 3, 5), (9, 8))


def test_local_correlation_equals_a_slow_twin() -> None:
    a, b = random(1, 1, 12, 13), random(1, 1, 12, 13, seed=1)
    slow = np.empty((12, 13))
    for r in range(12):
        for c in range(13):
            window = np.s_[max(0, r - 2) : r + 3, max(0, c - 2) : c + 3]
            slow[r, c] = np.corrcoef(a[0, 0].numpy()[window].ravel(), b[0, 0].numpy()[window].ravel())[0, 1] ** 2
    assert float(local_correlation(a, b, 5)) == pytest.approx(slow.mean(), abs=1e-3)


def test_local_correlation_ignores_brightness_and_contrast() -> None:
    a = random(2, 1, 20, 20)
    assert torch.allclose(local_correlation(a, 0.9 - 0.5 * a), torch.ones(2), atol=1e-3)
    assert float(local_correlation(a, random(2, 1, 20, 20, seed=3)).max()) < 0.1
    assert local_correlation(a, torch.full_like(a, 0.5)).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_bending_is_zero_for_affine_maps_and_the_closed_form_for_a_parabola() -> None:
    y, x = torch.meshgrid(centres(60), centres(60), indexing="ij")
    assert float(bending(torch.stack([0.2 * x - y, 0.4 + 0.1 * x])[None])) == pytest.approx(0, abs=1e-3)
    parabola = torch.stack([0.3 * x**2, 0.1 * x * y])[None].double()  # xx = 0.6; xy = 0.1, twice
    assert float(bending(parabola)) == pytest.approx(0.6**2 + 2 * 0.1**2, rel=1e-2)
    coarse = resized_field(parabola, (30, 30))
    assert float(bending(coarse)) == pytest.approx(float(bending(parabola)), rel=1e-2)


def test_crowding_is_a_shrinkage_in_closed_form_and_sees_what_the_metric_calls_folds() -> None:
    _, x = torch.meshgrid(centres(20), centres(30), indexing="ij")
    shrink = torch.stack([-0.9 * x, torch.zeros_like(x)])[None]  # every mapped pixel has area 0.1
    assert float(crowding(shrink, 0.3)) == pytest.approx(0.2, abs=1e-4)
    assert float(crowding(shrink, 0.05)) == 0
    for strength, folds in ((0.1, False), (0.6, True)):
        field = smooth_field(strength * (random(1, 2, 8, 8) - 0.5), (40, 40))
        assert (float(crowding(field, 0)) > 0) == (folding_percent(in_pixels(field)[0].numpy()) > 0) == folds
