"""Training a mask decoder: maps kept once against the encoder run again at every step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from benchmarks.harness import Case, jpegs, verdict
from medtame.data.images import FilePicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import bundled, dense, image_towers, preparation
from medtame.encoders.towers import TowerEncoder, frozen
from medtame.learning.decoding import Images, learnt, seen, thinned
from medtame.learning.loop import Descent, warm_cosine
from medtame.networks.film_decoder import FilmDecoder
from medtame.tasks.segmentation import dice_and_cross_entropy
from medtame.types import Query

BATCH, STEPS, SIZE, TEXT, DROPOUT = 8, 2, 224, 512, 0.5
HOW = Descent(steps=STEPS, learning_rate=3e-3, batch=BATCH, weight_decay=0.01)


@contextmanager
def cached_grids(name: str, goal: float | None) -> Iterator[Case]:
    """Two steps of the decoder with batches of 8 images; the plain loop prepares its images once too, and encodes them at each step."""
    encoder = bundled.load() if name == "bundled" else random_vit(name)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in jpegs("chest_xray", BATCH, Path(folder), grey=True)]
        samples = ManifestSamples({"image": paths}, np.arange(BATCH))
        query = Query(wants="grids", samples=samples, encoder=encoder, source=np.arange(BATCH), size=(SIZE, SIZE))
        images = seen(query)
        prepared = torch.cat([encoder.prepare(torch.from_numpy(np.array(p.read().transpose(2, 0, 1)))[None]) for p in pictures(paths)])
    drawn = torch.Generator().manual_seed(0)
    codes = torch.randn(BATCH, TEXT, generator=drawn)
    targets = (torch.rand(BATCH, 1, SIZE, SIZE, generator=drawn) > 0.5).float()

    def check() -> str:
        ours, plain = kept_maps(images, codes, targets), each_step(encoder, prepared, images, codes, targets)
        worst = max(abs(a - b) for a, b in zip(ours, plain, strict=True))
        size = 2 * sum(scale[0].numel() for scale in images.scales) / 2**20
        return verdict(worst < 5e-3, f"losses differ by {worst:.1e}; maps that are read take {size:.2f} MiB an image")

    yield Case(
        ours=lambda: kept_maps(images, codes, targets),
        plain=lambda: each_step(encoder, prepared, images, codes, targets),
        check=check,
        goal=goal,
        rounds=3,
    )


def network(images: Images) -> FilmDecoder:
    return FilmDecoder.drawn(images.scales, TEXT, 1, 64, 0)


def kept_maps(images: Images, codes: Tensor, targets: Tensor) -> list[float]:
    """The losses of what text_query_decoder does."""
    with torch.enable_grad():
        steps = learnt(network(images), images, codes, targets, dice_and_cross_entropy, HOW, dropout=DROPOUT, seed=0)
        return [step.loss for step in steps]


def each_step(encoder: TowerEncoder, prepared: Tensor, images: Images, codes: Tensor, targets: Tensor) -> list[float]:
    """The same by a plain loop that encodes its batch at every step."""
    model, losses = network(images), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=HOW.learning_rate, weight_decay=HOW.weight_decay)
    for number in range(1, STEPS + 1):
        rows = torch.arange(BATCH)  # a batch of all rows comes in their order
        generator = torch.Generator().manual_seed(number - 1)
        with torch.no_grad():
            maps = encoder.image_tower(prepared[rows])[1][1:]
        with torch.enable_grad():
            scales = [thinned(scale, DROPOUT, generator) for scale in maps]
            loss = dice_and_cross_entropy(model(scales, images.pixels[rows].float(), codes[rows]), targets[rows])
            for group in optimiser.param_groups:
                group["lr"] = HOW.learning_rate * warm_cosine(number, STEPS, HOW.warm_up)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def random_vit(name: str) -> TowerEncoder:
    """A vision transformer of open_clip with random weights; `@dense`: with its finer maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name.removesuffix(dense.DENSE), pretrained=None).eval()
    prepare = preparation.of_open_clip({}, 224, "the benchmark").whole
    tower = frozen(image_towers.tower_of(model.visual))
    plain = TowerEncoder(
        spec=name, image_identity=name, text_identity="", scale=1.0, bias=0.0, image_tower=tower, text_tower=None, prepare=prepare
    )
    return replace(dense.of(plain), spec=name) if name.endswith(dense.DENSE) else plain


def pictures(paths: list[str]) -> list[FilePicture]:
    return [FilePicture(Path(path), Path(path).name) for path in paths]
