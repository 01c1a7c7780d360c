"""A decoder on frozen maps learns what the task asks for: what it sees of each image is made once, and steps only decode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from medtame.learning.loop import Descent, Step, descend
from medtame.types import Query

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Images:
    """What a decoder sees of each distinct image, and the image of each row.

    Held in half precision: an image of 224 x 224 takes 2 bytes x (3 x 224 x 224 + the numbers of its maps), 0.57 MB with `bundled`.
    """

    scales: tuple[Tensor, ...]  # each (images, F, G, G)
    pixels: Tensor  # (images, 3, H, W)
    source: Tensor  # (N,)

    def rows(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Scales (n, F, G, G) and pixels (n, 3, H, W) of some rows, in single precision."""
        images = self.source[rows]
        return [scale[images].float() for scale in self.scales], self.pixels[images].float()


def seen(query: Query, *, maps: bool = True) -> Images:
    """The encoder's maps and the pixels of the images that rows ask about, each image once; without `maps` the pixels alone.

    The coarsest map, of 7 x 7 cells say, is left out where there are finer ones: it tells what is shown, hardly where.
    """
    query = query.take(np.arange(len(query)))
    grid = query.encoder.grid(query.samples) if maps else ()
    scales = tuple(scale.half() for scale in grid[1:] or grid)
    return Images(scales, query.samples.pixels(size=query.size).expand(-1, 3, -1, -1).half(), torch.as_tensor(query.source))


def decoded(network: nn.Module, query: Query, codes: Tensor, maps: int, *, maps_wanted: bool = True) -> Tensor:
    """(N, K, H, W) logits of a fitted decoder, some rows at a time; codes (N, T) say what each row asks for. Needs `query.size`.

    `maps_wanted`: whether the network reads the encoder's maps, or the pixels alone.
    """
    found = [torch.zeros(0, maps, *(query.size or (0, 0)))]
    with torch.no_grad():
        for start in range(0, len(query), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(query)))
            part = query.take(rows)
            found.append(network(*seen(part, maps=maps_wanted).rows(torch.arange(len(part))), codes[torch.as_tensor(rows)]))
    return torch.cat(found)


def thinned(scale: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Maps (N, F, G, G) without a share of their channels, drawn a row, the others larger by as much."""
    kept = torch.rand(*scale.shape[:2], 1, 1, generator=generator) >= share
    return scale * kept / (1 - share)


def learnt(
    network: nn.Module,
    images: Images,
    codes: Tensor,
    targets: Tensor,
    compare: Callable[[Tensor, Tensor], Tensor],
    how: Descent,
    *,
    dropout: float,
    seed: int,
    resume: Mapping[str, Tensor] | None = None,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Fit `network(scales, pixels, codes)` to targets (N, K, H, W); at each step a share `dropout` of the maps' channels is left out.

    Returns the weights by name. Steps draw from (seed, number), so that a resumed fit equals an uninterrupted one.
    """
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    made = count(0 if resume is None else int(resume["step"]))

    def loss(rows: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + next(made))
        scales, pixels = images.rows(rows)
        scales = [thinned(scale, dropout, generator) for scale in scales]
        return compare(functional_call(network, weights, (scales, pixels, codes[rows])), targets[rows])

    kept = yield from descend(weights, loss, how, n=len(targets), seed=seed, resume=resume)
    return kept


def fixed_codes(names: Sequence[str], length: int) -> Tensor:
    """(N, length) a code a name, standard normal, the same on every machine: identity without meaning."""
    codes = []
    for name in names:
        number = int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:4], "big")
        codes.append(torch.from_numpy(np.random.default_rng(number).standard_normal(length).astype(np.float32)))
    return torch.stack(codes) if codes else torch.zeros(0, length)
