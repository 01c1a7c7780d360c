"""Masks that do not fit: one error for all of them, each in one clear line."""

import numpy as np
import pytest

from medtame.data import masks
from medtame.data.images import ArrayPicture
from medtame.errors import DataError

IMAGE = ArrayPicture(np.full((6, 8), 0.5), "image")


class Volume(ArrayPicture):
    """A picture of a volume with fewer slices than its image."""

    def frames(self):
        return 3


def mask(values, name="mask", kind=ArrayPicture):
    return kind(np.asarray(values, dtype=np.int64), name)


@pytest.mark.parametrize("high", [1, 255, 7])
def test_nothing_and_one_other_value_is_a_mask(high):
    marked = np.zeros((6, 8))
    marked[2:4, 2:4] = high
    masks.check([mask(marked), mask(np.zeros((6, 8))), mask(np.full((6, 8), high))], [IMAGE] * 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (mask(np.ones((6, 9))), "mask is 6 x 9 pixels and its image 6 x 8"),
        (mask(np.arange(48).reshape(6, 8)), r"holds the values 0, 1, 2, 3, 4, 5, …, of which none is known"),
        (mask(np.where(np.eye(6, 8) > 0, 2, 1)), "holds the values 1, 2, of which none is known"),
        (mask(-np.eye(6, 8)), "below zero"),
        (mask(np.eye(6, 8), kind=Volume), "has 3 slices and its image 1"),
    ],
    ids=["another size", "many values", "two values", "negative", "missing slices"],
)
def test_what_does_not_fit_is_said(given, said):
    with pytest.raises(DataError, match=said) as error:
        masks.check([given], [IMAGE])
    assert "\n" not in str(error.value)


def test_numbered_objects_may_hold_many_values_but_not_another_size():
    masks.check([mask(np.arange(48).reshape(6, 8))], [IMAGE], instances=True)
    with pytest.raises(DataError, match="6 x 9 pixels"):
        masks.check([mask(np.ones((6, 9)))], [IMAGE], instances=True)


def test_all_are_told_in_one_error():
    with pytest.raises(DataError, match=r"a is 1 x 1.*b is 1 x 1.*c is 1 x 1.*\(and 2 more masks\)"):
        masks.check([mask(np.ones((1, 1)), name) for name in "abcde"], [IMAGE] * 5)


def test_a_fault_of_a_label_map_is_told_once_for_all_its_structures():
    with pytest.raises(DataError) as error:
        masks.check([mask(np.ones((1, 1)), "labels")] * 5, [IMAGE] * 5)
    assert str(error.value) == "labels is 1 x 1 pixels and its image 6 x 8: masks must lie on their image pixel by pixel"
