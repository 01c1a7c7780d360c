"""Prompt learning: one step of CoOp, forwards and backwards through a text tower, and frozen prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.harness import Case, smallest_cosine, verdict
from medtame.encoders import text_towers
from medtame.encoders.towers import frozen
from medtame.learning.prompt_learning import Wording, wording
from medtame.types import Candidates

CONTEXT, PADDED = 16, 77
LEAST = {"float32": 0.99999, "bfloat16": 0.999}


@contextmanager
def step(classes: int, precision: Literal["float32", "bfloat16"], goal: float) -> Iterator[Case]:
    """The gradient of 16 context tokens through ViT-B/32's text tower: packed, against 77 tokens and one sequence a class."""
    tower = clip_tower()
    names = tuple(f"class number {number}" for number in range(classes))
    candidates = Candidates(names=names, prompts=tuple((f"a medical image of {name}",) for name in names))
    words = wording(tower, candidates, "")
    ours_words = words.cast(getattr(torch, precision))
    random = torch.Generator().manual_seed(0)
    context, targets = 0.02 * torch.randn(CONTEXT, 512, generator=random), torch.randn(classes, 512, generator=random)

    def slope(of: Any) -> Tensor:
        with torch.enable_grad():
            moved = context.clone().requires_grad_(True)
            return torch.autograd.grad((of(moved) * targets).sum(), moved)[0]

    def check() -> str:
        cosine = float(cosine_similarity(slope(ours_words.texts).flatten().double(), slope(padded).flatten().double(), dim=0))
        return verdict(cosine >= LEAST[precision], f"gradient cosine {cosine:.7f}")

    def padded(moved: Tensor) -> Tensor:
        return one_sequence_a_class(tower, words, moved)

    yield Case(ours=lambda: slope(ours_words.texts), plain=lambda: slope(padded), check=check, goal=goal, rounds=3)


def one_sequence_a_class(tower: Any, words: Wording, context: Tensor) -> Tensor:
    """(C, D) as the released code has it: every class a row of 77 tokens through torch's fused attention."""
    rows, masks = [], []
    for name in words.names:
        row = torch.cat([words.start, context, name, words.end])
        rows.append(torch.cat([row, row.new_zeros(PADDED - len(row), row.shape[1])]))
        masks.append((torch.arange(PADDED) < len(row)).long())
    found: Tensor = tower.encode(torch.stack(rows), torch.stack(masks))
    return found


@contextmanager
def short_frozen_prompts(count: int = 80) -> Iterator[Case]:
    """Prompts that nothing is learnt of: of their true length, against rows padded to 77 tokens."""
    tower = clip_tower()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    strings = [f"a medical image of finding number {number}" for number in range(count)]

    def plain() -> Tensor:
        ids = tokenizer(strings)
        ends = ids.argmax(1)
        found: Tensor = tower.encode(tower.embed(ids), (torch.arange(PADDED) <= ends[:, None]).long())
        return found

    def ours() -> Tensor:
        ids, mask = tower.tokens(strings)
        found: Tensor = tower.encode(tower.embed(ids), mask)
        return found

    def check() -> str:
        cosine = smallest_cosine(ours(), plain())
        return verdict(cosine >= 0.999999, f"cosine {cosine:.7f}")

    yield Case(ours=ours, plain=plain, check=check, goal=5.0, rounds=3)


@contextmanager
def bert(classes: int = 8) -> Iterator[Case]:
    """The text tower of `bundled`: BERT has no causal mask, so the gain is the true length alone."""
    import medtame

    tower = medtame.encoder("bundled").text_tower
    names = tuple(f"class number {number}" for number in range(classes))
    words = wording(tower, Candidates(names=names, prompts=tuple((f"a medical image of {name}",) for name in names)), "")
    random = torch.Generator().manual_seed(0)
    context = 0.05 * torch.randn(CONTEXT, words.beginning.shape[1], generator=random)

    def slope(of: Any) -> Tensor:
        with torch.enable_grad():
            moved = context.clone().requires_grad_(True)
            return torch.autograd.grad(of(moved)[:, :7].sum(), moved)[0]

    def padded(moved: Tensor) -> Tensor:
        return one_sequence_a_class(tower, words, moved)

    def check() -> str:
        cosine = float(cosine_similarity(slope(words.texts).flatten().double(), slope(padded).flatten().double(), dim=0))
        return verdict(cosine >= LEAST["float32"], f"gradient cosine {cosine:.7f}; no causal mask: nothing is packed")

    yield Case(ours=lambda: slope(words.texts), plain=lambda: slope(padded), check=check, goal=None, rounds=3)


def clip_tower() -> Any:
    """ViT-B/32's text tower with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CustomTextCLIP(**open_clip.get_model_config("ViT-B-32"))
    return frozen(text_towers.tower_of(model.text, open_clip.get_tokenizer("ViT-B-32")))
