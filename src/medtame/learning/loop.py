"""Learning is a generator: it yields steps; the caller draws the bar, saves, stops and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from medtame.errors import LearningError

Finished = TypeVar("Finished")


@dataclass(frozen=True)
class Step:
    """One step of learning. `state` is called only by a caller that saves."""

    number: int
    of: int
    loss: float
    state: Callable[[], dict[str, Tensor]]


def finish(steps: Generator[Step, None, Finished]) -> Finished:
    """Run a learner to its end and return what it learnt."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Finished = done.value
            return result


def warm_cosine(step: int, steps: int, warm_up: int) -> float:
    """Factor of the learning rate at `step` (1-based): linear up over `warm_up` steps, then half a cosine to zero."""
    if step <= warm_up:
        return step / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - warm_up) / max(1, steps - warm_up)))


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to descend: the optimiser's settings, the same words in every method."""

    steps: int
    learning_rate: float
    batch: int
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warm_up: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)  # of the learning rate, by name of a tensor; 1 where it is not named

    def moments(self, named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """What the optimiser remembers of each tensor, before the first step: kind, then name."""
        kinds = ("momentum",) if self.optimiser == "sgd" else ("mean", "square")
        kept = {kind: {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in named.items()} for kind in kinds}
        return kept if self.optimiser == "sgd" else {**kept, "steps": {name: torch.zeros(()) for name in named}}

    def by_share(self, names: Iterable[str]) -> dict[float, list[str]]:
        """Names that have the same share of the learning rate."""
        if not self.shares:
            return {1.0: list(names)}
        found: dict[float, list[str]] = {}
        for name in names:
            found.setdefault(self.shares.get(name, 1.0), []).append(name)
        return found

    def stepped(self, values: list[Tensor], slopes: list[Tensor], moments: Mapping[str, list[Tensor]], rate: float) -> None:
        """One step, in place; the objects around torch's optimisers would take longer than a step of a small method."""
        if self.optimiser == "sgd":
            for value, slope, momentum in zip(values, slopes, moments["momentum"], strict=True):
                momentum.mul_(self.momentum).add_(value, alpha=self.weight_decay).add_(slope)
                value.sub_(momentum, alpha=rate)
            return
        settings: dict[str, Any] = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False, "fused": True}
        mean, square, steps = moments["mean"], moments["square"], moments["steps"]
        adamw(values, slopes, mean, square, [], steps, lr=rate, weight_decay=self.weight_decay, **settings)


Some = Tensor | slice  # row numbers, or all rows in their order
Slopes = Callable[[Some], tuple[Tensor, Mapping[str, Tensor | None]]]  # rows -> the loss, and its gradient to each tensor


def descend(
    named: Mapping[str, Tensor],
    loss: Callable[[Tensor], Tensor],
    how: Descent,
    *,
    n: int,
    seed: int,
    resume: Mapping[str, Tensor] | None = None,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Minimise `loss(row numbers)` over the named tensors as `descend_slopes` does, with gradients by autograd."""
    for parameter in named.values():
        parameter.requires_grad_(True)

    def slopes(rows: Some) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        value = loss(torch.arange(n) if isinstance(rows, slice) else rows)
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        return value.detach(), dict(zip(named, found, strict=True))

    return (yield from descend_slopes(named, slopes, how, n=n, seed=seed, resume=resume))


def descend_slopes(
    named: Mapping[str, Tensor],
    slopes: Slopes,
    how: Descent,
    *,
    n: int,
    seed: int,
    resume: Mapping[str, Tensor] | None = None,
    order: Callable[[int], Some] | None = None,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Go down the gradients that `slopes(rows)` gives to the named tensors, in place, by batches of n rows.

    Batches come from (seed, step), or from `order(step)`, so that a resumed descent equals an uninterrupted one bit for bit on a CPU
    with the same number of threads; a batch of all rows is a slice, which copies nothing. `resume` is the state of a step. Returns
    the named tensors, detached. Raises LearningError at a loss that is no number, before its step is made.
    """
    moments = how.moments(named)
    start = _restored(named, moments, resume) if resume is not None else 0
    for number in range(start + 1, how.steps + 1):
        value, found = slopes(_rows(n, how.batch, seed, number) if order is None else order(number))
        shown = float(value)
        if not math.isfinite(shown):
            raise LearningError(f"the loss of step {number} of {how.steps} is {shown}: lower learning_rate (it is {how.learning_rate:g})")
        there = {name: in_order_of(named[name], slope) for name, slope in found.items() if slope is not None}
        rate = how.learning_rate * warm_cosine(number, how.steps, how.warm_up)
        with torch.no_grad():
            for share, names in how.by_share(there).items():
                kept = {kind: [of[name] for name in names] for kind, of in moments.items()}
                how.stepped([named[name] for name in names], [there[name] for name in names], kept, rate * share)

        def state(number: int = number) -> dict[str, Tensor]:
            return _kept(named, moments, number)

        yield Step(number, how.steps, shown, state)
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def _rows(n: int, batch: int, seed: int, number: int) -> Some:
    """The rows of a step."""
    if batch >= n:
        return slice(0, n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))[:batch]


def in_order_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient laid out as its tensor is: fused optimisers read both number by number and do not look at the order of axes."""
    return gradient if gradient.stride() == tensor.stride() else torch.empty_like(tensor).copy_(gradient)


def _kept(named: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]], number: int) -> dict[str, Tensor]:
    kept = {f"{kind}.{name}": tensor.clone() for kind, of in moments.items() for name, tensor in of.items()}
    return kept | {f"value.{name}": tensor.detach().clone() for name, tensor in named.items()} | {"step": torch.tensor(number)}


def _restored(named: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]], resume: Mapping[str, Tensor]) -> int:
    with torch.no_grad():
        for kind, of in {**moments, "value": named}.items():
            for name, tensor in of.items():
                tensor.copy_(resume[f"{kind}.{name}"])
    return int(resume["step"])
