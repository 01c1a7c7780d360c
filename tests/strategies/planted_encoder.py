"""An encoder whose vectors are given: image number i has row i of a table, a sentence has the vector that it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.types import Candidates, Problem, Query


@dataclass
class PlantedEncoder:
    """A sentence that was not given a vector gets one that depends on its letters alone."""

    images: Tensor  # (N, D) unit norm
    sentences: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 20.0
    bias: float = -0.5
    spec: str = "planted"
    image_identity: str = "planted-image"
    text_identity: str = "planted-text"
    image_tower: Any = None
    text_tower: Any = None

    def whole(self, samples, column="image"):
        return self.images[[int(picture.name) for picture in samples.pictures(column)]]

    def texts(self, strings):
        return torch.stack([self.sentences.get(string, code(string, self.images.shape[1])) for string in strings])


def code(string: str, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(ord(letter) * 31**k for k, letter in enumerate(string)) % 2**31)
    return unit(torch.randn(width, generator=generator))


def unit(values: Tensor) -> Tensor:
    return normalize(values, dim=-1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def samples(n: int, start: int = 0, **columns: Any) -> ManifestSamples:
    pictures = [ArrayPicture(np.zeros((8, 8), np.float32), str(start + i)) for i in range(n)]
    return ManifestSamples({"image": pictures, **columns}, np.arange(start, start + n).astype(str))


def query(encoder: PlantedEncoder, names: tuple[str, ...], rows: ManifestSamples, **more: Any) -> Query:
    exclusive = more.pop("exclusive", True)
    prompts = more.pop("prompts", tuple((name,) for name in names))
    candidates = Candidates(names=names, prompts=prompts, exclusive=exclusive, negatives=more.pop("negatives", None))
    return Query(wants="scores", samples=rows, encoder=encoder, source=np.arange(len(rows)), candidates=candidates, **more)


def problem(asked: Query, labels: list[int], **more: Any) -> Problem:
    targets = torch.nn.functional.one_hot(torch.tensor(labels), len(asked.wanted.names)).float()
    return Problem(query=asked, targets=targets, **more)
