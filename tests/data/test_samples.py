"""Samples: no truth in a query, nothing read before it is asked for, pixels of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from PIL import Image
from torchvision.transforms.v2.functional import resize

from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, ImageError
from medtame.types import Samples


def made(folder: Path, count: int = 4) -> ManifestSamples:
    names = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 20)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        names.append(f"{number}.png")
    return ManifestSamples({"image": names, "label": list("abab")[:count]}, np.array(["p", "p", "q", "r"][:count], dtype=object), folder)


def test_a_dropped_column_is_refused_and_so_is_an_absent_one(tmp_path: Path) -> None:
    samples: Samples = made(tmp_path)
    seen = samples.only(["image", "prompt"])
    assert "label" in samples
    assert "label" not in seen
    assert seen.groups.tolist() == ["p", "p", "q", "r"]
    for query in (seen, seen.take([1]), seen.only(["image"]), seen.replaced(image=["x"] * 4)):
        with pytest.raises(DataError, match=r"^this query may not see 'label'; it may see image$"):
            query.column("label")
    with pytest.raises(
        DataError, match=r"^there is no column 'question'; there is image, label\. Name yours with --columns question=YOURS$"
    ):
        samples.column("question")
    assert seen.replaced(label=list("xxxx")).column("label") == list("xxxx")


def test_take_keeps_order_and_groups_and_reads_no_file(tmp_path: Path) -> None:
    samples = ManifestSamples({"image": ["no.png", "nor.png"], "label": ["a", "b"]}, np.array(["p", "q"], dtype=object), tmp_path)
    assert samples.take([1, 0, 1]).column("label") == ["b", "a", "b"]
    assert samples.take(np.array([False, True])).groups.tolist() == ["q"]
    assert len(samples.take([])) == 0
    assert samples.rows_where("label", "b").tolist() == [1]
    with pytest.raises(ImageError, match=r"^nor\.png cannot be read: it is not there$"):
        samples.take([1]).pixels()


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns of unequal length: image has 4, label has 3, groups has 4"):
        made(tmp_path).replaced(label=["a", "b", "c"])


def test_pixels_are_those_of_the_files_and_resizing_is_torchvisions(tmp_path: Path) -> None:
    samples = made(tmp_path)
    stored = torch.stack([torch.tensor(np.asarray(Image.open(tmp_path / f"{n}.png"))) for n in range(4)])[:, None] / 255
    assert torch.allclose(samples.pixels(), stored, atol=1e-7)
    assert torch.allclose(samples.pixels(size=(5, 7)), resize(stored, [5, 7], antialias=True), atol=1e-5)
    assert samples.take([]).pixels(size=(5, 7)).shape == (0, 1, 5, 7)


def test_grey_becomes_colour_only_beside_colour_and_sizes_must_agree(tmp_path: Path) -> None:
    samples = made(tmp_path, 2)
    Image.new("RGB", (20, 12), (255, 0, 51)).save(tmp_path / "1.png")
    pixels = samples.pixels()
    assert pixels.shape == (2, 3, 12, 20)
    assert torch.equal(pixels[0, 0], pixels[0, 2])
    assert torch.allclose(pixels[1, :, 0, 0], torch.tensor([1, 0, 0.2]))
    Image.new("L", (9, 9)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"images of 2 sizes, from \(9, 9\) to \(12, 20\): give the size"):
        samples.pixels()


def test_images_can_be_replaced_by_arrays(tmp_path: Path) -> None:
    samples = made(tmp_path, 2)
    blank = [ArrayPicture(np.full((3, 3), 0.5, np.float32), f"blank {n}") for n in range(2)]
    assert torch.equal(samples.replaced(image=blank).pixels(), torch.full((2, 1, 3, 3), 0.5))
    assert samples.replaced(image=blank).take([1]).pictures()[0].name == "blank 1"
    with pytest.raises(DataError, match="in memory"):
        samples.replaced(image=blank).paths("image")


def test_pictures_and_paths_and_empty_cells(tmp_path: Path) -> None:
    samples = made(tmp_path, 2).replaced(mask=["0.png", None])
    assert samples.pictures()[1] == FilePicture(tmp_path / "1.png", "1.png")
    assert samples.paths("mask") == [tmp_path / "0.png", None]
    with pytest.raises(DataError, match=r"^1 of 2 rows have no 'mask'"):
        samples.pictures("mask")


def test_threads_read_the_same_pixels(tmp_path: Path) -> None:
    samples = made(tmp_path)
    parts = Parallel(n_jobs=2, backend="threading")(delayed(samples.take([row]).pixels)() for row in range(4))
    assert torch.equal(torch.cat(parts), samples.pixels())
