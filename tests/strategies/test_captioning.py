"""Captioning: the loss of a text alone and among others, what it is at the start, and that the image is read."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import normalize

from doubles import tiny_encoder
from drawn_pairs import pairs_of
from medtame.learning.loop import Descent, descend, finish
from medtame.learning.pairs import Pairs
from medtame.learning.vocabulary import END, SPEAK, UNKNOWN, split_words
from medtame.strategies.language_model.captioning import Captioner, shown


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return pairs_of(tiny_encoder(), augment="none")


@pytest.fixture(scope="module")
def captioner(pairs: Pairs) -> Captioner:
    return Captioner.of(pairs, 4000, 64, 32, 2)


def seen(pairs: Pairs) -> torch.Tensor:
    with torch.no_grad():
        return shown(*pairs.see_regions(torch.arange(len(pairs))))


TEXTS = ["there is a bright disc on the left.", "disc", "there is nothing to be seen."]


def test_a_loss_is_the_mean_over_words_read_one_by_one(pairs, captioner):
    """Each word from the words before it, without padding and without any other row."""
    image = seen(pairs)[:3]
    found = captioner.losses(image, TEXTS)
    for row, text in enumerate(TEXTS):
        ids = [captioner.number.get(word, UNKNOWN) for word in split_words(text)] + [END]
        assert UNKNOWN not in ids
        losses = []
        for place, wanted in enumerate(ids):
            before = torch.tensor([[SPEAK, *ids[:place]]])
            given = (image[row : row + 1] - captioner.centre) / captioner.spread
            logits = functional_call(captioner.network, captioner.named, (given, before))[0, -1]
            losses.append(-float(logits.log_softmax(0)[wanted]))
        assert float(found[row]) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_text_alone_loses_what_it_loses_among_others(pairs, captioner):
    image = seen(pairs)[:3]
    alone = torch.cat([captioner.losses(image[row : row + 1], TEXTS[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(captioner.losses(image, TEXTS), alone)


def test_unknown_words_are_passed_over_and_a_text_of_them_loses_its_end_only(pairs, captioner):
    image = seen(pairs)[:1]
    loss = captioner.losses(image, ["glioblastoma"])
    given = (image - captioner.centre) / captioner.spread
    logits = functional_call(captioner.network, captioner.named, (given, torch.tensor([[SPEAK, UNKNOWN]])))
    assert float(loss) == pytest.approx(-float(logits[0, 1].log_softmax(0)[END]), abs=1e-5)


def test_an_even_decoder_loses_the_logarithm_of_its_words(pairs, captioner):
    even = {name: torch.zeros_like(value) if name.startswith("out.") else value for name, value in captioner.named.items()}
    made = Captioner(captioner.network, even, captioner.number, captioner.centre, captioner.spread, captioner.longest)
    expected = torch.full((3,), math.log(len(captioner.number)))
    torch.testing.assert_close(made.losses(seen(pairs)[:3], TEXTS), expected)


def test_what_is_shown_is_the_whole_and_at_most_sixteen_cells():
    vectors, regions = torch.randn(2, 5), torch.randn(2, 64, 5)
    found = shown(vectors, regions)
    assert found.shape == (2, 17, 5)
    torch.testing.assert_close(found[:, 0], normalize(vectors, dim=-1))
    first = regions.reshape(2, 8, 8, 5)[:, :2, :2].mean((1, 2))  # the cell above on the left
    torch.testing.assert_close(found[:, 1], normalize(first, dim=-1))
    assert shown(vectors, regions[:, :9]).shape == (2, 10, 5)


def test_the_image_is_read(pairs):
    """The decoder alone, trained on frozen images: true images explain the texts better than exchanged ones do."""
    captioner, image = Captioner.of(pairs, 4000, 64, 32, 2), seen(pairs)
    texts = pairs.said(torch.arange(len(pairs)))
    how = Descent(steps=150, learning_rate=3e-3, batch=len(texts))
    kept = finish(
        descend(captioner.named, lambda rows: captioner.losses(image[rows], [texts[i] for i in rows]).mean(), how, n=len(texts), seed=0)
    )
    learnt = Captioner(captioner.network, kept, captioner.number, captioner.centre, captioner.spread, captioner.longest)
    other = [next(i for i, text in enumerate(texts) if text != own) for own in texts]
    with torch.no_grad():
        true, exchanged = (float(learnt.losses(image[rows], texts).mean()) for rows in (list(range(len(texts))), other))
    assert true < 0.2 < exchanged
