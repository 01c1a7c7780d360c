"""A small data set a task, in memory, with a known truth: discs that are bright, dark or absent, left or right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from doubles import KINDS, SIDES, disc
from medtame.data.boxes import CORNERS
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.types import Array

Lines = list[dict[str, Any]]


def tiny(task: str, seed: int = 0) -> tuple[ManifestSamples, ManifestSamples]:
    """Training and test samples of a task: other patients, other images."""
    if task not in MADE:
        raise LookupError(f"the task {task!r} has no tiny data set: add it in tests/contracts/tiny.py")
    train, test = (MADE[task](np.random.default_rng([seed, part]), 24) for part in (1, 2))
    return samples(train, "train"), samples(test, "test")


def samples(lines: Lines, part: str) -> ManifestSamples:
    """Lines as samples; the first half of the images come two a patient."""
    columns = {name: [line.get(name) for line in lines] for name in dict.fromkeys(name for line in lines for name in line)}
    number = columns.pop("number")
    half = (max(number) + 1) // 2
    patients = [f"{part}-{n // 2 if n < half else n}" for n in number]
    return ManifestSamples(columns, np.array(patients))


def images(random: np.random.Generator, n: int) -> list[tuple[str, str, ArrayPicture, Array]]:
    """n images with their kind, side and mask, kinds and sides in equal parts and in no order. Names say nothing of the truth."""
    truth = [(KINDS[i % 3], SIDES[i // 3 % 2]) for i in random.permutation(n)]
    made = [(kind, side, *disc(kind, side, random)) for kind, side in truth]
    return [(kind, side, ArrayPicture(pixels, f"image-{i}"), mask) for i, (kind, side, pixels, mask) in enumerate(made)]


def classification(random: np.random.Generator, n: int) -> Lines:
    lines: Lines = [{"number": i, "image": image, "label": kind} for i, (kind, _, image, _) in enumerate(images(random, n))]
    return [*lines, {"number": n, "image": ArrayPicture(disc("dark", "left", random)[0], f"image-{n}"), "label": None}]


def segmentation(random: np.random.Generator, n: int) -> Lines:
    """A bright disc beside a dark one, two lines an image; two images have none; a structure without mask or line is unknown."""
    lines: Lines = []
    for i in range(n // 2):
        bright, dark = SIDES[:: 1 - i % 2 * 2] if i > 1 else (None, None)
        first, second = (disc(kind if side else "nothing", side or "left", random) for kind, side in (("bright", bright), ("dark", dark)))
        image = ArrayPicture(np.clip(first[0] + second[0] - 0.5, 0, 1), f"image-{i}")
        for structure, (_, mask) in (("bright", first), ("dark", second)):
            drawn = ArrayPicture(mask.astype(np.uint8), f"mask-{i}-{structure}")
            lines.append({"number": i, "image": image, "mask": drawn, "prompt": f"a {structure} disc"})
    lines[5]["mask"] = None
    del lines[8]
    return lines


def anomaly_detection(random: np.random.Generator, n: int) -> Lines:
    """Nothing to be seen is normal; discs are abnormal, and have masks."""
    lines: Lines = []
    for i, (kind, _, image, mask) in enumerate(images(random, n)):
        drawn = None if kind == "nothing" else ArrayPicture(mask.astype(np.uint8), f"mask-{i}")
        lines.append({"number": i, "image": image, "label": "normal" if drawn is None else kind, "mask": drawn})
    return lines


def visual_question_answering(random: np.random.Generator, n: int) -> Lines:
    lines: Lines = []
    for i, (kind, side, image, _) in enumerate(images(random, n)):
        asked = [
            ("is there a bright disc", "yes" if kind == "bright" else "no", "closed"),
            ("what is shown", kind, "open"),
            ("on which side is the disc", "none" if kind == "nothing" else side, "open"),
        ]
        for k in (i % 3, (i + 1) % 3):
            lines.append({"number": i, "image": image, "question": asked[k][0], "answer": asked[k][1], "answer_type": asked[k][2]})
    return lines


def image_text_retrieval(random: np.random.Generator, n: int) -> Lines:
    """Six texts, so several images share one; the query says the side."""
    return [
        {"number": i, "image": image, "text": sentence(kind, side), "query": f"look at the {side}"}
        for i, (kind, side, image, _) in enumerate(images(random, n))
    ]


def report_generation(random: np.random.Generator, n: int) -> Lines:
    return [{"number": i, "image": image, "findings": sentence(kind, side)} for i, (kind, side, image, _) in enumerate(images(random, n))]


def sentence(kind: str, side: str) -> str:
    return "there is nothing to be seen ." if kind == "nothing" else f"there is a {kind} disc on the {side} ."


def registration(random: np.random.Generator, n: int) -> Lines:
    """Pairs whose fixed image is the moving one, displaced by a smooth field of up to 3 pixels."""
    lines: Lines = []
    for i in range(n // 6):
        pixels, mask = disc(("bright", "dark")[i % 2], SIDES[i // 2 % 2], random)
        pixels = ndimage.gaussian_filter(pixels, 1)
        rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(np.float64)
        shift = random.uniform(-2, 2, 2)
        where = [rows + shift[0] + np.sin(columns / 12), columns + shift[1] + np.cos(rows / 12)]
        fixed = ndimage.map_coordinates(pixels, where, order=1, mode="nearest")
        moved = ndimage.map_coordinates(mask.astype(np.uint8), where, order=0, mode="constant")
        lines.append(
            {
                "number": i,
                "moving": ArrayPicture(pixels, f"moving-{i}"),
                "fixed": ArrayPicture(fixed, f"fixed-{i}"),
                "moving_labels": ArrayPicture(mask.astype(np.uint8), f"moving-labels-{i}"),
                "fixed_labels": ArrayPicture(moved, f"fixed-labels-{i}"),
            }
        )
    return lines


def object_detection(random: np.random.Generator, n: int) -> Lines:
    """A line a disc, bright or dark; two images show both, and where there is none a line has no corners."""
    lines: Lines = []
    for i, (kind, side, image, mask) in enumerate(images(random, n)):
        pixels, discs = image.array(), [(kind, mask)] if mask.any() else []
        if i < 4 and discs:
            other, there = ("dark" if kind == "bright" else "bright"), SIDES[1 - SIDES.index(side)]
            second, second_mask = disc(other, there, random)
            pixels, discs = np.clip(pixels + second[..., None] - 0.5, 0, 1), [*discs, (other, second_mask)]
        picture = ArrayPicture(pixels, f"image-{i}")
        lines += [{"number": i, "image": picture, "label": f"a {name} disc", **corners(own)} for name, own in discs]
        lines += [{"number": i, "image": picture, "label": None, **dict.fromkeys(CORNERS)}] if not discs else []
    return lines


def corners(mask: Array) -> dict[str, float]:
    """The box of a mask in pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return dict(zip(CORNERS, map(float, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)), strict=True))


