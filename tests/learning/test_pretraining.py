"""Pretraining: the chunked gradient is the whole batch's, the losses are the libraries', what is planted is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import cosine_similarity, normalize

from contracts.tiny import tiny
from doubles import tiny_encoder, tiny_vit_encoder
from drawn_pairs import problem_of
from medtame import catalogue
from medtame.learning.contrast import info_nce
from medtame.learning.loop import finish
from medtame.learning.pairs import Moving, Pairs, trained
from medtame.learning.pretraining import chunked_slopes, seeing
from medtame.learning.pretraining import moving as all_moving
from medtame.run import fitted
from medtame.strategies.tuning.contrastive import Contrastive
from medtame.strategies.tuning.sigmoid import Sigmoid, levelled, pairwise
from medtame.strategies.tuning.soft_target import softened
from medtame.tasks.image_text_retrieval import ImageTextRetrieval

NAMES = ("contrastive", "sigmoid", "soft_target", "local_alignment", "captioning", "distillation")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_losses_are_those_of_open_clip():
    images, texts, own = unit(9, 5), unit(9, 5, seed=1), torch.eye(9, dtype=torch.bool)
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    torch.testing.assert_close(info_nce(images, texts, own, scale), ClipLoss()(images, texts, scale))
    torch.testing.assert_close(pairwise(images, texts, own, scale, bias), SigLipLoss()(images, texts, scale, bias))
    torch.testing.assert_close(softened(images, texts, own.float(), scale), ClipLoss()(images, texts, scale))


def test_a_sigmoid_starts_where_as_many_pairs_are_called_right_as_are():
    logits = 40 * unit(30, 8) @ unit(30, 8, seed=1).T
    for share in (0.01, 1 / 30, 0.5, 0.99):
        assert float((logits + levelled(logits, share)).sigmoid().mean()) == pytest.approx(share, rel=1e-4)
    pairs = Pairs.of_problem(problem_of(replace(tiny_encoder(), bias=0.0)), moving())
    start, draws = Sigmoid().start(pairs), torch.arange(len(pairs))
    with torch.no_grad():
        logits = start["log_scale"].exp() * pairs.see_images(draws) @ pairs.see_texts(pairs.said(draws)).T + start["bias"]
    assert float(logits.sigmoid().mean()) == pytest.approx(float(pairs.same(draws).float().mean()), rel=1e-3)
    own = replace(tiny_encoder(), scale=20.0, bias=-7.0)
    start = Sigmoid().start(Pairs.of_problem(problem_of(own), moving()))
    assert (float(start["log_scale"].exp()), float(start["bias"])) == (pytest.approx(20.0), -7.0), "a SigLIP goes on from its own"


def test_a_method_answers_with_the_scale_and_bias_that_it_learnt():
    problem = problem_of(tiny_encoder())
    for method, name in ((Contrastive(steps=4, learning_rate=0.05), "contrastive"), (Sigmoid(steps=4, learning_rate=0.05), "sigmoid")):
        adapted = finish(method.learn(problem))
        assert adapted.scale != problem.query.encoder.scale, name
        seen = adapted.encoder(problem.query.encoder)
        cosines = torch.einsum("nd,ncd->nc", problem.query.vectors(seen), problem.query.texts(seen))
        expected = adapted.scale * cosines + adapted.bias
        torch.testing.assert_close(adapted.answer(problem.query).values, expected, atol=1e-4, rtol=1e-4)


def test_texts_that_are_right_for_two_images_are_no_wrong_answers():
    """Two images with one text: the loss at the truth is that of even shares, and its gradient is none."""
    texts = torch.eye(3)[[0, 0, 1]]
    same = texts @ texts.T > 0
    logits = torch.where(same, 0.0, -1e4)
    images = texts.clone()
    loss = info_nce(images, texts, same, torch.tensor(1e4))
    expected = -(same / same.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-4) == pytest.approx(2 / 3 * np.log(2), abs=1e-4)


def moving(**changed) -> Moving:
    given = {"train": "all", "blocks": 1, "sides": ("image", "text"), "augment": "none", "sentences": 0, "precision": "float32", "seed": 0}
    return Moving(**{**given, **changed})


@pytest.mark.parametrize("chunk", [5, 7, 12])
@pytest.mark.parametrize("make", [tiny_encoder, tiny_vit_encoder])
def test_chunks_have_the_gradient_of_the_whole_batch(make, chunk):
    pairs = Pairs.of_problem(problem_of(make()), moving(augment="safe"))
    parts = {"contrastive": (1.0, Contrastive().part(pairs)), "sigmoid": (0.5, Sigmoid().part(pairs))}
    named = all_moving(pairs, parts)
    draws = torch.arange(24) + 5
    whole, split = (chunked_slopes(seeing(pairs, parts), parts, named, chunk=size)(draws) for size in (24, chunk))
    assert float(split[0]) == pytest.approx(float(whole[0]), abs=1e-5)
    moved = [name for name, slope in whole[1].items() if slope is not None]
    assert {"contrastive.log_scale", "sigmoid.bias", "image.out.weight", "text.table.weight"} <= set(moved)
    flat = [torch.cat([found[1][name].flatten() for name in moved]).double() for found in (whole, split)]
    assert float(cosine_similarity(*flat, dim=0)) > 0.99999
    torch.testing.assert_close(flat[0], flat[1], atol=1e-5, rtol=1e-3)


def test_what_moves_is_what_was_asked():
    tower = tiny_vit_encoder().image_tower
    pixels = torch.randn(1, 3, 32, 32)
    assert set(trained(tower, "projections", 1, pixels)) == {"norm.weight", "norm.bias", "out.weight", "out.bias"}
    last = trained(tower, "last", 2, pixels)
    assert {name.split(".")[1] for name in last if name.startswith("blocks.")} == {"1", "2"}
    assert set(trained(tower, "all", 1, pixels)) == {name for name, _ in tower.named_parameters()}


def unaligned():
    """The tiny encoder, its words mapped anywhere: zero-shot is at chance."""
    encoder = tiny_encoder()
    torch.nn.init.normal_(encoder.text_tower.aligned.weight, generator=torch.Generator().manual_seed(5))
    return encoder


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_learnt_and_only_true_ones(name):
    """Recall at 1 on other patients rises with true texts; with texts dealt out at random it does not."""
    task, (train, test) = ImageTextRetrieval(), tiny("image_text_retrieval")
    texts = train.column("text")
    random = np.random.default_rng(1).permutation(len(train))
    method = catalogue.build(catalogue.METHODS, name, {"train": "projections", "steps": 60, "learning_rate": 2e-2})

    def recall(chosen, support):
        run = fitted(task.usable(support), task, chosen, unaligned(), seed=0)
        return float(run.measure(task.usable(test))["recall_at_1_image_to_text"].value())

    true, wrong = (recall(method, train.replaced(text=[texts[i] for i in rows])) for rows in (np.arange(len(train)), random))
    start = recall(catalogue.build(catalogue.METHODS, "zero_shot"), train)
    assert true > max(wrong, start) + 0.15, (true, wrong, start)


@pytest.mark.parametrize("name", NAMES)
def test_a_side_that_is_locked_does_not_move(name):
    problem = problem_of(tiny_encoder())
    for sides, still in ((("image",), "text"), (("text",), "image")):
        method = catalogue.build(catalogue.METHODS, name, {"sides": sides, "steps": 2})
        adapted = finish(method.learn(problem))
        assert getattr(adapted, still) == {}
