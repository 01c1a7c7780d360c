"""Object detection: propose, then name. A row is an image with all its boxes; an image without a box holds no object.

A method that gives boxes is told the words of the candidates and answers for itself. A scorer is asked regions: the frame holds a
proposer that marks every object of the training images, whatever it is, and the scorer names what it finds or calls it background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import batched_nms

from medtame.data.boxes import BOXES, CORNERS, folded, fractions
from medtame.errors import DataError, PairError
from medtame.features.scales import distinct
from medtame.learning.loop import Descent
from medtame.learning.proposals import lesson, named, proposed, proposer
from medtame.metrics.detection import COUNTED_FROM, count_thresholds, detection
from medtame.metrics.statistic import Statistic
from medtame.tasks.base import Frame, Rows, Task, every
from medtame.types import Answer, Array, Boxes, Candidates, Encoder, Kind, Predicted, Problem, Query, Samples, Scores

BACKGROUND = "background"
NOTHING = "no object"  # the stratum of images without any
PROPOSED = "proposals"  # a column of the query's own: (n, 5) x0 y0 x1 y1 objectness an image
WEAKEST = 0.001  # a box with a lower score is not written


@dataclass(frozen=True)
class Finder:
    """How the proposer of a frame is learnt and asked."""

    steps: int
    learning_rate: float
    most: int
    least: float
    overlap: float
    width: int = 64
    batch: int = 8
    weight_decay: float = 0.01
    dropout: float = 0.1

    def descent(self) -> Descent:
        warm_up = min(10, self.steps // 4)
        return Descent(
            steps=self.steps, learning_rate=self.learning_rate, batch=self.batch, weight_decay=self.weight_decay, warm_up=warm_up
        )


@dataclass(frozen=True)
class ObjectDetectionFrame(Frame):
    """`classes` were learnt, `unseen` ones are asked for by words of methods that give boxes. `proposer`: weights by name.

    `thresholds`: the score from which a box of each name is counted, and `counted`: the same of an objectness; both are chosen on
    training images.
    """

    classes: tuple[str, ...]
    unseen: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]  # of each name
    size: int
    rows: int
    most: int
    overlap: float
    steps: int
    learning_rate: float
    proposer: dict[str, Tensor] = field(default_factory=dict)
    counted: float = COUNTED_FROM
    thresholds: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.classes, *self.unseen)

    def prepared(self, support: Samples, encoder: Encoder, seed: int) -> ObjectDetectionFrame:
        """With a proposer, where scorers name regions: learnt from the boxes of every class, the unseen ones too, without their names."""
        truth = self.truth(support)
        if not any(len(boxes) for boxes in truth):
            raise DataError(f"none of the {len(support)} training images has a box: give some that mark what is to be found")
        if self.wants != "scores":
            return self
        finder = self._finder()
        query = replace(self._images(support.only(("image",)), encoder), candidates=None)
        weights = proposer(lesson(query, truth, finder.descent(), finder.dropout, finder.width, seed))
        found = proposed(weights, query, finder.most, finder.least, finder.overlap)
        counted = count_thresholds([one_class(boxes) for boxes in found], [one_class(boxes[:, :4]) for boxes in truth], 1)[0]
        return replace(self, proposer=weights, counted=min(max(counted, 0.01), 0.99))

    def _finder(self) -> Finder:
        return Finder(self.steps, self.learning_rate, self.most, 0.01, self.overlap)

    def truth(self, samples: Samples) -> list[Tensor]:
        """(m, 5) an image: x0 y0 x1 y1 in fractions and the number of the class among `names`; -1 for another one."""
        pairs = zip(samples.column(BOXES), samples.pictures(), strict=True)
        return [fractions(boxes, picture, self.names) for boxes, picture in pairs]

    def problem(self, support: Samples, encoder: Encoder, seed: int) -> Problem:
        """Boxes: a row an image, targets (m, 5) each; an unseen class has number -1. Scores: regions, balanced over classes and background.

        An object of an unseen class is no row to learn from: it is not background, and its name is not told.
        """
        truth = [nameless(boxes, len(self.classes)) for boxes in self.truth(support)]
        if self.wants == "boxes":
            query = replace(self._images(support.only(("image",)), encoder), candidates=self._candidates(self.classes))
            return Problem(query=query, targets=truth, seed=seed)
        query = self.query(support.only(("image",)), encoder)
        source, regions, targets = named(query.samples.column(PROPOSED), truth, len(self.classes), self.rows, seed)
        return Problem(query=replace(query, source=source, regions=regions), targets=targets, seed=seed)

    def query(self, samples: Samples, encoder: Encoder, words: Sequence[str] | None = None) -> Query:
        """Boxes: of each image every class, the unseen ones too. Scores: the learnt classes and background for each proposal.

        Raises DataError for an empty prompt.
        """
        if words is not None and not (words and all(word.strip() for word in words)):
            raise DataError("an empty prompt: say in words what is to be found, such as --text 'platelet'")
        images = self._images(samples, encoder)
        if self.wants == "boxes":
            return replace(images, candidates=self._candidates(words or self.names))
        if not self.proposer:
            raise PairError("this frame has no proposer yet: prepare it with training images")
        finder = self._finder()
        found = proposed(self.proposer, images, finder.most, finder.least, finder.overlap)
        names = tuple(dict.fromkeys([*(words or self.classes), BACKGROUND]))
        return Query(
            wants="scores",
            samples=samples.replaced(**{PROPOSED: found}),
            encoder=encoder,
            source=np.repeat(every(samples), [len(boxes) for boxes in found]),
            regions=torch.cat([boxes[:, :4] for boxes in found]) if found else torch.zeros(0, 4),
            candidates=self._candidates(names),
        )

    def _images(self, samples: Samples, encoder: Encoder) -> Query:
        return Query(wants="boxes", samples=samples, encoder=encoder, source=every(samples), size=(self.size, self.size))

    def _candidates(self, names: Sequence[str]) -> Candidates:
        known = dict(zip(self.names, self.prompts, strict=True))
        return Candidates(names=tuple(names), prompts=tuple(known.get(name, (name,)) for name in names))

    def calibrated(self, problem: Problem, answers: Callable[[Problem, Query], Answer]) -> ObjectDetectionFrame:
        """With thresholds for counting, by what the fitted method says of its own training images; scorers count by objectness."""
        if self.wants != "boxes":
            return self
        said = answers(problem, problem.query)
        if not isinstance(said, Boxes):
            raise PairError("object detection reads boxes or scores")
        learnt = count_thresholds(said.values, [boxes[boxes[:, 4] >= 0].numpy() for boxes in problem.targets], len(self.classes))
        return replace(self, thresholds=(*learnt, *[float(np.mean(learnt))] * len(self.unseen)))

    def read(self, query: Query, answer: Answer) -> Predicted:
        """A line a box that counts, in pixels of the source, best first; all boxes with their scores under `boxes/ROW`.

        Boxes of a class that lie on each other by an IoU above `overlap` are one.
        """
        names = tuple(name for name in dict.fromkeys([*self.names, *query.wanted.names]) if name != BACKGROUND)
        of_candidate = torch.tensor([names.index(name) if name in names else -1 for name in query.wanted.names])
        table: list[dict[str, object]] = []
        arrays: dict[str, Array] = {}
        for row, (picture, found) in enumerate(zip(query.samples.pictures(), self._boxes(query, answer), strict=True)):
            boxes = suppressed(found, self.overlap, self.most)
            boxes[:, 5] = of_candidate[boxes[:, 5].long()].to(boxes.dtype)
            arrays[f"{BOXES}/{row}"] = boxes.numpy()
            geometry = picture.geometry()
            side = torch.tensor([geometry.width, geometry.height] * 2)
            counted = [box for box in boxes if box[4] >= self._threshold(int(box[5]))]
            seen = bool(np.ptp(picture.read()) > 0)
            warning = "" if seen else "the image is one colour everywhere, so nothing can be seen on it"
            lines = [box_line(picture.name, names[int(box[5])], float(box[4]), (box[:4] * side).tolist(), warning) for box in counted]
            table += lines or [box_line(picture.name, "", None, None, "; ".join(filter(None, [warning, "nothing found"])))]
        arrays |= {"names": np.array(names), "images": np.array([picture.name for picture in query.samples.pictures()])}
        return Predicted(table=table, arrays=arrays)

    def _threshold(self, number: int) -> float:
        return self.thresholds[number] if number < len(self.thresholds) else COUNTED_FROM

    def _boxes(self, query: Query, answer: Answer) -> list[Tensor]:
        """(n, 6) an image. Of a scorer: objectness, moved so that what counts is above one half, times the probability of the name."""
        if isinstance(answer, Boxes):
            return answer.values
        if not isinstance(answer, Scores):
            raise PairError("object detection reads boxes or scores")
        proposals = query.samples.column(PROPOSED)
        parts = torch.split(answer.values.softmax(1).nan_to_num(0), [len(boxes) for boxes in proposals])
        kept = [k for k, name in enumerate(query.wanted.names) if name != BACKGROUND]
        found = []
        for boxes, share in zip(proposals, parts, strict=True):
            sure = torch.sigmoid(torch.logit(boxes[:, 4], 1e-6) - float(np.log(self.counted / (1 - self.counted))))
            one_each = [torch.cat([boxes[:, :4], (sure * share[:, k])[:, None], torch.full((len(boxes), 1), float(k))], 1) for k in kept]
            found.append(torch.cat(one_each))
        return found

    def measure(self, said: Predicted, truth: Samples) -> Mapping[str, Statistic]:
        """Of the classes that were learnt or are asked for by words; boxes of others count neither way."""
        true = [boxes[boxes[:, 4] >= 0].numpy() for boxes in self.truth(truth)]
        ours = [np.asarray(said.arrays[f"{BOXES}/{row}"]) for row in range(len(true))]
        ours = [boxes[boxes[:, 5] < len(self.names)] for boxes in ours]
        sizes = [(picture.geometry().height, picture.geometry().width) for picture in truth.pictures()]
        return detection(ours, true, sizes, self.names, self.thresholds or None)


@dataclass(frozen=True)
class ObjectDetection(Task):
    """`classes`: only boxes of these (empty: all); `unseen`: kept as objects without a name, asked for by words at test.

    `prompts`: sentences a class; else the `templates`. `size`: pixels a side that decoders see. `rows`: regions that scorers learn
    from, at most, equally many of each class and of background. `most` boxes an image, at most; two of a class whose IoU is above
    `overlap` are one. `steps` and `learning_rate` are the proposer's.
    """

    kinds = ("boxes", "scores")
    requires = ("image", "label", *CORNERS)
    offers = frozenset({"labels", "centres"})
    references = ("zero_shot", "linear_probe", "dense_zero_shot_boxes")
    start, plain = "zero_shot", "linear_probe"
    shots = ("all",)
    classes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("{}", "an image of {}")
    size: Annotated[int, Field(ge=32, multiple_of=16)] = 160
    rows: Annotated[int, Field(gt=1)] = 4000
    most: Annotated[int, Field(gt=0)] = 200
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    steps: Annotated[int, Field(ge=0)] = 600
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3

    def usable(self, samples: Rows) -> Rows:
        """A row an image with the column `boxes`. Raises DataError for boxes that cannot be."""
        if BOXES not in samples:
            missing = [name for name in self.requires if name not in samples]
            if missing:
                super().usable(samples)  # says which
            with_image = [row for row, image in enumerate(samples.column("image")) if image is not None]
            samples = folded(samples.take(with_image))
        if not self.classes:
            return samples
        wanted = (*self.classes, *self.unseen)
        held = labels_of(samples)
        if held and not set(wanted) & set(held):
            raise DataError(
                f"no box has the label {', '.join(self.classes)}; the labels are {', '.join(sorted(held)[:10])}: correct the name"
            )
        kept = [tuple(box for box in boxes if box[0] in wanted) for boxes in samples.column(BOXES)]
        return samples.replaced(**{BOXES: kept})

    def given(self, samples: Samples) -> tuple[Samples, Sequence[str] | None]:
        """Of a manifest with a line a box each image is asked once."""
        lines = BOXES not in samples and CORNERS[0] in samples
        return super().given(samples.take(distinct(samples)[0]) if lines else samples)

    def settled(self, train: Samples) -> Task:
        found = labels_of(train)
        if not found:
            raise DataError(f"none of the {len(train)} training images has a box: give some that mark what is to be found")
        unknown = sorted(set(self.classes) - set(found)) or sorted(set(self.prompts) - set(found) - set(self.unseen))
        if unknown:
            raise DataError(f"{unknown[0]!r} is no class of the training boxes ({', '.join(sorted(found)[:10])}): correct the name")
        classes = self.classes or tuple(sorted(set(found) - set(self.unseen)))
        if not classes:
            raise DataError("every class is named as unseen, so that there is no name to learn: leave one out")
        return replace(self, classes=classes)

    def servable(self, test: Samples) -> None:
        new = sorted(set(labels_of(test)) - {*self.classes, *self.unseen})
        if new:
            raise DataError(f"no training box has the label {new[0]!r} of the test: correct it, or name it with the setting 'unseen'")

    def strata(self, samples: Samples) -> Array:
        """An image belongs to the rarest of its classes, so that few images hold them all."""
        counts = labels_of(samples)
        held = [{box[0] for box in boxes} - set(self.unseen) for boxes in samples.column(BOXES)]
        rarest = [min(names, key=lambda name: (counts[name], name), default=NOTHING) for names in held]
        return np.array(rarest, dtype=object)

    def frame(self, support: Samples, wants: Kind) -> Frame:
        classes = self.classes or tuple(sorted(set(labels_of(support)) - set(self.unseen)))
        names = (*classes, *self.unseen)
        prompts = tuple(tuple(self.prompts.get(name) or [template.format(name) for template in self.templates]) for name in names)
        sizes = (self.size, self.rows, self.most, self.overlap, self.steps, self.learning_rate)
        return ObjectDetectionFrame(wants, classes, self.unseen, prompts, *sizes)


def labels_of(samples: Samples) -> Counter[str]:
    """How many boxes each label has."""
    return Counter(box[0] for boxes in samples.column(BOXES) for box in boxes)


def nameless(boxes: Tensor, classes: int) -> Tensor:
    """The same boxes (m, 5); those of a class beyond the learnt ones have number -1."""
    known = torch.where(boxes[:, 4:] < classes, boxes[:, 4:], -1.0)
    return torch.cat([boxes[:, :4], known], 1)


def one_class(boxes: Tensor) -> Array:
    """Boxes with a score (n, 5), or without (m, 4), as boxes of the class 0."""
    return np.asarray(torch.cat([boxes, torch.zeros(len(boxes), 1)], 1).numpy())


def suppressed(boxes: Tensor, overlap: float, most: int) -> Tensor:
    """Boxes (n, 6), best first, without those that lie on a better one of their class; at most `most` of them."""
    boxes = boxes[boxes[:, 4] >= WEAKEST]
    kept = batched_nms(boxes[:, :4], boxes[:, 4], boxes[:, 5].long(), overlap)[:most]
    return boxes[kept].clone()


def box_line(image: str, label: str, score: float | None, corners: Sequence[float] | None, warning: str) -> dict[str, object]:
    """A line of the table; corners in pixels."""
    values = [None] * 4 if corners is None else [round(corner, 1) for corner in corners]
    return {"image": image, "label": label, "score": score, **dict(zip(CORNERS, values, strict=True)), "warning": warning}
