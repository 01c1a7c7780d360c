"""Maps of a frozen encoder, pixels and a text vector to masks: an upsampling decoder that a sentence modulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize


class Film(nn.Module):
    """Each channel of (N, C, H, W), normalised, times (1 + gain) plus shift, both linear in a text vector (N, T).

    Perez et al. 2018, arxiv:1709.07871. Group norm, so that a row does not depend on its batch.
    """

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels, affine=False)
        self.change = nn.Linear(text, 2 * channels)

    def forward(self, maps: Tensor, text: Tensor) -> Tensor:
        gain, shift = self.change(text)[:, :, None, None].chunk(2, 1)
        changed: Tensor = self.norm(maps) * (1 + gain) + shift
        return changed


class FilmDecoder(nn.Module):
    """Text-modulated decoder (after CLIPSeg, arxiv:2112.10003), with a small stem that sees the pixels.

    `features`: channels of each scale of the encoder's grid; `text`: length of the text vector; `maps`: K. A logit is a linear
    readout of a pixel's vector plus the dot product of that vector with K projections of the text (as in CRIS, arxiv:2111.15174).
    Two channels hold the position (x and y in -1..1): "left" and "right" are a matter of place.
    """

    def __init__(self, features: Sequence[int], text: int, maps: int, width: int = 64) -> None:
        super().__init__()
        quarter, half = width // 2, width // 4
        self.projections = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in features])
        self.stem = nn.ModuleList([nn.Conv2d(3, half // 2, 3, stride=2, padding=1), nn.Conv2d(half // 2, half, 3, stride=2, padding=1)])
        self.films = nn.ModuleList([Film(text, channels) for channels in (width, width, quarter, half)])
        self.joins = nn.ModuleList(
            [
                nn.Conv2d(width + 2, width, 3, padding=1),
                nn.Conv2d(quarter + half, quarter, 3, padding=1),
                nn.Conv2d(half + half // 2, half, 3, padding=1),
            ]
        )
        self.narrow = nn.ModuleList([nn.Identity(), nn.Conv2d(width, quarter, 1), nn.Conv2d(quarter, half, 1)])
        self.last = nn.Conv2d(half, maps, 1)
        self.ask = nn.Linear(text, maps * half)

    @classmethod
    def drawn(cls, scales: Sequence[Tensor], text: int, maps: int, width: int, seed: int) -> FilmDecoder:
        """First weights from a seed, for maps (N, F, G, G) of each scale; the caller's generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls([scale.shape[1] for scale in scales], text, maps, width)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> FilmDecoder:
        """The network that has these weights by name."""
        layers = [weights[f"projections.{k}.weight"] for k in range(sum(name.startswith("projections") for name in weights) // 2)]
        ask, last = weights["ask.weight"], weights["last.weight"]
        with torch.device("meta"):
            network = cls([layer.shape[1] for layer in layers], ask.shape[1], last.shape[0], layers[0].shape[0])
        network.load_state_dict(weights, assign=True)
        return network.requires_grad_(False)

    def forward(self, scales: Sequence[Tensor], pixels: Tensor, text: Tensor) -> Tensor:
        """Scales (N, F, G, G) as the encoder gives them, pixels (N, 3, H, W) in 0..1, text (N, T): logits (N, K, H, W)."""
        pictures = [(pixels - 0.5) * 4]
        for layer in self.stem:
            pictures.append(torch.relu(layer(pictures[-1])))
        size = (-(-pixels.shape[2] // 8), -(-pixels.shape[3] // 8))
        hidden = sum(
            interpolate(project(normalize(scale, dim=1) * scale.shape[1] ** 0.5), size, mode="bilinear")
            for project, scale in zip(self.projections, scales, strict=True)
        )
        hidden = torch.relu(self.films[0](hidden, text))
        besides = (places(len(text), size), pictures[2], pictures[1])
        for narrow, join, film, beside in zip(self.narrow, self.joins, self.films[1:], besides, strict=True):
            hidden = interpolate(narrow(hidden), beside.shape[2:], mode="bilinear")
            hidden = torch.relu(film(join(torch.cat([hidden, beside], 1)), text))
        asked = self.ask(text / text.shape[1] ** 0.5).reshape(len(text), -1, hidden.shape[1])
        logits = self.last(hidden) + torch.einsum("nchw,nkc->nkhw", hidden, asked)
        return interpolate(logits, pixels.shape[2:], mode="bilinear")


def places(n: int, size: tuple[int, int]) -> Tensor:
    """(N, 2, H, W) the x and y of each cell's centre, in -1..1."""
    y, x = (torch.arange(side) * 2.0 + 1 - side for side in size)
    grid = torch.stack([(x / size[1])[None].expand(size), (y / size[0])[:, None].expand(size)])
    return grid.expand(n, -1, -1, -1)
