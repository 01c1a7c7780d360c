"""Learning is a generator: it yields steps; the caller draws the bar, saves, stops and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

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

    def made(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The fused optimisers: one pass over the numbers a step, three times as fast as the default on a CPU."""
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, fused=True)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)


Slopes = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor | None]]]  # row numbers -> the loss, and its gradient to each tensor


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

    def slopes(rows: Tensor) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        value = loss(rows)
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        return value.detach(), dict(zip(named, found, strict=True))

    return (yield from descend_slopes(named, slopes, how, n=n, seed=seed, resume=resume))


def descend_slopes(
    named: Mapping[str, Tensor], slopes: Slopes, how: Descent, *, n: int, seed: int, resume: Mapping[str, Tensor] | None = None
) -> Generator[Step, None, dict[str, Tensor]]:
    """Go down the gradients that `slopes(row numbers)` gives to the named tensors, in place, by batches of n rows.

    Batches come from (seed, step), so that a resumed descent equals an uninterrupted one bit for bit on a CPU with the same
    number of threads. `resume` is the state of a step. Returns the named tensors, detached.
    """
    optimiser = how.made(list(named.values()))
    start = _restored(named, optimiser, resume) if resume is not None else 0
    for number in range(start + 1, how.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * warm_cosine(number, how.steps, how.warm_up)
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))[: how.batch]
        value, found = slopes(rows)
        for name, tensor in named.items():
            tensor.grad = in_order_of(tensor, found[name])
        optimiser.step()

        def state(number: int = number) -> dict[str, Tensor]:
            return _kept(named, optimiser, number)

        yield Step(number, how.steps, float(value), state)
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def in_order_of(tensor: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The gradient laid out as its tensor is: fused optimisers read both number by number and do not look at the order of axes."""
    if gradient is None or gradient.stride() == tensor.stride():
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def _kept(named: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, number: int) -> dict[str, Tensor]:
    kept = {f"value.{name}": tensor.detach().clone() for name, tensor in named.items()}
    for name, tensor in named.items():
        for key, moment in optimiser.state.get(tensor, {}).items():
            if isinstance(moment, Tensor):
                kept[f"{key}.{name}"] = moment.clone()
    return kept | {"step": torch.tensor(number)}


def _restored(named: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, resume: Mapping[str, Tensor]) -> int:
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(resume[f"value.{name}"])
    for name, tensor in named.items():
        moments = {key.removesuffix(f".{name}"): moment.clone() for key, moment in resume.items() if key.endswith(f".{name}")}
        optimiser.state[tensor] = {key: moment for key, moment in moments.items() if "." not in key and key != "value"}
    return int(resume["step"])
