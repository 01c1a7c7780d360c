"""The decoder without language and the U-Net: they learn two targets by name, and mark nothing for a name they never saw."""

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from test_text_query_decoder import FRAME, LEFT, RIGHT, TEST, mean_dice, problem, query

from medtame.errors import PairError
from medtame.learning.decoding import fixed_codes
from medtame.strategies.base import REFUSED
from medtame.strategies.baselines.fixed_code_decoder import FixedCodeDecoder
from medtame.strategies.baselines.unet import ChosenMaps, Unet
from medtame.types import Problem, Query

METHODS = {"fixed": FixedCodeDecoder(steps=80, width=16, length=32), "unet": Unet(steps=60, width=8, learning_rate=1e-2)}


@pytest.fixture(scope="module")
def fitted():
    return {name: method.fit(problem()) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_the_name_says_which_of_two_blobs_that_look_the_same(fitted, name):
    asked = query()
    assert mean_dice(FRAME.read(asked, fitted[name].answer(asked))) > 0.7
    exchanged = query(words=tuple(LEFT if word == RIGHT else RIGHT for word in asked.words))
    assert mean_dice(FRAME.read(exchanged, fitted[name].answer(exchanged))) < 0.3


@pytest.mark.parametrize("name", METHODS)
def test_a_new_word_marks_nothing_and_changes_no_other_row(fitted, name):
    asked = query()
    one = query(words=("a lamp", *asked.words[1:]))
    found, before = fitted[name].answer(one).values, fitted[name].answer(asked).values
    assert bool((found[0] == REFUSED).all())
    assert torch.allclose(found[1:], before[1:], atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_does_not_depend_on_other_rows(fitted, name):
    asked = query()
    whole = fitted[name].answer(asked).values
    assert torch.allclose(torch.cat([fitted[name].answer(asked.take([i])).values for i in range(4)]), whole[:4], atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_answered_is_refused(fitted, name):
    bare = problem()
    with pytest.raises(PairError, match="this task gives none"):
        METHODS[name].fit(Problem(query=bare.query, targets=bare.targets))
    with pytest.raises(PairError, match="names no size"):
        fitted[name].answer(Query(**{**vars(query()), "size": None}))


def test_codes_are_the_same_for_a_name_and_unlike_for_two():
    codes = fixed_codes(("a", "b", "a"), 4000)
    assert torch.equal(codes[0], codes[2])
    assert abs(float((codes[0] * codes[1]).mean())) < 0.06
    assert float(codes.std()) == pytest.approx(1, abs=0.05)


def test_the_u_net_is_monai_s_with_the_maps_of_the_named_structure():
    torch.manual_seed(0)
    network, pixels = ChosenMaps(2, 3, 4).eval(), torch.rand(3, 3, 32, 48)
    assert isinstance(network.network, UNet)
    every = network.network((pixels - 0.5) * 4)
    found = network([], pixels, torch.tensor([[2.0], [0.0], [1.0]]))
    assert torch.equal(found, torch.stack([every[0, 4:6], every[1, 0:2], every[2, 2:4]]))
    assert network([], pixels[:, :, :27, :33], torch.zeros(3, 1)).shape == (3, 2, 27, 33)


def test_the_test_images_are_not_alike():
    assert len({picture.digest() for picture in TEST.pictures()}) == 6
    assert np.unique(TEST.groups).size == 6
