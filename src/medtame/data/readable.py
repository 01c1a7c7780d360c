"""Answers for the images that can be read, and a line that says why for each other one: a broken file costs no table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from medtame.data.samples import ManifestSamples
from medtame.data.slices import Volume, is_volume
from medtame.errors import ImageError
from medtame.types import Picture, Predicted


def predicted(predict: Callable[[ManifestSamples], Predicted], samples: ManifestSamples, *, in_space: bool = False) -> Predicted:
    """`predict` of all samples whose image can be read; each other image is a row at the end with a warning.

    Raises ImageError where none can be read.
    """
    try:
        return predict(samples)
    except ImageError:
        column = "image" if "image" in samples else "fixed"
        reasons = [unreadable(picture, in_space=in_space) for picture in samples.pictures(column)]
        whole = [row for row, reason in enumerate(reasons) if not reason]
        if not whole or len(whole) == len(samples):
            raise
    said = predict(samples.take(whole))
    broken = {picture.name: reason for picture, reason in zip(samples.pictures(column), reasons, strict=True) if reason}
    return replace(said, table=[*said.table, *({column: name, "prediction": "", "warning": why} for name, why in broken.items())])


def unreadable(picture: Picture, *, in_space: bool = False) -> str:
    """Why an image cannot be read, or nothing. `in_space`: a volume must say how it lies in space, and miss no slice."""
    try:
        picture.array()
        if in_space and is_volume(picture):
            Volume.of(picture)
    except ImageError as error:
        return str(error)
    return ""
