"""The cost of an answer beside zero_shot's: with a clock that counts the images in the tower, so that the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from doubles import tiny_encoder
from medtame import catalogue
from medtame.comparison import answer_cost
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.features.cached import CachedEncoder
from medtame.run import fitted
from medtame.strategies.direct_use.test_time_prompt import views_of
from medtame.tasks.classification import Classification
from medtame.tasks.object_detection import ObjectDetection
from shop import family


class Counting(nn.Module):
    """An image tower that knows how many images it saw."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, pixels: torch.Tensor) -> object:
        self.images += len(pixels)
        return self.inner(pixels)


def method(name):
    return catalogue.build(catalogue.METHODS, name)


@pytest.fixture
def tower(monkeypatch):
    """The counting tower, which is the clock too."""
    counted = Counting(tiny_encoder().image_tower)
    monkeypatch.setattr(answer_cost.time, "process_time", lambda: float(counted.images))
    return counted


def samples(count: int) -> ManifestSamples:
    random = np.random.default_rng(0)
    pictures = [ArrayPicture(random.random((400, 380, 1)).astype(np.float32), f"{row}") for row in range(count)]
    return ManifestSamples({"image": pictures, "label": ["dark", "light"] * (count // 2)}, np.arange(count))


def test_images_are_counted_with_nothing_kept_and_with_vectors_kept(tower):
    encoder = CachedEncoder(family("")[0](), lambda: replace(tiny_encoder(), image_tower=tower))
    data = samples(20)
    encoder.whole(data)
    task = Classification().settled(data)
    runs = {name: fitted(data, task, method(name), encoder) for name in ("zero_shot", "test_time_prompt", "low_entropy_cache")}
    seen = sum(len({picture.digest(), *(view.digest() for view in views_of(picture, 15))}) for picture in data.take(range(16)).pictures())
    assert 250 <= seen <= 256  # two views may be the same crop
    assert answer_cost.told(runs, data) == (
        "To answer 16 images together, with the encoding, nothing kept, zero_shot takes 16 s of CPU, "
        f"test_time_prompt {seen} s (16 times), low_entropy_cache 16 s (1 times)."
    )
    del runs["test_time_prompt"]
    assert "together, beside the encoding, zero_shot takes 0 s of CPU, low_entropy_cache 0 s" in answer_cost.told(runs, data)


def test_methods_that_learn_or_compare_row_by_row_are_not_asked():
    told = [name for name in catalogue.names(catalogue.METHODS) if answer_cost.works_when_asked(Classification(), method(name))]
    assert {"test_time_prompt", "entropy_tuning", "low_entropy_cache", "dynamic_cache"} <= set(told)
    assert not {"zero_shot", "prompt_ensemble", "coop", "lora", "linear_probe", "chat_model", "memory_bank"} & set(told)
    assert all(method(name).learning == "none" for name in told)
    assert not answer_cost.works_when_asked(ObjectDetection(), method("coop"))
