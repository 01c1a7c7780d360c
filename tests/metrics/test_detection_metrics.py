"""Metrics of boxes against pycocotools and MONAI, and resamples against both on the repeated images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from monai.metrics.froc import compute_froc_curve_data, compute_froc_score
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medtame.errors import MedtameError
from medtame.metrics import detection as metrics
from medtame.metrics.intervals import one_way, resampled_groups
from medtame.metrics.statistic import from_arrays, joined, to_arrays
from medtame.regions import in_pixels
from medtame.types import Array

NAMES = ("red", "white", "platelet")
Boxes = list[Array]


def made(seed: int, *, images: int = 8, classes: int = 3, levels: int | None = None, crowd: int = 9, size: int = 60) -> tuple[Boxes, Boxes]:
    """Objects that overlap on a grid of whole pixels, and boxes near them, some twice, some nowhere; `levels`: so many distinct scores.

    An image in four has no object, one in five no box, and the last class is in no image where `classes` is above two.
    """
    random = np.random.default_rng(seed)
    ours, theirs = [], []
    for image in range(images):
        objects = [] if image % 4 == 3 else [box_at(random, size) for _ in range(random.integers(1, crowd + 1))]
        kinds = random.integers(0, max(1, classes - 1), len(objects))
        near = [shifted(random, objects[k]) for k in random.integers(0, max(1, len(objects)), 2 * crowd)] if objects else []
        near += [box_at(random, size) for _ in range(random.integers(0, crowd))]
        said = [
            int(kinds[k % len(kinds)]) if objects and random.random() < 0.8 else int(random.integers(0, classes)) for k in range(len(near))
        ]
        scores = random.random(len(near))
        scores = np.ceil(scores * levels) / levels if levels else scores
        boxes = [[*np.array(box) / size, score, kind] for box, score, kind in zip(near, scores, said, strict=True)]
        ours.append(np.array([] if image % 5 == 4 else boxes).reshape(-1, 6))
        theirs.append(np.array([[*np.array(box) / size, kind] for box, kind in zip(objects, kinds, strict=True)]).reshape(-1, 5))
    return ours, theirs


def box_at(random: np.random.Generator, size: int) -> tuple[int, ...]:
    x, y, width, height = (*random.integers(0, size - 12, 2), *random.integers(4, 12, 2))
    return x, y, x + width, y + height


def shifted(random: np.random.Generator, box: Sequence[int]) -> tuple[int, ...]:
    x0, y0, x1, y1 = np.array(box) + random.integers(-1, 2, 4)
    return max(x0, 0), max(y0, 0), max(x1, x0 + 1), max(y1, y0 + 1)


def by_pycocotools(ours: Boxes, theirs: Boxes, classes: int, size: int = 60, most: int = 100) -> Any:
    """precision (T, R, K) and recall (T, K), -1 where a class has no object."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, said = COCO(), []
        annotations = []
        for image, (boxes, objects) in enumerate(zip(ours, theirs, strict=True)):
            for box in objects:
                x0, y0, x1, y1 = in_pixels(box[None, :4], size, size)[0]
                whole = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
                area = whole[2] * whole[3]
                annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(box[4]), "bbox": whole, "iscrowd": 0})
                annotations[-1]["area"] = area
            for box in boxes:
                x0, y0, x1, y1 = in_pixels(box[None, :4], size, size)[0]
                whole = [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
                said.append({"image_id": image, "category_id": int(box[5]), "bbox": whole, "score": float(box[4])})
        truth.dataset = {
            "images": [{"id": image} for image in range(len(ours))],
            "annotations": annotations,
            "categories": [{"id": kind} for kind in range(classes)],
        }
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(said) if said else COCO(), "bbox")
        found.params.maxDets = [1, 10, most]
        found.evaluate()
        found.accumulate()
    return found.eval["precision"][:, :, :, 0, 2], found.eval["recall"][:, :, 0, 2]


