"""Pretraining on pairs of images and texts: towers see a batch in chunks, the loss sees all of it (GradCache, Gao et al. 2021,
arxiv:2101.06983), in one process or several.

First every chunk but the last is seen without a graph; the loss of all vectors gives each vector its gradient; then every chunk is seen
again, with a graph, and hands its vectors' gradients on. The last is seen once: its graph waits for the loss. The gradient is that of the
whole batch, and memory is bounded by the chunk. Several processes see a share of the batch each, and the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from medtame.errors import PairError
from medtame.learning import ranks
from medtame.learning.loop import Descent, Slopes, Some, Step, descend_slopes
from medtame.learning.pairs import Pairs

IMAGES, REGIONS, TEXTS = "images", "regions", "texts"
Seen = Mapping[str, Tensor]  # of a batch: images (n, D), regions (n, L, D), texts (n, D), and what `see` of a part adds
See = Callable[[Tensor], Seen]  # draws (n,) -> what is seen of them, differentiable in the weights that move
SeeMore = Callable[[Tensor, Seen], Seen]  # the same, of draws and what was seen of them before


@dataclass(frozen=True)
class Part:
    """One objective at work on some pairs. A weighted sum has several.

    `across(seen, draws)` is a loss () of a whole batch; it may read what `reads` names, and what `see(draws, seen)` adds to it: tensors
    (n, ...) of one width in every chunk, which may be losses of each pair. `within(draws)` gives losses (n,), each of its own pair alone,
    so it is never seen but in chunks. `named` are weights of its own, which move too.
    """

    reads: frozenset[str] = frozenset()
    across: Callable[[Seen, Tensor], Tensor] | None = None
    within: Callable[[Tensor], Tensor] | None = None
    see: SeeMore | None = None
    named: Mapping[str, Tensor] = field(default_factory=dict)


Weighted = Mapping[str, tuple[float, Part]]  # by name: how much it counts, and what


def seeing(pairs: Pairs, parts: Weighted) -> See:
    """All that the parts read of some draws, each tower run once."""
    reads = frozenset().union(*(part.reads for _, part in parts.values()))

    def see(draws: Tensor) -> Seen:
        found: dict[str, Tensor] = {}
        if REGIONS in reads:
            found[IMAGES], found[REGIONS] = pairs.see_regions(draws)
        elif IMAGES in reads:
            found[IMAGES] = pairs.see_images(draws)
        if TEXTS in reads:
            found[TEXTS] = pairs.see_texts(pairs.said(draws))
        for _, part in parts.values():
            found |= part.see(draws, found) if part.see is not None else {}
        return found

    return see


def chunked_slopes(see: See, parts: Weighted, named: Mapping[str, Tensor], *, chunk: int) -> Slopes:
    """The loss and its gradient to the named weights for some draws, with the graph of at most `chunk` of them alive at once."""
    whole = {name: (weight, part.across) for name, (weight, part) in parts.items() if part.across is not None}
    alone = [(weight, part.within) for weight, part in parts.values() if part.within is not None]

    def across(seen: Seen, draws: Tensor) -> Tensor:
        return torch.stack([weight * loss(seen, draws) for weight, loss in whole.values()]).sum()

    def slopes(some: Some) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        assert isinstance(some, Tensor)
        total: dict[str, Tensor | None] = dict.fromkeys(named)
        own, value = ranks.share(some), torch.zeros(())
        chunks = torch.split(own, chunk)
        if whole and len(chunks) == 1 and ranks.world() == 1:
            value = _spread(across(see(own), own), named, total)
        elif whole:
            value = _in_two(see, across, some, chunks, named, total)
        told = value if ranks.rank() == 0 else torch.zeros(())  # the loss of the whole batch is the same in all processes
        for draws in chunks:
            for weight, loss in alone:
                told = told + _spread(weight * loss(draws).sum() / len(some), named, total)
        joined = ranks.summed({**total, "loss": told.clone()})
        return joined.pop("loss"), joined  # type: ignore[return-value]

    for tensor in named.values():
        tensor.requires_grad_(True)
    return slopes


def _in_two(
    see: See,
    across: Callable[[Seen, Tensor], Tensor],
    draws: Tensor,
    chunks: tuple[Tensor, ...],
    named: Mapping[str, Tensor],
    total: dict[str, Tensor | None],
) -> Tensor:
    """The loss of a batch; its gradient is added to `total`. This process sees its chunks twice, the last one once, with its graph,
    which is the first to be handed on; of other processes it sees their vectors.
    """
    with torch.no_grad():
        parts = [see(part) for part in chunks[:-1]]
    seen = see(chunks[-1])
    parts.append({name: tensor.detach() for name, tensor in seen.items()})
    leaves = {name: ranks.gathered(torch.cat([part[name] for part in parts])).requires_grad_(True) for name in parts[0]}
    loss = across(leaves, draws)
    found = torch.autograd.grad(loss, [*leaves.values(), *named.values()], allow_unused=True)
    for name, slope in zip(named, found[len(leaves) :], strict=True):
        _add(total, name, None if slope is None else slope / ranks.world())  # the same in all processes, which are summed
    own = {
        name: torch.split(ranks.share(slope), [len(part) for part in chunks])
        for name, slope in zip(leaves, found, strict=False)
        if slope is not None
    }
    for number in reversed(range(len(chunks))):
        if number < len(chunks) - 1:
            seen = see(chunks[number])
        moved = [name for name in own if seen[name].requires_grad]
        if moved:
            handed = torch.autograd.grad(
                [seen[name] for name in moved], list(named.values()), [own[name][number] for name in moved], allow_unused=True
            )
            for name, slope in zip(named, handed, strict=True):
                _add(total, name, slope)
    return loss.detach()


def _spread(loss: Tensor, named: Mapping[str, Tensor], total: dict[str, Tensor | None]) -> Tensor:
    """Add a loss's gradient to the total; the loss, detached."""
    for name, slope in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
        _add(total, name, slope)
    return loss.detach()


