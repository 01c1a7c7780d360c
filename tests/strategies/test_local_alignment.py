"""Local alignment: word by word as written in the paper, in blocks as at once, and a planted word finds its cell."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from medtame.learning.contrast import both_ways
from medtame.strategies.tuning import local_alignment
from medtame.strategies.tuning.local_alignment import LocalAlignment, content_words, in_blocks, likeness


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow(regions, words, said, region_sharpness, word_sharpness):
    """One image, one text, one word at a time; the mean region is made."""
    found = torch.zeros(len(regions), len(words))
    for i, image in enumerate(regions):
        for j, text in enumerate(words):
            each = []
            for word in text[said[j] > 0]:
                looks = (region_sharpness * image @ word).softmax(0)
                context = (looks[:, None] * image).sum(0)
                each.append(math.exp(word_sharpness * float(cosine_similarity(context, word, dim=0))))
            found[i, j] = math.log(sum(each) / len(each))
    return found


WORDS = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]])


def test_it_is_the_papers_equation_word_by_word():
    regions, words = unit(4, 6, 8), unit(5, 3, 8, seed=1) * WORDS[..., None]
    torch.testing.assert_close(likeness(regions, words, WORDS, 4.0, 5.0), slow(regions, words, WORDS, 4.0, 5.0), atol=1e-5, rtol=1e-5)


def test_blocks_give_the_same_likeness_and_gradients(monkeypatch: pytest.MonkeyPatch):
    given = unit(5, 6, 8), unit(5, 3, 8, seed=1) * WORDS[..., None]
    results = []
    for limit in (2**24, 200):  # all at once; two texts at a time
        monkeypatch.setattr(local_alignment, "NUMBERS_AT_ONCE", limit)
        regions, words = (tensor.clone().requires_grad_(True) for tensor in given)
        fits = in_blocks(regions, words, WORDS, 4.0, 5.0)
        results.append((fits.detach(), *torch.autograd.grad(both_ways(10 * fits, torch.eye(5)), [regions, words])))
    for once, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, once, atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_mean_of_both_cross_entropies():
    fits, own = 10 * likeness(unit(5, 6, 8), unit(5, 3, 8, seed=1), WORDS, 4.0, 5.0), torch.arange(5)
    torch.testing.assert_close(both_ways(fits, torch.eye(5)), (cross_entropy(fits, own) + cross_entropy(fits.T, own)) / 2)


def test_a_word_finds_the_one_cell_that_shows_it():
    """Each text's word is shown in one cell, elsewhere is noise: the whole image's mean hides it, the attention does not."""
    words, regions = unit(6, 1, 32), unit(6, 49, 32, seed=1)
    regions[:, 17] = words[:, 0]
    fits = likeness(regions, words, torch.ones(6, 1), 20.0, 5.0)
    assert fits.argmax(1).tolist() == list(range(6))
    assert float(fits.diagonal().min()) > 5 * 0.9  # the cosine of a word and its regions is nearly one
    assert float(fits[~torch.eye(6, dtype=torch.bool)].max()) < 5 * 0.75


def test_a_longer_text_is_no_better_for_being_long():
    regions, word = unit(3, 6, 8), unit(1, 1, 8, seed=1)
    once = likeness(regions, word, torch.ones(1, 1), 4.0, 5.0)
    often = likeness(regions, word.expand(1, 4, 8), torch.ones(1, 4), 4.0, 5.0)
    torch.testing.assert_close(once, often)


def test_content_words():
    text = "There is no pneumothorax; the LEFT lower-lobe opacity, 3 mm, of the left lung's base."
    assert content_words(text, 16) == ["pneumothorax", "left", "lower-lobe", "opacity", "mm", "lung's", "base"]
    assert content_words(text, 2) == ["pneumothorax", "left"]
    assert content_words("of the", 4) == ["of the"]  # nothing else to say
    assert content_words("", 4) == [""]
    assert content_words("Erguß links", 4) == ["erguß", "links"]


class Spoken:
    """Pairs whose texts are vectors by the length of the string."""

    def see_texts(self, strings):
        return torch.tensor([[float(len(string)), 1.0] for string in strings])


def test_words_of_texts_are_padded_and_said_which():
    vectors, said = LocalAlignment(words=3).vectors_of(Spoken(), ["opacity left", "nodule", "one big round dense nodule"])
    assert said.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert vectors[..., 0].tolist() == [[7, 4, 0], [6, 0, 0], [3, 3, 5]]
