"""A decoder learns where objects are: one row an image and a code that says which objects, centre maps as targets.

The maps have half the side of the pixels that the decoder sees: a cell is two pixels, and offsets say where in it a centre lies.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from medtame.learning.centres import MAPS, centre_loss, centre_targets, peaks
from medtame.learning.decoding import Images, decoded, learnt, seen
from medtame.learning.loop import Descent, Step
from medtame.networks.film_decoder import FilmDecoder
from medtame.types import Query

STRIDE = 2
TOLD = 0.03  # root mean square of the numbers of a code: with larger ones steps of a usual rate overshoot, and classes are learnt late
RARE = -4.0  # the logit of a centre before anything is learnt: about two cells in a hundred
IMAGES_AT_ONCE = 1  # so that an answer does not depend on what it is asked together with, down to the last bit


@dataclass(frozen=True)
class Lessons:
    """What is learnt from: images, which code each row has, and its maps (N, 6, H, W) in half precision."""

    images: Images
    code: Tensor  # (N,)
    targets: Tensor


def lessons(query: Query, objects: Sequence[Sequence[Tensor]]) -> Lessons:
    """A row an image and kind of object: `objects[kind][image]` are boxes (m, 4). Needs `query.size`."""
    images, kinds = seen(query), len(objects)
    source = images.source.repeat_interleave(kinds)
    code = torch.arange(kinds).repeat(len(query))
    side = (query.size or (0, 0))[0] // STRIDE
    targets = [centre_targets(objects[kind][row], side).half() for row in range(len(query)) for kind in range(kinds)]
    return Lessons(replace(images, source=source), code, torch.stack(targets) if targets else torch.zeros(0, 6, side, side))


def drawn(images: Images, length: int, width: int, seed: int) -> FilmDecoder:
    """A decoder of five maps whose first answer is that centres are rare."""
    network = FilmDecoder.drawn(images.scales, length, MAPS, width, seed)
    with torch.no_grad():
        network.last.bias[0] = RARE  # type: ignore[index]
    return network


def taught(
    taken: Lessons, codes: Tensor, how: Descent, *, width: int, dropout: float, seed: int, resume: Mapping[str, Tensor] | None = None
) -> Generator[Step, None, dict[str, Tensor]]:
    """The weights of a decoder that was told by codes (kinds, T), of about unit variance, what to mark."""
    network = drawn(taken.images, codes.shape[1], width, seed)
    kept = yield from learnt(
        network, taken.images, TOLD * codes[taken.code], taken.targets, compared, how, dropout=dropout, seed=seed, resume=resume
    )
    return kept


def compared(logits: Tensor, targets: Tensor) -> Tensor:
    return centre_loss(avg_pool2d(logits, STRIDE), targets.float())


def located(network: nn.Module, query: Query, codes: Tensor, most: int, least: float, overlap: float) -> Iterator[list[Tensor]]:
    """For each row of a query, the boxes (n, 5) x0 y0 x1 y1 score of each of the codes (kinds, T), best first."""
    kinds = len(codes)
    for start in range(0, len(query), IMAGES_AT_ONCE):
        part = query.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(query))))
        rows = np.repeat(np.arange(len(part)), kinds)
        asked = replace(part, wants="grids", source=part.source[rows], words=None, candidates=None)
        maps = avg_pool2d(decoded(network, asked, TOLD * codes.repeat(len(part), 1), MAPS), STRIDE)
        found = [peaks(one, most, least, overlap) for one in maps]
        for row in range(len(part)):
            yield found[row * kinds : (row + 1) * kinds]


def objects_by_kind(targets: Sequence[Tensor], classes: int) -> list[list[Tensor]]:
    """`[kind][image]` boxes (m, 4) of targets (m, 5) an image; where some have no name (-1), a last kind holds all boxes."""
    kinds = [[boxes[boxes[:, 4] == kind, :4] for boxes in targets] for kind in range(classes)]
    if any(bool((boxes[:, 4] < 0).any()) for boxes in targets):
        kinds.append([boxes[:, :4] for boxes in targets])
    return kinds


def by_kind(found: Iterable[Sequence[Tensor]], numbers: Sequence[int] | None = None) -> list[Tensor]:
    """(n, 6) an image, with the number of the kind, from boxes (n, 5) of each kind; `numbers` where they are not 0, 1, …"""
    rows = []
    for kinds in found:
        parts = [
            torch.cat([boxes, torch.full((len(boxes), 1), float(k if numbers is None else numbers[k]))], 1) for k, boxes in enumerate(kinds)
        ]
        rows.append(torch.cat([torch.zeros(0, 6), *parts]))
    return rows
