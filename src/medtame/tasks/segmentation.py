"""Segmentation: a line of the manifest is one structure of one image; a structure without a line is unknown there, not absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from medtame.errors import DataError, PairError
from medtame.metrics.segmentation import segmentation
from medtame.metrics.statistic import Mean, Statistic
from medtame.tasks.base import Frame, Rows, Task
from medtame.types import Answer, Array, Candidates, Encoder, Grids, Kind, Predicted, Problem, Query, Samples, Scores

BACKGROUND = "background"
SHOWN = 20  # structures, at most, that have a Dice of their own in tables


@dataclass(frozen=True)
class SegmentationFrame(Frame):
    structures: tuple[str, ...]
    rows: int
    side: int
    size: int

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Grids: a row a line. Scores: patches, as many inside as outside each structure, hard labels, NaN where unknown."""
        support = support.take(np.argsort([picture.name for picture in support.pictures()], kind="stable"))
        query = self.query(support.only(("image", "prompt")), encoder)
        if self.wants == "grids":
            targets = torch.stack([area_shares(mask.values() > 0, self.size) >= 0.5 for mask in support.pictures("mask")])
            return Problem(query=query, targets=targets[:, None].float(), loss=dice_and_cross_entropy, seed=seed)
        targets = self._patch_targets(support)
        return Problem(query=query, targets=targets, seed=seed).take(balanced(targets[:, : len(self.structures)], self.rows, seed))

    def _patch_targets(self, support: Samples) -> Tensor:
        """(images x side x side, C + 1) in the order of `query`; the background is known where all structures are."""
        first = first_lines(support)
        number = np.searchsorted(np.unique(first), first)
        inside = torch.full((int(number[-1]) + 1, self.side, self.side, len(self.structures)), torch.nan)
        for image, structure, mask in zip(number, support.column("prompt"), support.pictures("mask"), strict=True):
            if structure in self.structures:
                inside[image, :, :, self.structures.index(structure)] = (area_shares(mask.values() > 0, self.side) > 0.5).float()
        return torch.cat([inside, 1 - inside.amax(-1, keepdim=True)], -1).flatten(0, 2)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """A line is asked for its own prompt; `words`, or all structures where a prompt is missing, are asked of every image."""
        if words is not None or "prompt" not in samples or None in samples.column("prompt"):
            samples = every_image(samples, tuple(words or self.structures))
        first = first_lines(samples)
        if self.wants == "grids":
            prompts, size = tuple(str(prompt) for prompt in samples.column("prompt")), (self.size, self.size)
            return Query(wants="grids", samples=samples, encoder=encoder, source=first, words=prompts, size=size)
        names = tuple(dict.fromkeys([*(words or self.structures), BACKGROUND]))
        images = np.unique(first)
        return Query(
            wants="scores",
            samples=samples,
            encoder=encoder,
            source=np.repeat(images, self.side**2),
            regions=patches(self.side).repeat(len(images), 1),
            candidates=Candidates(names=names, prompts=tuple((name,) for name in names), exclusive=False),
        )

    def read(self, query: Query, answer: Answer) -> Predicted:
        """Masks in the source's geometry. A patch belongs to a structure whose logit is above 0 and above the background's."""
        table, arrays = [], {}
        lines = zip(query.samples.pictures(), query.samples.column("prompt"), self._logits(query, answer), strict=True)
        for line, (picture, structure, logits) in enumerate(lines):
            geometry = picture.geometry()
            size = (geometry.height, geometry.width)
            mask = np.zeros(size, dtype=np.uint8)
            if logits is not None:
                mask = (interpolate(logits[None, None], size, mode="bilinear")[0, 0] > 0).numpy().astype(np.uint8)
            row: dict[str, object] = {"image": picture.name, "structure": structure, "pixels": int(mask.sum())}
            if geometry.spacing_mm is not None:
                row["area_mm2"] = float(mask.sum() * geometry.spacing_mm[0] * geometry.spacing_mm[1])
            table.append(
                row | {"warning": "not among the structures that were learnt" if logits is None else "" if mask.any() else "nothing found"}
            )
            arrays[f"{line}/mask"] = mask
        return Predicted(table=table, arrays=arrays)

    def _logits(self, query: Query, answer: Answer) -> Iterator[Tensor | None]:
        """(h, w) a line, positive inside; None for a structure that was not asked about."""
        if isinstance(answer, Grids):
            yield from answer.values[:, 0]
            return
        if not isinstance(answer, Scores):
            raise PairError("segmentation reads grids or scores")
        names, images = query.wanted.names, np.unique(query.source)
        scores = answer.values.reshape(len(images), self.side, self.side, len(names))
        margins = scores - scores[..., names.index(BACKGROUND)].clamp(min=0)[..., None]
        for image, structure in zip(first_lines(query.samples), query.samples.column("prompt"), strict=True):
            yield margins[int(np.searchsorted(images, image)), :, :, names.index(structure)] if structure in names else None

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Of the lines whose structure was learnt. A mask of another size than its truth is brought to it (nearest pixel)."""
        learnt = np.array([prompt in self.structures for prompt in truth.column("prompt")])
        masks = [mask.values() > 0 for mask in truth.pictures("mask")]
        ours = [at_size(said.arrays[f"{line}/mask"], mask.shape) for line, mask in enumerate(masks)]
        spacings = [picture.geometry().spacing_mm for picture in truth.pictures()]
        found = segmentation(ours, masks, spacings)
        values = {name: np.where(learnt, statistic.arrays()["values"], np.nan) for name, statistic in found.items()}
        if 1 < len(self.structures) <= SHOWN:
            prompts = np.array(truth.column("prompt"), dtype=object)
            values |= {f"dice.{name}": np.where(prompts == name, values["dice"], np.nan) for name in self.structures}
        return {name: Mean(value) for name, value in values.items()}


@dataclass(frozen=True)
class Segmentation(Task):
    """`structures`: only these prompts (empty: all). `rows`: patches learnt from at most, `side` a side; `size`: decoders' working size."""

    kinds = ("grids", "scores")
    inputs = ("image", "prompt")
    requires = ("image", "mask", "prompt")
    offers = frozenset({"labels", "words", "targets_on_grid"})
    references = ("zero_shot", "linear_probe")
    start, plain = "zero_shot", "linear_probe"
    structures: tuple[str, ...] = ()
    rows: Annotated[int, Field(gt=0)] = 6000
    side: Annotated[int, Field(gt=1)] = 28
    size: Annotated[int, Field(ge=32)] = 224

    def usable(self, samples: Rows) -> Rows:
        samples = super().usable(samples)
        prompts = samples.column("prompt")
        rows = [row for row, prompt in enumerate(prompts) if not self.structures or prompt in self.structures]
        if not rows:
            known = ", ".join(sorted({str(prompt) for prompt in prompts})[:10])
            raise DataError(f"no row has the structure {', '.join(self.structures)}; the column 'prompt' holds {known}")
        return samples.take(rows)

    def settled(self, train: Samples) -> Task:
        found = sorted({str(prompt) for prompt in train.column("prompt")})
        unknown = sorted(set(self.structures) - set(found))
        if unknown:
            raise DataError(
                f"{', '.join(map(repr, unknown[:5]))} is no structure of the training rows ({', '.join(found[:10])}): correct the name"
            )
        return replace(self, structures=self.structures or tuple(found))

    def strata(self, samples: Samples) -> Array:
        return np.array(samples.column("prompt"), dtype=object)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        structures = self.structures or tuple(sorted({str(prompt) for prompt in support.column("prompt")}))
        return SegmentationFrame(wants, structures, self.rows, self.side, self.size)


