"""What prompt learning promises on every tower: a context of real words gives what the tower says of these words, at every place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medtame.encoders.opened import opened
from medtame.encoders.towers import TowerEncoder
from medtame.errors import EncoderError, PairError
from medtame.learning.block_prompts import attention_blocks, image_prompted, text_prompted, width_of
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


def deep_prompts_are_the_slow_ways(encoder: TowerEncoder, pixels: Tensor) -> None:
    """Against hooks on the blocks of the tower itself; every prompt moves the answer, and maps keep their shape."""
    random = torch.Generator().manual_seed(3)
    tower = opened(encoder.image_tower)
    blocks = attention_blocks(tower)
    prompts = torch.randn(len(blocks), 3, width_of(tower, blocks), generator=random).requires_grad_(True)
    whole, maps = image_prompted(tower, prompts)(pixels)
    hooks = []
    for number, name in enumerate(blocks):
        block = tower.get_submodule(name)

        def put(part: nn.Module, given: tuple[Tensor, ...], number: int = number) -> tuple[Tensor, ...]:
            tokens = given[0] if number == 0 else given[0][:, : given[0].shape[1] - 3]
            return (torch.cat([tokens, prompts[number].expand(len(tokens), -1, -1)], 1), *given[1:])

        hooks.append(block.register_forward_pre_hook(put))
    last = tower.get_submodule(blocks[-1])
    hooks.append(last.register_forward_hook(lambda part, given, found: (found[0][:, :-3],) if isinstance(found, tuple) else found[:, :-3]))
    slow, slow_maps = tower(pixels)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(whole, slow, atol=1e-6, rtol=0)
    for found, expected, plain in zip(maps, slow_maps, tower(pixels)[1], strict=True):
        torch.testing.assert_close(found, expected)
        assert found.shape == plain.shape
    (slope,) = torch.autograd.grad(whole[:, 0].sum(), prompts)
    assert (slope.abs().sum((1, 2)) > 0).all()


def deep_contexts_are_the_slow_ways(encoder: TowerEncoder) -> None:
    """The same for the text's blocks, in whatever rows the tower reads."""
    words = wording(encoder.text_tower, asked("cat", "and cat"), "an image of {}")
    blocks = attention_blocks(words.tower)
    random = torch.Generator().manual_seed(4)
    prompts = torch.randn(len(blocks) - 1, *words.beginning.shape, generator=random).requires_grad_(True)
    if words.padding is not None and words.padding.first:
        with pytest.raises(PairError, match="padding first"):
            text_prompted(words, prompts)
        return
    found = text_prompted(words, prompts).texts(words.beginning)
    first, last, hooks = len(words.start), len(words.start) + len(words.beginning), []
    for number, name in enumerate(blocks[1:]):

        def put(part: nn.Module, given: tuple[Tensor, ...], number: int = number) -> tuple[Tensor, ...]:
            tokens = given[0].clone()
            tokens[:, first:last] = prompts[number]
            return (tokens, *given[1:])

        hooks.append(words.tower.get_submodule(name).register_forward_pre_hook(put))
    slow = words.texts(words.beginning)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, slow, atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(found[:, 0].sum(), prompts)
    assert (slope.abs().sum((1, 2)) > 0).all()
