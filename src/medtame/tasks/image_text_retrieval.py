"""Image-text retrieval: the texts of a gallery are ranked for an image, and the images for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medtame.errors import DataError, PairError
from medtame.metrics.retrieval import retrieval
from medtame.metrics.statistic import Statistic
from medtame.tasks.base import Frame, Task, every
from medtame.types import Answer, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores


@dataclass(frozen=True)
class ImageTextRetrievalFrame(Frame):
    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        texts = [str(text) for text in support.column("text")]
        query = self.query(support.only(("image",)), encoder, sorted(set(texts)))
        number = {text: k for k, text in enumerate(query.wanted.names)}
        targets = torch.nn.functional.one_hot(torch.tensor([number[text] for text in texts]), len(number)).float()
        return Problem(query=query, targets=targets, seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        if not words:
            raise DataError("retrieval ranks texts and was given none: give the texts of the gallery")
        candidates = Candidates(names=tuple(words), prompts=tuple((text,) for text in words))
        return Query(wants="scores", samples=samples, encoder=encoder, source=every(samples), candidates=candidates)

    def read(self, query: Query, answer: Answer) -> Predicted:
        if not isinstance(answer, Scores):
            raise PairError("retrieval reads scores")
        scores, gallery = answer.values.double().numpy(), np.array(query.wanted.names, dtype=object)
        first = scores.argsort(1)[:, ::-1][:, :5]
        table = [
            {"image": image, **{f"text_{rank + 1}": gallery[k] for rank, k in enumerate(best)}, "max_score": float(row[best[0]])}
            for image, row, best in zip(query.samples.column("image"), scores, first, strict=True)
        ]
        return Predicted(table=table, arrays={"scores": scores, "gallery": gallery})

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Several images may share a text: each is a right answer. The gallery stays whole when patients are resampled."""
        scores, gallery = said.arrays["scores"], [str(text) for text in said.arrays["gallery"]]
        texts = [str(text) for text in truth.column("text")]
        number = {text: k for k, text in enumerate(gallery)}
        own = np.array([number[text] for text in texts])
        relevant = own[:, None] == np.arange(len(gallery))[None]
        to_text = retrieval(scores, relevant, "_image_to_text")
        to_image = retrieval(scores.T[own], own[:, None] == own[None], "_text_to_image")
        return {"recall_at_10_image_to_text": to_text["recall_at_10_image_to_text"], **to_text, **to_image}


@dataclass(frozen=True)
class ImageTextRetrieval(Task):
    """The gallery is every distinct text of the samples that are asked about, in alphabetical order."""

    kinds = ("scores",)
    requires = ("image", "text")
    offers = frozenset({"labels", "unseen_words"})
    references = ("zero_shot",)
    start, plain = "zero_shot", "zero_shot"
    shots = ("all",)

    def given(self, samples: Samples) -> tuple[Samples, Sequence[str] | None]:
        gallery = sorted({str(text) for text in samples.column("text") if text is not None}) if "text" in samples else None
        return samples.only(("image",)), gallery

    def frame(self, support: Samples, wants: Kind) -> Frame:
        return ImageTextRetrievalFrame(wants)
