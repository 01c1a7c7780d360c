"""A mask decoder: trained on maps kept once against the encoder run again at every step; two prompts asked at once against one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from benchmarks.harness import Case, cpu_seconds, jpegs, verdict
from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import bundled, dense, image_towers, preparation
from medtame.encoders.towers import TowerEncoder, frozen
from medtame.learning.decoding import Images, learnt, seen, thinned
from medtame.learning.loop import Descent, warm_cosine
from medtame.networks.film_decoder import FilmDecoder
from medtame.run import fitted
from medtame.strategies.fusion.text_query_decoder import TextQueryDecoder
from medtame.tasks.segmentation import Segmentation, dice_and_cross_entropy
from medtame.types import Array, Query

BATCH, STEPS, SIZE, TEXT, DROPOUT = 8, 2, 224, 512, 0.5
PROMPT_STEPS = 80
HALVES = {"the left half": 0, "the right half": 1}
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


@contextmanager
def two_prompts() -> Iterator[Case]:
    """Two masks of one image for two prompts, after loading: reading, encoding (nothing is kept) and decoding; plainly, one by one.

    The decoder has learnt that one prompt is the left half of an image and the other the right half.
    """
    encoder, task = bundled.load(), Segmentation(structures=tuple(HALVES), size=SIZE)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in jpegs("chest_xray", BATCH, Path(folder), grey=True)]
        with torch.enable_grad():
            run = fitted(halves(paths), task, TextQueryDecoder(steps=PROMPT_STEPS, feature_dropout=0), encoder)
        asked = ManifestSamples({"image": paths[:1]}, np.arange(1))

        def masks(prompts: Sequence[str]) -> list[Array]:
            return list(run.predict(asked, prompts).arrays.values())

        def one_by_one() -> list[Array]:
            return [mask for prompt in HALVES for mask in masks([prompt])]

        def check() -> str:
            both, single, true = masks(list(HALVES)), one_by_one(), [mask.values() for mask in halves(paths[:1]).pictures("mask")]
            same = all(np.array_equal(a, b) for a, b in zip(both, single, strict=True))
            worst = min(float((ours == mask).mean()) for ours, mask in zip(both, true, strict=True))
            seconds = min(cpu_seconds(lambda: masks(list(HALVES))) for _ in range(3))
            said = f"both at once took {seconds:.2f} s (goal 0.3 s); each mask is right in {worst:.0%} of its pixels at least"
            return verdict(same and worst > 0.9, said)

        yield Case(ours=lambda: masks(list(HALVES)), plain=one_by_one, check=check, goal=None)


def halves(paths: Sequence[str]) -> ManifestSamples:
    """A line an image and half of it."""
    lines = [(path, name, side) for path in paths for name, side in HALVES.items()]
    masks = []
    for path, name, side in lines:
        geometry = FilePicture(Path(path), path).geometry()
        mask = np.zeros((geometry.height, geometry.width), dtype=np.uint8)
        mask[:, side * geometry.width // 2 : (side + 1) * geometry.width // 2] = 1
        masks.append(ArrayPicture(mask, name))
    columns = {"image": [path for path, _, _ in lines], "mask": masks, "prompt": [name for _, name, _ in lines]}
    return ManifestSamples(columns, np.array(columns["image"], dtype=object))


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
