"""Segmentation: a line of the manifest is one structure of one image; a structure without a line is unknown there, not absent.

A volume is learnt from and answered slice by slice, each slice with its neighbours as channels, and measured as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, interpolate

from medtame.data import masks
from medtame.data.slices import Plane, SlicePicture, Volume, frames_of, is_volume, owners, runs, sliced, spacing_of, to_learn_from, whole
from medtame.errors import DataError, PairError
from medtame.metrics.segmentation import instance_f1_of, segmentation
from medtame.metrics.statistic import Mean, Statistic, joined
from medtame.tasks.base import Frame, Rows, Task
from medtame.types import Answer, Array, Candidates, Encoder, Grids, Kind, Picture, Predicted, Problem, Query, Samples, Scores

BACKGROUND = "background"
NOWHERE = -30.0  # a logit whose sigmoid is nothing
SHOWN = 20  # structures, at most, that have a Dice of their own in tables


@dataclass(frozen=True)
class SegmentationFrame(Frame):
    """`structures` were learnt, `unseen` ones are only asked for by words; of those in `never` all training masks are empty."""

    structures: tuple[str, ...]
    rows: int
    side: int
    size: int
    unseen: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    slices: int = 24
    plane: str = "stored"
    context: int = 1

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Grids: a row a line, NaN outside the field of view. Scores: patches, as many inside as outside each structure, NaN where unknown.

        Raises DataError where no mask holds a pixel.
        """
        support = support.take([line for line, prompt in enumerate(support.column("prompt")) if prompt not in self.unseen])
        support = support.take(np.argsort([picture.name for picture in support.pictures()], kind="stable"))
        if set(self.structures) <= set(self.never):
            raise DataError(f"all {len(support)} training masks are empty: give some that mark what is to be found")
        support = to_learn_from(support, self.slices, self.plane, self.context, seed)
        query = self.query(support.only(("image", "prompt")), encoder)
        if self.wants == "grids":
            targets = torch.stack([(area_shares(mask.values() > 0, self.size) >= 0.5).float() for mask in support.pictures("mask")])
            for line, field in enumerate(fields_of_view(support)):
                if field is not None:
                    targets[line][area_shares(field, self.size) < 0.5] = torch.nan
            return Problem(query=query, targets=targets[:, None], loss=dice_and_cross_entropy, seed=seed)
        targets = self._patch_targets(support)
        return Problem(query=query, targets=targets, seed=seed).take(balanced(targets[:, : len(self.structures)], self.rows, seed))

    def _patch_targets(self, support: Samples) -> Tensor:
        """(images x side x side, C + 1) in the order of `query`; the background is known where all structures are."""
        first = runs(support.column("image"))
        number = np.searchsorted(np.unique(first), first)
        inside = torch.full((int(number[-1]) + 1, self.side, self.side, len(self.structures)), torch.nan)
        lines = zip(number, support.column("prompt"), support.pictures("mask"), fields_of_view(support), strict=True)
        for image, structure, mask, field in lines:
            if structure in self.structures:
                marked = (area_shares(mask.values() > 0, self.side) > 0.5).float()
                if field is not None:
                    marked[area_shares(field, self.side) < 0.5] = torch.nan
                inside[image, :, :, self.structures.index(structure)] = marked
        return torch.cat([inside, 1 - inside.amax(-1, keepdim=True)], -1).flatten(0, 2)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """A line is asked for its own prompt; `words`, or all structures where a prompt is missing, are asked of every image.

        Raises DataError for an empty prompt.
        """
        if words is not None and not (words and all(word.strip() for word in words)):
            raise DataError("an empty prompt: say in words what is to be marked, such as --text 'left lung'")
        if words is not None or "prompt" not in samples or None in samples.column("prompt"):
            samples = every_image(samples, tuple(words or self.structures))
        samples = sliced(samples, self.plane, self.context)
        first = runs(samples.column("image"))
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
        """Masks in the source's geometry: (H, W), of a volume (S, H, W) as its file stores it.

        A patch belongs to a structure whose logit is above 0 and above the background's.
        """
        looks: dict[str, bool] = {}
        found: dict[int, list[tuple[Picture, str, Array | None]]] = {}
        asked = query.samples
        rows = zip(owners(asked), asked.pictures(), asked.column("prompt"), self._logits(query, answer), strict=True)
        for line, picture, structure, logits in rows:
            if picture.name not in looks or (isinstance(picture, SlicePicture) and not looks[picture.name]):
                looks[picture.name] = bool(np.ptp(picture.read()) > 0)
            found.setdefault(line, []).append((picture, structure, None if logits is None else at_source(logits, picture)))
        table, arrays = [], {}
        for place, line in enumerate(sorted(found)):
            (picture, structure, _), answered = found[line][0], found[line][0][2] is not None
            mask, row = drawn([(one, mask) for one, _, mask in found[line]])
            warning = self._warning(structure, mask, answered=answered, seen=looks[picture.name])
            table.append({"image": picture.name, "structure": structure, **row, "warning": warning})
            arrays[f"{place}/mask"] = mask
        return Predicted(table=table, arrays=arrays)

    def shown(self, picture: Picture, predicted: Array, mask: Picture) -> tuple[Array, Array, Array]:
        """Pixels, predicted and true mask of the image, or of the slice of a volume where most is marked: for figures."""
        if predicted.ndim == 2 or not is_volume(picture):
            return picture.array(), predicted > 0, mask.values() > 0
        volume = Volume.of(picture, self.plane)
        ours, true = volume.cut(predicted > 0), volume.cut(whole(mask) > 0)
        most = int((true.sum((1, 2)) if true.any() else ours.sum((1, 2))).argmax())
        return SlicePicture(volume, most).array(), ours[most], true[most]

    def _warning(self, structure: str, mask: Array, *, answered: bool, seen: bool) -> str:
        said = {
            "not among the structures that were learnt": not answered,
            "the image is one colour everywhere, so nothing can be seen on it": not seen,
            "no training image has this structure: its mask is a guess": structure in self.never,
            "nothing found": answered and not mask.any(),
        }
        return "; ".join(sentence for sentence, holds in said.items() if holds)

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
        for image, structure in zip(runs(query.samples.column("image")), query.samples.column("prompt"), strict=True):
            yield margins[int(np.searchsorted(images, image)), :, :, names.index(structure)] if structure in names else None

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Of the lines whose structure was learnt or is asked for by words alone, inside the field of view where there is one.

        A volume is measured as a whole. A mask of another size than its truth is brought to it (nearest pixel).
        """
        return self._statistics(said, truth, spacings_of(truth))

    def measured(self, predict: Callable[[Samples], Predicted], samples: Samples) -> Mapping[str, Statistic]:
        """`measure`; volumes are predicted one after another, so that only the answer of one is held."""
        if not any(map(is_volume, samples.pictures())):
            return super().measured(predict, samples)
        spacings, first = spacings_of(samples), runs(samples.column("image"))
        found = []
        for start in np.unique(first).tolist():
            lines = np.flatnonzero(first == start)
            part = samples.take(lines)
            found.append(self._statistics(predict(part), part, [spacings[line] for line in lines]))
        return {name: joined([one[name] for one in found]) for name in found[0]}

    def _statistics(self, said: Predicted, truth: Samples, spacings: Sequence[tuple[float, ...] | None]) -> dict[str, Statistic]:
        asked = (*self.structures, *self.unseen)
        learnt = np.array([prompt in asked for prompt in truth.column("prompt")])
        true = [whole(mask) > 0 for mask in truth.pictures("mask")]
        ours = [at_size(said.arrays[f"{line}/mask"], mask.shape) for line, mask in enumerate(true)]
        fields = fields_of_view(truth)
        true, ours = ([mask if field is None else mask & field for mask, field in zip(side, fields, strict=True)] for side in (true, ours))
        found = segmentation(ours, true, spacings)
        values = {name: np.where(learnt, statistic.arrays()["values"], np.nan) for name, statistic in found.items()}
        if "instances" in truth:
            f1 = [
                np.nan if picture is None else instance_f1_of(mask, whole(picture))
                for mask, picture in zip(ours, optional_pictures(truth, "instances"), strict=True)
            ]
            values["instance_f1"] = np.where(learnt, np.array(f1, dtype=float), np.nan)
        if 1 < len(asked) <= SHOWN:
            prompts = np.array(truth.column("prompt"), dtype=object)
            values |= {f"dice.{name}": np.where(prompts == name, values["dice"], np.nan) for name in asked}
        return {name: Mean(value) for name, value in values.items()}


@dataclass(frozen=True)
class Segmentation(Task):
    """`structures`: only these prompts (empty: all); `unseen`: not learnt, asked for by words at test, by methods that take new words.

    `rows`: patches learnt from at most, `side` a side; `size`: decoders' working size. Where objects are numbered (`instances`) and
    there is no mask, all of them are the mask. What lies outside a field of view (`fov`) is not learnt from and not measured.
    `labels`: names of the values 1, 2, … of masks that are label maps.

    Of a volume at most `slices` slices a structure are learnt from, half of them with the structure (seeded); it is cut across its
    third axis as stored, or in a `plane` (NIfTI, NRRD, MHA); channels are the slices `context` before, itself, and `context` after.
    """

    kinds = ("grids", "scores")
    inputs = ("image", "prompt")
    requires = ("image", "mask", "prompt")
    offers = frozenset({"labels", "words", "targets_on_grid"})
    references = ("zero_shot", "linear_probe", "dense_zero_shot")
    start, plain = "zero_shot", "linear_probe"
    structures: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    rows: Annotated[int, Field(gt=0)] = 6000
    side: Annotated[int, Field(gt=1)] = 28
    size: Annotated[int, Field(ge=32)] = 224
    labels: tuple[str, ...] = ()
    slices: Annotated[int, Field(gt=0)] = 24
    plane: Plane = "stored"
    context: Annotated[int, Field(ge=0)] = 1

    def usable(self, samples: Rows) -> Rows:
        """Rows with a mask of the chosen structures. Raises DataError for masks that do not fit their images, all at once."""
        if "mask" not in samples and "instances" in samples:
            samples = samples.replaced(mask=samples.column("instances"))
        if self.labels and "mask" in samples:
            filled = [row for row, cell in enumerate(samples.column("mask")) if cell is not None]
            samples = masks.named(samples.take(filled), self.labels)
        samples = super().usable(samples)
        prompts = samples.column("prompt")
        rows = [row for row, prompt in enumerate(prompts) if not self.structures or prompt in (*self.structures, *self.unseen)]
        if not rows:
            known = ", ".join(sorted({str(prompt) for prompt in prompts})[:10])
            raise DataError(f"no row has the structure {', '.join(self.structures)}; the column 'prompt' holds {known}")
        samples = middles(masks.once(samples.take(rows)))
        masks.check(samples.pictures("mask"), samples.pictures(), instances="instances" in samples)
        return samples

    def settled(self, train: Samples) -> Task:
        found = sorted({str(prompt) for prompt in train.column("prompt")} - set(self.unseen))
        unknown = sorted(set(self.structures) - set(found))
        if unknown:
            raise DataError(
                f"{', '.join(map(repr, unknown[:5]))} is no structure of the training rows ({', '.join(found[:10])}): correct the name"
            )
        return replace(self, structures=self.structures or tuple(found))

    def remarks(self, train: Samples, test: Samples | None) -> Sequence[str]:
        prompts = [] if test is None else [str(prompt) for prompt in test.column("prompt")]
        new = sorted(set(prompts) - {*self.structures, *self.unseen})
        never = empty_ones(train, self.structures)
        missing = ", ".join(map(repr, new[:5]))
        rows = sum(prompt in new for prompt in prompts)
        said = {
            f"No training image has {missing}: {rows} test rows of it are not measured (task.unseen asks for it by its words).": new,
            f"All training masks of {', '.join(map(repr, never[:5]))} are empty: what is marked as such is a guess.": never,
        }
        return [sentence for sentence, names in said.items() if names]

    def strata(self, samples: Samples) -> Array:
        return np.array([None if prompt in self.unseen else prompt for prompt in samples.column("prompt")], dtype=object)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        structures = self.structures or tuple(sorted({str(prompt) for prompt in support.column("prompt")} - set(self.unseen)))
        never = empty_ones(support, structures)
        cut = (self.slices, self.plane, self.context)
        return SegmentationFrame(wants, structures, self.rows, self.side, self.size, self.unseen, never, *cut)


def empty_ones(samples: Samples, structures: Sequence[str]) -> tuple[str, ...]:
    """The structures of which every mask is empty."""
    filled: set[str] = set()
    for prompt, mask in zip(samples.column("prompt"), samples.pictures("mask"), strict=True):
        if prompt not in filled and whole(mask).any():
            filled.add(prompt)
    return tuple(name for name in structures if name not in filled)


def middles(samples: Rows) -> Rows:
    """Where a mask is drawn on one slice of a volume alone, the image is that slice: the middle one."""
    images = samples.column("image")
    pictures: list[Any] = samples.pictures()
    for line, (picture, mask) in enumerate(zip(pictures, samples.pictures("mask"), strict=True)):
        if is_volume(picture) and not is_volume(mask):
            images[line] = replace(picture, frame=frames_of(picture) // 2)
    return samples.replaced(image=images)


def at_source(logits: Tensor, picture: Picture) -> Array:
    """(H, W) uint8 at the size of a picture from logits (h, w)."""
    geometry = picture.geometry()
    mask: Array = (interpolate(logits[None, None], (geometry.height, geometry.width), mode="bilinear")[0, 0] > 0).numpy()
    return mask.astype(np.uint8)


def drawn(parts: Sequence[tuple[Picture, Array | None]]) -> tuple[Array, dict[str, object]]:
    """The mask of an image, or of the slices of a volume as its file stores them, and its size; an answer of None marks nothing."""
    picture = parts[0][0]
    size = (picture.geometry().height, picture.geometry().width)
    each = [np.zeros(size, dtype=np.uint8) if mask is None else mask for _, mask in parts]
    whole_volume = isinstance(picture, SlicePicture)
    mask = picture.volume.uncut(np.stack(each)) if isinstance(picture, SlicePicture) else each[0]
    sides = spacing_of(picture.volume.picture if isinstance(picture, SlicePicture) else picture)
    count = int(mask.sum())
    row: dict[str, object] = {"voxels" if whole_volume else "pixels": count}
    return mask, row if sides is None else row | {"volume_mm3" if whole_volume else "area_mm2": count * float(np.prod(sides))}


def spacings_of(truth: Samples) -> list[tuple[float, ...] | None]:
    """Of each line's image; where one is unknown all are: units are not mixed."""
    found = [spacing_of(picture) for picture in truth.pictures()]
    return [None] * len(found) if None in found else found


