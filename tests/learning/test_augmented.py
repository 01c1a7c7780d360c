"""Augmentation: nothing at zero, what SciPy does at an angle, every lesion stays in view, no side is changed, each draw by itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medtame.learning.augmented import CONTRAST, DEGREES, OFFSET, SCALE, SHIFT, augmented, chances, changes

TURN, ZOOM, RIGHT, DOWN, MORE, BRIGHTER = range(6)


def amounts(**given: float) -> np.ndarray:
    found = np.zeros((1, 6))
    for name, value in given.items():
        found[0, globals()[name.upper()]] = value
    return found


def smooth(side: int = 64, seed: int = 0) -> torch.Tensor:
    """(1, 3, S, S) of three smooth planes with a flat border."""
    random = np.random.default_rng(seed)
    planes = np.stack([ndimage.gaussian_filter(random.normal(size=(side, side)), 4) for _ in range(3)])
    weight = np.pad(np.ones((side // 2, side // 2)), side // 4)
    return torch.from_numpy(10 * planes * ndimage.gaussian_filter(weight, 2)).float()[None]


def test_nothing_changes_at_zero():
    images = torch.randn(4, 3, 37, 37)
    assert float((augmented(images, np.zeros((4, 6))) - images).abs().max()) < 1e-5 * float(images.abs().max())
    small = torch.rand(4, 3, 32, 32)
    assert float((augmented(small, np.zeros((4, 6))) - small).abs().max()) < 1e-6


@pytest.mark.parametrize("share", [1.0, -0.5])
def test_a_turn_is_scipys(share):
    image = smooth()
    turned = augmented(image, amounts(turn=share))[0].numpy()
    expected = np.stack([ndimage.rotate(plane, share * DEGREES, reshape=False, order=1, mode="nearest") for plane in image[0].numpy()])
    assert np.abs(turned - expected).max() < 0.02 * np.abs(expected).max()
    other = np.stack([ndimage.rotate(plane, -share * DEGREES, reshape=False, order=1, mode="nearest") for plane in image[0].numpy()])
    assert np.abs(turned - other).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-1, 1)])
def test_a_shift_is_scipys(right, down):
    image = smooth(48)
    moved = augmented(image, amounts(right=right, down=down))[0].numpy()
    pixels = 48 * SHIFT
    expected = np.stack([ndimage.shift(plane, (-down * pixels, -right * pixels), order=1, mode="nearest") for plane in image[0].numpy()])
    assert np.abs(moved - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_scale_is_scipys():
    image = smooth()
    for zoom in (1.0, -1.0):
        found = augmented(image, amounts(zoom=zoom))[0].numpy()
        factor, centre = 1 / (1 + zoom * SCALE), 31.5
        expected = np.stack(
            [
                ndimage.affine_transform(plane, [factor, factor], offset=centre * (1 - factor), order=1, mode="nearest")
                for plane in image[0].numpy()
            ]
        )
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_contrast_and_offset_are_relative_to_the_image():
    image = torch.randn(1, 3, 16, 16) * 3 + 5
    mean, deviation = image.mean(), image.flatten().std()
    changed = augmented(image, amounts(more=1, brighter=-1))
    torch.testing.assert_close(changed, (image - mean) * (1 + CONTRAST) + mean - OFFSET * deviation, atol=1e-4, rtol=1e-4)
    flat = torch.full((1, 3, 8, 8), 0.7)
    torch.testing.assert_close(augmented(flat, np.ones((1, 6))), flat)  # an image of one grey value stays


EXTREMES = np.array(list(itertools.product((-1.0, 1.0), repeat=4)))
EXTREMES = np.concatenate([EXTREMES, np.zeros((len(EXTREMES), 2))], 1)


def test_a_dot_stays_in_view_at_all_extremes():
    """A dot anywhere but in the outermost eighth is still there and bright, whatever is done; in the very corner it need not be."""
    side, least = 64, 0.8
    for x, y in itertools.product(np.linspace(0.125, 0.875, 7), repeat=2):
        rows, columns = np.mgrid[:side, :side]
        dot = np.exp(-((columns + 0.5 - x * side) ** 2 + (rows + 0.5 - y * side) ** 2) / (2 * 1.5**2))
        image = torch.from_numpy(dot).float().expand(len(EXTREMES), 3, -1, -1)
        brightest = augmented(image, EXTREMES).amax((1, 2, 3))
        assert float(brightest.min()) > least, (x, y, brightest)
    corner = torch.zeros(len(EXTREMES), 3, side, side)
    corner[:, :, 1, 1] = 1.0
    assert float(augmented(corner, EXTREMES).amax((1, 2, 3)).min()) < least


def test_left_stays_left_and_up_stays_up():
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 12:20, 8:16] = 1.0  # above on the left
    found = augmented(image.expand(400, -1, -1, -1), changes(3, range(400)))
    weight = (found - found.amin((2, 3), keepdim=True))[:, 0]
    weight = weight / weight.sum((1, 2), keepdim=True)
    place = torch.arange(64.0)
    across, down = (weight.sum(1) * place).sum(1), (weight.sum(2) * place).sum(1)
    assert float(across.max()) < 31
    assert float(down.max()) < 31


def test_a_draw_is_changed_in_the_same_way_in_any_batch():
    images, draws = torch.randn(6, 3, 24, 24), [5, 17, 5, 900, 3, 1]
    images[2] = images[0]
    whole = augmented(images, changes(7, draws))
    torch.testing.assert_close(whole[0], whole[2], atol=0, rtol=0)
    for row in range(6):
        alone = augmented(images[row : row + 1], changes(7, draws[row : row + 1]))
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=1e-6)
    assert not np.allclose(changes(7, [5]), changes(8, [5]))
    assert chances(1, 2, 0).random() != chances(1, 2, 1).random()


def test_amounts_fill_their_range_evenly():
    found = changes(0, range(4000))
    assert found.shape == (4000, 6)
    assert np.abs(found).max() <= 1
    assert np.abs(found.mean(0)).max() < 0.05
    assert np.abs(found.std(0) - 1 / math.sqrt(3)).max() < 0.02
    assert np.abs(np.corrcoef(found.T) - np.eye(6)).max() < 0.06
