"""Registration of one pair at a time, so that neither the batch nor the order matters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medtame.errors import DataError
from medtame.types import Grids, Query

Register = Callable[[Tensor, Tensor], Tensor]


def each_alone(query: Query, register: Register) -> Grids:
    """Displacements (N, 2, H, W) of `register(moving, fixed)`, which maps two grey images (1, 1, H, W) to one (1, 2, H, W).

    Raises DataError for an image of one grey value, which fits everywhere.
    """
    fields = []
    for row in (query.take([i]) for i in range(len(query))):
        moving, fixed = (row.pixels(name).mean(1, keepdim=True) for name in ("moving", "fixed"))
        for name, image in (("moving", moving), ("fixed", fixed)):
            if image.max() - image.min() < 1e-6:
                raise DataError(f"{row.samples.pictures(name)[0].name} has one grey value and cannot be registered: take the pair out")
        fields.append(register(moving, fixed))
    return Grids(torch.cat(fields)) if fields else Grids(torch.zeros(0, 2, *(query.size or (0, 0))))
