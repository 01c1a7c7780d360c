"""Made features of images and classes with a planted truth: an encoder that is a table, and the questions that methods answer about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medtame.data.samples import ManifestSamples
from medtame.data.splits import Split
from medtame.run import Data
from medtame.tasks.classification import Classification
from medtame.types import Array, Candidates, Encoder, Problem, Query


@dataclass(frozen=True)
class TableEncoder:
    """Features by row number and sentence, in memory. Satisfies the frozen part of `Encoder`."""

    images: Tensor  # (N, D) unit norm
    sentences: dict[str, Tensor]
    scale: float = 100.0
    bias: float = 0.0
    spec: str = "table"
    image_identity: str = "table-image"
    text_identity: str = "table-text"
    image_tower: None = None
    text_tower: None = None

    def whole(self, samples: ManifestSamples, column: str = "image") -> Tensor:
        return self.images[[int(name) for name in samples.column(column)]]

    def texts(self, strings: Sequence[str]) -> Tensor:
        return torch.stack([self.sentences[string] for string in strings])


@dataclass(frozen=True)
class Made:
    """N rows of C classes, each with a feature, and a text vector a class: its mean with noise of its own."""

    encoder: Encoder
    images: Tensor  # (N, D)
    texts: Tensor  # (C, D)
    labels: Array  # (N,)
    names: tuple[str, ...]

    def query(self, rows: Array) -> Query:
        names = [str(row) for row in rows.tolist()]
        candidates = Candidates(names=self.names, prompts=tuple((name,) for name in self.names))
        samples = ManifestSamples({"image": names}, np.array(names))
        return Query(wants="scores", samples=samples, encoder=self.encoder, source=np.arange(len(rows)), candidates=candidates)

    def problem(self, rows: Array) -> Problem:
        targets = torch.nn.functional.one_hot(torch.as_tensor(self.labels[rows]), len(self.names)).float()
        return Problem(query=self.query(rows), targets=targets)

    def data(self, train: int) -> Data:
        """A classification of all rows, of which the first `train` may be learnt from."""
        names = np.array([str(row) for row in range(len(self.labels))])
        columns = {"image": names.tolist(), "label": [self.names[label] for label in self.labels]}
        prompts = {name: (name,) for name in self.names}
        split = Split(np.arange(train), np.arange(train, len(names)), "the first rows are for training")
        return Data(ManifestSamples(columns, names), Classification(classes=self.names, prompts=prompts), split)


def made(rows: int, classes: int, dimension: int, *, noise: float = 1.0, seed: int = 0) -> Made:
    """Every class is as common as another. Images share one direction, as those of a vision-language model do."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dimension))
    labels = rng.permutation(np.arange(rows) % classes)
    images = 3 * rng.standard_normal(dimension) + centres[labels] + noise * rng.standard_normal((rows, dimension))
    texts = 3 * rng.standard_normal(dimension) + centres + 2 * rng.standard_normal((classes, dimension))
    unit_images, unit_texts = (torch.nn.functional.normalize(torch.from_numpy(side).float(), dim=1) for side in (images, texts))
    names = tuple(f"class {number}" for number in range(classes))
    encoder = TableEncoder(unit_images, dict(zip(names, unit_texts, strict=True)))
    return Made(encoder, unit_images, unit_texts, labels, names)  # type: ignore[arg-type]
