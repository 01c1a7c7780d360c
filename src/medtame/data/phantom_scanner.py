"""How a simulated scanner shows a simulated brain: tissue contrast, coil field, noise, and how hard the lesion is to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter

from medtame.data.phantom_anatomy import Anatomy, smooth_field
from medtame.data.phantom_lesions import Lesion
from medtame.types import Array

SHADES = (0.0, 0.36, 0.65, 0.86, 1.0)  # of background, fluid, grey matter, white matter and the brightest voxel in the template


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What `difficulty` changes, together. Grey values are shares of the full range."""

    lesion_contrast: float  # share of the lesion's grey value that is blended in
    noise: float  # standard deviation of each of the two channels of the Rician noise
    texture: float  # standard deviation of the brain's own unevenness
    deformation_mm: float  # standard deviation of the control points


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """A site's scanner, as what it adds to a neutral one."""

    name: str
    log_gamma: float
    log_noise: float
    white_matter: float  # grey value
    coil: tuple[float, float]  # logarithm of the coil field from the centre to the right and to the lower edge


GRADES: Mapping[str, Grade] = MappingProxyType(
    {
        "easy": Grade(lesion_contrast=1.0, noise=0.006, texture=0.006, deformation_mm=2.0),
        "standard": Grade(lesion_contrast=0.54, noise=0.035, texture=0.025, deformation_mm=3.0),
        "hard": Grade(lesion_contrast=0.38, noise=0.055, texture=0.035, deformation_mm=4.0),
    }
)
SCANNERS = (
    Scanner(name="site A", log_gamma=-0.18, log_noise=-0.25, white_matter=0.04, coil=(0.15, -0.08)),
    Scanner(name="site B", log_gamma=0.02, log_noise=0.0, white_matter=0.0, coil=(-0.18, 0.1)),
    Scanner(name="site C", log_gamma=0.2, log_noise=0.25, white_matter=-0.04, coil=(0.03, 0.2)),
)


def picture(anatomy: Anatomy, lesion: Lesion | None, scanner: Scanner, site_effect: float, grade: Grade, rng: np.random.Generator) -> Array:
    """(H, W) uint8. The same generator state gives the same scanner noise with and without the lesion."""
    size = len(anatomy.t1)
    fluid, grey, white = np.array([0.16, 0.43, 0.62 + site_effect * scanner.white_matter]) + rng.normal(0, 0.02, 3)
    value = np.interp(anatomy.t1, SHADES, (0.0, fluid, grey, white, white + 0.05))
    grain = gaussian_filter(rng.standard_normal((size, size)), 1.4 / anatomy.spacing_mm, truncate=3)
    value = value + anatomy.brain * grade.texture * grain / grain.std()
    if lesion is not None:
        value += grade.lesion_contrast * lesion.weight * (lesion.value - value)
    value = np.clip(value, 0, 1) ** np.exp(site_effect * scanner.log_gamma + rng.normal(0, 0.05))
    value *= np.exp(_coil(scanner, site_effect, size) + smooth_field(rng.normal(0, 0.06, (5, 5)), size))
    real, imaginary = grade.noise * np.exp(site_effect * scanner.log_noise) * rng.standard_normal((2, size, size))
    return np.asarray(np.rint(255 * np.clip(np.hypot(value + real, imaginary), 0, 1)).astype(np.uint8))


def framed(pixels: Array, shade: int | None) -> Array:
    """The same picture with a thin border of one grey level, or as it is where the shade is None."""
    if shade is None:
        return pixels
    width = max(1, len(pixels) // 80)
    return np.pad(pixels[width:-width, width:-width], width, constant_values=shade)


def _coil(scanner: Scanner, site_effect: float, size: int) -> Array:
    across = (np.arange(size) + 0.5) * 2 / size - 1
    return np.asarray(site_effect * (scanner.coil[0] * across[None, :] + scanner.coil[1] * across[:, None]))
