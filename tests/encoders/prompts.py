"""What prompt learning promises on every tower: a context of real words gives what the tower says of these words, at every place."""

from __future__ import annotations

import pytest
import torch

from medtame.encoders.towers import TowerEncoder
from medtame.errors import EncoderError
from medtame.learning.prompt_learning import Place, wording
from medtame.types import Candidates


def asked(*names: str, beginning: str = "a photo") -> Candidates:
    return Candidates(names=names, prompts=tuple((f"{beginning} {name}",) for name in names))


def prompts_are_the_towers_own(encoder: TowerEncoder) -> None:
    """The words that all begin with give zero-shot; a context has a gradient; other lengths are the slow way's."""
    tower, candidates = encoder.text_tower, asked("cat", "and cat", "photo")
    words = wording(tower, candidates, "an image of {}")
    assert words.template == ""
    written = encoder.texts([prompts[0] for prompts in candidates.prompts])
    context = words.beginning.clone().requires_grad_(True)
    found = words.texts(context)
    torch.testing.assert_close(found, written, atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(found[:, 0].sum(), context)
    assert float(slope.abs().sum()) > 0
    each = words.texts(context.expand(3, -1, -1))
    torch.testing.assert_close(each, written, atol=1e-6, rtol=0)
    torch.testing.assert_close(words.texts_of_rows(torch.stack([context, 2 * context])), torch.stack([found, words.texts(2 * context)]))


def places_are_the_slow_ways(encoder: TowerEncoder, place: Place, tokens: int = 3) -> None:
    """Context vectors taken from the word table: ids in a row, embedded and encoded by the tower as it is."""
    tower, candidates = encoder.text_tower, asked("cat", "and cat")
    words = wording(tower, candidates, "an image of {}")
    some, mask = tower.tokens(["a much more cat of pneumonia besides and photo"])
    context_ids = some[0][mask[0] > 0][1 : 1 + tokens]
    found = words.texts(tower.embed(context_ids[None])[0], place)
    before = {"end": tokens, "middle": tokens // 2, "front": 0}[place]
    shared = len(words.ids)
    for number, (sentence,) in enumerate(candidates.prompts):
        ids, mask = (each[0] for each in tower.tokens([sentence]))
        real = ids[mask > 0] if words.padding is None else ids[(ids != ids[0 if words.padding.first else -1]).nonzero()[:, 0]]
        special, end = len(words.start), len(words.end)
        own = real[special + shared : len(real) - end]
        row = torch.cat([real[:special], context_ids[:before], own, context_ids[before:], real[len(real) - end :]])
        if words.padding is not None:
            rest = ids[:1].expand(16 - len(row)) if words.padding.first else ids[-1:].expand(tower.length - len(row))
            row = torch.cat([rest, row] if words.padding.first else [row, rest])
        mask = torch.ones_like(row)[None]
        slow = tower.encode(tower.embed(row[None]), mask)[0]
        torch.testing.assert_close(found[number], slow, atol=2e-6, rtol=0)


def long_names_are_refused(encoder: TowerEncoder) -> None:
    for name in ("pneumonia " * 300, " ".join(f"word{i}" for i in range(300))):
        with pytest.raises(EncoderError, match=f"{encoder.text_tower.length} tokens") as caught:
            wording(encoder.text_tower, asked("a cat", name), "an image of {}")
        assert "\n" not in str(caught.value)
    words = wording(encoder.text_tower, asked("cat", "lung"), "an image of {}")
    with pytest.raises(EncoderError, match="shorten the class names or give fewer context tokens"):
        words.texts(torch.zeros(encoder.text_tower.length, words.beginning.shape[1]))
