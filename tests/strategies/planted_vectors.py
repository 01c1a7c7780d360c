"""An encoder that is a table: image number -> unit vector, sentence -> unit vector. Problems with a planted truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medtame.data.samples import ManifestSamples
from medtame.types import Array, Candidates, Problem, Query


@dataclass(frozen=True)
class TableEncoder:
    images: Tensor  # (N, D)
    sentences: dict[str, Tensor]
    scale: float = 100.0
    bias: float = 0.0
    spec: str = "table"
    image_identity: str = "table-image"
    text_identity: str = "table-text"
    image_tower: None = None
    text_tower: None = None
    asked: list[str] = field(default_factory=list)

    def whole(self, samples: ManifestSamples, column: str = "image") -> Tensor:
        return self.images[[int(name) for name in samples.column(column)]]

    def texts(self, strings: Sequence[str]) -> Tensor:
        return torch.stack([self.sentences[string] for string in strings])


def unit(values: Array | Tensor) -> Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(values, dtype=torch.float32), dim=-1)


@dataclass(frozen=True)
class World:
    """Classes of images around their means, all off one common direction, and a text a class: its mean with noise of its own."""

    encoder: TableEncoder
    labels: Array
    names: tuple[str, ...]

    def query(self, rows: Sequence[int] | Array, groups: Sequence[str] | None = None, **more: object) -> Query:
        names = [str(row) for row in rows]
        samples = ManifestSamples({"image": names}, np.array(names if groups is None else groups))
        candidates = more.pop("candidates", None) or Candidates(names=self.names, prompts=tuple((name,) for name in self.names))
        return Query(wants="scores", samples=samples, encoder=self.encoder, source=np.arange(len(names)), candidates=candidates, **more)  # type: ignore[arg-type]

    def problem(self, rows: Sequence[int] | Array, groups: Sequence[str] | None = None, seed: int = 0, **more: object) -> Problem:
        targets = torch.nn.functional.one_hot(torch.as_tensor(self.labels[np.asarray(rows)]), len(self.names)).float()
        return Problem(query=self.query(rows, groups, **more), targets=targets, seed=seed)

    def shots(self, counts: Sequence[int]) -> Array:
        """The first so many rows of each class."""
        return np.concatenate([np.flatnonzero(self.labels == k)[:count] for k, count in enumerate(counts)]).astype(int)

    def balanced_accuracy(self, logits: Tensor, rows: Array) -> float:
        said, truth = logits.argmax(1).numpy(), self.labels[rows]
        return float(np.mean([(said[truth == k] == k).mean() for k in np.unique(truth)]))


def world(
    classes: int = 4, each: int = 60, width: int = 48, noise: float = 1.0, text_noise: float = 1.0, scale: float = 100.0, seed: int = 0
) -> World:
    random = np.random.default_rng(seed)
    cone = 3 * random.normal(size=width) / width**0.5  # images share a direction, as those of a VLM do
    centres = random.normal(size=(classes, width)) / width**0.5
    labels = np.repeat(np.arange(classes), each)
    images = unit(cone + centres[labels] + noise * random.normal(size=(len(labels), width)) / width**0.5)
    shared = 3 * random.normal(size=width) / width**0.5
    names = tuple(f"class {k}" for k in range(classes))
    texts = unit(shared + centres + text_noise * random.normal(size=(classes, width)) / width**0.5)
    return World(TableEncoder(images, dict(zip(names, texts, strict=True)), scale), labels, names)
