"""The image side of `bundled`: EfficientNet-Lite0, trained on ImageNet (Tan and Le 2019; timm's `tf_efficientnet_lite0`)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from medtame.encoders.towers import frozen
from medtame.errors import EncoderError

SIDE = 224
SCALES = ((1280, 7), (112, 14), (40, 28), (24, 56))  # channels and side of each map, coarsest first
_STAGES = (3, 2, 1)  # the strides 16, 8 and 4 among timm's five


class Lite0Tower(nn.Module):
    """Prepared pixels (N, 3, 224, 224) -> whole (N, 1280), unit norm, and maps of 1280, 112, 40 and 24 channels.

    The first map is what the network pools: the direction of its mean over all cells is `whole`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, prepared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        network: Any = self.network
        head, stages = network.forward_intermediates(prepared)
        whole = nn.functional.normalize(head.mean((2, 3)), dim=1)
        return whole, (head, *(stages[stage] for stage in _STAGES))


def prepare(image: Tensor) -> Tensor:
    """(1, C, H, W), uint8 or float32 in 0..1 -> (1, 3, 224, 224), as `(pixel - 127) / 128` of 0..255.

    The whole image is stretched to a square by antialiased bicubic resizing, so nothing is cut off and no border is added,
    which would tell a source by its aspect. Grey is resized as one channel.
    """
    unit = image / torch.tensor(255.0) if image.dtype == torch.uint8 else image
    square = nn.functional.interpolate(unit, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return (square.expand(-1, 3, -1, -1) * 255 - 127) / 128


def weights(path: Path) -> dict[str, Tensor]:
    """The checkpoint's 296 tensors under timm's names: both list the same layers in the same order. Raises EncoderError."""
    try:
        stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise EncoderError(f"{path} cannot be read ({type(error).__name__}): install or copy it again") from None
    own = _network().state_dict()
    if [tensor.shape for tensor in stored] != [tensor.shape for tensor in own.values()]:
        raise EncoderError(f"{path} holds {len(stored)} tensors that are not those of EfficientNet-Lite0: give its own checkpoint")
    return dict(zip(own, stored, strict=True))


def load(path: Path) -> Lite0Tower:
    """The frozen tower. Raises EncoderError."""
    network: Any = _network()
    network.load_state_dict(weights(path))
    network.reset_classifier(0)
    tower = Lite0Tower(network)
    frozen(tower)
    return tower


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced: leave the caller's generator alone
        network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return network