def _add(total: dict[str, Tensor | None], name: str, slope: Tensor | None) -> None:
    """Add in place, to a tensor that nothing else holds."""
    before = total[name]
    if slope is not None:
        total[name] = slope.detach().clone() if before is None else before.add_(slope)


def in_epochs(n: int, batch: int, seed: int) -> Callable[[int], Tensor]:
    """Step (1-based) -> draws (batch,): every row once an epoch, in the order of (seed, epoch); what is left over waits for another.

    Fewer rows than a batch are one batch.
    """

    @lru_cache(maxsize=1)
    def shuffled(epoch: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))

    def order(step: int) -> Tensor:
        epoch, place = divmod(step - 1, max(1, n // batch))
        return epoch * n + shuffled(epoch)[place * batch : (place + 1) * batch]

    return order


def pretrained(
    pairs: Pairs, parts: Weighted, how: Descent, *, chunk: int, seed: int, resume: Mapping[str, Tensor] | None
) -> Generator[Step, None, dict[str, Tensor]]:
    """Descend a weighted sum of objectives over the towers' moving weights and the parts' own; the weights of all it ends with.

    Raises PairError where several processes cannot share a batch evenly.
    """
    size = min(how.batch, len(pairs))
    if size % ranks.world():
        raise PairError(f"a batch of {size} pairs cannot be shared by {ranks.world()} processes evenly: give another --set batch")
    named = moving(pairs, parts)
    slopes = chunked_slopes(seeing(pairs, parts), parts, named, chunk=chunk)
    return (yield from descend_slopes(named, slopes, how, n=len(pairs), seed=seed, resume=resume, order=in_epochs(len(pairs), size, seed)))


def moving(pairs: Pairs, parts: Weighted) -> dict[str, Tensor]:
    """Every weight that moves, by name: those of the towers, and those of the parts under the name of their part."""
    own = {f"{name}.{inner}": tensor for name, (_, part) in parts.items() for inner, tensor in part.named.items()}
    return {**pairs.named, **own}
