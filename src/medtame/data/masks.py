"""What is wrong with masks, before anything is learnt from them: another size than their image, values without a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from medtame.data.images import ArrayPicture, FilePicture
from medtame.data.series import LabelPicture
from medtame.data.slices import Volume, apart_mm, is_volume, whole
from medtame.errors import DataError
from medtame.types import Array, Picture, Samples

Rows = TypeVar("Rows", bound=Samples)
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
        if mask.frames() not in (1, image.frames()):
            held = f"{mask.frames()} slices and its image {image.frames()}"
            fault = f"has {held}: give the mask of the same volume, without missing slices"
        else:
            fault = fault_of(whole(mask), sizes[id(image)], instances=instances)
        if not fault and is_volume(mask) and is_volume(image) and (apart := apart_mm(Volume.of(image), Volume(mask))):
            fault = f"lies up to {apart:.1f} mm away from its image in space: resample it to the grid of the image"
        if fault:
            faults.append(f"{mask.name} {fault}")
    faults = list(dict.fromkeys(faults))  # the structures of one label map have the same one
    if faults:
        more = f" (and {len(faults) - SHOWN} more masks)" if len(faults) > SHOWN else ""
        raise DataError("; ".join(faults[:SHOWN]) + more)


def fault_of(mask: Array, size: tuple[int, int], *, instances: bool) -> str:
    """What is wrong with the stored numbers (H, W) or (S, H, W) of a mask of an image of a size, or nothing."""
    if mask.shape[-2:] != size:
        (height, width), (own, wide) = mask.shape[-2:], size
        return f"is {height} x {width} pixels and its image {own} x {wide}: masks must lie on their image pixel by pixel"
    values = np.unique(mask)
    if not np.isfinite(values).all() or (values < 0).any():
        return "holds values below zero or no numbers: save 0 outside and 1 (or 255) inside"
    if not instances and (values > 0).sum() > 1:
        some = ", ".join(f"{value:g}" for value in values[:6].tolist()) + (", …" if len(values) > 6 else "")
        return (
            f"holds the values {some}, of which none is known: give a mask a structure (0 and one other value, as PNG), a label map with "
            "its names in a dataset.json or in the setting task.labels, or the column 'instances' where they number objects"
        )
    return ""


def named(samples: Rows, names: Sequence[str]) -> Rows:
    """A line for each image and name: the pixels of its label map with the value 1 are the first name, 2 the second, and so on.

    Raises DataError where a label map holds a value without a name.
    """
    maps, lines, cells = samples.pictures("mask"), [], []
    for line, picture in enumerate(maps):
        unknown = np.setdiff1d(whole(picture), range(len(names) + 1))
        if len(unknown):
            raise DataError(
                f"{picture.name} holds the value {unknown[0]:g}, and {len(names)} names were given: name the values 1, 2, … in order "
                "with task.labels"
            )
        lines += [line] * len(names)
        cells += [_only(picture, number + 1) for number in range(len(names))]
    return samples.take(lines).replaced(mask=cells, prompt=list(names) * len(maps))


def _only(picture: Picture, number: int) -> Picture:
    """The mask of one value of a label map."""
    if isinstance(picture, FilePicture):
        return LabelPicture(picture.path, picture.name, (number,), picture.frame)
    return ArrayPicture((picture.values() == number).astype(np.uint8), picture.name)


def once(samples: Rows) -> Rows:
    """Without lines that say the same as another: image, mask, prompt and split."""
    seen = zip(*(samples.column(name) for name in ("image", "mask", "prompt", "split") if name in samples), strict=True)
    rows = list({said: line for line, said in reversed(list(enumerate(seen)))}.values())[::-1]
    extra = len(samples) - len(rows)
    return samples.take(rows).noted(f"{extra} lines say the same as another and count once.") if extra else samples
