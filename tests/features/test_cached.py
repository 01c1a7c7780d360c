"""The cached encoder: the same bits at every run, no encoder opened without need, and changed sides that leave the cache."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import EncoderCard, Memory, TowerEncoder
from medtame.errors import EncoderError
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store
from medtame.types import Encoder

CARD = EncoderCard(
    spec="toy",
    image_identity="image-1",
    text_identity="text-1",
    scale=12.5,
    bias=-1.0,
    dimension=6,
    scales=((6, 2), (4, 4)),
    has_text=True,
    notes="a toy",
)


class ImageToy(nn.Module):
    """Remembers how many images it saw at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)
        self.seen: list[int] = []

    def forward(self, prepared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.seen.append(len(prepared))
        fine = torch.relu(self.fine(prepared))
        coarse = self.coarse(fine)
        return nn.functional.normalize(coarse.mean((2, 3)), dim=1), (coarse, fine)


class TextToy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.seen = nn.Embedding(256, 6), []

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.seen.append(len(strings))
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


def toy(card: EncoderCard = CARD) -> TowerEncoder:
    torch.manual_seed(0)
    return TowerEncoder(
        spec=card.spec,
        image_identity=card.image_identity,
        text_identity=card.text_identity,
        scale=card.scale,
        bias=card.bias,
        image_tower=ImageToy().eval().requires_grad_(False),
        text_tower=TextToy().eval().requires_grad_(False),
        prepare=prepare,
    )


def refused() -> TowerEncoder:
    raise AssertionError("the encoder was opened")


def samples(count: int, seed: int = 1) -> ManifestSamples:
    rng = np.random.default_rng(seed)
    pictures = [ArrayPicture(rng.random((20, 24 + i % 5)).astype(np.float32), f"image {i}") for i in range(count)]
    return ManifestSamples({"image": pictures}, np.arange(count))


def opener(made: TowerEncoder) -> Callable[[], TowerEncoder]:
    return lambda: made


STRINGS = ["a chest", "b", "a chest", "longer words of a report", ""]


def test_the_first_run_gives_the_encoder_in_16_bits_and_the_second_the_same_bits_without_one(tmp_path: Path):
    images, plain = samples(70), toy()
    first: Encoder = CachedEncoder(CARD, toy, Store(tmp_path))
    second = CachedEncoder(CARD, refused, Store(tmp_path))
    for wanted, a, b in [
        (plain.whole(images), first.whole(images), second.whole(images)),
        (plain.texts(STRINGS), first.texts(STRINGS), second.texts(STRINGS)),
    ]:
        assert a.dtype == torch.float32
        assert torch.equal(a, wanted.half().float())
        assert torch.equal(a, b)
    for wanted, a, b in zip(plain.grid(images), first.grid(images), second.grid(images), strict=True):
        assert torch.equal(a, wanted.half().float())
        assert torch.equal(a, b)
    order = [3, 3, 69, 0]
    assert torch.equal(second.whole(images.take(order)), plain.whole(images).half().float()[order])


def test_grid_keeps_whole_from_the_same_pass():
    made, images = toy(), samples(10)
    encoder = CachedEncoder(CARD, opener(made))
    encoder.grid(images)
    encoder.whole(images)
    encoder.grid(images)
    assert made.image_tower.seen == [10]
    assert torch.equal(encoder.whole(images), toy().whole(images).half().float())


def test_only_what_is_missing_is_computed_and_twice_the_same_image_once(tmp_path: Path):
    images = samples(100)
    CachedEncoder(CARD, toy, Store(tmp_path)).whole(images.take(np.arange(0, 100, 2)))
    made, told = toy(), []
    encoder = CachedEncoder(CARD, opener(made), Store(tmp_path), watch=lambda done, of: told.append((done, of)))
    rows = [*range(100), *range(100)]
    assert torch.equal(encoder.whole(images.take(rows)), toy().whole(images).half().float()[rows])
    assert sum(made.image_tower.seen) == 50
    assert told == [(0, 50), (50, 50)]
    encoder.whole(images)
    assert told == [(0, 50), (50, 50)]
    assert len(encoder.texts(STRINGS)) == 5
    assert made.text_tower.seen == [4]


def test_a_killed_run_keeps_its_finished_chunks(tmp_path: Path):
    images = samples(200)

    def killed(done: int, of: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(CARD, toy, Store(tmp_path), watch=killed, engines=()).whole(images)
    made = toy()
    assert torch.equal(CachedEncoder(CARD, opener(made), Store(tmp_path), engines=()).whole(images), toy().whole(images).half().float())
    assert sum(made.image_tower.seen) == 72


def test_a_broken_shard_is_made_again_with_the_same_numbers(tmp_path: Path):
    images = samples(70)
    wanted = CachedEncoder(CARD, toy, Store(tmp_path)).whole(images)
    big, small = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: -path.stat().st_size)
    content = bytearray(big.read_bytes())
    content[-3] ^= 1  # a key, a number or a checksum
    big.write_bytes(content)
    small.write_bytes(small.read_bytes()[:-5])
    made = toy()
    torch.testing.assert_close(CachedEncoder(CARD, opener(made), Store(tmp_path)).whole(images), wanted, atol=1e-3, rtol=0)
    assert sum(made.image_tower.seen) > 0
    torch.testing.assert_close(CachedEncoder(CARD, refused, Store(tmp_path)).whole(images), wanted, atol=1e-3, rtol=0)


def test_another_text_side_keeps_images_and_another_image_side_keeps_texts(tmp_path: Path):
    images = samples(5)
    encoder = CachedEncoder(CARD, toy, Store(tmp_path))
    encoder.grid(images)
    encoder.texts(STRINGS)
    text = CachedEncoder(dataclasses.replace(CARD, text_identity="text-2"), refused, Store(tmp_path))
    image = CachedEncoder(dataclasses.replace(CARD, image_identity="image-2"), refused, Store(tmp_path))
    assert torch.equal(text.whole(images), encoder.whole(images))
    assert torch.equal(image.texts(STRINGS), encoder.texts(STRINGS))
    with pytest.raises(AssertionError, match="opened"):
        text.texts(STRINGS)
    with pytest.raises(AssertionError, match="opened"):
        image.whole(images)


def test_a_changed_text_tower_trains_while_images_come_from_the_cache():
    made, images = toy(), samples(5)
    encoder = CachedEncoder(CARD, opener(made))
    before = encoder.whole(images)
    tower = copy.deepcopy(made.text_tower).requires_grad_(True)
    changed = encoder.changed(text=tower, identity="coop")
    assert (changed.image_identity, changed.text_identity) == ("image-1", "text-1+coop")
    assert torch.equal(changed.whole(images), before)
    assert all(torch.equal(a, b) for a, b in zip(changed.grid(images), encoder.grid(images), strict=True))
    assert made.image_tower.seen == [5, 5]  # whole, then the grid
    changed.texts(["x"]).sum().backward()
    assert tower.table.weight.grad.abs().sum() > 0
    assert not encoder.texts(["x"]).requires_grad


def test_a_changed_image_tower_trains_while_texts_come_from_the_cache():
    made, images = toy(), samples(5)
    encoder = CachedEncoder(CARD, opener(made))
    encoder.texts(STRINGS)
    tower = copy.deepcopy(made.image_tower).requires_grad_(True)
    changed = encoder.changed(image=tower, identity="lora")
    assert (changed.image_identity, changed.text_identity) == ("image-1+lora", "text-1")
    changed.whole(images)[0, 0].backward()
    assert tower.coarse.weight.grad.abs().sum() > 0
    assert torch.equal(changed.texts(STRINGS), encoder.texts(STRINGS))
    assert made.text_tower.seen == [4]
    both = changed.changed(text=copy.deepcopy(made.text_tower).requires_grad_(True), identity="coop")
    assert (both.image_identity, both.text_identity) == ("image-1+lora", "text-1+coop")
    assert both.whole(images).requires_grad
    assert both.texts(["x"]).requires_grad
    assert (both.scale, both.bias, both.spec, both.image_tower) == (12.5, -1.0, "toy", tower)


def test_towers_are_opened_when_asked_for_and_the_rest_is_on_the_card():
    encoder = CachedEncoder(CARD, refused)
    assert (encoder.spec, encoder.image_identity, encoder.text_identity) == ("toy", "image-1", "text-1")
    assert (encoder.scale, encoder.bias) == (12.5, -1.0)
    assert encoder.whole(samples(0)).shape == (0, 6)
    assert encoder.texts([]).shape == (0, 6)
    with pytest.raises(AssertionError, match="opened"):
        _ = encoder.image_tower
    blind = CachedEncoder(dataclasses.replace(CARD, text_identity="", has_text=False), refused)
    assert blind.text_tower is None


def test_an_encoder_that_is_not_its_card_is_refused():
    encoder = CachedEncoder(dataclasses.replace(CARD, image_identity="image-2"), toy)
    with pytest.raises(EncoderError, match="its card says image-2"):
        encoder.whole(samples(1))


def test_numbers_beyond_16_bits_are_refused():
    made = toy()
    made.image_tower.fine.weight.mul_(1e7)
    with pytest.raises(EncoderError, match="beyond 65504"):
        CachedEncoder(CARD, opener(made)).grid(samples(2))


def test_a_full_disk_costs_a_warning_and_no_feature(tmp_path: Path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    images, encoder = samples(3), CachedEncoder(CARD, toy, Store(blocked))
    with pytest.warns(UserWarning, match="features are not kept"):
        assert torch.equal(encoder.whole(images), toy().whole(images).half().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.whole(images)  # from memory


def test_a_small_memory_changes_no_number():
    images = samples(70)
    encoder = CachedEncoder(CARD, toy, rows=Memory(10 * 6 * 2))
    for _ in range(2):
        assert torch.equal(encoder.whole(images), toy().whole(images).half().float())
    assert encoder.rows.held_bytes <= 120


def test_a_copy_for_another_process_travels_light(tmp_path: Path):
    images = samples(3)
    encoder = CachedEncoder(CARD, toy, Store(tmp_path), watch=lambda done, of: None)
    wanted = encoder.whole(images)
    packed = pickle.dumps(encoder)
    assert len(packed) < 4000
    assert torch.equal(pickle.loads(packed).whole(images), wanted)


def test_the_store_names_neither_pictures_nor_words(tmp_path: Path):
    encoder = CachedEncoder(CARD, toy, Store(tmp_path))
    encoder.whole(samples(3))
    encoder.texts(["Jane Doe has pneumonia"])
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert hashlib.sha256(b"Jane Doe has pneumonia").digest()[:6] in content
    assert b"Jane" not in content
    assert b"image 0" not in content


def test_a_cache_of_another_encoder_is_not_used(tmp_path: Path):
    images, other = samples(5), dataclasses.replace(CARD, image_identity="image-2", text_identity="text-2")

    def louder() -> TowerEncoder:
        made = toy(other)
        made.image_tower.fine.weight.mul_(-1)
        return made

    mine = CachedEncoder(CARD, toy, Store(tmp_path)).whole(images)
    for path in [*tmp_path.rglob("*.safetensors")]:  # as if the other's folder had been filled from here
        place = Store(tmp_path)._place("image-2", "whole")
        place.mkdir(exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    theirs = CachedEncoder(other, louder, Store(tmp_path)).whole(images)
    assert torch.equal(theirs, louder().whole(images).half().float())
    assert not torch.allclose(theirs, mine, atol=0.01)


FULL = """
import resource, sys, warnings
from pathlib import Path
sys.path[:0] = [{here!r}]
import torch
from test_cached import CARD, Store, CachedEncoder, samples, toy
images = samples(200)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))   # the system lets no file grow further: each shard breaks off half-way
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    made = toy()
    encoder = CachedEncoder(CARD, lambda: made, Store(Path(sys.argv[1])), engines=())
    first = encoder.whole(images)
    assert torch.equal(encoder.whole(images), first) and torch.equal(first, toy().whole(images).half().float())
    encoder.texts(["a", "b"])
assert sum(made.image_tower.seen) == 200, made.image_tower.seen
print(len(said), said[0].message)
"""


def test_a_full_disk_is_said_once_and_rows_stay_in_memory(tmp_path: Path):
    """A real refusal of the system, in a process of its own."""
    script = FULL.format(here=str(Path(__file__).parent))
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"1 features are not kept on disk: {tmp_path} is full or may not be written")
    assert "set MEDTAME_CACHE" in told.stdout
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".safetensors")] == []


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder for one who may not write in it; the superuser, who may everywhere, is somebody else meanwhile."""
    folder = Path(tempfile.mkdtemp())
    CachedEncoder(CARD, toy, Store(folder)).whole(samples(3))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_cache_is_read_and_what_is_new_stays_in_memory(read_only: Path):
    more, made = samples(5), toy()
    known = CachedEncoder(CARD, refused, Store(read_only)).whole(samples(3))
    assert torch.equal(known, toy().whole(samples(3)).half().float())
    encoder = CachedEncoder(CARD, opener(made), Store(read_only))
    with pytest.warns(UserWarning, match="may not be written.*set MEDTAME_CACHE"):
        found = encoder.whole(more)
    assert torch.equal(found, toy().whole(more).half().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        encoder.texts(STRINGS)
    assert made.image_tower.seen == [2]
    encoder.whole(more)
    assert made.image_tower.seen == [2]
