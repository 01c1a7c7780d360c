"""Boxes of a manifest: folded to a row an image, and one line for those that cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medtame.data import manifest
from medtame.data.boxes import BOXES, folded, fractions
from medtame.errors import DataError

HEAD = "image,label,xmin,ymin,xmax,ymax\n"


def read(folder, lines):
    for name, size in (("a.png", (60, 40)), ("b.png", (60, 40))):
        Image.fromarray(np.full((size[1], size[0]), 90, np.uint8)).save(folder / name)
    (folder / "boxes.csv").write_text(HEAD + "\n".join(lines) + "\n")
    return manifest.read(folder / "boxes.csv", columns={}, root=None)


def test_lines_of_an_image_become_one_row_and_an_image_without_a_box_stays(tmp_path):
    rows = folded(read(tmp_path, ["a.png,red,0,0,10,10", "b.png,,,,,", "a.png,white,50,30,60.5,40"]))
    assert rows.column("image") == ["a.png", "b.png"]
    assert rows.column(BOXES) == [(("red", 0, 0, 10, 10), ("white", 50, 30, 60, 40)), ()]  # half a pixel over the edge is cut
    assert "label" not in rows
    first = fractions(rows.column(BOXES)[0], rows.pictures()[0], ("white",)).numpy()
    np.testing.assert_allclose(first, [[0, 0, 10 / 60, 10 / 40, -1], [50 / 60, 30 / 40, 1, 1, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a.png,red,5,5,70,20", "lies outside its image of 60 x 40 pixels"),
        ("a.png,red,-20,5,10,20", "lies outside its image"),
        ("a.png,red,60.2,5,60.8,20", "lies outside its image"),
        ("a.png,,5,5,10,20", "has no label"),
    ],
)
def test_a_box_that_cannot_be_is_told_in_one_line(tmp_path, line, told):
    samples = read(tmp_path, ["b.png,red,0,0,10,10", line])
    with pytest.raises(DataError, match=told) as caught:
        folded(samples)
    assert "row 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reversed_box_is_refused_when_the_manifest_is_read(tmp_path):
    with pytest.raises(DataError, match="xmax < xmin or ymax < ymin"):
        read(tmp_path, ["a.png,red,10,5,5,20"])


def test_a_coco_file_whose_box_leaves_its_image_is_told_too(tmp_path):
    read(tmp_path, ["a.png,red,0,0,1,1"])
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 30, 30, 5]}],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"row 1 \(xmin 50, ymin 30, xmax 80, ymax 35\) lies outside"):
        folded(manifest.read(tmp_path / "boxes.json", columns={}, root=None))
