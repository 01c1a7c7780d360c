"""Methods that give boxes: planted cells, resuming, words, and what is refused. How well they find is in tests/tasks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doubles import tiny_encoder
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import PairError
from medtame.learning.detecting import by_kind, lessons, objects_by_kind
from medtame.learning.loop import finish
from medtame.strategies.baselines.fixed_code_detector import FixedCodeDetector
from medtame.strategies.direct_use.dense_zero_shot_boxes import BACKGROUND, DenseZeroShotBoxes, components, margin
from medtame.strategies.fusion.text_query_detector import TextQueryDetector
from medtame.types import Candidates, Problem, Query

NAMES = ("a bright disc", "a dark disc")
ENCODER = tiny_encoder()


class Planted:
    """Cells of 4 x 4: the upper half shows the first name, the lower left cell the second, the rest is background."""

    spec, scale = "planted", 10.0

    def grid(self, samples, column="image"):
        cells = torch.empty(1, 32, 4, 4)
        first, second, empty = ENCODER.texts([*NAMES, BACKGROUND[0]])
        cells[0] = empty[:, None, None]
        cells[0, :, :2] = first[:, None, None]
        cells[0, :, 3, 0] = second
        return (cells.expand(len(samples), -1, -1, -1) * 3,)

    def texts(self, strings):
        return ENCODER.texts(strings)


def query(encoder, n=3, names=NAMES) -> Query:
    random = np.random.default_rng(0)
    pictures = [ArrayPicture(random.uniform(0, 1, (40, 40)).astype(np.float32), f"image-{i}") for i in range(n)]
    samples = ManifestSamples({"image": pictures}, np.arange(n))
    candidates = Candidates(names=names, prompts=tuple((name,) for name in names))
    return Query(wants="boxes", samples=samples, encoder=encoder, source=np.arange(n), candidates=candidates, size=(32, 32))


TARGETS = [
    torch.tensor([[0.1, 0.1, 0.4, 0.4, 0.0], [0.5, 0.5, 0.9, 0.9, 1.0]]),
    torch.tensor([[0.2, 0.3, 0.5, 0.7, 1.0]]),
    torch.zeros(0, 5),
]


def problem(targets=TARGETS) -> Problem:
    return Problem(query=query(ENCODER), targets=targets)


def test_cells_of_a_word_become_one_box_each():
    asked = query(Planted(), n=2)
    method = DenseZeroShotBoxes(least=0.02)  # between two cells a third word may be nearest for a pixel or two
    found = method.fit(Problem(query=asked, targets=TARGETS[:2])).answer(asked).values
    assert len(found) == 2
    for boxes in found:
        assert boxes[:, 5].tolist() == [0, 1]
        assert boxes[0, :4].tolist() == pytest.approx([0, 0, 1, 0.5], abs=0.07)
        assert boxes[1, :4].tolist() == pytest.approx([0, 0.75, 0.25, 1], abs=0.07)
        assert bool((boxes[:, 4] > 0.5).all())


def test_a_part_is_what_touches_by_a_side_and_small_ones_are_left_out():
    above = torch.full((10, 10), -1.0)
    above[1:4, 2:5], above[4, 5], above[7:9, 7:9] = 2.0, 1.0, 1.0
    found = list(components(above, 3, 0.02))
    assert [box[:4] for box in found] == [(0.2, 0.1, 0.5, 0.4), (0.7, 0.7, 0.9, 0.9)]
    assert [box[4] for box in found] == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))])
    assert all(box[5] == 3 for box in found)
    assert not list(components(above - 5, 0, 0.0))


def test_a_margin_is_the_logit_less_that_of_the_best_rival():
    logits = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    found = margin(logits, 2)
    for row in range(3):
        for column in range(3):
            rivals = [float(logits[k, row, column]) for k in (0, 1, 3)]
            assert float(found[row, column]) == pytest.approx(float(logits[2, row, column]) - max(rivals), abs=1e-6)


@pytest.mark.parametrize("method", [TextQueryDetector(steps=5, width=16), FixedCodeDetector(steps=5, width=16)])
def test_a_resumed_descent_equals_an_uninterrupted_one(method):
    states, steps = [], method.learn(problem())
    for _ in range(3):
        states.append(next(steps).state())
    whole, resumed = finish(steps), finish(method.learn(problem(), resume=states[1]))
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_objects_by_kind_and_those_without_a_name_under_a_last_one():
    kinds = objects_by_kind(TARGETS, 2)
    assert [[len(boxes) for boxes in kind] for kind in kinds] == [[1, 0, 0], [1, 1, 0]]
    unnamed = [replaced(boxes) for boxes in TARGETS]
    kinds = objects_by_kind(unnamed, 1)
    assert [[len(boxes) for boxes in kind] for kind in kinds] == [[1, 0, 0], [2, 1, 0]]


def replaced(boxes):
    boxes = boxes.clone()
    boxes[:, 4] = torch.where(boxes[:, 4] == 1, -1.0, boxes[:, 4])
    return boxes


def test_a_class_without_a_name_is_learnt_under_any_object():
    unnamed = [replaced(boxes) for boxes in TARGETS]
    asked = query(ENCODER, names=NAMES[:1])
    fitted = TextQueryDetector(steps=2, width=16, least=0).fit(Problem(query=asked, targets=unnamed))
    assert fitted.spread > 0.01, "two prompts: the class, and any object"
    assert all(set(boxes[:, 5].tolist()) == {0.0, 1.0} for boxes in fitted.answer(query(ENCODER)).values)
    fixed = FixedCodeDetector(steps=2, width=16, least=0).fit(Problem(query=asked, targets=unnamed))
    assert all(set(boxes[:, 5].tolist()) == {0.0} for boxes in fixed.answer(query(ENCODER)).values)


def test_lessons_hold_each_image_once_and_maps_at_half_the_side():
    taken = lessons(query(ENCODER), objects_by_kind(TARGETS, 2))
    assert taken.targets.shape == (6, 6, 16, 16)
    assert len(taken.images.pixels) == 3
    assert taken.images.source.tolist() == [0, 0, 1, 1, 2, 2]
    assert taken.code.tolist() == [0, 1, 0, 1, 0, 1]
    assert [int((one[0] == 1).sum()) for one in taken.targets] == [1, 1, 0, 1, 0, 0]


def test_kinds_are_joined_with_their_numbers():
    found = [[torch.ones(2, 5), torch.zeros(1, 5)], [torch.zeros(0, 5), torch.zeros(0, 5)]]
    assert [boxes[:, 5].tolist() for boxes in by_kind(found)] == [[0, 0, 1], []]
    assert [boxes[:, 5].tolist() for boxes in by_kind(found, [4, 2])] == [[4, 4, 2], []]
    assert [boxes.shape for boxes in by_kind([[]], [])] == [(0, 6)]


@pytest.mark.parametrize("method", [TextQueryDetector(steps=1, width=16), FixedCodeDetector(steps=1, width=16), DenseZeroShotBoxes()])
def test_a_query_without_a_size_is_refused(method):
    with pytest.raises(PairError, match="names no size"):
        method.fit(problem()).answer(replace(query(ENCODER), size=None))