def mean_of(values: Array) -> float:
    """As `summarize` takes it: what is -1 is left out."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else np.nan


def expected(ours: Boxes, theirs: Boxes, classes: int, **more: int) -> dict[str, float]:
    precision, recall = by_pycocotools(ours, theirs, classes, **more)
    each = {f"ap50.{NAMES[kind]}": mean_of(precision[0, :, kind]) for kind in range(classes)} if classes > 1 else {}
    return {"ap": mean_of(precision), "ap50": mean_of(precision[0]), "ar": mean_of(recall)} | each


def statistics(ours: Boxes, theirs: Boxes, classes: int, size: int = 60, **more: Any):
    return metrics.detection(ours, theirs, [(size, size)] * len(ours), NAMES[:classes], **more)


@pytest.mark.parametrize("seed", range(12))
def test_they_equal_pycocotools(seed: int):
    classes = 1 + seed % 3
    ours, theirs = made(seed, classes=classes, levels=(None, 4, 10)[seed // 3 % 3], crowd=(9, 30)[seed % 2])
    found = statistics(ours, theirs, classes)
    for name, value in expected(ours, theirs, classes).items():
        assert found[name].value() == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("classes", [1, 3])
def test_a_resample_equals_pycocotools_on_the_repeated_images(classes: int):
    ours, theirs = made(20, classes=classes, images=10)
    found = statistics(ours, theirs, classes)
    counts = resampled_groups(np.arange(10), 6, 1)
    for resample, taken in enumerate(counts):
        rows = np.repeat(np.arange(10), taken)
        wanted = expected([ours[row] for row in rows], [theirs[row] for row in rows], classes)
        for name, value in wanted.items():
            assert found[name].at(counts)[resample] == pytest.approx(value, abs=1e-9, nan_ok=True), (resample, name)


def test_an_image_with_more_than_a_hundred_objects_may_hold_twice_as_many_boxes():
    ours, theirs = made(3, classes=1, images=2, crowd=130, size=300)
    held = max(map(len, theirs))
    assert held > 100
    assert metrics.most_boxes(theirs, 1) == 2 * held
    found = statistics(ours, theirs, 1, size=300)
    wanted, hundred = (expected(ours, theirs, 1, size=300, most=most) for most in (2 * held, 100))
    for name, value in wanted.items():
        assert found[name].value() == pytest.approx(value, abs=1e-9)
        assert value > hundred[name]
    assert metrics.most_boxes([theirs[0][:100]], 1) == metrics.most_boxes([], 3) == 100
    many = np.concatenate([theirs[0], theirs[0]])
    many[::2, 4] = 1
    assert metrics.most_boxes([many], 2) == 2 * len(theirs[0])  # of one class, not of the image


def froc_by_monai(ours: Boxes, theirs: Boxes, kind: int) -> float:
    """Of matches taken one box after the other; MONAI drops the lowest threshold, so one that no box has is added."""
    right, wrong = [], [-1.0]
    for boxes, objects in zip(ours, theirs, strict=True):
        left = [tuple(box) for box in in_pixels(objects[objects[:, 4] == kind, :4], 60, 60)]
        for box in sorted((box for box in boxes if box[5] == kind), key=lambda box: -box[4]):
            best = max(((overlap_of(in_pixels(box[None, :4], 60, 60)[0], one), k) for k, one in enumerate(left)), default=(0.0, 0))
            (right if best[0] >= 0.5 else wrong).append(box[4])
            left = [one for k, one in enumerate(left) if k != best[1] or best[0] < 0.5]
    targets = sum(int((objects[:, 4] == kind).sum()) for objects in theirs)
    curve = compute_froc_curve_data(np.array(wrong), np.array(right), targets, len(ours))
    return float(compute_froc_score(*curve, eval_thresholds=metrics.FALSE_POSITIVES))


def overlap_of(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("levels", [None, 6])
def test_froc_equals_monai_and_its_resample_that_of_the_repeated_images(levels: int | None):
    ours, theirs = made(31, images=10, classes=3, levels=levels)
    found = statistics(ours, theirs, 3)["froc"]
    counts = np.concatenate([np.ones((1, 10), dtype=np.int32), resampled_groups(np.arange(10), 4, 0)])
    for resample, taken in enumerate(counts):
        rows = np.repeat(np.arange(10), taken)
        again = [ours[row] for row in rows], [theirs[row] for row in rows]
        each = [froc_by_monai(*again, kind) for kind in (0, 1)]  # the third class has no object
        assert found.at(counts)[resample] == pytest.approx(np.mean(each), abs=1e-12)
    assert found.value() > 0.1


def test_right_boxes_score_one_whatever_their_scores_and_wrong_ones_nought():
    _, theirs = made(5, images=12)
    perfect = [np.insert(objects, 4, 0.01, axis=1) for objects in theirs]
    found = statistics(perfect, theirs, 3, thresholds=[0.0] * 3)
    assert [found[name].value() for name in ("ap", "ap50", "ar", "froc", "count_error")] == pytest.approx([1, 1, 1, 1, 0])
    swapped = [np.where(np.arange(6) == 5, 1 - boxes[:, 5:], boxes) for boxes in perfect]
    found = statistics(swapped, theirs, 3)
    assert [found[name].value() for name in ("ap50.red", "ap50.white")] == [0, 0]
    assert np.isnan(found["ap50.platelet"].value())
    none = statistics([np.zeros((0, 6))] * 12, theirs, 3)
    assert [none[name].value() for name in ("ap", "ap50", "ar", "froc")] == [0, 0, 0, 0]
    assert none["count_error"].value() == pytest.approx(np.mean([len(objects) / 3 for objects in theirs]))


def test_images_without_any_object_have_no_precision():
    ours, theirs = made(5)
    found = statistics(ours, [objects[:0] for objects in theirs], 3)
    assert np.isnan([found[name].value() for name in ("ap", "ap50", "ar", "froc")]).all()
    assert found["count_error"].value() > 0


def test_counts_above_a_threshold_learnt_on_training_images():
    truth = [np.array([[0, 0, 0.1, 0.1, 0]] * 2), np.array([[0, 0, 0.1, 0.1, 0]] * 3 + [[0, 0, 0.1, 0.1, 1]])]
    scores = ([(0.9, 0), (0.6, 0), (0.3, 0), (0.2, 1)], [(0.8, 0), (0.7, 0), (0.55, 0), (0.4, 0), (0.1, 1)])
    ours = [np.array([[0, 0, 0.1, 0.1, *one] for one in image]) for image in scores]
    assert metrics.count_thresholds(ours, truth, 3) == pytest.approx((0.475, 1.2, 0.5))  # of the second class best is to count none
    learnt = metrics.detection(ours, truth, [(10, 10)] * 2, NAMES, metrics.count_thresholds(ours, truth, 3))["count_error"]
    assert learnt.value() == pytest.approx((0 + 1 / 3) / 2)
    assert statistics(ours, truth, 3, thresholds=[0.35, 0.05, 0.5])["count_error"].value() == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert statistics(ours, truth, 3)["count_error"].value() == pytest.approx((0 + 1 / 3) / 2)


def test_the_threshold_of_counts_errs_least_of_all():
    ours, theirs = made(9, images=6, classes=1)
    [chosen] = metrics.count_thresholds(ours, theirs, 1)
    tried = [statistics(ours, theirs, 1, thresholds=[edge])["count_error"].value() for edge in np.linspace(-0.01, 1.01, 60)]
    assert statistics(ours, theirs, 1, thresholds=[chosen])["count_error"].value() <= min(tried)


def test_rows_that_are_no_image_of_their_own_change_nothing():
    ours, theirs = made(7, images=6)
    apart = [None, *[one for pair in zip(ours, [None] * 6, strict=True) for one in pair]]
    objects = [None, *[one for pair in zip(theirs, [None] * 6, strict=True) for one in pair]]
    plain, spread = statistics(ours, theirs, 3), metrics.detection(apart, objects, [(60, 60)] * 13, NAMES)
    for name, statistic in plain.items():
        assert spread[name].value() == pytest.approx(statistic.value(), nan_ok=True)
        assert (spread[name].defined, spread[name].rows) == (6, 13)
    counts = resampled_groups(np.arange(6), 20, 0)
    wide = np.concatenate([counts[:, :1], np.repeat(counts, 2, axis=1)], 1)
    assert spread["ap"].at(wide) == pytest.approx(plain["ap"].at(counts))


def test_an_interval_holds_its_value_and_the_blocks_of_resamples_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = made(11, images=30)
    found = statistics(ours, theirs, 3)
    counts = resampled_groups(np.arange(30), 60, 0)
    interval = one_way(found["ap50"], counts)
    assert interval.low < interval.value < interval.high
    assert interval.n == 30
    whole = {name: statistic.at(counts) for name, statistic in found.items()}
    monkeypatch.setattr(metrics, "BOXES_AT_ONCE", 4000)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name].at(counts), values, rtol=1e-12)


def test_folds_join_and_all_are_stored_and_read():
    ours, theirs = (side[4:] for side in made(13, images=9))  # the first has no box
    whole, parts = statistics(ours, theirs, 3), [statistics(ours[part], theirs[part], 3) for part in (slice(0, 1), slice(1, 5))]
    assert parts[0]["ap"].arrays()["scores"].shape[1] != parts[1]["ap"].arrays()["scores"].shape[1]
    again = from_arrays(*to_arrays(whole))
    for name, statistic in whole.items():
        assert joined([part[name] for part in parts]).value() == pytest.approx(statistic.value(), nan_ok=True)
        assert again[name].value() == pytest.approx(statistic.value(), nan_ok=True)
    with pytest.raises(MedtameError, match="do not join"):
        joined([whole["ap"], whole["ap50"]])


def test_what_is_no_box_is_told():
    one = np.array([[0, 0, 1, 1, 0.5, 0.0]])
    for wrong, match in (
        ((one[:, :5], one[:, :5]), r"predicted boxes of shape \(1, 5\): they must be \(n, 6\)"),
        ((one, one), r"true boxes of shape \(1, 6\)"),
        ((one * np.nan, one[:, :5]), "predicted boxes hold no numbers or a class outside 0 to 2"),
        ((one, one[:, :5] + 7), "true boxes hold no numbers or a class outside 0 to 2"),
    ):
        with pytest.raises(MedtameError, match=match):
            statistics([wrong[0]], [wrong[1]], 3)
    with pytest.raises(MedtameError, match="1 predictions, 2 truths, 1 sizes"):
        metrics.detection([one], [one[:, :5]] * 2, [(9, 9)], NAMES)
