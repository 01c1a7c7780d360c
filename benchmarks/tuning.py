"""A step of weight tuning of a ViT-B/32: low-rank changes over 16-bit weights against full fine-tuning in single precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from benchmarks.harness import Case, smallest_cosine, verdict
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import image_towers
from medtame.encoders.blocks import last_blocks_of
from medtame.encoders.opened import opened
from medtame.encoders.towers import TowerEncoder, frozen
from medtame.learning.fine_tuning import Precision, Sight, adaptable, halved
from medtame.learning.loop import Descent
from medtame.learning.low_rank import LowRank
from medtame.types import Query

BATCH, CLASSES, SIDE = 16, 5, 224
CHANGE = LowRank(8, 8.0, False)


@contextmanager
def lora(blocks: int | None, goal: float) -> Iterator[Case]:
    """Forward, backward and AdamW on 16 images, prepared before; `blocks`: the last so many, with what enters them kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = random_visual()
        texts = nn.functional.normalize(torch.randn(CLASSES, visual.output_dim), dim=1)
        tower = frozen(image_towers.tower_of(visual))
    query, labels = images(tower), torch.arange(BATCH) % CLASSES
    ours = Lora(query, tower, blocks, "bfloat16")
    step = stepping(ours.named, lambda: cross_entropy(ours.seen(), texts, labels))
    full = image_towers.tower_of(copy.deepcopy(visual)).requires_grad_(True).eval()
    pixels = torch.cat([query.encoder.prepare(torch.from_numpy(picture.read().transpose(2, 0, 1).copy())[None]) for picture in pictures()])
    plain = stepping(dict(full.named_parameters()), lambda: cross_entropy(full(pixels)[0], texts, labels))

    def check() -> str:
        exact, halves = (
            Lora(query, tower, None if blocks is None else blocks, "float32", whole=True),
            Lora(query, tower, blocks, "bfloat16"),
        )
        found = [torch.cat([slope.flatten() for slope in slopes(each, texts, labels)])[None] for each in (halves, exact)]
        cosine, losses = smallest_cosine(*found), [float(cross_entropy(each.seen(), texts, labels)) for each in (halves, exact)]
        kept = "" if ours.see.tokens is None else f"; {ours.see.tokens[0].nbytes / 1000:.0f} kB kept an image"
        step(), plain()
        said = f"gradient cosine {cosine:.5f} to single precision, losses {losses[0]:.4f} and {losses[1]:.4f}"
        return verdict(cosine >= 0.999, f"{said}, {ours.count:,} numbers learn{kept}")

    yield Case(ours=step, plain=plain, check=check, goal=goal, rounds=3)


class Lora:
    """What the method trains with, B drawn instead of zero, so that all gradients are there. `whole`: nothing is kept."""

    def __init__(self, query: Query, tower: nn.Module, blocks: int | None, precision: Precision, *, whole: bool = False) -> None:
        changed, self.named = CHANGE.around(tower, adaptable(tower, blocks), 0)
        drawn = torch.Generator().manual_seed(0)
        for name, parameter in self.named.items():
            if "lora_B" in name:
                parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=drawn))
        if precision == "bfloat16":
            halved(changed, self.named.values())
        first = None if blocks is None or whole else last_blocks_of(opened(tower), blocks)[0]
        self.see = Sight.of(query, changed, first, precision)
        self.count = sum(parameter.numel() for parameter in self.named.values())

    def seen(self) -> Tensor:
        return self.see(torch.arange(BATCH))


def random_visual() -> Any:
    return open_clip.create_model("ViT-B-32", pretrained=None).visual


def cross_entropy(vectors: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(100 * vectors @ texts.T, labels)


@torch.enable_grad()
def slopes(made: Lora, texts: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(cross_entropy(made.seen(), texts, labels), list(made.named.values()))


def stepping(named: Mapping[str, Tensor], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step as `learning/loop.py` makes it; the optimiser's memory is there before."""
    how = Descent(steps=1, learning_rate=1e-6, batch=BATCH)
    moments, values = {kind: list(of.values()) for kind, of in how.moments(named).items()}, list(named.values())

    @torch.enable_grad()
    def step() -> None:
        found = torch.autograd.grad(loss(), values, allow_unused=True)
        there = [place for place, slope in enumerate(found) if slope is not None]
        with torch.no_grad():
            kept = {kind: [of[place] for place in there] for kind, of in moments.items()}
            how.stepped([values[place] for place in there], [found[place].contiguous() for place in there], kept, how.learning_rate)

    return step


def pictures() -> list[ArrayPicture]:
    drawn = np.random.default_rng(0)
    return [ArrayPicture(drawn.random((SIDE, SIDE, 3), dtype=np.float32), f"image-{number}") for number in range(BATCH)]


def images(tower: nn.Module) -> Query:
    encoder = TowerEncoder(
        spec="ViT-B-32",
        image_identity="image",
        text_identity="",
        scale=100.0,
        bias=0.0,
        image_tower=tower,
        text_tower=None,
        prepare=lambda image: (image - 0.5) / 0.25,
    )
    samples = ManifestSamples({"image": pictures()}, np.arange(BATCH))
    return Query(wants="scores", samples=samples, encoder=encoder, source=np.arange(BATCH))
