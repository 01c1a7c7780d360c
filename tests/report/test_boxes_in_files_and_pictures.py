"""Boxes as COCO JSON, read back by the reader of manifests and by pycocotools; and what the pictures of detection show."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medtame.comparison import boxes as shown
from medtame.data import manifest
from medtame.data.boxes import BOXES, folded
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.metrics.detection import detection
from medtame.regions import in_fractions, in_pixels
from medtame.report.files import write
from medtame.tasks.object_detection import ObjectDetectionFrame
from medtame.types import Predicted

NAMES = ("red", "white")


def made(folder, seed=0):
    """Six images of two sizes with boxes of fractions, the third without any: samples, predictions."""
    random, names, found = np.random.default_rng(seed), [f"{k}.png" for k in range(6)], []
    for k, name in enumerate(names):
        Image.fromarray(np.full((40 + k % 2, 60), 90, np.uint8)).save(folder / name)
        corner = random.uniform(0, 0.7, (0 if k == 2 else 8, 2))
        sides = corner + random.uniform(0.05, 0.3, corner.shape)
        found.append(np.column_stack([corner, sides, random.random(len(corner)), random.integers(0, 2, len(corner))]).astype(np.float32))
    arrays = {f"boxes/{k}": one for k, one in enumerate(found)}
    arrays |= {"names": np.array(NAMES), "images": np.array(names)}
    table = [{"image": name, "label": "red", "score": 0.5, "warning": ""} for name in names]
    return ManifestSamples({"image": names}, np.arange(6), folder), Predicted(table=table, arrays=arrays), found


def test_written_boxes_are_a_manifest_that_reads_the_same_ones(tmp_path):
    samples, said, found = made(tmp_path)
    files = write(said, samples, tmp_path / "out")
    assert [file.rpartition("/")[2] for file in files] == ["predictions.csv", "predictions.coco.json"]
    back = manifest.read(tmp_path / "out" / "predictions.coco.json", columns={}, root=tmp_path)
    rows = folded(back)
    assert rows.column("image") == samples.column("image")
    for k, (boxes, size) in enumerate(zip(rows.column(BOXES), [(40 + k % 2, 60) for k in range(6)], strict=True)):
        wanted = in_pixels(found[k][:, :4], *size)
        assert [box[0] for box in boxes] == [NAMES[int(kind)] for kind in found[k][:, 5]]
        np.testing.assert_allclose(np.array([box[1:] for box in boxes]).reshape(-1, 4), wanted.clip(max=[60, size[0]] * 2), atol=1e-9)
    content = json.loads((tmp_path / "out" / "predictions.coco.json").read_text())
    assert "research use only" in content["info"]["description"]
    assert [one["height"] for one in content["images"]] == [40, 41, 40, 41, 40, 41]


def test_the_average_precision_of_the_written_file_is_the_measured_one(tmp_path):
    samples, said, found = made(tmp_path)
    random = np.random.default_rng(1)
    moves = [np.append(random.normal(0, 0.01, 4), 0) for _ in found]
    truth = [np.delete(one[random.random(len(one)) < 0.7], 4, axis=1) + move for one, move in zip(found, moves, strict=True)]
    measured = detection(found, truth, [(40 + k % 2, 60) for k in range(6)], NAMES)
    as_boxes = {f"boxes/{k}": np.insert(one, 4, 1.0, axis=1) for k, one in enumerate(truth)} | {
        name: said.arrays[name] for name in ("names", "images")
    }
    write(said, samples, tmp_path / "ours")
    write(Predicted(table=said.table, arrays=as_boxes), samples, tmp_path / "true")
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(str(tmp_path / "true" / "predictions.coco.json"))
        ours = true.loadRes(json.loads((tmp_path / "ours" / "predictions.coco.json").read_text())["annotations"])
        found_by = COCOeval(true, ours, "bbox")
        found_by.evaluate()
        found_by.accumulate()
        found_by.summarize()
    assert [measured[name].value() for name in ("ap", "ap50", "ar")] == pytest.approx(found_by.stats[[0, 1, 8]].tolist(), abs=1e-9)
    assert 0.1 < measured["ap"].value() < 0.95


def test_an_image_that_was_asked_twice_is_told_once(tmp_path):
    samples, said, found = made(tmp_path)
    twice = {f"boxes/{k}": found[k // 2] for k in range(12)} | {
        "names": said.arrays["names"],
        "images": np.repeat(said.arrays["images"], 2),
    }
    write(Predicted(table=said.table, arrays=twice), samples, tmp_path / "twice")
    write(said, samples, tmp_path / "once")
    assert (tmp_path / "twice" / "predictions.coco.json").read_text() == (tmp_path / "once" / "predictions.coco.json").read_text()


def test_pixels_and_fractions_are_there_and_back():
    corners = np.array([[0, 0, 640, 480], [226.125, 141, 338, 240.5]])
    np.testing.assert_array_equal(in_pixels(in_fractions(corners, 480, 640), 480, 640), corners)
    assert in_fractions([[-1, 0, 641, 480]], 480, 640).tolist() == [[0, 0, 1, 1]]


# ---- pictures -------------------------------------------------------------------------------------------------


def test_a_box_is_right_or_wrong_and_an_object_found_or_missed():
    objects = np.array([[0, 0, 0.2, 0.2, 0], [0.5, 0.5, 0.7, 0.7, 1], [0.8, 0.8, 1, 1, 0], [0.1, 0.6, 0.3, 0.8, -1]])
    boxes = np.array(
        [
            [0.01, 0, 0.2, 0.2, 0.9, 0],
            [0, 0, 0.2, 0.2, 0.95, 0],  # the surest one has the object, so that the one above is wrong
            [0.5, 0.5, 0.7, 0.7, 0.8, 0],  # the right place with the wrong name
            [0.8, 0.8, 1, 1, 0.3, 0],  # does not count
            [0.5, 0.5, 0.7, 0.7, 0.45, 1],  # counts: the other class asks for less
        ]
    )
    one = shown.compared(4, boxes, objects, (100, 100), np.array([0.5, 0.4]))
    assert one.boxes[:, 4].tolist() == [0.95, 0.9, 0.8, 0.45]
    assert one.right.tolist() == [True, False, False, True]
    assert one.found.tolist() == [True, True, False]
    assert one.f1 == pytest.approx(2 * 2 / (4 + 3))
    assert shown.told(one) == "2 of 3 marked objects found; boxes where no such object is marked: 2"


def seen(row, right, wrong, missed):
    return shown.Seen(
        row,
        np.zeros((right + wrong, 6)),
        np.zeros((right + missed, 5)),
        np.arange(right + wrong) < right,
        np.arange(right + missed) < right,
    )


def test_the_best_come_first_and_the_worst_last_each_once():
    many = [seen(row, row, 0, 20 - row) for row in range(20)]
    found = [(name, one.row) for name, one in shown.chosen(many)]
    assert found[:3] == [("best", 19), ("best", 18), ("best", 17)]
    assert found[-3:] == [("worst", 0), ("worst", 1), ("worst", 2)]
    assert [name for name, _ in found[3:-3]] == ["middling"] * 2
    assert len({row for _, row in found}) == 8
    assert [one.row for _, one in shown.chosen(many[:4])] == [3, 2, 1, 0]
    assert shown.chosen([seen(0, 0, 0, 0)])[0][1].f1 == 1


def test_each_kind_of_box_is_drawn_in_the_colour_of_its_name():
    objects = np.array([[0.1, 0.1, 0.3, 0.3, 0], [0.6, 0.1, 0.8, 0.3, 1]])
    boxes = np.array([[0.1, 0.1, 0.3, 0.3, 0.9, 0], [0.6, 0.6, 0.9, 0.9, 0.7, 1]])
    one = shown.compared(0, boxes, objects, (200, 200), np.array([0.5, 0.5]))
    sheet = np.asarray(shown.labelled(ArrayPicture(np.full((200, 200, 1), 0.5, np.float32), "a"), one, NAMES).convert("RGB"))
    side = shown.SIDE
    blue, orange = (list(shown.rgb(colour)) for colour in shown.COLOURS[:2])

    def edge(y):  # of the left side of a box, from its middle downwards
        return [sheet[round(side * share), round(side * y)].tolist() for share in np.linspace(0.2, 0.28, 30)]

    assert sheet.shape == (side + 3 * shown.LINE, side, 3)
    assert all(pixel == blue for pixel in edge(0.1))  # right: a whole line
    assert {tuple(pixel) for pixel in edge(0.6)} == {tuple(orange), (255, 255, 255)}  # missed: white dashes on its colour
    wrong = [sheet[round(side * share), round(side * 0.6)].tolist() for share in np.linspace(0.7, 0.8, 40)]
    assert orange in wrong
    assert any(max(pixel) - min(pixel) < 10 for pixel in wrong)  # dotted: the image is seen between
    assert sheet[side + 8, 9].tolist() == blue


def test_images_and_curves_of_a_run_are_examples_of_a_report(tmp_path):
    samples, said, found = made(tmp_path)
    held = [tuple((NAMES[int(box[5])], *(box[:4] * [60, 40, 60, 40]).tolist()) for box in one[:5]) for one in found]
    test = samples.replaced(boxes=held)
    frame = ObjectDetectionFrame("boxes", NAMES, (), {}, 32, 10, 10, 0.5, 3, 0.1)
    run = SimpleNamespace(frame=frame, predict=lambda asked: said)
    examples = shown.box_pictures(run, test, [f"row {k}" for k in range(6)])
    assert len(examples) == 7
    assert {one["image"] for one in examples[:-1]} == {f"row {k}" for k in range(6)}
    assert examples[-1]["image"] == "curves"
    assert "research use only" in examples[-1]["caption"]
    assert all(base64.b64decode(one["thumbnail"])[:4] == b"\x89PNG" for one in examples)
    assert shown.box_pictures(SimpleNamespace(frame=None), test, []) == []