MADE: dict[str, Callable[[np.random.Generator, int], Lines]] = {
    made.__name__: made
    for made in (
        classification,
        segmentation,
        object_detection,
        anomaly_detection,
        visual_question_answering,
        image_text_retrieval,
        registration,
        report_generation,
    )
}

GENERATOR = Path(tempfile.gettempdir()) / f"medtame-tiny-generator-{os.getpid()}"
# What keeps a task or a method small. Methods with a setting `steps` make three without being named here.
TASK_SETTINGS: dict[str, dict[str, Any]] = {
    "segmentation": {"side": 8, "size": 32},
    "object_detection": {"size": 32, "steps": 3, "rows": 60, "most": 10},
    "anomaly_detection": {"side": 4, "size": 8, "made": 12, "rows": 200},
}
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "bundled_image_probe": {"other": "tiny"},
    "b_spline": {"cells": 3, "iterations": 3},
    "demons": {"iterations": (3, 3)},
    "instance_optimisation": {"cells": (4, 8)},
    "memory_bank": {"side": 8, "patches": 200},
    "text_and_memory": {"side": 8, "patches": 200},
    "described_anomalies": {"side": 8, "made": 12},
    "chat_model": {"model": "grey"},  # the server of conftest.py answers
    "local_vlm": {"model": str(GENERATOR), "most_tokens": 3},  # conftest.py writes it
}
