"""Every objective of pretraining: chunks have the gradient of the whole batch, and weighted parts that of the weighted sum."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from doubles import tiny_encoder, tiny_vit_encoder
from drawn_pairs import OBJECTIVES, flat, pairs_of, part_of, problem_of, slopes_of
from medtame import catalogue


def test_all_objectives_are_here():
    assert set(OBJECTIVES) == {
        "contrastive",
        "sigmoid",
        "soft_target",
        "local_alignment",
        "captioning",
        "masked_image",
        "distillation",
    }


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("make", [tiny_encoder, tiny_vit_encoder])
def test_chunks_have_the_gradient_of_the_whole_batch(make, name):
    pairs = pairs_of(make())
    parts = {name: (1.0, part_of(name, pairs))}
    whole, whole_slopes = slopes_of(pairs, parts)
    for chunk in (5, 12):
        split, split_slopes = slopes_of(pairs, parts, chunk)
        assert split == pytest.approx(whole, abs=1e-5)
        assert float(cosine_similarity(flat(split_slopes), flat(whole_slopes), dim=0)) > 0.99999
        torch.testing.assert_close(flat(split_slopes), flat(whole_slopes), atol=1e-5, rtol=1e-3)
    own = [float(whole_slopes[f"{name}.{inner}"].abs().sum()) for inner in parts[name][1].named]
    sides = [sum(float(slope.abs().sum()) for key, slope in whole_slopes.items() if key.startswith(side)) for side in ("image.", "text.")]
    assert min(sides) > 0
    assert min(own, default=1.0) > 0


@pytest.mark.parametrize("other", ["masked_image", "captioning", "sigmoid"])
def test_a_weighted_sum_has_the_weighted_sum_of_gradients(other):
    """Two parts together, in chunks, against each alone: losses and gradients add up by their weights."""
    pairs = pairs_of(tiny_encoder())
    parts = {"local_alignment": part_of("local_alignment", pairs), other: part_of(other, pairs)}
    weights = {"local_alignment": 0.3, other: 1.7}
    together = slopes_of(pairs, {name: (weights[name], part) for name, part in parts.items()}, 7)
    alone = {name: slopes_of(pairs, {name: (1.0, part)}) for name, part in parts.items()}
    assert together[0] == pytest.approx(sum(weights[name] * loss for name, (loss, _) in alone.items()), abs=1e-4)
    for name, slope in together[1].items():
        expected = sum(weights[part] * slopes[name] for part, (_, slopes) in alone.items() if name in slopes)
        torch.testing.assert_close(slope, expected, atol=2e-5, rtol=1e-3)


def test_a_part_of_weight_zero_changes_nothing():
    pairs = pairs_of(tiny_encoder())
    both = {"contrastive": (1.0, part_of("contrastive", pairs)), "masked_image": (0.0, part_of("masked_image", pairs))}
    one = {"contrastive": both["contrastive"]}
    (loss, slopes), (alone, wanted) = slopes_of(pairs, both, 7), slopes_of(pairs, one, 7)
    assert loss == pytest.approx(alone, abs=1e-6)
    for name, slope in wanted.items():
        torch.testing.assert_close(slopes[name], slope)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_first_weights_of_a_part_come_from_the_seed_and_disturb_nobody(name):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, again, other = (part_of(name, pairs_of(tiny_encoder(), seed=seed)).named for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim > 1]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", ["captioning", "masked_image"])
def test_what_a_part_learns_beside_the_towers_is_thrown_away(name):
    method = catalogue.build(catalogue.METHODS, name, {"steps": 1})
    adapted = method.fit(problem_of(tiny_encoder()))
    assert set(adapted.image) <= {key for key, _ in tiny_encoder().image_tower.named_parameters()}
    assert set(adapted.text) <= {key for key, _ in tiny_encoder().text_tower.named_parameters()}
