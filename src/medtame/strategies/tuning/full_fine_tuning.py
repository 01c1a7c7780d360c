"""Full fine-tuning from a probe: first class directions on frozen vectors, then these and all weights of the image tower."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medtame.encoders.blocks import depths_of
from medtame.encoders.opened import opened
from medtame.learning.fine_tuning import Sight, copied, fine_tuned, first_pixels, module_of, with_values
from medtame.learning.loop import Descent, Step, descend, finish
from medtame.strategies.base import Learner, Tuned, allowed_of, classification_loss, cosine_logits, labelled, masked, same_candidates
from medtame.types import Adapted, Encoder, Problem, Query, Scores

HEAD = "head"


def directed(texts: Tensor, head: Tensor) -> Tensor:
    """(C, D), or (N, C, D) where words of a row change them: text vectors moved by the head (C, D), unit norm."""
    return nn.functional.normalize(texts + head, dim=-1)


@dataclass(frozen=True)
class FullFineTuningAdapted(Tuned):
    names: tuple[str, ...]
    head: Tensor  # (C, D)
    weights: dict[str, Tensor]

    def encoder(self, base: Encoder) -> Encoder:
        return base.changed(image=with_values(base.image_tower, self.weights), identity="full_fine_tuning")

    def answer(self, query: Query) -> Scores:
        same_candidates(self.names, query)
        with torch.no_grad():
            vectors, wording = query.vectors(self.built(query.encoder)), directed(query.texts(), self.head)
            return Scores(masked(cosine_logits(vectors, wording, query.encoder), query.allowed))


@dataclass(frozen=True)
class FullFineTuning(Learner):
    """LP-FT (Kumar et al. 2022): class directions are probed on frozen vectors, then move with all weights of the image tower.

    A class direction is its text vector plus a learnt one that starts at zero. `probe_steps` descents over all support rows move it
    alone; then each of `steps` moves everything. So with no step made it answers like that probe, with no probe step either like
    zero-shot. A random or untrained head would send large gradients through the network and spoil its features.

    A layer that is one block further from the end learns `layer_decay` times as fast (Clark et al. 2020); the part before the first
    block counts as one block, what follows the last learns at the full rate. Batch norm keeps its running mean and variance.
    Cross-entropy over scale x cosine, AdamW, cosine decay, no augmentation. It needs memory for four copies of the tower, and few
    images are soon learnt by heart.

    Tried on `bundled` with 40 steps, one draw of 8 images a class, held-out training patients, at this rate only: .60 balanced accuracy
    on the phantom and .62 on breast ultrasound; its probe alone .53 and .53, zero-shot .17 and .42, clap .49 and .55. For a pretrained
    transformer 1e-5 to 1e-4 is usual.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules"})
    reads = frozenset({"candidates", "rows"})
    trains = "all weights of the image tower, and class directions"
    cost = "minutes: passes through the image tower, and its gradients"
    good_when = "hundreds of images, a graphics card, and images unlike the pretraining's"
    poor_when = "few images, which are learnt by heart, or memory for less than four towers"
    papers = ("arxiv:2202.10054", "arxiv:2003.10555")
    probe_steps: Annotated[int, Field(ge=0)] = 100
    probe_learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.7
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    batch: Annotated[int, Field(gt=0)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query = problem.query.take(rows.numpy())
        texts, base = query.texts(), query.encoder
        apart = opened(module_of(base.image_tower))
        tower, named = copied(apart, [name for name, _ in apart.named_parameters()])
        head = torch.zeros(texts.shape[-2:])

        def loss(vectors: Tensor, batch: Tensor) -> Tensor:
            wording = directed(texts if texts.ndim == 2 else texts[batch], head)
            logits = masked(cosine_logits(vectors, wording, base), allowed_of(query, batch))
            return classification_loss(logits, targets[batch], exclusive=query.wanted.exclusive)

        if resume is None:
            self.probe(query.vectors(), head, loss)
        depths = depths_of(tower, first_pixels(query))
        deepest = max(depths.values())
        shares = {name: self.layer_decay ** (deepest - depth) for name, depth in depths.items()}
        warm_up = min(5, self.steps // 4)
        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=warm_up, shares=shares)
        all_named = {HEAD: head, **named}
        kept = yield from fine_tuned(Sight.of(query, tower, None), all_named, loss, how, rows=len(rows), seed=problem.seed, resume=resume)
        return FullFineTuningAdapted(query.wanted.names, kept.pop(HEAD), kept)

    def probe(self, vectors: Tensor, head: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Move the head (C, D) in place, on frozen vectors (n, D)."""
        how = Descent(steps=self.probe_steps, learning_rate=self.probe_learning_rate, batch=len(vectors))
        finish(descend({HEAD: head}, lambda rows: loss(vectors[rows], rows), how, n=len(vectors), seed=0))
