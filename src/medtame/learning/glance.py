"""What is seen of pretraining while it runs: the loss, running recall on pairs kept aside, and both by step."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medtame.learning import ranks
from medtame.learning.loop import Step
from medtame.learning.pairs import Pairs
from medtame.metrics.retrieval import first_ranks
from medtame.types import Query, Samples

GLANCED = 100  # held pairs that are looked at


class Glance:
    """Recall at 10 on held pairs while the weights move."""

    def __init__(self, pairs: Pairs, held: Samples | None) -> None:
        self.pairs, self.value = pairs, float("nan")
        self.held = None if held is None else held.take(np.arange(min(GLANCED, len(held))))

    def look(self) -> None:
        if self.held is None:
            return
        query = Query(wants="scores", samples=self.held.only(("image",)), encoder=self.pairs.encoder, source=np.arange(len(self.held)))
        texts, own = np.unique(np.asarray([str(text) for text in self.held.column("text")], dtype=object), return_inverse=True)
        side = replace(self.pairs.image, query=query, augment=False, kept=None)
        with torch.no_grad():
            parts = torch.arange(len(self.held)).split(32)  # type: ignore[no-untyped-call]
            images = torch.cat([side(part)[0] for part in parts])
            scores = images @ self.pairs.see_texts(texts.tolist()).T
        case = np.asarray(self.held.groups, dtype=str)
        right = (case[:, None] == case[None]) @ (own[:, None] == np.arange(len(texts))[None])
        rank = first_ranks(scores.double().numpy(), right)
        self.value = float((rank <= 10).mean())


def line(step: Step, named: Mapping[str, Tensor], speed: float, recall: float) -> str:
    """Loss, temperature, images a second and running recall, as the bar shows them."""
    temperature = next((float((-one.detach()).exp()) for name, one in named.items() if name.endswith("log_scale")), None)
    heat = "" if temperature is None else f", temperature {temperature:.3f}"
    ranked = "" if math.isnan(recall) else f", R@10 {recall:.2f}"
    return f"loss {step.loss:.3f}{heat}, {speed:.0f} images/s{ranked}"


def read_curve(path: Path, until: int) -> list[tuple[int, float, float]]:
    """Lines of an earlier process up to the step that is gone on from; the file then holds these."""
    lines = list(csv.reader(path.open(encoding="utf-8"))) if until and path.is_file() else []
    kept = [(int(one[0]), float(one[1]), float(one[2])) for one in lines if len(one) == 3 and one[0].isdigit() and int(one[0]) <= until]
    if ranks.rank() == 0:
        path.unlink(missing_ok=True)
        for one in kept:
            add_to_curve(path, one)
    return kept


def add_to_curve(path: Path, line: tuple[int, float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(line)
