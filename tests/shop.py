"""A small data set in files, and the tiny encoder under a name that the command line can open."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from doubles import KINDS, SIDES, disc, tiny_encoder, tiny_vit_encoder
from medtame.encoders.towers import EncoderCard


def written(folder: Path, n: int = 60, seed: int = 0, split: bool = True) -> Path:
    """`folder`/labels.csv with n disc images: image, label, patient, split, text, question, answer."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        kind, side = KINDS[i % 3], SIDES[i // 3 % 2]
        pixels, _ = disc(kind, side, random)
        Image.fromarray((pixels * 255).astype(np.uint8)).save(folder / "images" / f"{i:03d}.png")
        row = {"image": f"images/{i:03d}.png", "label": kind, "patient": f"p{i // 2}", "text": f"a {kind} disc on the {side}"}
        rows.append(row | ({"split": "train" if i // 2 % 4 else "test"} if split else {}))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def family(rest: str):
    """`tiny` and `tiny:vit` as a family of encoders: what `medtame.encoders.FAMILIES` holds."""
    made = tiny_vit_encoder("tiny:vit") if rest == "vit" else tiny_encoder()
    whole, maps = made.image_tower(made.prepare(torch.zeros(1, 1, 8, 8)))
    card = EncoderCard(
        spec=made.spec,
        image_identity=made.image_identity,
        text_identity=made.text_identity,
        scale=made.scale,
        bias=made.bias,
        dimension=whole.shape[1],
        scales=tuple((scale.shape[1], scale.shape[2]) for scale in maps),
        has_text=True,
        notes="a test double",
    )
    return lambda: card, lambda: made
