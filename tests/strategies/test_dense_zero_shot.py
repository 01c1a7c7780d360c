"""Cells against words: a planted encoder whose cells are the words themselves, a slow twin, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doubles import tiny_encoder
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import PairError
from medtame.strategies.direct_use.dense_zero_shot import BACKGROUND, DenseZeroShot, margins
from medtame.types import Problem, Query

NAMES = ("a bright disc", "a dark disc")
ENCODER = tiny_encoder()


class Planted:
    """An encoder whose upper half shows the first name, the lower left the second, and the rest the background."""

    spec, scale = "planted", 10.0

    def grid(self, samples, column="image"):
        cells = torch.empty(1, 32, 4, 4)
        first, second, empty = ENCODER.texts([*NAMES, BACKGROUND[0]])
        cells[0, :, :2] = first[:, None, None]
        cells[0, :, 2:, :2] = second[:, None, None]
        cells[0, :, 2:, 2:] = empty[:, None, None]
        return (cells.expand(len(samples), -1, -1, -1) * 3,)

    def texts(self, strings):
        return ENCODER.texts(strings)


def query(words, encoder) -> Query:
    picture = ArrayPicture(np.full((8, 8), 0.5), "image")
    samples = ManifestSamples({"image": [picture] * len(words)}, np.arange(len(words)))
    return Query(wants="grids", samples=samples, encoder=encoder, source=np.arange(len(words)), words=tuple(words), size=(16, 16))


def fitted(encoder, **settings):
    asked = query(NAMES, encoder)
    return DenseZeroShot(**settings).fit(Problem(query=asked, targets=torch.zeros(2, 1, 16, 16)))


def test_a_cell_is_marked_for_the_words_that_it_is_nearest_to():
    found = fitted(Planted()).answer(query((*NAMES, NAMES[0]), Planted())).values > 0
    assert found.shape == (3, 1, 16, 16)
    assert bool(found[0, 0, :6].all())
    assert not bool(found[0, 0, 10:].any())
    assert bool(found[1, 0, 10:, :6].all())
    assert not bool(found[1, 0, :6].any())
    assert not bool(found[1, 0, 10:, 10:].any())
    assert torch.equal(found[0], found[2])


def test_new_words_are_answered_with_the_known_ones_as_rivals():
    found = fitted(Planted()).answer(query(("a lamp",), Planted())).values
    assert not bool((found > 0).any()), "every cell is a known word or background"


def test_margins_are_cosines_less_the_best_rival_times_the_scale():
    random = torch.Generator().manual_seed(0)
    cells = torch.nn.functional.normalize(torch.randn(1, 5, 2, 2, generator=random), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(3, 5, generator=random), dim=1)
    found = margins(cells, texts[:1], [texts[1:]], Planted())
    for y in range(2):
        for x in range(2):
            cosines = [float(cells[0, :, y, x] @ text) for text in texts]
            assert float(found[0, 0, y, x]) == pytest.approx(10 * (cosines[0] - max(cosines[1:])), abs=1e-5)


def test_without_size_or_words_it_is_refused():
    with pytest.raises(PairError, match="names no size or has no words"):
        fitted(ENCODER).answer(replace(query(NAMES, ENCODER), size=None))
    with pytest.raises(PairError, match="give prompts"):
        DenseZeroShot().fit(Problem(query=replace(query(NAMES, ENCODER), words=None), targets=torch.zeros(2, 1, 16, 16)))
