"""Image-text retrieval: the texts of a gallery are ranked for an image, and the images for a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medtame.errors import DataError, PairError
from medtame.metrics.retrieval import chance_recall, retrieval
from medtame.metrics.statistic import Mean, Statistic
from medtame.tasks.base import Frame, Rows, Task, every
from medtame.types import Answer, Array, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores

SHOWN = ("image", "query")  # what a query may see: never a text of the gallery
LISTED = 5  # texts in the table


@dataclass(frozen=True)
class ImageTextRetrievalFrame(Frame):
    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Targets are soft: all texts of a row's case share it, and equal texts are one candidate."""
        gallery, own = numbered([str(text) for text in support.column("text")])
        if len(gallery) < 2:
            raise DataError(f"all {len(support)} training rows have the same text ({gallery[0][:60]!r}): retrieval needs two or more")
        query = self.query(shown(support), encoder, gallery)
        right = torch.from_numpy(right_texts(own, np.asarray(support.groups), len(gallery))).float()
        return Problem(query=query, targets=right / right.sum(1, keepdim=True), seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        if not words:
            raise DataError("retrieval ranks texts and was given none: give the texts of the gallery")
        empty = [place for place, word in enumerate(words, start=1) if not word.strip()]
        if empty:
            raise DataError(f"text {empty[0]} of {len(words)} in the gallery is empty: leave it out, or fill it")
        if len(set(words)) < len(words):
            twice = Counter(words).most_common(1)[0][0]
            raise DataError(f"the gallery holds {twice[:60]!r} twice: give each text once")
        if len(words) == 1 and len(samples) == 1:
            raise DataError("a gallery of one text and one image has nothing to rank: give more texts, or more images")
        candidates = Candidates(names=tuple(words), prompts=tuple((text,) for text in words))
        asked = tuple(str(text or "") for text in samples.column("query")) if "query" in samples else None
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), words=asked, candidates=candidates)

    def read(self, query: Query, answer: Answer) -> Predicted:
        """The first texts of each image, and at which place the image stands among all images for the first of them."""
        if not isinstance(answer, Scores):
            raise PairError("retrieval reads scores")
        scores, gallery = answer.values.double().numpy(), np.array(query.wanted.names, dtype=object)
        first = np.argsort(-scores, 1, kind="stable")[:, :LISTED]
        place, refused = places(scores, first), np.isnan(scores).any(1)
        table = [
            {
                "image": getattr(image, "name", image),
                **{f"text_{rank + 1}": "" if no else gallery[k] for rank, k in enumerate(best)},
                "max_score": float(row[best[0]]),
                "image_rank_for_text_1": "" if no else int(rank_of),
                "warning": "no answer" if no else "",
            }
            for image, row, best, rank_of, no in zip(query.samples.column("image"), scores, first, place, refused, strict=True)
        ]
        return Predicted(table=table, arrays={"scores": scores, "gallery": gallery})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Texts and images of the same case, and equal texts, are all right; `own` counts a row's own text alone.

        The gallery stays whole when patients are resampled. Chance is what random orders would recall, for each query with its
        number of right ones.
        """
        scores, gallery = said.arrays["scores"], said.arrays["gallery"]
        own = owned(gallery, truth)
        if len(gallery) < 2 or len(own) < 2:
            raise DataError(f"a gallery of {len(gallery)} text(s) and {len(own)} image(s) ranks nothing: measure on two or more of both")
        to_text, same_text = self.right(said, truth), own[:, None] == own[None]
        to_image = to_text.T[own]
        found = {**retrieval(scores, to_text, "_image_to_text"), **retrieval(scores.T[own], to_image, "_text_to_image")}
        strict = {
            **retrieval(scores, own[:, None] == np.arange(len(gallery))[None], "_own_image_to_text"),
            **retrieval(scores.T[own], same_text, "_own_text_to_image"),
        }
        return {
            "recall_at_10_image_to_text": found["recall_at_10_image_to_text"],
            **found,
            **{name: value for name, value in strict.items() if name.startswith("recall_at_10")},
            "chance_recall_at_10_image_to_text": Mean(chance_recall(to_text, 10)),
            "chance_recall_at_10_text_to_image": Mean(chance_recall(to_image, 10)),
            "gallery_texts": Mean(np.full(len(own), float(len(gallery)))),
            "gallery_images": Mean(np.full(len(own), float(len(own)))),
        }

    def right(self, said: Predicted, truth: Samples) -> Array:
        """(N, C) bool: the texts of the gallery that are right for each image: its own and those of its case."""
        gallery = said.arrays["gallery"]
        return right_texts(owned(gallery, truth), np.asarray(truth.groups), len(gallery))


def owned(gallery: Array, truth: Samples) -> Array:
    """(N,) the number of each row's text in the gallery. Raises DataError where it is not there."""
    number = {str(text): k for k, text in enumerate(gallery)}
    texts = [str(text) for text in truth.column("text")]
    absent = next((text for text in texts if text not in number), None)
    if absent is not None:
        raise DataError(f"the text {absent[:60]!r} is not in the gallery of {len(number)}: rank the texts of these rows")
    return np.array([number[text] for text in texts])


def shown(samples: Samples) -> Samples:
    return samples.only([name for name in SHOWN if name in samples])


def numbered(texts: Sequence[str]) -> tuple[list[str], Array]:
    """The distinct texts in alphabetical order, and (N,) the number of each row's."""
    gallery = sorted(set(texts))
    number = {text: k for k, text in enumerate(gallery)}
    return gallery, np.array([number[text] for text in texts])


def right_texts(own: Array, groups: Array, count: int) -> Array:
    """(N, C) bool: a row's own text and those of the other rows of its case."""
    has = own[:, None] == np.arange(count)[None]
    _, case = np.unique(groups.astype(str), return_inverse=True)
    of_case = np.zeros((case.max() + 1, count), dtype=bool)
    np.logical_or.at(of_case, case, has)
    return np.asarray(of_case[case])


def places(scores: Array, first: Array) -> Array:
    """(N,) the place of each image among all images for its first text; 1 is best."""
    best = first[:, 0]
    own = scores[np.arange(len(scores)), best]
    return np.asarray(1 + (scores[:, best] > own[None]).sum(0))


@dataclass(frozen=True)
class ImageTextRetrieval(Task):
    """The gallery is every distinct text of the samples that are asked about, in alphabetical order.

    A column `query` (such as a history) makes queries of an image with words; it is part of the query and never of the gallery.
    """

    kinds = ("scores",)
    inputs = SHOWN
    requires = ("image", "text")
    offers = frozenset({"labels", "unseen_words", "paired_texts", "whole_images"})
    references = ("zero_shot", "linear_maps")
    start, plain = "zero_shot", "linear_maps"
    shots = ("all",)

    def usable(self, samples: Rows) -> Rows:
        """Rows with an image and a text that is more than spaces."""
        if "text" in samples:
            filled = [None if text is None or not str(text).strip() else text for text in samples.column("text")]
            samples = samples.replaced(text=filled)
        return super().usable(samples)

    def given(self, samples: Samples) -> tuple[Samples, Sequence[str] | None]:
        gallery = sorted({str(text) for text in samples.column("text") if text is not None}) if "text" in samples else None
        return shown(samples), gallery

    def frame(self, support: Samples, wants: Kind) -> Frame:
        return ImageTextRetrievalFrame(wants)
