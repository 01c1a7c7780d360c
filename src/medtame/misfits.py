"""Which captions do not belong to their image: each pair is judged by maps that were learnt without its case.

Two linear maps (`linear_maps`) are learnt on all other folds of cases. Among the pairs held out, a pair's own score is set against
the scores of its image with the captions of other cases, and of its caption with the images of other cases, in standard deviations.
Wrong pairs among those learnt from blur the maps and are not left out, so the list is one to look through and no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medtame.data.packed import place_of
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.run import RESEARCH_USE
from medtame.strategies.tuning.linear_maps import LinearMaps
from medtame.tasks.image_text_retrieval import ImageTextRetrieval, numbered
from medtame.types import Array, Encoder, Problem, Scores, dealt, row_labels

FOLDS, DEALINGS = 5, 3
HOW = (
    f"each pair against pairs of other cases, in standard deviations, by two linear maps learnt without its case ({FOLDS} folds, "
    f"{DEALINGS} times); a list to look through, not a verdict"
)
LEAST_CASES = 20


@dataclass(frozen=True)
class Misfits:
    """N pairs, how well each fits (N,): the mean of both directions in standard deviations over that of other pairs; low is suspicious."""

    samples: ManifestSamples
    encoder: str
    fits: Array
    image_to_text: Array  # (N,) standard deviations of the own caption's score over those of other cases' captions
    text_to_image: Array  # (N,) the same of the own image among other cases' images

    @property
    def order(self) -> Array:
        """Row numbers, the most suspicious first."""
        return np.argsort(self.fits, kind="stable")

    def json(self, count: int) -> dict[str, Any]:
        """The `count` most suspicious pairs, and how they were judged."""
        texts, pictures = self.samples.column("text"), self.samples.pictures()
        places = [place_of(cell, self.samples.root) or "" for cell in self.samples.column("image")]
        listed = [
            {
                "rank": rank,
                "image": pictures[row].name,
                "case": str(self.samples.groups[row]),
                "text": str(texts[row]),
                "fit": float(self.fits[row]),
                "image_to_text": float(self.image_to_text[row]),
                "text_to_image": float(self.text_to_image[row]),
                "path": places[row],
            }
            for rank, row in enumerate(self.order[:count].tolist(), 1)
        ]
        record = {"schema": 1, "encoder": self.encoder, "n": len(self.fits), "cases": len(set(self.samples.groups.tolist()))}
        return record | {"how": HOW, "pairs": listed, "notes": list(self.samples.notes), "use": RESEARCH_USE}


def misfits(samples: ManifestSamples, encoder: Encoder, *, seed: int = 0) -> Misfits:
    """Every pair of `samples` (columns image and text) judged. Raises DataError with fewer than 20 cases."""
    task = ImageTextRetrieval()
    samples = task.usable(samples)
    cases = len(set(samples.groups.tolist()))
    if cases < LEAST_CASES:
        raise DataError(f"{cases} cases with an image and a text: finding captions that do not belong needs {LEAST_CASES} or more")
    if not encoder.text_identity:
        raise DataError(f"the encoder {encoder.spec} has no text side: give another one")
    problem = task.frame(samples, "scores").problem(samples, encoder, seed)
    _, own = numbered([str(text) for text in samples.column("text")])
    found = np.mean([one_dealing(problem, own, seed + number) for number in range(DEALINGS)], axis=0)
    return Misfits(samples, encoder.spec, found.mean(1), found[:, 0], found[:, 1])


def one_dealing(problem: Problem, own: Array, seed: int) -> Array:
    """(N, 2) standard deviations, both directions, of every pair, each held out once."""
    groups = np.asarray(problem.query.samples.groups).astype(str)
    fold = dealt(groups, row_labels(problem), problem.query.source, FOLDS, seed)
    found = np.zeros((len(groups), 2))
    for held in range(FOLDS):
        outside, inside = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        with torch.no_grad():
            answer = LinearMaps().fit(problem.take(inside)).answer(problem.query.take(outside))
        if not isinstance(answer, Scores):
            raise TypeError("linear maps give scores")
        found[outside] = standing(answer.values.double().numpy()[:, own[outside]], groups[outside], own[outside])
    return found


def standing(scores: Array, groups: Array, own: Array) -> Array:
    """(n, 2) of scores (n, n) of images and the captions of the same rows: the own one over those of other cases, by row and by column."""
    other = (groups[:, None] != groups[None]) & (own[:, None] != own[None])
    return np.stack([over(scores, other), over(scores.T, other.T)], 1)


def over(scores: Array, other: Array) -> Array:
    """(n,) how many standard deviations the diagonal lies over the others of its row; zero where a row has none, or all alike."""
    left = np.where(other, scores, np.nan)
    count = other.sum(1)
    mean = np.divide(np.nansum(left, 1), count, out=np.zeros(len(scores)), where=count > 0)
    spread = np.sqrt(np.divide(np.nansum((left - mean[:, None]) ** 2, 1), count, out=np.zeros(len(scores)), where=count > 0))
    apart = np.where(count > 0, np.diagonal(scores) - mean, 0.0)
    return np.asarray(np.divide(apart, spread, out=np.zeros(len(scores)), where=spread > 1e-12))
