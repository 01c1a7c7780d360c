"""Pairs: the order of draws, sentences by chance of the draw, low-rank changes, and sides that are locked or still."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from doubles import tiny_encoder, tiny_vit_encoder
from drawn_pairs import DRAWS, flat, pairs_of, part_of, problem_of, slopes_of
from medtame.errors import PairError
from medtame.learning.fine_tuning import adaptable
from medtame.learning.loop import Descent, finish
from medtame.learning.pairs import Moving, Pairs
from medtame.learning.pretraining import in_epochs, pretrained
from medtame.strategies.base import Retrained
from medtame.strategies.tuning.contrastive import Contrastive
from medtame.types import Query


@pytest.mark.parametrize(("n", "batch"), [(24, 8), (23, 5), (5, 5), (4, 16), (7, 1)])
def test_every_row_is_drawn_once_an_epoch(n, batch):
    order, size = in_epochs(n, batch, 3), min(n, batch)
    per_epoch = max(1, n // batch)
    left_out = Counter()
    for epoch in range(6):
        draws = torch.cat([order(epoch * per_epoch + step + 1) for step in range(per_epoch)])
        assert set((draws // n).tolist()) == {epoch}  # a draw says how often its row was drawn before
        rows = (draws % n).tolist()
        assert len(rows) == len(set(rows)) == per_epoch * size
        left_out.update(set(range(n)) - set(rows))
    assert sum(left_out.values()) == 6 * (n - per_epoch * size)
    assert max(left_out.values(), default=0) < 6  # what is left over is not always the same


def test_the_order_is_of_seed_and_step_alone():
    order = in_epochs(24, 7, 3)
    steps = [order(step) for step in range(1, 10)]
    for step in (9, 1, 5):  # as a resumed run would ask
        assert torch.equal(in_epochs(24, 7, 3)(step), steps[step - 1])
    assert not torch.equal(in_epochs(24, 7, 4)(1), steps[0])
    assert not torch.equal(steps[0] % 24, steps[3] % 24)  # another epoch, another order


REPORT = ("The heart is large.", "No effusion is seen.", "There is a nodule in the left apex.", "Bones are intact.")


def spoken(sentences: int, seed: int = 0) -> Pairs:
    problem = problem_of(tiny_encoder())
    query = Query(wants="scores", samples=problem.query.samples.take([0, 1]), encoder=problem.query.encoder, source=np.arange(2))
    moving = Moving(train="all", blocks=1, sides=("text",), augment="none", sentences=sentences, precision="float32", seed=seed)
    texts = [" ".join(REPORT), "XXXX nodule. No XXXX."]
    return Pairs.of(query, texts, [(0,), (1,)], lambda rows, ids: torch.as_tensor(rows[:, None] == ids), moving)


def test_some_sentences_are_said_in_their_order():
    pairs = spoken(2)
    assert spoken(0).said(torch.tensor([0, 1])) == [" ".join(REPORT), "nodule. No."]  # marks are taken out
    assert spoken(9).said(torch.tensor([0])) == [" ".join(REPORT)]
    counts = Counter()
    for draw in range(0, 1200, 2):
        [said] = pairs.said(torch.tensor([draw]))
        kept = [place for place, sentence in enumerate(REPORT) if sentence in said]
        assert said == " ".join(REPORT[place] for place in kept)
        assert len(kept) == 2
        counts[tuple(kept)] += 1
    assert len(counts) == 6  # every two of four
    assert min(counts.values()) > 60


def test_sentences_are_those_of_the_draw_in_any_batch():
    pairs, draws = spoken(1), torch.arange(0, 40, 2)
    whole = pairs.said(draws)
    assert [pairs.said(draw[None])[0] for draw in draws] == whole
    assert spoken(1).said(draws) == whole
    assert spoken(1, seed=1).said(draws) != whole


def test_several_texts_of_a_row_are_drawn_evenly_and_all_are_right():
    problem = problem_of(tiny_encoder())
    query = problem.query.take([0, 1])
    right = torch.tensor([[True, True, False], [False, True, True]])
    moving = Moving(train="all", blocks=1, sides=("text",), augment="none", sentences=0, precision="float32", seed=0)
    pairs = Pairs.of(
        query, ["a", "b", "c"], [(0, 1), (1, 2)], lambda rows, ids: right[torch.as_tensor(rows)][:, torch.as_tensor(ids)], moving
    )
    drawn = Counter(int(pairs.drawn(torch.tensor([draw]))[1][0]) for draw in range(0, 2000, 2))
    assert set(drawn) == {0, 1}
    assert abs(drawn[0] - 500) < 60
    draws = torch.arange(12)
    rows, ids = pairs.drawn(draws)
    assert pairs.same(draws).tolist() == [[bool(right[row, number]) for number in ids] for row in rows]
    assert bool(pairs.same(draws).diagonal().all())


@pytest.mark.parametrize("make", [tiny_encoder, tiny_vit_encoder])
def test_low_rank_changes_start_at_zero_shot_and_every_matrix_moves(make):
    problem = problem_of(make())
    method = Contrastive(train="lora", steps=0)
    base = problem.query.encoder
    start = finish(method.learn(problem)).encoder(base)
    torch.testing.assert_close(problem.query.vectors(start), problem.query.vectors(base), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(start.texts(["a bright disc"]), base.texts(["a bright disc"]), atol=1e-6, rtol=1e-5)
    moved = finish(replace(method, steps=4, learning_rate=1e-2).learn(problem))
    assert isinstance(moved, Retrained)
    for tower, kept in ((base.image_tower, moved.image), (base.text_tower, moved.text)):
        assert set(kept) == {f"{name}.weight" for name in adaptable(tower)}
        before = dict(tower.named_parameters())
        for name, value in kept.items():
            difference = (value - before[name].reshape(value.shape)).flatten(1)
            assert float(difference.abs().max()) > 1e-4, name
            assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) <= 8


def test_merged_low_rank_changes_see_what_was_seen_while_learning():
    pairs = pairs_of(tiny_vit_encoder(), train="lora", augment="none")
    parts = {"contrastive": (1.0, Contrastive().part(pairs))}
    kept = finish(pretrained(pairs, parts, Descent(steps=3, learning_rate=1e-2, batch=12), chunk=12, seed=0, resume=None))
    merged = Retrained(*pairs.values(kept), "lora", 100.0, 0.0).encoder(pairs.encoder)
    with torch.no_grad():
        rows = torch.arange(24)
        torch.testing.assert_close(pairs.query.vectors(merged), pairs.see_images(rows), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(merged.texts(pairs.said(rows)), pairs.see_texts(pairs.said(rows)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("sides", "locked"), [(("image",), "text."), (("text",), "image.")])
@pytest.mark.parametrize("augment", ["safe", "none"])
def test_a_locked_side_leaves_the_gradient_of_the_other_as_it_was(sides, locked, augment):
    """LiT: what moves has the gradient that it has where both sides move."""
    both, one = pairs_of(tiny_encoder(), augment=augment), pairs_of(tiny_encoder(), sides=sides, augment=augment)
    (loss, wanted), (alone, found) = (slopes_of(pairs, {"a": (1.0, part_of("contrastive", pairs))}, 7) for pairs in (both, one))
    assert alone == pytest.approx(loss, abs=1e-5)
    assert not any(name.startswith(locked) for name in found)
    assert set(found) == {name for name in wanted if not name.startswith(locked)}
    torch.testing.assert_close(flat(found), flat({name: wanted[name] for name in found}), atol=1e-6, rtol=1e-4)


def test_a_still_side_is_the_frozen_encoders_and_an_augmented_one_is_not():
    still, shaken = (pairs_of(tiny_encoder(), sides=("text",), augment=augment) for augment in ("none", "safe"))
    assert (still.still, shaken.still) == (True, False)
    frozen = still.query.take((DRAWS % 24).numpy()).vectors()
    assert torch.equal(still.see_images(DRAWS), frozen)
    assert float((shaken.see_images(DRAWS) - frozen).abs().max()) > 1e-3
    assert not shaken.see_images(DRAWS).requires_grad
    vectors, regions = still.see_regions(DRAWS)
    assert torch.equal(vectors, frozen)
    grid = still.encoder.grid(still.query.samples)[0][DRAWS % 24]
    assert torch.equal(regions, grid.flatten(2).mT)


@pytest.mark.parametrize("train", ["projections", "last"])
def test_kept_inputs_are_seen_as_pixels_are(train):
    """augment=none: what enters the first block that moves is kept; vectors, maps and gradients are those of a pass from the pixels."""
    pairs = pairs_of(tiny_vit_encoder(), train=train, augment="none")
    assert pairs.image.kept is not None
    assert pairs.image.kept.tokens is not None
    plain = replace(pairs, image=replace(pairs.image, kept=None))
    for kept, seen in zip(pairs.see_regions(DRAWS), plain.see_regions(DRAWS), strict=True):
        torch.testing.assert_close(kept, seen, atol=1e-5, rtol=1e-4)
    found = [flat(slopes_of(one, {"a": (1.0, part_of("local_alignment", one))}, 7)[1]) for one in (pairs, plain)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)


def test_no_side_or_no_weight_is_refused():
    with pytest.raises(PairError, match="finds no weight to train"):
        pairs_of(tiny_encoder(), sides=())
