"""The pictures of anomaly detection: which rows are shown, and where the heat lies."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from doubles import disc, tiny_encoder
from medtame import catalogue
from medtame.comparison.gallery import heat_maps, heated
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.run import fitted
from medtame.tasks.anomaly_detection import AnomalyDetection


def discs(seed: int) -> ManifestSamples:
    random = np.random.default_rng(seed)
    made = [disc(("nothing", "bright")[i % 2], ("left", "right")[i // 2 % 2], random) for i in range(12)]
    labels = ["normal", "bright"] * 6
    masks = [ArrayPicture(mask.astype(np.uint8), "m") if label == "bright" else None for label, (_, mask) in zip(labels, made, strict=True)]
    images = [ArrayPicture(pixels, f"{seed}-{i}") for i, (pixels, _) in enumerate(made)]
    return ManifestSamples({"image": images, "label": labels, "mask": masks}, np.arange(12))


def test_heat_is_orange_where_it_is_high_and_the_outline_is_blue():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:10, 5:10] = True
    heat = np.where(mask, 1.0, 0.0)
    drawn = heated(np.full((20, 20, 1), 0.5), heat, mask)
    assert drawn[7, 7].tolist() == (0.4 * 0.5 + 0.6 * np.array([1.0, 0.45, 0.0])).tolist()
    assert drawn[5, 5].tolist() == [0.1, 0.45, 1.0]
    assert drawn[15, 15].tolist() == [0.5, 0.5, 0.5]


def test_found_missed_and_false_alarms_are_shown():
    train, test = discs(1), discs(2)
    method = catalogue.build(catalogue.METHODS, "memory_bank", {"side": 8})
    run = fitted(train, AnomalyDetection(normal="normal", size=8, made=12), method, tiny_encoder())
    rows = heat_maps(run, test, [f"row {i}" for i in range(12)])
    scores = run.predict(test).arrays["scores"]
    ill = [i for i in np.argsort(-scores) if test.column("label")[i] == "bright"]
    assert [row["image"] for row in rows[:5]] == [f"row {i}" for i in (*ill[:3], *ill[-2:])]
    assert [row["caption"].split(":")[0] for row in rows] == ["bright"] * 5 + ["normal"] * 3
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(rows[0]["thumbnail"]))).convert("RGB")).astype(float)
    mask = test.column("mask")[int(rows[0]["image"].split()[1])].values() > 0
    orange = shown[..., 0] - shown[..., 2]
    assert orange[mask].mean() > orange[~mask].mean() + 20
