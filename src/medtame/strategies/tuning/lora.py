"""LoRA: low-rank changes of linear layers and pointwise convolutions, scored by the towers' own cosine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from medtame.encoders.blocks import last_blocks_of
from medtame.encoders.opened import opened
from medtame.learning.fine_tuning import Precision, Sight, adaptable, fine_tuned, halved
from medtame.learning.loop import Descent, Step
from medtame.learning.low_rank import LowRank, side_of
from medtame.strategies.base import Learner, Tuned, labelled, support_loss
from medtame.types import Adapted, Encoder, Problem, Query

Sides = Literal["image", "text", "both"]


@dataclass(frozen=True)
class LoraAdapted(Tuned):
    rank: int
    alpha: float
    rslora: bool
    image: dict[str, Tensor]
    text: dict[str, Tensor]
    blocks: int | None

    def encoder(self, base: Encoder) -> Encoder:
        change, image, text = LowRank(self.rank, self.alpha, self.rslora), None, None
        if self.image:
            image = change.merged(base.image_tower, adaptable(base.image_tower, self.blocks), self.image)
        if self.text:
            text = change.merged(base.text_tower, adaptable(base.text_tower, self.blocks), self.text)
        return base.changed(image=image, text=text, identity="lora")


@dataclass(frozen=True)
class Lora(Learner):
    """W + (alpha / rank) B A on linear layers and pointwise convolutions (Hu et al. 2022; for CLIP: Zanella and Ben Ayed 2024).

    B starts at zero, so it answers like zero-shot before the first step. Layers are peft's; attention is in plain layers, so that
    fused query, key and value weights are changed too, each as one matrix. Cross-entropy over scale x cosine, AdamW, cosine decay.
    No augmentation, no dropout (batches come from the seed and the step: a resumed run ends the same), batch norm stays frozen.
    For answers the changes are added to the weights.

    `sides`: text or both train through the text tower too, and encode its sentences at each step; image, the default, keeps them.
    `blocks`: only layers of the last so many blocks are changed; what enters these is computed once and kept. `precision` bfloat16
    holds the weights that do not move in 16 bits while it learns; answers are in single precision.

    CLIP-LoRA's own setting is sides=both, rslora=true, rank=2, alpha=1, learning_rate=2e-4, batch=32, 500 steps an image of a class,
    on query, key and value alone and with dropout .25 and augmentation, which are not here.

    Tried on `bundled` with 40 steps, one draw of 8 images a class, held-out training patients: 5e-4 gives .34 balanced accuracy on the
    phantom and .55 on breast ultrasound, 2e-3 .31 and .52 (zero-shot .17 and .42, clap .49 and .55): no benefit over a probe there.
    """

    learning = "fine_tuning"
    needs = frozenset({"labels"})
    towers = frozenset({"text", "image_modules"})
    new_words = True
    reads = frozenset({"candidates", "rows"})
    starts_at_zero_shot = True
    trains = "low-rank changes of the image tower, the text tower, or both"
    cost = "minutes: passes through the image tower"
    good_when = "a vision transformer, 16 images a class or more, and minutes"
    poor_when = "few images, or a convolutional network: no benefit over a probe on `bundled`"
    papers = ("arxiv:2106.09685", "arxiv:2405.18541")
    rank: Annotated[int, Field(gt=0)] = 4
    alpha: Annotated[float, Field(gt=0)] = 8.0
    rslora: bool = False
    sides: Sides = "image"
    blocks: Annotated[int, Field(gt=0)] | None = None
    precision: Precision = "float32"
    steps: Annotated[int, Field(ge=0)] = 60
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    batch: Annotated[int, Field(gt=0)] = 16

    def learn(self, problem: Problem, resume: Mapping[str, Tensor] | None = None) -> Generator[Step, None, Adapted]:
        rows, targets = labelled(problem)
        query, base = problem.query.take(rows.numpy()), problem.query.encoder
        change = LowRank(self.rank, self.alpha, self.rslora)
        image, text = None, None
        named: dict[str, Tensor] = {}
        if self.sides != "text":
            image, found = change.around(base.image_tower, adaptable(base.image_tower, self.blocks), problem.seed)
            named |= {f"image.{name}": tensor for name, tensor in found.items()}
            if self.precision == "bfloat16":
                halved(image, found.values())
        if self.sides != "image":
            text, found = change.around(base.text_tower, adaptable(base.text_tower, self.blocks), problem.seed)
            named |= {f"text.{name}": tensor for name, tensor in found.items()}
        loss = support_loss(query, targets, None if text is None else base.changed(text=text, identity="lora"))
        how = Descent(steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, warm_up=min(5, self.steps // 4))
        see = self.sight(query, image)
        kept = yield from fine_tuned(see, named, loss, how, rows=len(rows), seed=problem.seed, resume=resume)
        return LoraAdapted(self.rank, self.alpha, self.rslora, side_of(kept, "image."), side_of(kept, "text."), self.blocks)

    def sight(self, query: Query, image: nn.Module | None) -> Callable[[Tensor], Tensor]:
        if image is None:
            vectors = query.vectors()
            return lambda rows: vectors[rows]
        first = None if self.blocks is None else last_blocks_of(opened(query.encoder.image_tower), self.blocks)[0]
        return Sight.of(query, image, first, self.precision)
