"""Centre maps: what is written is read back, each number against a slow twin."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from medtame.learning.centres import FOCAL, MAPS, REFERENCE, centre_loss, centre_targets, peaks

BOXES = torch.tensor([[0.10, 0.20, 0.30, 0.45], [0.55, 0.05, 0.65, 0.12], [0.40, 0.50, 0.95, 0.98], [0.12, 0.60, 0.20, 0.70]])


def perfect(target: torch.Tensor) -> torch.Tensor:
    """The logits (5, H, W) of a network that knows the targets (6, H, W)."""
    return torch.cat([torch.logit(target[:1], 1e-4), target[2:]])


def scattered(seed: int, n: int) -> torch.Tensor:
    """Boxes (n, 4) in cells of a grid of their own, so that they do not overlap."""
    random = np.random.default_rng(seed)
    cells = random.permutation(25)[:n]
    size = random.uniform(0.05, 0.19, (n, 2))
    corner = np.stack([cells % 5, cells // 5], 1) / 5 + random.uniform(0, 1, (n, 2)) * (0.2 - size)
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()


@pytest.mark.parametrize("boxes", [BOXES, *[scattered(seed, n) for seed, n in ((0, 1), (1, 7), (2, 15))]])
def test_perfect_maps_give_the_boxes_back(boxes):
    found = peaks(perfect(centre_targets(boxes, 80)), 100, 0.5, 0.5)
    assert len(found) == len(boxes)
    overlap = box_iou(found[:, :4], boxes)
    assert sorted(overlap.argmax(1).tolist()) == list(range(len(boxes)))
    assert overlap.amax(1).min() > 0.98
    assert found[:, 4].tolist() == sorted(found[:, 4].tolist(), reverse=True)


def test_each_object_has_a_cell_of_exactly_one_and_the_bump_is_a_gaussian_of_its_sides():
    side = 40
    target = centre_targets(torch.tensor([[0.11, 0.21, 0.31, 0.46]]), side)
    assert (target[0] == 1).nonzero().tolist() == [[13, 8]]
    for row, column in ((10, 8), (13, 12), (0, 0)):
        down, across = max(0.1 * 0.25, 0.7 / side), max(0.1 * 0.2, 0.7 / side)
        y, x = (row - 13) / side / down, (column - 8) / side / across
        assert float(target[0, row, column]) == pytest.approx(math.exp(-(x * x + y * y) / 2), abs=1e-5)
    assert target[2:4, 13, 8].tolist() == pytest.approx([math.log(0.2 / REFERENCE), math.log(0.25 / REFERENCE)], abs=1e-5)
    assert target[4:, 13, 8].tolist() == pytest.approx([(0.21 - 8.5 / side) / 0.2, (0.335 - 13.5 / side) / 0.25], abs=1e-5)


def test_where_bumps_meet_the_higher_one_tells_the_size():
    large, small = torch.tensor([0.2, 0.2, 0.8, 0.8]), torch.tensor([0.49, 0.49, 0.57, 0.57])
    for boxes in (torch.stack([large, small]), torch.stack([small, large])):
        target = centre_targets(boxes, 50)
        assert float(target[2, 26, 26]) == pytest.approx(math.log(0.08 / REFERENCE), abs=1e-5)
        assert float(target[2, 20, 20]) == pytest.approx(math.log(0.6 / REFERENCE), abs=1e-5)


def test_no_object_is_no_bump():
    assert centre_targets(torch.zeros(0, 4), 20).abs().max() == 0


def slow_loss(logits, targets) -> float:
    focal, apart, weights = [], 0.0, 0.0
    for said, true in zip(logits.tolist(), targets.tolist(), strict=True):
        total, bumps = 0.0, 0.0
        for row in range(len(said[0])):
            for column in range(len(said[0])):
                p, y = 1 / (1 + math.exp(-said[0][row][column])), true[0][row][column]
                total -= (p - y) ** 2 * (y * math.log(p) + (1 - y) * math.log(1 - p))
                bumps += y
                weight = true[1][row][column]
                weights += weight
                apart += weight * sum(abs(said[k][row][column] - true[k + 1][row][column]) for k in range(1, MAPS))
        focal.append(total / (bumps + 1))
    return FOCAL * sum(focal) / len(focal) + apart / max(weights, 1)


def test_the_loss_is_that_of_a_plain_loop_and_least_where_the_maps_are_right():
    random = torch.Generator().manual_seed(0)
    targets = torch.stack([centre_targets(BOXES, 12), centre_targets(BOXES[:1], 12), centre_targets(BOXES[:0], 12)])
    logits = torch.randn(3, MAPS, 12, 12, generator=random)
    assert float(centre_loss(logits, targets)) == pytest.approx(slow_loss(logits, targets), rel=1e-5)
    right = torch.stack([perfect(target) for target in targets])
    assert float(centre_loss(right, targets)) < 1e-3


def test_peaks_are_limited_and_the_best_one_always_stays():
    maps = torch.full((MAPS, 20, 20), -6.0)
    maps[1:] = 0
    for place, logit in (((3, 3), 3.0), ((3, 15), 2.0), ((15, 3), 1.0), ((15, 15), -5.0)):
        maps[0][place] = logit
    assert len(peaks(maps, 10, 0.1, 0.5)) == 3
    assert peaks(maps, 2, 0.1, 0.5)[:, 4].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))])
    assert len(peaks(maps, 10, 0.999, 0.5)) == 1
    maps[1:3] = math.log(9)  # boxes of .9 that lie on each other
    assert len(peaks(maps, 10, 0.1, 0.2)) < len(peaks(maps, 10, 0.1, 0.9)) == 3


def test_a_box_never_leaves_the_image_and_always_has_an_area():
    maps = torch.zeros(MAPS, 8, 8)
    maps[1:3] = 50.0
    found = peaks(maps, 5, 0.1, 1.0)
    assert bool(((found[:, :4] >= 0) & (found[:, :4] <= 1)).all())
    maps[1:3] = -50.0
    found = peaks(maps, 5, 0.1, 1.0)
    assert bool((found[:, 2:4] > found[:, :2]).all())
