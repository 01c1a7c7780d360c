"""Test-time prompt tuning: for each image alone, a context that makes its views agree; nothing is learnt from training rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medtame.data.images import ArrayPicture
from medtame.errors import PairError
from medtame.learning.loop import Descent
from medtame.learning.prompt_learning import Wording, scores_of, wording
from medtame.strategies.base import Method
from medtame.types import Adapted, Array, Picture, Problem, Query, Samples, Scores

ROWS_AT_ONCE = 8
LEAST_AREA = 0.5  # of a view: smaller crops lose the lesion
NARROWEST = 3 / 4  # height over width of a view beside the image's own


@dataclass(frozen=True)
class TestTimePromptAdapted(Adapted):
    template: str
    ids: Tensor
    views: int
    kept: float
    steps: int
    learning_rate: float
    spreading: float
    note: str

    def answer(self, query: Query) -> Scores:
        if query.regions is not None:
            raise PairError("test_time_prompt needs whole images to take views of, and these rows are regions: use prompt_ensemble")
        words = wording(query.encoder.text_tower, query.wanted, self.template, self.ids)
        found = [
            self._some(query.take(rows), words) for rows in np.array_split(np.arange(len(query)), math.ceil(len(query) / ROWS_AT_ONCE))
        ]
        return Scores(torch.cat(found) if found else torch.zeros(0, len(query.wanted.names)))

    def _some(self, query: Query, words: Wording) -> Tensor:
        """(n, C): each row's context starts anew and moves by its own loss, since that of all is a sum."""
        with torch.no_grad():
            whole = query.vectors()
            views = torch.cat([whole[:, None], self._views(query)], 1)
        change = torch.zeros(len(query), *words.beginning.shape)
        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=len(query))
        moments = how.moments({"change": change})
        chosen: Tensor | None = None
        for _ in range(self.steps):
            change.requires_grad_(True)
            texts = words.texts_of_rows(words.beginning + words.spread * change)
            logs = torch.stack([scores_of(texts, query, views[:, v], query.encoder) for v in range(views.shape[1])], 1).log_softmax(2)
            if chosen is None:
                chosen = surest(logs.detach(), self.kept)
            loss = entropy_of_mean(torch.take_along_dim(logs, chosen[..., None], 1)) - self.spreading * spread_of(texts)
            (slope,) = torch.autograd.grad(loss.sum(), change)
            with torch.no_grad():
                how.stepped([change], [slope], {kind: [of["change"]] for kind, of in moments.items()}, self.learning_rate)
            change = change.detach()
        with torch.no_grad():
            return scores_of(words.texts_of_rows(words.beginning + words.spread * change), query, whole, query.encoder)

    def _views(self, query: Query) -> Tensor:
        """(n, V, D) of crops that hold at least half of their image; the same for an image wherever it is asked."""
        pictures = query.samples.pictures()
        crops: list[Picture] = [view for picture in pictures for view in views_of(picture, self.views)]
        samples: Samples = query.samples.take(np.repeat(np.arange(len(pictures)), self.views)).replaced(image=crops)
        return query.encoder.whole(samples).reshape(len(pictures), self.views, -1)[torch.as_tensor(query.source)]


def views_of(picture: Picture, count: int) -> list[Picture]:
    """Crops of at least half the area, never flipped: sides may be turned into each other in no medical image."""
    pixels, random = picture.read(), np.random.default_rng(int(picture.digest()[:15], 16))
    return [ArrayPicture(cropped(pixels, random), f"{picture.name} view") for _ in range(count)]


def cropped(pixels: Array, random: np.random.Generator) -> Array:
    height, width = pixels.shape[:2]
    area, ratio = random.uniform(LEAST_AREA, 1), math.exp(random.uniform(math.log(NARROWEST), -math.log(NARROWEST)))
    rows, columns = (max(1, math.ceil(side * min(1.0, share))) for side, share in zip((height, width), sides(area, ratio), strict=True))
    top, left = random.integers(0, height - rows + 1), random.integers(0, width - columns + 1)
    return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])


def sides(area: float, ratio: float) -> tuple[float, float]:
    """Shares of height and width whose product is the area, as near to the ratio as fits into the image."""
    high = min(1.0, max(area, math.sqrt(area * ratio)))
    return high, area / high


def surest(logs: Tensor, share: float) -> Tensor:
    """(n, k) the views of least entropy, of log probabilities (n, V, C); at least one."""
    entropy = -(logs.exp() * logs).sum(2)
    chosen: Tensor = entropy.topk(max(1, int(share * logs.shape[1])), largest=False).indices
    return chosen


def entropy_of_mean(logs: Tensor) -> Tensor:
    """(n,) entropy of the mean probability over views, of log probabilities (n, k, C): not the mean of entropies."""
    mean = logs.logsumexp(1) - math.log(logs.shape[1])
    return -torch.sum(mean.exp() * mean, 1)


def spread_of(texts: Tensor) -> Tensor:
    """(n,) mean distance of the prompts' vectors (n, C, D) from their mean (C-TPT)."""
    apart: Tensor = torch.linalg.vector_norm(texts - texts.mean(1, keepdim=True), dim=2)
    return apart.mean(1)


@dataclass(frozen=True)
class TestTimePrompt(Method):
    """Test-time prompt tuning (Shu et al. 2022): the `kept` share of an image's views that are surest, one AdamW step on the context
    down the entropy of their mean probability, then the answer to the image itself.

    Context and optimiser start anew for each image (reset per image): a row's answer depends on the row alone. Views are crops
    of at least half the area, not flipped (8 % to 100 % and flips there, which lose lesions and sides). With `spreading` the
    prompts' mean distance from their centre is added (C-TPT, Yoon et al. 2024: 50), which keeps probabilities less sure. The
    learning rate is in units of the deviation of the words' numbers: .25 is 5e-3 for CLIP. 15 views (63 there).
    """

    needs = frozenset({"one_label"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    trains = "nothing at fit; a context for each image at predict"
    cost = "seconds an image at predict: a pass through the image tower for each view, and through the text tower"
    good_when = "no label at all, a good zero-shot, and seconds to spend on each image"
    poor_when = "zero-shot is poor, or what matters is small enough to fall out of a crop"
    papers = ("arxiv:2209.07511", "arxiv:2403.14119")
    views: Annotated[int, Field(ge=1, le=255)] = 15
    kept: Annotated[float, Field(gt=0, le=1)] = 0.2
    steps: Annotated[int, Field(ge=0)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 0.25
    spreading: Annotated[float, Field(ge=0)] = 0.0
    template: str = "a medical image of {}"

    def fit(self, problem: Problem) -> Adapted:
        words = wording(problem.query.encoder.text_tower, problem.query.wanted, self.template)
        count = len(words.names)
        note = f"at predict an image takes {self.views + 1} passes through the image tower (zero-shot: 1) and {count} prompts of its own"
        settings = (self.views, self.kept, self.steps, self.learning_rate, self.spreading)
        return TestTimePromptAdapted(words.template, words.ids, *settings, note)
