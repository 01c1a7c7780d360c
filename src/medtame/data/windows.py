"""Named intensity windows: which stored numbers become black and which white.

The numbers are common practice in radiology (general knowledge, no single source; departments differ by some tens). They hold
for Hounsfield units, so for CT after slope and intercept. MR has no common unit: use `percentile` or numbers of your own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medtame.data.intensity import between
from medtame.errors import ImageError, SettingsError, UnknownNameError

if TYPE_CHECKING:
    from medtame.types import Array


@dataclass(frozen=True)
class Window:
    """From `centre - width / 2` (0) to `centre + width / 2` (1), in the units of the file after slope and intercept."""

    centre: float
    width: float

    def unit(self, numbers: Array) -> Array:
        """float32 in 0..1, same shape; NaN counts as the lowest. Raises ImageError where no number is finite."""
        if not np.isfinite(numbers).any():
            raise ImageError("it holds no number, only NaN")
        return between(numbers, self.centre - self.width / 2, self.centre + self.width / 2)


WINDOWS = {
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "soft_tissue": Window(50, 400),
    "brain": Window(40, 80),
    "subdural": Window(75, 215),
    "stroke": Window(32, 8),
    "bone": Window(400, 1800),
    "temporal_bone": Window(600, 2800),
    "spine": Window(50, 250),
    "abdomen": Window(50, 400),
    "liver": Window(30, 150),
    "angiography": Window(300, 600),
}
FILES_OWN, PERCENTILE = "dicom", "percentile"


def named(name: str) -> Window | None:
    """The window of a name or of numbers, as `40/400`; None for `dicom` (or nothing) and `percentile`, which depend on the file.

    Raises UnknownNameError for another name, SettingsError for numbers that make no window.
    """
    if name in ("", FILES_OWN, PERCENTILE):
        return None
    if name in WINDOWS:
        return WINDOWS[name]
    centre, slash, width = name.partition("/")
    try:
        window = Window(float(centre), float(width)) if slash else None
    except ValueError:
        window = None
    if window is None:
        raise UnknownNameError("intensity window", name, (*WINDOWS, FILES_OWN, PERCENTILE, "CENTRE/WIDTH as 40/400"))
    if not (math.isfinite(window.centre) and 0 < window.width < math.inf):
        raise SettingsError(f"the intensity window {name!r} shows nothing: give centre/width with a width above 0, as 40/400")
    return window
