"""What is wrong with masks, before anything is learnt from them: another size than their image, values without a meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtame.errors import DataError
from medtame.types import Array, Picture

SHOWN = 3  # faults that are told in full


def check(masks: Sequence[Picture], images: Sequence[Picture], *, instances: bool = False) -> None:
    """One error for all masks that do not fit. `instances`: a mask numbers its objects, so it may hold more than two values.

    Raises DataError; ImageError for a file that cannot be read.
    """
    faults = []
    sizes: dict[int, tuple[int, int]] = {}
    for mask, image in zip(masks, images, strict=True):
        if id(image) not in sizes:
            geometry = image.geometry()
            sizes[id(image)] = (geometry.height, geometry.width)
        fault = fault_of(mask.values(), sizes[id(image)], instances=instances)
        if mask.frames() not in (1, image.frames()):
            held = f"{mask.frames()} slices and its image {image.frames()}"
            fault = f"has {held}: give the mask of the same volume, without missing slices"
        if fault:
            faults.append(f"{mask.name} {fault}")
    if faults:
        more = f" (and {len(faults) - SHOWN} more masks)" if len(faults) > SHOWN else ""
        raise DataError("; ".join(faults[:SHOWN]) + more)


def fault_of(mask: Array, size: tuple[int, int], *, instances: bool) -> str:
    """What is wrong with the stored numbers (H, W) of a mask of an image of a size, or nothing."""
    if mask.shape != size:
        return (
            f"is {mask.shape[0]} x {mask.shape[1]} pixels and its image {size[0]} x {size[1]}: masks must lie on their image pixel by pixel"
        )
    values = np.unique(mask)
    if not np.isfinite(values).all() or (values < 0).any():
        return "holds values below zero or no numbers: save 0 outside and 1 (or 255) inside"
    if not instances and (values > 0).sum() > 1:
        some = ", ".join(f"{value:g}" for value in values[:6].tolist()) + (", …" if len(values) > 6 else "")
        return (
            f"holds the values {some}, of which none is known: give a mask a structure (0 and one other value, as PNG), a label map with "
            "its names in a dataset.json, or the column 'instances' where they number objects"
        )
    return ""
