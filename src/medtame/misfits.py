"""Which captions do not belong to their image: each pair is judged by maps that were learnt without its case.

Two linear maps (`learning.paired`) are learnt on all other folds of cases; a text is its vector beside the directions of its words and
pairs of words (latent semantic analysis: Deerwester et al. 1990), for encoders seldom tell reports apart that differ in one word. Among the
pairs held out, hubs are taken down (CSLS: Conneau et al. 2018), and a pair's own score is set against those of its image with the captions
of other cases, and of its caption with the images of other cases, in standard deviations. Wrong pairs among those learnt from blur the
maps and are not left out, so the list is one to look through and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtame.data.packed import place_of
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.learning.paired import cosines, decomposed
from medtame.run import RESEARCH_USE
from medtame.tasks.image_text_retrieval import ImageTextRetrieval, numbered
from medtame.types import Array, Encoder

FOLDS, DEALINGS = 5, 3
HOW = (
    f"each pair against pairs of other cases, in standard deviations, by two linear maps of images, and of texts and their words, learnt "
    f"without its case ({FOLDS} folds, {DEALINGS} times); a list to look through, not a verdict"
)
LEAST_CASES = 20
PENALTIES = (1.0, 10.0)  # of the maps of images and of texts; found with the power, the directions and the hubs on planted swaps
POWER = 1.0
DIRECTIONS = 200  # of words
NEIGHBOURS, NEIGHBOUR_SHARE = 10, 0.1  # of a row or column, by which a hub is known; of few rows this share


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
    _, own = numbered([str(text) for text in samples.column("text")])
    with torch.no_grad():
        images = encoder.whole(samples)
        texts = described([str(text) for text in samples.column("text")], encoder)
    groups = np.asarray(samples.groups).astype(str)
    found = np.mean([one_dealing(images, texts, groups, own, seed + number) for number in range(DEALINGS)], axis=0)
    return Misfits(samples, encoder.spec, found.mean(1), found[:, 0], found[:, 1])


def described(texts: Sequence[str], encoder: Encoder) -> Tensor:
    """(N, E + K): vectors of texts, and the directions of their words and pairs of words, both with the same variance in all."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    sides = [encoder.texts(texts).double()]
    try:
        counts = words.fit_transform(texts)
    except ValueError:  # no word stands in two texts
        return sides[0]
    sides.append(torch.from_numpy(directions(counts)))
    centred = [side - side.mean(0) for side in sides]
    return torch.cat([side / side.square().sum(1).mean().sqrt().clamp(min=1e-12) for side in centred], 1)


def directions(counts: Any) -> Array:
    """(N, K) principal coordinates of sparse counts (N, W)."""
    from sklearn.decomposition import PCA

    kept = min(DIRECTIONS, counts.shape[0] - 1, counts.shape[1])
    solver = "arpack" if kept < min(counts.shape) else "covariance_eigh"
    given = counts if solver == "arpack" else counts.toarray()
    return np.ascontiguousarray(PCA(kept, svd_solver=solver, random_state=0).fit_transform(given))


def one_dealing(images: Tensor, texts: Tensor, groups: Array, own: Array, seed: int) -> Array:
    """(N, 2) standard deviations, both directions, of every pair of images (N, D) and texts (N, E), each held out once."""
    fold = folds_of(groups, seed)
    found = np.zeros((len(groups), 2))
    for held in range(FOLDS):
        outside, inside = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        first = np.unique(own[inside], return_index=True)[1]
        share = torch.from_numpy(own[inside][:, None] == own[inside][first][None]).double()
        maps = decomposed(images[inside], texts[inside][first], share).maps(*PENALTIES, [POWER])[0]
        scores = cosines(maps, images[outside], texts[outside]).numpy()
        scores = without_hubs(scores, others(groups[outside], own[outside]))
        found[outside] = standing(scores, groups[outside], own[outside])
    return found


def folds_of(groups: Array, seed: int) -> Array:
    """(N,) the fold of each row, cases dealt out evenly."""
    cases, place = np.unique(groups, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(cases))[place] % FOLDS


def standing(scores: Array, groups: Array, own: Array) -> Array:
    """(n, 2) of scores (n, n) of images and the captions of the same rows: the own one over those of other cases, by row and by column."""
    other = others(groups, own)
    return np.stack([over(scores, other), over(scores.T, other.T)], 1)


def others(groups: Array, own: Array) -> Array:
    """(n, n) bool: which captions are of another case, and another text."""
    return np.asarray((groups[:, None] != groups[None]) & (own[:, None] != own[None]))


def without_hubs(scores: Array, other: Array) -> Array:
    """Scores (n, n), twice, less the mean of the largest of each row and of each column among the others."""
    return np.asarray(2 * scores - nearest(scores, other)[:, None] - nearest(scores.T, other.T)[None])


def nearest(scores: Array, other: Array) -> Array:
    """(n,) the mean of the largest scores of each row among the others: large for a hub, which is near to everything."""
    count = max(1, min(NEIGHBOURS, int(NEIGHBOUR_SHARE * len(scores))))
    largest = -np.sort(-np.where(other, scores, np.nan), axis=1)[:, :count]
    held = ~np.isnan(largest)
    return np.asarray(np.divide(np.nansum(largest, 1), held.sum(1), out=np.zeros(len(scores)), where=held.any(1)))


def over(scores: Array, other: Array) -> Array:
    """(n,) how many standard deviations the diagonal lies over the others of its row; zero where a row has none, or all alike."""
    left = np.where(other, scores, np.nan)
    count = other.sum(1)
    mean = np.divide(np.nansum(left, 1), count, out=np.zeros(len(scores)), where=count > 0)
    spread = np.sqrt(np.divide(np.nansum((left - mean[:, None]) ** 2, 1), count, out=np.zeros(len(scores)), where=count > 0))
    apart = np.where(count > 0, np.diagonal(scores) - mean, 0.0)
    return np.asarray(np.divide(apart, spread, out=np.zeros(len(scores)), where=spread > 1e-12))