def first_lines(samples: Samples) -> Array:
    """(N,) for each line the first of the lines before it, without a gap, that show the same image."""
    images = samples.column("image")
    new = np.array([line == 0 or images[line] != images[line - 1] for line in range(len(images))], dtype=bool)
    return np.asarray(np.flatnonzero(new)[np.cumsum(new) - 1])


def every_image(samples: Samples, names: tuple[str, ...]) -> Samples:
    """A line for each image, each once, and name."""
    first = list({picture: line for line, picture in reversed(list(enumerate(samples.column("image"))))}.values())[::-1]
    return samples.take(np.repeat(first, len(names))).replaced(prompt=list(names) * len(first))


def patches(side: int) -> Tensor:
    """(side x side, 4) regions x0 y0 x1 y1 in 0..1, row by row."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / side


def balanced(targets: Tensor, rows: int, seed: int) -> Array:
    """Row numbers: for each column of 1, 0 and NaN equally many of 1 and of 0, at most rows / 2C each; the union, in order."""
    rng = np.random.default_rng(seed)
    chosen: list[Array] = []
    for column in targets.numpy().T:
        inside, outside = np.flatnonzero(column == 1), np.flatnonzero(column == 0)
        each = min(max(1, rows // (2 * targets.shape[1])), len(inside), len(outside))
        chosen += [rng.choice(inside, each, replace=False), rng.choice(outside, each, replace=False)]
    if not any(len(part) for part in chosen):
        raise DataError(
            "no structure fills half of a patch and leaves another free: raise the setting 'side', or use a method that gives grids"
        )
    return np.unique(np.concatenate(chosen))


def area_shares(mask: Array, side: int) -> Tensor:
    """(side, side) the share of each cell that a mask (H, W) covers."""
    return adaptive_avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None], side)[0]


def at_size(mask: Array, size: tuple[int, ...]) -> Array:
    if mask.shape == size:
        return np.asarray(mask > 0)
    return np.asarray(interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0, 0] > 0)


def dice_and_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss, a mask at a time, plus binary cross-entropy, of (N, 1, H, W), by MONAI."""
    from monai.losses import DiceCELoss

    loss: Tensor = DiceCELoss(sigmoid=True)(logits, targets)
    return loss
