"""Several processes that learn as one (torchrun): who this one is, and tensors joined over all of them. Alone, nothing is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """The group that torchrun's variables describe, for the time of the block; nothing where there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share(rows: Tensor) -> Tensor:
    """The part of some rows that is for this process: as many as for every other, in order. Their number must divide by `world`."""
    return rows.chunk(world())[rank()] if world() > 1 else rows


def gathered(own: Tensor) -> Tensor:
    """(world x n, ...) the tensors (n, ...) of all processes in their order, without a graph."""
    if world() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def summed(slopes: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The sums over all processes, by name; all have the same names. None where it is None in this one, as it then is in all."""
    if world() > 1:
        there = [slope for slope in slopes.values() if slope is not None]
        flat = torch.cat([slope.flatten() for slope in there]) if there else torch.zeros(0)
        distributed.all_reduce(flat)
        for slope, part in zip(there, torch.split(flat, [slope.numel() for slope in there]), strict=True):
            slope.copy_(part.view_as(slope))
    return dict(slopes)


def meet() -> None:
    """Wait for all."""
    if world() > 1:
        distributed.barrier()
