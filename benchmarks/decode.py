"""Decoding and preparing an image: open_clip's transform by PIL against medtame's path, pixels compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from benchmarks.harness import Case, enlarged, jpegs, verdict
from medtame.data.images import FilePicture
from medtame.encoders import preparation

MOST_DIFFERENCE = 0.5  # of 255, mean over pixels


@contextmanager
def of_640(count: int = 16) -> Iterator[Case]:
    """Colour JPEG of 640 x 480."""
    with tempfile.TemporaryDirectory() as folder:
        yield _case(jpegs("blood_cells", count, Path(folder), grey=False), 2.0)


@contextmanager
def of_1600(count: int = 8) -> Iterator[Case]:
    """Colour JPEG of 1600 x 1200, made from the ones of 640 x 480."""
    with tempfile.TemporaryDirectory() as folder:
        small = jpegs("blood_cells", count, Path(folder), grey=False)
        yield _case(enlarged(small, 1600, 1200, Path(folder)), 2.5)


@contextmanager
def of_small_grey(count: int = 32) -> Iterator[Case]:
    """Grey JPEG of about 320 x 265."""
    with tempfile.TemporaryDirectory() as folder:
        yield _case(jpegs("chest_xray", count, Path(folder), grey=True), 1.3)


def _case(paths: list[Path], goal: float) -> Case:
    config = PreprocessCfg()
    transform, prepare = image_transform_v2(config, is_train=False), preparation.of_open_clip({}, 224, "the benchmark")

    def plain(path: Path) -> Tensor:
        with Image.open(path) as image:
            pixels: Tensor = transform(image)
            return pixels

    def ours(path: Path) -> Tensor:
        return prepare(torch.from_numpy(FilePicture(path, path.name).read().transpose(2, 0, 1))[None])[0]

    def check() -> str:
        scale = 255 * torch.tensor(config.std)[:, None, None]
        differences = [float(((plain(path) - ours(path)) * scale).abs().mean()) for path in paths]
        return verdict(max(differences) <= MOST_DIFFERENCE, f"largest mean difference {max(differences):.3f} of 255")

    return Case(ours=lambda: [ours(path) for path in paths], plain=lambda: [plain(path) for path in paths], check=check, goal=goal)
