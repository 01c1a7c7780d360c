"""Objects as points: maps of centres, sizes and offsets, what they are compared with, and the boxes that they mean.

After CenterNet (Zhou et al. 2019, arxiv:1904.07850). Boxes are x0 y0 x1 y1 in fractions of the image. Five maps: the logit of a centre,
the logarithm of width and height, and the way from a cell to the centre of its object (x, y), in widths and heights of that object.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool2d
from torchvision.ops import nms

MAPS = 5
REFERENCE = 0.1  # the side, in fractions of the image, whose logarithm is written as 0
SPREAD = 0.1  # standard deviation of the bump at a centre, in sides of its box
LEAST_CELLS = 0.7  # the same in cells, at least
FOCAL = 4.0  # how much the centres count beside sizes and offsets
NEAR = 0.1  # cells with a bump above this also learn the object's size and centre


def centre_targets(boxes: Tensor, side: int) -> Tensor:
    """(6, side, side) of boxes (m, 4): the bumps, highest one a cell; how much a cell counts for the other four; size and offset.

    Where two bumps meet, the higher one tells the size, the smaller object where they are equal. Every object has one cell of exactly 1,
    that of its centre.
    """
    target = torch.zeros(6, side, side)
    cells = (torch.arange(side) + 0.5) / side
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for x0, y0, x1, y1 in boxes[areas.argsort(descending=True, stable=True)].tolist():
        width, height, x, y = x1 - x0, y1 - y0, (x0 + x1) / 2, (y0 + y1) / 2
        across, down = (max(SPREAD * length, LEAST_CELLS / side) for length in (width, height))
        column, row = (min(side - 1, max(0, int(place * side))) for place in (x, y))
        bump = torch.exp(-(((cells - cells[row]) / down) ** 2)[:, None] / 2 - (((cells - cells[column]) / across) ** 2)[None] / 2)
        higher = bump >= target[0].clamp(min=1e-12)
        target[0] = torch.maximum(target[0], bump)
        ways = torch.stack([((x - cells) / width)[None].expand(side, side), ((y - cells) / height)[:, None].expand(side, side)])
        told = torch.tensor([width, height]).div(REFERENCE).log()[:, None, None].expand(2, side, side)
        values = torch.cat([torch.where(bump > NEAR, bump, 0.0)[None], told, ways])
        target[1:] = torch.where(higher, values, target[1:])
    return target


def centre_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Of maps (N, 5, H, W) and targets (N, 6, H, W): a focal loss of bumps plus the L1 distance of sizes and offsets.

    The focal loss is that for soft targets (Li et al. 2020, arxiv:2006.04388): every cell of a bump teaches, not its top alone, so that
    few steps do. It is per cell of the bumps of a row, and rows weigh the same: what is rare is not drowned by what is frequent.
    """
    said, bumps, weight = logits[:, 0], targets[:, 0], targets[:, 1:2]
    apart = (said.sigmoid() - bumps).abs() ** 2
    focal = (apart * binary_cross_entropy_with_logits(said, bumps, reduction="none")).sum((1, 2)) / (bumps.sum((1, 2)) + 1)
    distance = ((logits[:, 1:] - targets[:, 2:]).abs() * weight).sum() / weight.sum().clamp(min=1)
    loss: Tensor = FOCAL * focal.mean() + distance
    return loss


def peaks(logits: Tensor, most: int, least: float, overlap: float) -> Tensor:
    """(n, 5) x0 y0 x1 y1 score of maps (5, H, W), best first: cells higher than their neighbours, after suppression at an IoU of `overlap`.

    At most `most`, with a score of `least` or more; the best one is always among them.
    """
    height, width = logits.shape[1:]
    scores = logits[0].sigmoid()
    own = torch.where(max_pool2d(scores[None], 3, stride=1, padding=1)[0] == scores, scores, -1.0).flatten()
    values, places = own.topk(min(4 * most, len(own)))
    kept = values >= min(least, float(values[0]))
    values, places = values[kept], places[kept]
    of_peak = logits[1:].flatten(1)[:, places]
    sizes = of_peak[:2].clamp(-6, 2.3).exp() * REFERENCE
    cells = torch.stack([(places % width + 0.5) / width, (places // width + 0.5) / height])
    centres = cells + of_peak[2:].clamp(-1, 1) * sizes
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2]).T.clamp(0, 1)
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1e-4)], 1)
    chosen = nms(boxes, values, overlap)[:most]
    return torch.cat([boxes[chosen], values[chosen, None]], 1)