def every_image(samples: Samples, names: tuple[str, ...]) -> Samples:
    """A line for each image, each once, and name."""
    first = list({picture: line for line, picture in reversed(list(enumerate(samples.column("image"))))}.values())[::-1]
    return samples.take(np.repeat(first, len(names))).replaced(prompt=list(names) * len(first))


def optional_pictures(samples: Samples, column: str) -> list[Picture | None]:
    """A picture a line, None where the cell is empty or there is no such column."""
    if column not in samples:
        return [None] * len(samples)
    there = [line for line, value in enumerate(samples.column(column)) if value is not None]
    found = dict(zip(there, samples.take(there).pictures(column), strict=True))
    return [found.get(line) for line in range(len(samples))]


def fields_of_view(samples: Samples) -> list[Array | None]:
    """(H, W), or (S, H, W), booleans a line, where the manifest has a field of view."""
    return [None if picture is None else whole(picture) > 0 for picture in optional_pictures(samples, "fov")]


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
    """A mask (H, W) or (S, H, W) at another size, nearest pixel; one slice stands for all."""
    if mask.shape == size:
        return np.asarray(mask > 0)
    if mask.ndim != len(size):
        mask = mask[None] if mask.ndim < len(size) else mask[len(mask) // 2]
    return np.asarray(interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0, 0] > 0)


def dice_and_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss, a mask at a time, by MONAI, plus binary cross-entropy, of (N, 1, H, W); pixels with a target of NaN carry no loss."""
    from monai.losses import DiceLoss

    known = ~targets.isnan()
    dice: Tensor = DiceLoss(sigmoid=True)(logits.masked_fill(~known, NOWHERE), targets.nan_to_num(0))
    return dice + binary_cross_entropy_with_logits(logits[known], targets[known])
