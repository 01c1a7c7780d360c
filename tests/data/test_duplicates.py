"""Images that are there twice: planted ones are found, look-alikes are not, and the fast search equals the slow one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from medtame.data import duplicates
from medtame.data.duplicates import Fingerprints, exact_groups, fingerprints, joined, near_pairs
from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.manifest import read
from medtame.types import Array

Change = Callable[[Image.Image], Image.Image]


def saved_again(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=quality)
        return Image.open(held)

    return change


KINDS: dict[str, Change] = {
    "left-right": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "up-down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 17 // 10, image.height * 17 // 10), Image.Resampling.BICUBIC),
    "JPEG 50": saved_again(50),
    "JPEG 90": saved_again(90),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
}


def alike(count: int, seed: int = 0, side: int = 160) -> list[Image.Image]:
    """Pictures of one coarse shape that differ in detail, as chest X-rays do."""
    rng = np.random.default_rng(seed)
    shape = gaussian_filter(rng.standard_normal((side, side)), side / 6)
    made = []
    for _ in range(count):
        detail = gaussian_filter(rng.standard_normal((side, side)), side / 25)
        pixels = 128 + 45 * shape / shape.std() + 12 * detail / detail.std() + rng.normal(0, 4, (side, side))
        made.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return made


def prints(images: list[Image.Image]) -> Fingerprints:
    return fingerprints([ArrayPicture(np.asarray(image), f"{number}") for number, image in enumerate(images)])


def planted(originals: list[Image.Image], change: Change) -> tuple[float, list[duplicates.Pair]]:
    """The share of changed copies that is found with its original, and the pairs that are of no copy."""
    count = len(originals)
    pairs = near_pairs(prints([*originals, *map(change, originals)]))
    found = {(pair.a, pair.b) for pair in pairs}
    return np.mean([(number, number + count) in found for number in range(count)]), [p for p in pairs if p.b != p.a + count]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_copies_are_found_among_lookalikes(kind: str) -> None:
    share, false = planted(alike(40), KINDS[kind])
    assert share >= 0.95
    assert len({number for pair in false for number in (pair.a, pair.b)}) <= 0.01 * 80


@pytest.mark.parametrize("kind", KINDS)
def test_changed_copies_of_real_images_are_found(real_data: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    samples = read(real_data / "chest_xray" / "labels.csv")
    chosen = rng.choice(len(samples), 60, replace=False)
    images = [Image.fromarray(picture.read()[..., 0]) for picture in samples.take(chosen).pictures()]
    share, false = planted(images, KINDS[kind])
    assert share >= 0.95
    assert false == []


def test_all_chest_radiographs_differ_and_the_known_pairs_of_brains_are_found(real_data: Path) -> None:
    chests = read(real_data / "chest_xray" / "labels.csv")
    assert len(near_pairs(fingerprints(chests.pictures()))) == 0
    brains = read(real_data / "brain_tumour_yesno" / "labels.csv")
    pairs = near_pairs(fingerprints(brains.pictures()))
    assert len(pairs) == 4  # as many as the README of the data says
    labels = brains.column("label")
    assert all(labels[pair.a] == labels[pair.b] for pair in pairs)


def test_one_picture_in_three_file_formats_is_the_same(tmp_path: Path) -> None:
    first, other = (np.asarray(image) for image in alike(2, side=48))
    for name in ("a.png", "b.tif", "c.bmp"):
        Image.fromarray(first).save(tmp_path / name)
    Image.fromarray(np.stack([first] * 3, -1)).save(tmp_path / "three_channels.png")
    Image.fromarray(other).save(tmp_path / "other.png")
    changed = first.copy()
    changed[5, 7] ^= 1
    Image.fromarray(changed).save(tmp_path / "one_pixel.png")
    names = ["other.png", "a.png", "one_pixel.png", "b.tif", "c.bmp", "three_channels.png"]
    found = fingerprints([FilePicture(tmp_path / name, name) for name in names])
    assert exact_groups(found) == [[1, 3, 4, 5]]


def test_planted_equal_images_are_all_found_and_no_others() -> None:
    images = alike(60, side=40)
    found = prints([*images, *images[:20], *images[:5]])
    groups = exact_groups(found)
    assert groups == [[number, number + 60, number + 80] for number in range(5)] + [[number, number + 60] for number in range(5, 20)]


def test_shape_counts_not_only_bytes() -> None:
    zeros = np.zeros((4, 6), dtype=np.uint8)
    found = fingerprints([ArrayPicture(zeros, "a"), ArrayPicture(zeros.reshape(6, 4), "b")])
    assert exact_groups(found) == []


def brute(found: Fingerprints) -> Iterator[tuple[int, int]]:
    """Every pair in every orientation, one by one, without a hash."""
    rest = [one - gaussian_filter(one, duplicates.SHADING) for one in found.thumbnails]
    for a, b in combinations(range(len(found)), 2):
        turned = [np.rot90(flipped, turns) for flipped in (rest[b], rest[b][:, ::-1]) for turns in range(4)]
        if max(np.corrcoef(rest[a].ravel(), one.ravel())[0, 1] for one in turned) >= duplicates.ALIKE:
            yield a, b


def test_the_search_by_hash_equals_the_search_of_all_pairs() -> None:
    images = alike(24)
    copies = [change(image) for image, change in zip(images, [*KINDS.values()] * 2, strict=False)]
    found = prints([*images, *copies])
    expected = set(brute(found))
    assert len(expected) >= 20
    assert {(pair.a, pair.b) for pair in near_pairs(found)} == expected


def test_the_hash_of_a_turned_image_is_the_turned_hash() -> None:
    detail = duplicates._detail(prints(alike(12)).thumbnails)
    for orientation in range(8):
        by_signs = duplicates._hashes(duplicates._frequencies(detail), orientation)
        by_pixels = duplicates._hashes(duplicates._frequencies(duplicates._turned(detail, orientation)), 0)
        assert np.bitwise_count(by_signs ^ by_pixels).max() <= 1  # a frequency of nearly zero may fall either way


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_copy_agrees_with_the_signs_of_what_it_is_of_and_lookalikes_do_not(kind: str) -> None:
    images = alike(24)
    looks = [duplicates.look(one) for one in prints(images[:12]).thumbnails]
    assert {len(one) for one in looks} == {24 * 24 / 4}
    copies = duplicates.agreement(prints([KINDS[kind](one) for one in images[:12]]).thumbnails, looks)
    others = duplicates.agreement(prints([KINDS[kind](one) for one in images[12:]]).thumbnails, looks)
    assert copies.min() > 0.96
    assert others.max() < 0.6


def test_signs_agree_with_their_own_image_wholly_and_nothing_has_none() -> None:
    shown = prints(alike(3)).thumbnails
    looks = [duplicates.look(one) for one in shown]
    np.testing.assert_allclose(duplicates.agreement(shown, looks), 1, atol=1e-6)
    for turn in range(4):
        for turned in (np.rot90(shown, turn, (1, 2)), np.rot90(shown, turn, (1, 2))[:, :, ::-1]):
            np.testing.assert_allclose(duplicates.agreement(np.ascontiguousarray(turned), looks), 1, atol=1e-6)
    flat = np.full((1, 32, 32), 0.5, dtype=np.float32)
    assert duplicates.look(flat[0]) == ""
    assert duplicates.agreement(flat, looks)[0] == 0


def test_how_a_copy_lies_is_said() -> None:
    image = alike(1)[0]
    said = {kind: near_pairs(prints([image, KINDS[kind](image)]))[0].how for kind in ("left-right", "up-down", "180 degrees", "JPEG 90")}
    assert said == {
        "left-right": "flipped left-right",
        "up-down": "flipped up-down",
        "180 degrees": "turned by 180 degrees",
        "JPEG 90": "as it is",
    }


def test_constant_images_and_unreadable_ones_match_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    pictures = [ArrayPicture(np.full((50, 50), grey, dtype=np.uint8), f"{grey}") for grey in (0, 1, 200)]
    broken = [FilePicture(tmp_path / "broken.png", "broken.png"), FilePicture(tmp_path / "absent.png", "absent.png")]
    found = fingerprints([*pictures, *broken])
    assert exact_groups(found) == []
    assert near_pairs(found) == []
    assert found.readable.tolist() == [True, True, True, False, False]
    assert len(set(joined(found).tolist())) == 5


def test_groups_join_equal_and_nearly_equal_images_by_way_of_others() -> None:
    first, second, third = alike(3)
    found = prints([first, second, KINDS["left-right"](first), third, KINDS["JPEG 50"](first), second])
    numbers: Array = joined(found)
    assert numbers[0] == numbers[2] == numbers[4]
    assert numbers[1] == numbers[5]
    assert len(set(numbers.tolist())) == 3


def test_progress_is_told_and_nothing_is_something() -> None:
    told: list[tuple[int, int]] = []
    pictures = [ArrayPicture(np.asarray(image), "x") for image in alike(3, side=40)]
    fingerprints(pictures, lambda done, of: told.append((done, of)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    empty = fingerprints([])
    assert (exact_groups(empty), near_pairs(empty), joined(empty).tolist()) == ([], [], [])
