"""Deep visual prompt tuning as a prototype: `Encoder.changed` carries a tower with learnt tokens inside its blocks.

Jia et al. 2022 (arxiv:2203.12119): tokens stand after the first one and are replaced at each depth. This is a test, not a method.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from doubles import KINDS, SIDES, TinyVitTower, disc, tiny_vit_encoder
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import TowerEncoder
from medtame.learning.loop import Descent, descend, finish
from medtame.strategies.base import zero_shot_logits
from medtame.types import Candidates, Query


class DeepPrompted(nn.Module):
    """A vision transformer with P prompt tokens a depth, between the first token and the patches; they are not read at the end."""

    def __init__(self, base: TinyVitTower, prompts: Tensor) -> None:
        super().__init__()
        self.base = base
        self.prompts = prompts  # (depth, P, D); a plain tensor, so that the base's state is all the module has

    def sequences(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """What enters each block, and what leaves the last one."""
        tokens, entered = self.base.embedded(pixels), []
        for block, prompts in zip(self.base.blocks, self.prompts, strict=True):
            tokens = torch.cat([tokens[:, :1], prompts.expand(len(tokens), -1, -1), tokens[:, 1:]], 1)
            entered.append(tokens)
            tokens = block(tokens)
            tokens = torch.cat([tokens[:, :1], tokens[:, 1 + prompts.shape[0] :]], 1)
        return entered, tokens

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.base.read(self.sequences(pixels)[1])


def prompted(base: TowerEncoder, prompts: Tensor) -> TowerEncoder:
    return base.changed(image=DeepPrompted(copy.deepcopy(base.image_tower), prompts).eval(), identity="vpt")  # type: ignore[arg-type]


def images(seed: int, n: int) -> tuple[ManifestSamples, Tensor]:
    random = np.random.default_rng(seed)
    rows = [(KINDS[i % 3], SIDES[i // 3 % 2]) for i in range(n)]
    pictures = [ArrayPicture(disc(kind, side, random)[0], f"image-{i}") for i, (kind, side) in enumerate(rows)]
    return ManifestSamples({"image": pictures}, np.arange(n)), torch.tensor([KINDS.index(kind) for kind, _ in rows])


def question(samples: ManifestSamples, encoder: TowerEncoder) -> Query:
    candidates = Candidates(names=KINDS, prompts=tuple((f"an image of {kind}",) for kind in KINDS))
    return Query(wants="scores", samples=samples, encoder=encoder, source=np.arange(len(samples)), candidates=candidates)


@pytest.fixture(params=["cls", "mean"])
def base(request: pytest.FixtureRequest) -> TowerEncoder:
    return tiny_vit_encoder(pooling=request.param)


def random_prompts(length: int, depth: int = 3) -> Tensor:
    return torch.randn(depth, length, 32, generator=torch.Generator().manual_seed(1))


def test_prompts_of_length_zero_are_the_base(base: TowerEncoder) -> None:
    samples, _ = images(0, 6)
    changed = prompted(base, random_prompts(0))
    assert torch.equal(changed.whole(samples), base.whole(samples))
    assert all(torch.equal(a, b) for a, b in zip(changed.grid(samples), base.grid(samples), strict=True))


def test_prompts_stand_after_the_first_token_and_are_new_at_each_depth(base: TowerEncoder) -> None:
    prompts, pixels = random_prompts(4), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = DeepPrompted(base.image_tower, prompts)  # type: ignore[arg-type]
    entered, left = tower.sequences(pixels)
    embedded = base.image_tower.embedded(pixels)
    assert torch.equal(entered[0][:, 0], embedded[:, 0])
    assert torch.equal(entered[0][:, 5:], embedded[:, 1:])
    for tokens, expected in zip(entered, prompts, strict=True):
        assert tokens.shape == (2, 1 + 4 + 16, 32)
        assert torch.equal(tokens[:, 1:5], expected.expand(2, -1, -1))
    assert left.shape == (2, 1 + 16, 32)


def test_pooling_and_maps_leave_the_prompts_out(base: TowerEncoder) -> None:
    """The last block's prompts reach the answer through attention only: what is read is the first token and sixteen patches."""
    samples, _ = images(0, 4)
    tower = DeepPrompted(base.image_tower, random_prompts(4))  # type: ignore[arg-type]
    pixels = torch.cat([base.prepare(torch.from_numpy(p.array().transpose(2, 0, 1).copy())[None]) for p in samples.pictures()])
    last = tower.sequences(pixels)[0][-1]
    out = base.image_tower.blocks[-1](last)
    read = base.image_tower.out(base.image_tower.norm(torch.cat([out[:, :1], out[:, 5:]], 1)))
    pooled = read[:, 0] if base.image_tower.pooling == "cls" else read[:, 1:].mean(1)
    changed = prompted(base, random_prompts(4))
    torch.testing.assert_close(changed.whole(samples), nn.functional.normalize(pooled, dim=-1))
    assert changed.grid(samples)[0].shape == (4, 32, 4, 4)


def test_only_the_image_identity_changes(base: TowerEncoder) -> None:
    changed = prompted(base, random_prompts(4))
    assert changed.text_identity == base.text_identity
    assert changed.image_identity == f"{base.image_identity}+vpt"
    assert changed.text_tower is base.text_tower
    assert torch.equal(changed.texts(["an image of bright"]), base.texts(["an image of bright"]))


def test_prompts_train_and_nothing_else_does(base: TowerEncoder) -> None:
    """To call each kind by the next one's name is far from what the base says, so there is something to learn."""
    samples, kinds = images(1, 24)
    labels = (kinds + 1) % 3
    query, prompts = question(samples, base), 0.1 * random_prompts(4)
    start, before = prompts.clone(), {name: value.clone() for name, value in base.image_tower.state_dict().items()}
    encoder = prompted(base, prompts)

    def loss(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(zero_shot_logits(query.take(rows.numpy()), encoder), labels[rows])

    first = float(loss(torch.arange(24)).detach())
    how = Descent(steps=30, learning_rate=0.05, batch=24)
    kept = finish(descend({"prompts": prompts}, loss, how, n=24, seed=0))
    last = float(loss(torch.arange(24)).detach())
    assert last < 0.7 * first, (first, last)
    assert ((kept["prompts"] - start).flatten(1).norm(dim=1) > 0).all(), "every depth is learnt"
    inside = encoder.image_tower.base  # type: ignore[union-attr]
    for tower in (base.image_tower, inside):
        assert all(parameter.grad is None for parameter in tower.parameters())
        assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())
    assert base.text_tower.table.weight.grad is None


def test_a_fitted_prompt_is_one_tensor_that_remakes_the_encoder(base: TowerEncoder) -> None:
    """What a method would save: the same vectors come from the tensor and the base alone."""
    samples, _ = images(2, 6)
    prompts = random_prompts(2)
    assert torch.equal(
        prompted(base, prompts).whole(samples), prompted(tiny_vit_encoder(pooling=base.image_tower.pooling), prompts.clone()).whole(samples)
    )
