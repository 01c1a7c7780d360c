"""Pretraining: the gradient of a whole batch of pairs, seen in chunks, against the plain batch; and both at 2048 pairs, in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CustomTextCLIP
from torch import Tensor

from benchmarks.harness import Case, smallest_cosine, verdict
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import image_towers, text_towers
from medtame.encoders.towers import TowerEncoder, frozen
from medtame.learning.contrast import Contrast
from medtame.learning.pairs import Moving, Pairs
from medtame.learning.pretraining import IMAGES, TEXTS, Part, chunked_slopes, moving, seeing
from medtame.types import Query

GOAL = 1 / 1.35  # at most so much more CPU time than the plain batch
LEAST_COSINE = 0.99999
LARGE, LARGE_CHUNK = 2048, 64  # peaks are read from Linux
MOVING = Moving(train="all", blocks=1, sides=("image", "text"), augment="safe", sentences=0, precision="float32", seed=0)


@dataclass(frozen=True)
class Shape:
    """A random CLIP: a vision transformer, and a causal one for texts."""

    side: int
    patch: int
    width: int
    layers: int
    text_layers: int


TIMED = Shape(224, 16, 192, 12, 6)  # as ViT-Ti/16
REMEMBERED = Shape(64, 16, 128, 4, 2)


@contextmanager
def chunked(batch: int = 64, chunk: int = 16, shape: Shape = TIMED, large: int = LARGE) -> Iterator[Case]:
    """InfoNCE through all weights of both towers, images augmented, as `medtame pretrain` has it; both read and augment."""
    pairs = made(shape, batch)
    part = contrast_of(pairs)
    named, draws = moving(pairs, {"contrastive": (1.0, part)}), torch.arange(batch)

    def ours() -> Mapping[str, Tensor | None]:
        return in_chunks(pairs, part, draws, chunk)

    def check() -> str:
        whole, split = plain(pairs, named, draws), ours()
        cosine = smallest_cosine(*(torch.cat([found[name].flatten() for name in named])[None] for found in (split, whole)))  # type: ignore[union-attr]
        peaks = {kind: peak_of(kind, large) for kind in ("plain", "ours")}
        said = f"gradient cosine {cosine:.7f} of {batch} pairs in chunks of {chunk}"
        held = f"{large} pairs hold {peaks['ours']:.0f} MiB in chunks of {LARGE_CHUNK}, {peaks['plain']:.0f} MiB at once"
        return verdict(cosine >= LEAST_COSINE and peaks["ours"] < peaks["plain"], f"{said}; {held}")

    yield Case(ours=ours, plain=lambda: plain(pairs, named, draws), check=check, goal=GOAL, rounds=2)


def in_chunks(pairs: Pairs, part: Part, draws: Tensor, chunk: int) -> Mapping[str, Tensor | None]:
    parts = {"contrastive": (1.0, part)}
    with torch.enable_grad():
        return chunked_slopes(seeing(pairs, parts), parts, moving(pairs, parts), chunk=chunk)(draws)[1]


def plain(pairs: Pairs, named: Mapping[str, Tensor], draws: Tensor) -> dict[str, Tensor]:
    """One pass of all images and texts, and open_clip's own loss."""
    with torch.enable_grad():
        for tensor in named.values():
            tensor.requires_grad_(True)
        images, texts = pairs.image.tower(pairs.image.pixels(draws))[0], pairs.text.encode(*embedded(pairs, draws))
        loss = ClipLoss()(images, texts, named["contrastive.log_scale"].exp())
        return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def embedded(pairs: Pairs, draws: Tensor) -> tuple[Tensor, Tensor]:
    ids, mask = pairs.text.tokens(pairs.said(draws))
    return pairs.text.embed(ids), mask


def contrast_of(pairs: Pairs) -> Part:
    """The part of the method `contrastive`; every pair is right for itself only."""
    contrast = Contrast.of(pairs)
    return Part(
        frozenset({IMAGES, TEXTS}),
        across=lambda seen, draws: contrast(seen[IMAGES], seen[TEXTS], draws),
        named={"log_scale": contrast.log_scale},
    )


def made(shape: Shape, count: int) -> Pairs:
    """Random images of the tower's size, each with a sentence of its own."""
    images = np.random.default_rng(0).integers(0, 256, (count, shape.side, shape.side, 3), dtype=np.uint8)
    samples = ManifestSamples({"image": [ArrayPicture(image, f"image-{i}") for i, image in enumerate(images)]}, np.arange(count))
    query = Query(wants="scores", samples=samples, encoder=random_clip(shape), source=np.arange(count))
    texts = [f"there is finding number {i} in the left lower lobe, without effusion" for i in range(count)]
    return Pairs.of(query, texts, [(i,) for i in range(count)], lambda rows, ids: torch.as_tensor(rows[:, None] == ids), MOVING)


def random_clip(shape: Shape) -> TowerEncoder:
    vision = {"image_size": shape.side, "patch_size": shape.patch, "width": shape.width, "layers": shape.layers, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": shape.width, "heads": 4, "layers": shape.text_layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = CustomTextCLIP(embed_dim=shape.width, vision_cfg=vision, text_cfg=text)
    return TowerEncoder(
        spec="random",
        image_identity="random-image",
        text_identity="random-text",
        scale=14.0,
        bias=0.0,
        image_tower=frozen(image_towers.tower_of(model.visual)),
        text_tower=frozen(text_towers.tower_of(model.text, open_clip.get_tokenizer("ViT-B-32"))),
        prepare=lambda image: (image / (255.0 if image.dtype == torch.uint8 else 1.0) - 0.5) / 0.25,
    )


def peak_of(kind: str, count: int) -> float:
    """MiB that one gradient of `count` pairs takes beyond what the process held before; in a process of its own."""
    code = f"from benchmarks.pretraining import peak; peak({kind!r}, {count})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def peak(kind: str, count: int) -> None:
    """What the process of `peak_of` does."""
    torch.set_num_threads(1)
    pairs = made(REMEMBERED, count)
    part, draws = contrast_of(pairs), torch.arange(count)
    named = moving(pairs, {"contrastive": (1.0, part)})
    for some in torch.split(draws, LARGE_CHUNK):
        pairs.image.pixels(some)  # prepared pixels are remembered by both
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of what was made so far is forgotten
    before = held()
    if kind == "plain":
        plain(pairs, named, draws)
    else:
        in_chunks(pairs, part, draws, LARGE_CHUNK)
    print(json.dumps(held() - before))


def held() -> float:
    """The most that this process held since its peak was forgotten, MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
