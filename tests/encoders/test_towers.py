"""Towers in batches: against one image at a time, with and without gradients, with memory and without."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import Digests, Memory, TowerEncoder, file_name, frozen
from medtame.errors import EncoderError, ImageError
from medtame.types import Encoder


class ImageToy(nn.Module):
    """Whole is the direction of the first map's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)

    def forward(self, prepared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        fine = torch.relu(self.fine(prepared))
        coarse = self.coarse(fine)
        return nn.functional.normalize(coarse.mean((2, 3)), dim=1), (coarse, fine)


class TextToy(nn.Module):
    """The direction of the mean of letter vectors; padding is masked out. Counts the strings that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.strings = nn.Embedding(256, 6), 0

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.strings += len(strings)
        letters = [[1, *string.encode()] for string in strings]
        length = max(map(len, letters))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in letters])
        return ids, (ids > 0).float()

    def embed(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.normalize((embedded * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def prepare(image: Tensor) -> Tensor:
    return nn.functional.interpolate(image, (16, 16), mode="bilinear", antialias=True).expand(-1, 3, -1, -1) - 0.5


def toy(**parts: Any) -> TowerEncoder:
    torch.manual_seed(0)
    both = {"image_tower": frozen(ImageToy()), "text_tower": frozen(TextToy())}
    names = {"spec": "toy", "image_identity": "image-1", "text_identity": "text-1", "scale": 12.5, "bias": -1.0}
    return TowerEncoder(**(names | both | {"prepare": prepare} | parts))


def samples(count: int) -> ManifestSamples:
    """Images of different sizes, every third in colour."""
    rng = np.random.default_rng(1)
    shapes = [(20 + i, 31 - i % 7, 3) if i % 3 == 0 else (20 + i, 31 - i % 7) for i in range(count)]
    pictures = [ArrayPicture(rng.random(shape).astype(np.float32), f"image {i}") for i, shape in enumerate(shapes)]
    return ManifestSamples({"image": pictures}, np.arange(count))


def test_batches_equal_one_image_at_a_time():
    encoder: Encoder = toy()
    images = samples(70)  # three batches
    whole, maps = encoder.whole(images), encoder.grid(images)
    assert [tuple(scale.shape) for scale in maps] == [(70, 6, 2, 2), (70, 4, 4, 4)]
    for i, picture in enumerate(images.pictures()):
        prepared = prepare(torch.from_numpy(picture.array().transpose(2, 0, 1).copy())[None])
        slow_whole, slow_maps = encoder.image_tower(prepared)
        torch.testing.assert_close(whole[i], slow_whole[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(maps[0][i], slow_maps[0][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(maps[1][i], slow_maps[1][0], atol=1e-6, rtol=0)


def test_no_images_and_no_strings_keep_their_shapes():
    encoder = toy()
    assert encoder.whole(samples(0)).shape == (0, 6)
    assert [tuple(scale.shape) for scale in encoder.grid(samples(0))] == [(0, 6, 2, 2), (0, 4, 4, 4)]
    assert encoder.texts([]).shape == (0, 6)


def test_texts_keep_their_order_and_are_encoded_once():
    encoder = toy()
    strings = [f"{'long ' * (i % 5)}name {i % 80}" for i in range(200)]
    found = encoder.texts(strings)
    assert encoder.text_tower.strings == len(set(strings))
    for row, string in zip(found, strings, strict=True):
        mean = encoder.text_tower.table.weight[[1, *string.encode()]].mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-6, rtol=0)


def test_without_a_text_side_texts_says_so():
    with pytest.raises(EncoderError, match="no text side"):
        toy(text_tower=None, text_identity="").texts(["a"])


def test_frozen_towers_give_no_graph_and_changed_ones_are_trained_through_whole_grid_and_texts():
    encoder, images = toy(), samples(40)
    assert not any(t.requires_grad for t in (encoder.whole(images), *encoder.grid(images), encoder.texts(["a"])))
    image, text = copy.deepcopy(encoder.image_tower).requires_grad_(True), copy.deepcopy(encoder.text_tower).requires_grad_(True)
    changed = encoder.changed(image=image, text=text, identity="free")
    (changed.whole(images) @ changed.texts(["b", "a"]).T).sum().backward()
    prepared = torch.cat([prepare(torch.from_numpy(p.array().transpose(2, 0, 1).copy())[None]) for p in images.pictures()])
    twin_image, twin_text = copy.deepcopy(encoder.image_tower).requires_grad_(True), copy.deepcopy(encoder.text_tower).requires_grad_(True)
    ids, mask = twin_text.tokens(["a", "b"])
    (twin_image(prepared)[0] @ twin_text.encode(twin_text.embed(ids), mask).T).sum().backward()
    torch.testing.assert_close(image.coarse.weight.grad, twin_image.coarse.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text.table.weight.grad, twin_text.table.weight.grad, atol=1e-5, rtol=1e-4)
    assert changed.grid(images)[1].requires_grad
    assert encoder.image_tower.coarse.weight.grad is None


def test_a_plain_tensor_inside_a_tower_can_be_trained():
    """A learned prompt is no registered parameter."""
    encoder = toy()
    context = torch.zeros(6, requires_grad=True)

    class Prompted:
        def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
            return encoder.text_tower.tokens(strings)

        def embed(self, ids: Tensor) -> Tensor:
            return encoder.text_tower.embed(ids) + context

        def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
            return encoder.text_tower.encode(embedded, mask)

    encoder.changed(text=Prompted(), identity="prompt").texts(["abc"])[0, 0].backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0


def test_only_the_changed_side_gets_another_identity():
    encoder = toy()
    image = encoder.changed(image=copy.deepcopy(encoder.image_tower), identity="lora")
    text = encoder.changed(text=copy.deepcopy(encoder.text_tower), identity="coop")
    assert (image.image_identity, image.text_identity) == ("image-1+lora", "text-1")
    assert (text.image_identity, text.text_identity) == ("image-1", "text-1+coop")
    assert text.image_tower is encoder.image_tower
    assert (text.scale, text.bias, text.spec) == (12.5, -1.0, "toy")


class Counted:
    """A picture that counts how often it is read."""

    def __init__(self, picture: ArrayPicture) -> None:
        self.picture, self.reads, self.digests = picture, 0, 0
        self.name = picture.name

    def read(self) -> Any:
        self.reads += 1
        return self.picture.read()

    def digest(self) -> str:
        self.digests += 1
        return self.picture.digest()


def test_pixels_are_read_once_also_by_changed_encoders():
    encoder = toy()
    pictures = [Counted(picture) for picture in samples(5).column("image")]
    images = ManifestSamples({"image": pictures}, np.arange(5))
    first = encoder.whole(images)
    for step in range(3):
        again = encoder.changed(image=copy.deepcopy(encoder.image_tower), identity=f"step {step}").whole(images.take([4, 2]))
        torch.testing.assert_close(again, first[[4, 2]])
    assert [(picture.reads, picture.digests) for picture in pictures] == [(1, 1)] * 5


def test_memory_forgets_what_was_not_used_for_longest():
    memory = Memory(3 * 40)
    for key in "abc":
        memory.put(key, torch.zeros(10))
    assert memory.get("a") is not None
    memory.put("d", torch.zeros(10))
    assert [memory.get(key) is not None for key in "abcd"] == [True, False, True, True]
    memory.put("e", torch.zeros(100))  # larger than all of it
    assert memory.held_bytes == 0
    memory.put("a", torch.zeros(10))
    memory.put("a", torch.zeros(10))
    assert memory.held_bytes == 40
    assert pickle.loads(pickle.dumps(memory)).held_bytes == 0


def test_a_small_memory_changes_no_number():
    images = samples(40)
    assert torch.equal(toy(pixels=Memory(16 * 16 * 3 * 4 * 2)).whole(images), toy().whole(images))


def test_digest_of_a_file_follows_its_content(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(path)
    digests = Digests()
    first = digests.of([FilePicture(path, "a")])
    assert first == [FilePicture(path, "a").digest()]
    assert first == digests.of([FilePicture(path, "renamed in the table")])
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(path)
    os.utime(path, ns=(1, 10**18))
    assert digests.of([FilePicture(path, "a")]) == [FilePicture(path, "a").digest()] != first
    assert "a.png" not in str(file_name(FilePicture(path, "a")))
    with pytest.raises(ImageError, match="not there"):
        digests.of([FilePicture(tmp_path / "absent.png", "absent.png")])


def test_digest_of_a_picture_is_not_that_of_a_dead_one():
    """Python gives the number of a dead object to a new one."""
    digests, rng = Digests(), np.random.default_rng(0)
    for _ in range(50):
        picture = ArrayPicture(rng.random((2, 2)), "x")
        assert digests.of([picture]) == [picture.digest()]
        del picture


def test_a_copy_travels_without_its_memory():
    encoder = toy()
    encoder.whole(samples(3))
    assert encoder.pixels.held_bytes > 0
    twin = pickle.loads(pickle.dumps(encoder))
    assert twin.pixels.held_bytes == 0
    assert torch.equal(twin.whole(samples(3)), encoder.whole(samples(3)))
    assert replace(encoder, spec="x").pixels is encoder.pixels
