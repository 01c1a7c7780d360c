"""Masks over their images in a report: which are shown, and that they are drawn where they lie."""

import base64
import io

import numpy as np
from PIL import Image

from medtame.comparison.gallery import overlays
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.tasks.segmentation import SegmentationFrame
from medtame.types import Predicted


class Planted:
    """A run that answers with planted masks."""

    def __init__(self, masks):
        self.frame, self.masks = SegmentationFrame("grids", ("x",), 100, 8, 32), masks

    def predict(self, samples):
        wanted = [self.masks[picture.name] for picture in samples.pictures()]
        table = [{"image": picture.name, "structure": "x"} for picture in samples.pictures()]
        return Predicted(table=table, arrays={f"{k}/mask": mask for k, mask in enumerate(wanted)})


def opened(example):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(example["thumbnail"]))).convert("RGB")).astype(int)


def test_masks_are_shown_from_the_worst_to_the_best_and_drawn_where_they_lie():
    true = np.zeros((40, 60), dtype=np.uint8)
    true[10:20, 10:30] = 1
    half, none = true.copy(), np.zeros_like(true)
    half[:, 20:] = 0
    given = {"best": true, "worst": none, "middle": half, "empty": none}
    pictures = [ArrayPicture(np.full((40, 60), 0.5), name) for name in given]
    masks = [ArrayPicture(none if name == "empty" else true, name) for name in given]
    test = ManifestSamples({"image": pictures, "mask": masks, "prompt": ["x"] * 4}, np.arange(4))
    shown = overlays(Planted(given), test, list(given))
    assert [example["image"] for example in shown] == ["worst", "middle", "best"], "empty on both sides shows nothing"
    assert [example["caption"][:12] for example in shown] == ["x: Dice 0.00", "x: Dice 0.67", "x: Dice 1.00"]
    outline = 2 * 20 + 2 * 8
    for example, marked in zip(shown, (0, 100, 200), strict=True):
        seen = opened(example)
        blue, orange = seen[..., 2] > 200, seen[..., 0] - seen[..., 2] > 40
        assert blue.sum() == outline
        assert np.array_equal(orange | blue & (given[example["image"]] > 0), given[example["image"]] > 0)
        assert (orange.sum() > 0) == (marked > 0)


def test_outlines_of_large_images_are_drawn_after_they_are_made_small():
    true = np.zeros((1400, 700), dtype=np.uint8)
    true[200:1200, 100:600] = 1
    test = ManifestSamples(
        {"image": [ArrayPicture(np.zeros((1400, 700)), "a")], "mask": [ArrayPicture(true, "m")], "prompt": ["x"]}, np.arange(1)
    )
    seen = opened(overlays(Planted({"a": true}), test, ["a"])[0])
    assert seen.shape == (280, 140, 3)
    assert (seen[..., 2] > 200).sum() == 200 * 100 - 196 * 96, "two pixels wide all around"
