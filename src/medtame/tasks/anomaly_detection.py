"""Anomaly detection: what is unlike the normals? Only normal rows are learnt from; what is abnormal is made by the task, or said in words.

A method that gives grids answers with a map an image. A scorer answers patches: it learns patches of normals against patches of made
anomalies, so it serves unchanged. Both are read as one map of abnormality; the score of an image is the mean of the map's highest cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from medtame.data.anomalies import LEARNT, TRIED, MadeAnomaly, Recipe, balanced, covered, with_anomalies
from medtame.data.images import ArrayPicture
from medtame.errors import DataError, PairError, SettingsError
from medtame.metrics.anomaly import anomaly
from medtame.metrics.statistic import Statistic
from medtame.regions import patches
from medtame.tasks.base import Frame, Rows, Task, every
from medtame.types import Answer, Array, Candidates, Encoder, Grids, Kind, Predicted, Problem, Query, Samples, Scores

NAMES = ("normal", "abnormal")
NORMAL_WORDS = ("normal", "good", "healthy", "no finding", "no tumour", "no tumor")
TEMPLATES = ("{}", "a medical image of {}", "a scan showing {}")
NORMAL_STATES = ("a normal {}", "a healthy {}", "an unremarkable {}", "a {} without abnormality", "a {} with no lesion")
ABNORMAL_STATES = ("an abnormal {}", "a diseased {}", "a {} with a lesion", "a {} with a mass", "a {} with a focal abnormality")
FOLDS = 3  # in which training normals are held out, for the threshold
LEAST_MADE = 24  # pictures with a made anomaly, so that one normal alone teaches something
MADE = "made anomaly"  # the label of what the task made


@dataclass(frozen=True)
class AnomalyFrame(Frame):
    """`threshold`: an image with a higher score is called abnormal; None where normals of two patients were not there to learn it."""

    normal: str
    prompts: tuple[tuple[str, ...], ...]
    side: int
    size: int
    rows: int
    made: int
    false_positive_rate: float
    top: float
    threshold: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Normals, then made anomalies. Grids: their masks (N, 1, size, size). Scores: patches, half of them abnormal, at most `rows`."""
        normals = support.take(np.flatnonzero([label == self.normal for label in support.column("label")])).only(("image",))
        copies = max(1, math.ceil(LEAST_MADE / (len(LEARNT) * max(1, len(normals)))))
        recipes = [Recipe(kind) for kind in LEARNT] * copies
        order = np.random.default_rng(seed).permutation(len(normals))
        samples, made = with_anomalies(normals, recipes, np.sort(order[: max(1, self.made // len(recipes))]))
        query = self.query(samples, encoder)
        if self.wants == "grids":
            shares = area_shares(made, self.size)
            most = shares.amax((1, 2), keepdim=True).clamp(max=0.5)  # an anomaly smaller than a cell still has its fullest one
            targets = ((shares > 0) & (shares >= most)).float()[:, None]
            return Problem(query=query, targets=targets, loss=balanced_loss, seed=seed)
        rows, said = balanced(area_shares(made, self.side).flatten().numpy(), self.rows, seed)
        abnormal = torch.from_numpy(said).float()
        return Problem(query=query.take(rows), targets=torch.stack([1 - abnormal, abnormal], 1), seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """`words`, where they are given, are asked for as abnormal."""
        abnormal = self.prompts[1] if words is None else tuple(words)
        candidates = Candidates(names=NAMES, prompts=(self.prompts[0], abnormal))
        asked = Query(wants="grids", samples=samples, encoder=encoder, source=every(samples), candidates=candidates)
        if self.wants == "grids":
            return replace(asked, size=(self.size, self.size))
        source = np.repeat(every(samples), self.side**2)
        return replace(asked, wants="scores", source=source, regions=patches(self.side).repeat(len(samples), 1))

    def calibrated(self, problem: Problem, answers: Callable[[Problem, Query], Answer]) -> AnomalyFrame:
        """With a threshold that training normals exceed at the stated rate, each scored by a fit that did not see its patient.

        The threshold is the smallest held-out score whose rank bounds the rate for a new normal (split conformal, Vovk et al. 2005), or
        the highest one where the normals are too few for the rate: with n normals no rate below 1 / (n + 1) can be promised.
        """
        scores: list[float] = []
        for inside, outside in problem.folds(FOLDS):
            samples = outside.query.samples
            real = [row for row, picture in enumerate(samples.pictures()) if not isinstance(picture, MadeAnomaly)]
            if real and len(inside.query):
                query = replace(self.query(samples.take(real), problem.query.encoder), candidates=problem.query.candidates)
                scores += image_scores(self.maps(query, answers(inside, query)), self.top).tolist()
        known = sorted(score for score in scores if np.isfinite(score))
        if not known:
            return self
        rank = math.ceil((1 - self.false_positive_rate) * (len(known) + 1))
        return replace(self, threshold=float(known[min(rank, len(known)) - 1]))

    def maps(self, query: Query, answer: Answer) -> Tensor:
        """(images, h, w) the higher the less normal."""
        if isinstance(answer, Grids):
            return answer.values[:, 0]
        if not isinstance(answer, Scores):
            raise PairError("anomaly detection reads grids or scores")
        return (answer.values[:, 1] - answer.values[:, 0]).reshape(-1, self.side, self.side)

    def read(self, query: Query, answer: Answer) -> Predicted:
        """A map in the size of its source, and the score of the image with what the threshold says of it."""
        maps, table, arrays = self.maps(query, answer), [], {}
        scores = image_scores(maps, self.top)
        for row, (picture, values, score) in enumerate(zip(query.samples.pictures(), maps, scores.tolist(), strict=True)):
            geometry = picture.geometry()
            size = (geometry.height, geometry.width)
            arrays[f"{row}/map"] = interpolate(values[None, None].float(), size, mode="bilinear")[0, 0].numpy()
            said = "" if self.threshold is None else NAMES[score > self.threshold]
            warning = "no threshold: it takes normals of two patients" if self.threshold is None else ""
            if np.isnan(score):
                said, warning = "refused", "no answer"
            threshold = float("nan") if self.threshold is None else self.threshold
            table.append({"image": picture.name, "prediction": said, "score": score, "threshold": threshold, "warning": warning})
        return Predicted(table=table, arrays={**arrays, "scores": scores.double().numpy()})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Pixels count where an image has a mask, or is normal: a normal image has no abnormal pixel."""
        labels = truth.column("label")
        abnormal = np.array([np.nan if label is None else float(label != self.normal) for label in labels])
        maps = [said.arrays[f"{row}/map"] for row in range(len(labels))]
        masks = masks_of(truth, abnormal)
        seen = [one if mask is None else at_size(one, mask.shape) for one, mask in zip(maps, masks, strict=True)]
        return anomaly(said.arrays["scores"], abnormal, seen, masks, self.threshold)


@dataclass(frozen=True)
class AnomalyDetection(Task):
    """`normal`: the label that is learnt from (default: the one that says normal, good, healthy, no finding or no tumour).

    `subject`: what the images show, in the words of the prompts; `prompts`: sentences for "normal" and "abnormal" instead of them.
    `size`: cells a side of maps; `side`: patches a side that scorers are asked, of which at most `rows` are learnt from; `made`: pictures
    with made anomalies, at most. `top`: the share of the highest cells whose mean is the score of an image.
    `false_positive_rate`: of normals above the threshold.
    """

    kinds = ("grids", "scores")
    requires = ("image", "label")
    offers = frozenset({"normals", "states", "labels"})
    references = ("zero_shot_states", "memory_bank", "border_only")
    start, plain = "zero_shot_states", "memory_bank"
    shots = (0, 1, 4, 16, "all")
    normal: str = ""
    subject: Annotated[str, Field(min_length=1)] = "medical image"
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    size: Annotated[int, Field(gt=1)] = 56
    side: Annotated[int, Field(gt=1)] = 14
    rows: Annotated[int, Field(gt=1)] = 4000
    made: Annotated[int, Field(ge=len(LEARNT))] = 240
    top: Annotated[float, Field(gt=0, le=1)] = 0.05
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def usable(self, samples: Rows) -> Rows:
        """Rows with an image and a label; masks, where there is a column, are checked when they are read."""
        unknown = sorted(set(self.prompts) - set(NAMES))
        if unknown:
            raise SettingsError(f"prompts are for {' and '.join(NAMES)}, not for {unknown[0]!r}: correct the name")
        return super().usable(samples)

    def settled(self, train: Samples) -> Task:
        labels = sorted({str(label) for label in train.column("label")})
        saying = [label for label in labels if label.casefold() in NORMAL_WORDS]
        listed = ", ".join(labels[:10])
        if self.normal and self.normal not in labels:
            raise DataError(f"no training row has the label {self.normal!r} ({listed}): give one of these with --normal")
        if not self.normal and len(saying) != 1:
            found = "no label says" if not saying else f"{' and '.join(saying)} both say"
            raise DataError(f"{found} that a row is normal ({listed}): name the label of the normals with --normal")
        return replace(self, normal=self.normal or saying[0])

    def remarks(self, train: Samples, test: Samples | None) -> Sequence[str]:
        kinds = set() if test is None else {label == self.normal for label in test.column("label")}
        lacking = {frozenset({True}): "abnormal", frozenset({False}): "normal"}.get(frozenset(kinds))
        if lacking is None:
            return ()
        return [f"No test row is {lacking}, so nothing that needs both kinds can be measured: give some, or another split."]

    def strata(self, samples: Samples) -> Array:
        """Only normals are drawn from."""
        normal = self.normal or NORMAL_WORDS[0]
        return np.array(["normal" if label == normal else None for label in samples.column("label")], dtype=object)

    def trial(self, samples: Rows) -> Rows:
        """Held-out normals with made anomalies of kinds that are never learnt from: a choice among methods needs both."""
        whole, made = with_anomalies(samples, [Recipe(kind) for kind in TRIED], every(samples))
        masks = [None if one is None else ArrayPicture(one.made()[1].astype(np.uint8), f"mask of {one.name}") for one in made]
        return whole.replaced(mask=masks, label=[self.normal if one is None else MADE for one in made])

    def frame(self, support: Samples, wants: Kind) -> Frame:
        states = zip(NAMES, (NORMAL_STATES, ABNORMAL_STATES), strict=True)
        prompts = tuple(tuple(self.prompts.get(name) or ensemble(words, self.subject)) for name, words in states)
        sizes = (self.side, self.size, self.rows, self.made)
        return AnomalyFrame(wants, self.normal, prompts, *sizes, self.false_positive_rate, self.top)


def ensemble(states: Sequence[str], subject: str) -> list[str]:
    """Every state of the subject in every template (Jeong et al. 2023)."""
    return [template.format(state.format(subject)) for state in states for template in TEMPLATES]


def area_shares(made: Sequence[MadeAnomaly | None], side: int) -> Tensor:
    """(N, side, side) the share of each cell that a made anomaly covers; zero for pictures without one."""
    empty = torch.zeros(side, side)
    shares = [empty if one is None else torch.from_numpy(covered(one, side)) for one in made]
    return torch.stack(shares) if shares else torch.zeros(0, side, side)


def balanced_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Of maps (N, 1, H, W): cross-entropy in which abnormal and normal cells count the same, and a Dice loss over all of them."""
    loss = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    sides = [(loss * side).sum() / side.sum().clamp(min=1) for side in (targets, 1 - targets)]
    said = logits.sigmoid()
    overlap = 2 * (said * targets).sum() / (said.sum() + targets.sum()).clamp(min=1e-6)
    return (sides[0] + sides[1]) / 2 + (1 - overlap)


def image_scores(maps: Tensor, top: float) -> Tensor:
    """(N,) the mean of the highest cells of each map (N, h, w)."""
    cells = maps.flatten(1)
    return cells.topk(max(1, round(top * cells.shape[1])), dim=1).values.mean(1)


def at_size(values: Array, size: tuple[int, ...]) -> Array:
    """A map at the size of its mask: it has another where a control showed another image."""
    if values.shape == size:
        return values
    return np.asarray(interpolate(torch.from_numpy(values)[None, None], size, mode="bilinear")[0, 0].numpy())


def masks_of(truth: Samples, abnormal: Array) -> list[Array | None]:
    """(H, W) of the size of its image, or None where nothing is known of the pixels. Raises DataError."""
    held = truth.column("mask") if "mask" in truth else [None] * len(abnormal)
    masks: list[Array | None] = []
    for row, (cell, kind, picture) in enumerate(zip(held, abnormal, truth.pictures(), strict=True)):
        if cell is None and kind != 0:
            masks.append(None)
            continue
        geometry = picture.geometry()
        size = (geometry.height, geometry.width)
        mask = np.zeros(size, dtype=bool) if cell is None else truth.take([row]).pictures("mask")[0].values() > 0
        if mask.shape != size:
            raise DataError(f"the mask of {picture.name} is {mask.shape}, its image {size}: give a mask of the image's size")
        if kind == 0 and mask.any():
            raise DataError(f"{picture.name} is labelled normal and its mask is not empty: correct one of them")
        masks.append(mask)
    return masks
