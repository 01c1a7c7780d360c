"""`@dense`: the plain tower at its own side; interpolated positions; value-value attention against a slow twin; the budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import made
import pytest
import torch
from torch import Tensor

from medtame import encoders
from medtame.encoders import dense
from medtame.encoders.towers import EncoderCard, TowerEncoder
from medtame.errors import EncoderError

KINDS = ("clip", "siglip", "biomedclip", "hf_clip")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made.open_clip_vit(root / "clip")
    made.open_clip_siglip(root / "siglip")
    made.biomedclip(root / "biomedclip", root / "bert", size=96, trunk="test_vit")
    made.hf_clip(root / "hf_clip")
    made.open_clip_resnet(root / "resnet")
    return {kind: f"{'hf' if kind == 'hf_clip' else 'open_clip'}:{root / kind}" for kind in (*KINDS, "resnet")}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, specs: dict[str, str]) -> tuple[TowerEncoder, TowerEncoder]:
    spec = specs[request.param]
    return encoders.load(spec), encoders.load(f"{spec}@dense")


def pixels(encoder: TowerEncoder, n: int = 2) -> Tensor:
    return torch.randn(n, 3, encoder.prepare.side, encoder.prepare.side, generator=torch.Generator().manual_seed(3))  # type: ignore[attr-defined]


def test_at_the_checkpoint_s_own_side_it_is_the_plain_tower(pair: tuple[TowerEncoder, TowerEncoder]) -> None:
    plain, fine = pair
    given = pixels(plain)
    with torch.no_grad():
        (whole, maps), (found, found_maps) = plain.image_tower(given), fine.image_tower(given)
    assert torch.allclose(whole, found, atol=1e-5)
    last: Any = found_maps[-1]
    if hasattr(plain.image_tower, "token_maps"):  # timm's last tokens come after the final norm
        last = plain.image_tower.visual.trunk.norm(last.movedim(1, -1)).movedim(-1, 1)  # type: ignore[union-attr]
    assert torch.allclose(maps[-1], last, atol=1e-4)
    assert not torch.allclose(maps[0], found_maps[0], atol=1e-3), "the first map comes from values alone"


def test_the_grid_is_twice_as_fine_and_as_the_card_says(pair: tuple[TowerEncoder, TowerEncoder]) -> None:
    plain, fine = pair
    with torch.no_grad():
        native, maps = plain.image_tower(pixels(plain))[1], fine.image_tower(pixels(fine))[1]
    card = encoders.card(fine.spec)
    assert tuple((each.shape[1], each.shape[2]) for each in maps) == card.scales
    assert maps[0].shape[2] == 2 * native[0].shape[2]
    assert (card.image_identity, card.text_identity) == (fine.image_identity, plain.text_identity)
    assert fine.image_identity != plain.image_identity


def test_values_attend_to_values(specs: dict[str, str]) -> None:
    """A slow twin, head by head, of CLIP's last block."""
    tower: Any = encoders.load(f"{specs['clip']}@dense").image_tower
    block = tower.inner.visual.transformer.resblocks[-1]
    tokens = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normed = block.ln_1(tokens)[0]
        values = normed @ block.attn.in_proj_weight[64:].T + block.attn.in_proj_bias[64:]
        heads = []
        for part in values.split(16, 1):
            heads.append((part @ part.T / math.sqrt(16)).softmax(1) @ part)
        slow = torch.cat(heads, 1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        assert torch.allclose(dense.value_value(block, tokens)[0], slow, atol=1e-5)


def test_positions_of_a_square_keep_their_places_when_they_grow() -> None:
    """A ramp stays a ramp, the first token's position stays, and the checkpoint's own size is left alone."""
    ramp = torch.arange(4.0).repeat(4, 1).reshape(16, 1)
    positions = torch.cat([torch.tensor([[9.0]]), ramp])
    grown = dense.resized(positions, 64)
    assert grown.shape == (65, 1)
    assert float(grown[0]) == 9
    across = grown[1:].reshape(8, 8)
    assert torch.allclose(across, across[:1].expand(8, 8), atol=1e-5)
    assert torch.allclose(across[0, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.1)
    assert dense.resized(positions, 16) is positions


def test_maps_of_an_image_stay_within_the_budget() -> None:
    for native, dimension, width in ((14, 512, 768), (7, 512, 768), (16, 768, 1024), (37, 768, 1152)):
        side = dense.grid_of(native, dimension, width)
        bytes_ = 2 * side**2 * (dimension + 3 * width)
        assert bytes_ <= dense.BUDGET_BYTES
        assert side == 2 * native or 2 * (side + 1) ** 2 * (dimension + 3 * width) > dense.BUDGET_BYTES
    assert dense.grid_of(14, 512, 768) == 27


def test_what_is_no_vision_transformer_is_refused(specs: dict[str, str]) -> None:
    with pytest.raises(EncoderError, match="no vision transformer"):
        encoders.load(f"{specs['resnet']}@dense")
    with pytest.raises(EncoderError, match="no vision transformer"):
        encoders.load("bundled@dense")


def test_the_card_of_a_card() -> None:
    base = EncoderCard(
        spec="a", image_identity="i", text_identity="t", scale=1.0, bias=0.0, dimension=8, scales=((8, 4), (16, 4)), has_text=True, notes=""
    )
    fine = dense.card(base)
    assert fine.scales == ((8, 8), (16, 8), (16, 8), (16, 8))
    assert replace(fine, spec="a", image_identity="i", scales=base.scales) == base
