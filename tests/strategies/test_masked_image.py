"""Masked image modelling: what is taken out, what is counted, and that the tower learns what was there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from doubles import tiny_encoder, tiny_vit_encoder
from drawn_pairs import pairs_of, problem_of
from medtame.errors import PairError
from medtame.learning.loop import Descent, finish
from medtame.learning.pretraining import pretrained
from medtame.strategies.tuning.masked_image import MaskedImage, lost, patches_out


def test_the_same_share_of_every_image_is_out_by_the_draw_alone():
    draws = torch.tensor([3, 900, 3, 14])
    out = patches_out(5, draws, 7, 0.5)
    assert out.shape == (4, 1, 7, 7)
    assert out.sum((1, 2, 3)).tolist() == [24, 24, 24, 24]
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out[3:], patches_out(5, draws[3:], 7, 0.5))
    assert not torch.equal(out, patches_out(6, draws, 7, 0.5))
    where = patches_out(0, torch.arange(2000), 4, 0.25).mean(0)
    assert float((where - 0.25).abs().max()) < 0.04  # every place as often as any other


def test_only_what_is_out_counts():
    random = np.random.default_rng(0)
    pixels, found = (torch.from_numpy(random.normal(size=(3, 3, 8, 8))).float() for _ in range(2))
    out = patches_out(0, torch.arange(3), 4, 0.5)
    expected = []
    for i in range(3):
        differences = [
            abs(float(found[i, c, y, x]) - float(pixels[i, c, y, x]))
            for c in range(3)
            for y in range(8)
            for x in range(8)
            if out[i, 0, y // 2, x // 2]
        ]
        expected.append(float(np.mean(differences)))
    assert lost(found, pixels, out).tolist() == pytest.approx(expected, abs=1e-5)
    elsewhere = found + 100 * (1 - out.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(lost(elsewhere, pixels, out), lost(found, pixels, out))
    smooth = torch.full((1, 3, 16, 16), 2.0)
    torch.testing.assert_close(lost(torch.zeros(1, 3, 4, 4), smooth, torch.ones(1, 1, 2, 2)), torch.tensor([2.0]))  # averaged pixels


def test_the_tower_sees_the_mean_where_patches_are_out():
    pairs, draws = pairs_of(tiny_encoder()), torch.tensor([2, 5])
    seen: list[torch.Tensor] = []
    part = MaskedImage(patches=4).part(pairs)
    pairs.image.tower.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    assert part.within(draws).shape == (2,)
    pixels = pairs.image.pixels(draws)
    out = patches_out(0, draws, 4, 0.5).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(pixels) > 0
    torch.testing.assert_close(seen[0][~out], pixels[~out])
    torch.testing.assert_close(seen[0][out], pixels.mean((2, 3), keepdim=True).expand_as(pixels)[out])


@pytest.mark.parametrize("make", [tiny_encoder, tiny_vit_encoder])
def test_what_was_out_is_found_better_than_by_the_mean(make):
    """Patches of discs, from the rest of the disc: after learning, less is lost than by the image's mean."""
    pairs = pairs_of(make(), sides=("image",), augment="none")
    part = MaskedImage(contrastive=0, share=0.25).part(pairs)
    how = Descent(steps=150, learning_rate=3e-3, batch=24)
    draws = torch.arange(24) + 24 * 1000
    pixels = pairs.image.pixels(draws)
    out = patches_out(0, draws, 7, 0.25)
    mean = lost(pixels.mean((2, 3), keepdim=True).expand_as(pixels), pixels, out)
    finish(pretrained(pairs, {"masked_image": (1.0, part)}, how, chunk=24, seed=0, resume=None))
    with torch.no_grad():
        learnt = part.within(draws)
    assert float(learnt.mean()) < 0.75 * float(mean.mean())


def test_without_the_contrast_only_the_image_side_learns():
    method = MaskedImage(contrastive=0.0, steps=2, train="all")
    problem, start = problem_of(tiny_encoder()), tiny_encoder()
    adapted = method.fit(problem)
    before = dict(start.text_tower.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in adapted.text.items())
    before = dict(start.image_tower.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in adapted.image.items())


def test_inputs_kept_for_the_contrast_do_not_hide_the_pixels():
    """augment=none keeps what enters the last block; masked pixels still pass through the whole tower, and differ by the draw."""
    pairs = pairs_of(tiny_vit_encoder(), train="last", augment="none")
    assert pairs.image.kept is not None
    part = MaskedImage().part(pairs)
    one, other = (float(part.within(torch.tensor([draw])).detach()) for draw in (3, 3 + 24))  # one row, another draw
    assert one != pytest.approx(other, abs=1e-6)


def test_a_locked_image_side_is_refused():
    with pytest.raises(PairError, match="masked_image trains the image side, which is locked: give sides=image") as caught:
        MaskedImage(sides=("text",), steps=1).fit(problem_of(tiny_encoder()))
    assert "\n" not in str(caught.value)
