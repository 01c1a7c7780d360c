"""Plain attention computes what torch's fused attention does, with the same weights and in reach of what is put around a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medtame.encoders.opened import PlainAttention, exchanged, opened


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean"])
def test_plain_attention_is_the_fused_one(batch_first: bool, mask: str) -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    nn.init.normal_(fused.in_proj_bias)
    tokens = torch.randn(3, 5, 32)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    masks = {"none": None, "causal": torch.zeros(5, 5).masked_fill(later, float("-inf")), "boolean": later}
    given = tokens if batch_first else tokens.transpose(0, 1)
    expected = fused(given, given, given, need_weights=False, attn_mask=masks[mask])[0]
    found, weights = PlainAttention(fused)(given, given, given, need_weights=False, attn_mask=masks[mask])
    assert weights is None
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_plain_attention_across_two_sequences() -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    query, keys = torch.randn(2, 1, 32), torch.randn(2, 7, 32)
    torch.testing.assert_close(PlainAttention(fused)(query, keys, keys)[0], fused(query, keys, keys)[0], atol=1e-6, rtol=1e-5)


def test_opened_shares_weights_and_leaves_the_tower_alone() -> None:
    torch.manual_seed(0)
    tower = nn.ModuleDict({"first": nn.Sequential(nn.Linear(8, 8)), "second": nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})})
    taken_apart = opened(tower)
    assert isinstance(tower["second"]["attention"], nn.MultiheadAttention)  # type: ignore[index]
    assert isinstance(taken_apart["second"]["attention"], PlainAttention)  # type: ignore[index]
    assert taken_apart["first"] is tower["first"]  # type: ignore[index]
    assert taken_apart["second"]["attention"].qkv.weight is tower["second"]["attention"].in_proj_weight  # type: ignore[index]
    assert opened(tower["first"]) is tower["first"]


def test_exchanged_gives_parts_their_full_names() -> None:
    tower = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    names: list[str] = []
    exchanged(tower, lambda name, part: names.append(name))
    assert names == ["", "0", "0.0", "1"]
