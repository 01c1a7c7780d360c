"""Encoding: a faster engine against the plain loop of eager single precision."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from benchmarks.harness import Case, jpegs, smallest_cosine, verdict
from medtame.data.images import FilePicture
from medtame.encoders import bundled, image_towers, preparation
from medtame.features import engines


@contextmanager
def vit_bf16(batch: int, model_name: str = "ViT-B-32") -> Iterator[Case]:
    """open_clip's encode_image on random weights against the engine with 16-bit weights cast once, which gives maps too."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = open_clip.create_model(model_name, pretrained=None).eval().requires_grad_(False)
        side = model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
        pixels = _prepared(batch, side, Path(folder))
    engine = engines.bf16(image_towers.tower_of(model.visual), pixels, None)

    def check() -> str:
        cosine = smallest_cosine(model.encode_image(pixels, normalize=True), engine(pixels)[0])
        return verdict(
            cosine >= engines.LEAST_COSINE, f"cosine {cosine:.6f}; this CPU multiplies bf16 at {bf16_rate():.2f} x its fp32 rate"
        )

    yield Case(ours=lambda: engine(pixels), plain=lambda: model.encode_image(pixels, normalize=True), check=check, goal=1.8)


@contextmanager
def bundled_onnxruntime(batch: int = 8) -> Iterator[Case]:
    """The image side of `bundled`, whole and maps, against the exported graph."""
    encoder = bundled.load()
    with tempfile.TemporaryDirectory() as folder:
        pictures = [FilePicture(path, path.name) for path in jpegs("chest_xray", batch, Path(folder), grey=True)]
        pixels = torch.cat([encoder.prepare(torch.from_numpy(each.read().transpose(2, 0, 1).copy())[None]) for each in pictures])
    engine = engines.onnxruntime(encoder.image_tower, pixels[:2], None)

    def check() -> str:
        (whole, maps), (found, found_maps) = encoder.image_tower(pixels), engine(pixels)
        cosine = min(smallest_cosine(a, b) for a, b in zip((whole, *maps), (found, *found_maps), strict=True))
        return verdict(cosine >= 0.99999, f"cosine {cosine:.7f}")

    yield Case(ours=lambda: engine(pixels), plain=lambda: encoder.image_tower(pixels), check=check, goal=2.2)


def _prepared(count: int, side: int, folder: Path) -> Tensor:
    """(N, 3, S, S) of real images as open_clip prepares them."""
    prepare = preparation.of_open_clip({}, side, "the benchmark")
    pictures = [FilePicture(path, path.name) for path in jpegs("blood_cells", count, folder, grey=False)]
    return torch.cat([prepare(torch.from_numpy(each.read().transpose(2, 0, 1).copy())[None]) for each in pictures])


def bf16_rate() -> float:
    """How many times as fast as single precision this CPU multiplies 16-bit brain floats: what no engine can go beyond."""
    left, right = torch.ones(400, 768), torch.ones(768, 1536)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = left.to(dtype), right.to(dtype)
        a @ b
        tries = []
        for _ in range(5):
            start = time.process_time()
            for _ in range(4):
                a @ b
            tries.append(time.process_time() - start)
        seconds[dtype] = min(tries)
    return seconds[torch.float32] / seconds[torch.bfloat16]
