"""The feature cache: a second run over the same images, and random rows of a large cache."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, jpegs, verdict
from medtame.data.images import FilePicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import bundled
from medtame.encoders.towers import Digests, Memory, TowerEncoder
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store
from medtame.types import Array

ROWS_AT_ONCE = 5000


@contextmanager
def second_run(count: int = 200) -> Iterator[Case]:
    """Features of the same images by `bundled`: from the cache, opened anew each time, against encoding them again."""
    encoder = bundled.load()
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs("chest_xray", count, Path(folder), grey=True)
        samples = ManifestSamples({"image": [FilePicture(path, path.name) for path in paths]}, np.arange(len(paths)))

        def never() -> TowerEncoder:
            raise RuntimeError("the second run opened the encoder")

        def ours() -> Tensor:
            return CachedEncoder(bundled.card(), never, Store(Path(folder) / "cache"), engines=()).whole(samples)

        def plain() -> Tensor:
            return replace(encoder, pixels=Memory(0), digests=Digests()).whole(samples)

        CachedEncoder(bundled.card(), lambda: encoder, Store(Path(folder) / "cache"), engines=()).whole(samples)

        def check() -> str:
            same = torch.equal(ours(), plain().half().float())
            return verdict(same, f"the rows of {count} images are {'' if same else 'not '}the encoder's in 16 bits")

        yield Case(ours=ours, plain=plain, check=check, goal=1000.0, rounds=2)


@contextmanager
def rows(count: int = 500_000, dimension: int = 512, asked: int = 20_000) -> Iterator[Case]:
    """Random rows by key, each checked by its checksum, the cache opened anew; against `np.load` without a map and the row numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
        numbers, writer = np.empty((count, dimension), dtype=np.float16), Store(folder / "cache")
        for start in range(0, count, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            numbers[part] = rng.standard_normal(numbers[part].shape, dtype=np.float32)
            if not writer.write("encoder", "whole", dict(zip(keys[part], numbers[part], strict=True))):
                raise OSError(f"{folder} is full: set TMPDIR to a folder with {3 * numbers.nbytes / 2**30:.1f} GiB of room")
        np.save(folder / "rows.npy", numbers)
        chosen = rng.choice(count, asked, replace=False)
        wanted = [keys[number] for number in chosen]

        def ours() -> Array:
            found = np.full((asked, dimension), np.nan, dtype=np.float16)
            for places, part in Store(folder / "cache").parts("encoder", "whole", wanted):
                found[places] = part
            return found

        def plain() -> Array:
            every: Array = np.load(folder / "rows.npy")
            return every[chosen]

        def check() -> str:
            held = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file()) / numbers.nbytes
            same = np.array_equal(ours(), plain())
            return verdict(same and held <= 1.01, f"rows {'equal' if same else 'differ'}, {held:.4f} x raw bytes on disk")

        yield Case(ours=ours, plain=plain, check=check, goal=None)
