"""Distillation: the divergence is torch's, the encoder itself has nothing to teach, and a teacher is learnt from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from doubles import tiny_encoder
from drawn_pairs import flat, pairs_of, part_of, problem_of, slopes_of
from medtame import encoders
from medtame.encoders.towers import EncoderCard
from medtame.errors import PairError, UnknownNameError
from medtame.learning.loop import finish
from medtame.strategies.knowledge.distillation import Distillation, divergence
from medtame.types import Query


def forgetful():
    """The tiny encoder, its words mapped anywhere."""
    encoder = tiny_encoder("forgetful")
    nn.init.normal_(encoder.text_tower.aligned.weight, generator=torch.Generator().manual_seed(5))
    return replace(encoder, text_identity="forgetful-text-1", scale=5.0)


def test_divergence_is_that_of_torch():
    found, taught = (torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))
    expected = sum(
        kl_div(a.log_softmax(1), b.log_softmax(1), log_target=True, reduction="batchmean")
        for a, b in ((found, taught), (found.T, taught.T))
    )
    torch.testing.assert_close(divergence(found, taught), expected)
    assert float(divergence(found, found)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(found, found + 7.0)) == pytest.approx(0, abs=1e-5)  # likeness is relative


def test_the_encoder_itself_teaches_nothing_at_the_start():
    """Without a teacher the loss and its gradient are zero before the first step: it only holds back."""
    pairs = pairs_of(tiny_encoder(), augment="none")
    loss, slopes = slopes_of(pairs, {"distillation": (1.0, part_of("distillation", pairs, contrastive=0))}, 9)
    assert loss == pytest.approx(0, abs=1e-5)
    assert float(flat(slopes).abs().max()) < 1e-4


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[int]:
    """The spec `teacher` opens the tiny encoder; every batch of images that its tower sees is noted."""
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path))
    made, seen = tiny_encoder("teacher"), list[int]()

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = made.image_tower

        def forward(self, pixels):
            seen.append(len(pixels))
            return self.tower(pixels)

    card = EncoderCard(
        spec="teacher",
        image_identity=made.image_identity,
        text_identity=made.text_identity,
        scale=made.scale,
        bias=made.bias,
        dimension=32,
        scales=((32, 8), (16, 16)),
        has_text=True,
        notes="",
    )
    monkeypatch.setattr(encoders, "card", lambda spec: card)
    monkeypatch.setattr(encoders, "load", lambda spec: replace(made, image_tower=Noting()))
    return seen


def cosines(query: Query, encoder) -> torch.Tensor:
    """(N, C) of images and candidates."""
    with torch.no_grad():
        return encoder.whole(query.samples) @ encoder.texts([prompts[0] for prompts in query.wanted.prompts]).T


def agreement(query: Query, encoder) -> float:
    """How the cosines of an image and the candidates go with the teacher's, over all images: a correlation."""
    found, wanted = (cosines(query, each) for each in (encoder, tiny_encoder()))
    return float(torch.corrcoef(torch.stack([(each - each.mean(1, keepdim=True)).flatten() for each in (found, wanted)]))[0, 1])


def test_a_teacher_is_learnt_from_and_sees_each_image_once(teacher):
    """No pair is told: only the teacher's likeness. It holds for other patients' images."""
    problem, test = problem_of(forgetful()), problem_of(forgetful(), 1).query
    method = Distillation(teacher="teacher", contrastive=0, train="projections", steps=150, learning_rate=1e-2, augment="none")
    pupil = finish(method.learn(problem)).encoder(problem.query.encoder)
    assert agreement(test, forgetful()) < 0.5
    assert agreement(test, pupil) > 0.8
    assert sum(teacher) == 24


def test_a_teacher_with_nothing_to_say_is_refused(monkeypatch: pytest.MonkeyPatch):
    blind = EncoderCard(
        spec="blind", image_identity="a", text_identity="", scale=1, bias=0, dimension=4, scales=((4, 2),), has_text=False, notes=""
    )
    monkeypatch.setattr(encoders, "card", lambda spec: blind)
    with pytest.raises(PairError, match="the teacher blind has no text side") as caught:
        Distillation(teacher="blind", steps=1).fit(problem_of(tiny_encoder()))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    with pytest.raises(UnknownNameError, match="bundledd"):
        Distillation(teacher="bundledd", steps=1).fit(problem_of(tiny_encoder()))


def test_the_guard_holds_back():
    """With the divergence the encoder stays nearer to what it was than with the contrast alone."""
    problem = problem_of(tiny_encoder())
    start = problem.query.encoder
    logits = start.scale * cosines(problem.query, start)
    moved = []
    for weight in (1e-9, 10.0):
        method = Distillation(distilled=weight, train="all", steps=30, learning_rate=1e-3)
        after = finish(method.learn(problem)).encoder(start)
        found = start.scale * cosines(problem.query, after)
        moved.append(float(divergence(found, logits)))
    assert moved[1] < 0.5 * moved[0]
    assert not math.isnan(moved[0])
