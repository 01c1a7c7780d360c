"""The brain of the phantom: slices of the MNI152 average brain, and the smooth deformation that makes a simulated patient.

Positions are millimetres in the picture: x to the right, y downward, (0, 0) at the upper left corner of a square of
`FIELD_MM`. Pictures are radiological: the patient's left is on the right of the picture, the front of the head is up.
A deformation goes backward: patient(p) = template(p + u(p)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.nn.functional import grid_sample

from medtame.errors import MissingExtraError
from medtame.types import Array

FIELD_MM = 208.0
CENTRE_MNI_MM = (0.0, -17.0)  # where the picture's centre lies in MNI space: x to the patient's right, y to the front
LEVELS_MM = (8, 12, 16, 20, 24, 28, 32)  # heights of the axial slices in MNI space
CONTROLS = 9  # control points of the deformation along each axis
BRAIN = 0.1  # T1 above this is brain
BACKGROUND, CSF, GREY, WHITE = range(4)


@dataclass(frozen=True)
class Template:
    """Per level in mm: (3, X, Y) float32 planes in 0..1, T1 and the probabilities of grey and white matter, 1 mm voxels."""

    planes: Mapping[int, Array]
    origin_mm: tuple[float, float]  # MNI position of voxel (0, 0)


@dataclass(frozen=True)
class Anatomy:
    """One slice of one simulated patient, all (H, W)."""

    t1: Array  # 0..1
    tissue: Array  # uint8: 0 background, 1 cerebrospinal fluid, 2 grey matter, 3 white matter
    left_mm: Array  # how far the place lies to the patient's left of the template's mid-line

    @property
    def brain(self) -> Array:
        return np.asarray(self.tissue > BACKGROUND)

    @property
    def spacing_mm(self) -> float:
        return FIELD_MM / len(self.t1)


def load_template() -> Template:
    """The T1 and the tissue maps that nilearn ships (ICBM 2009a nonlinear symmetric; Fonov et al. 2009).

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    package = find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError('nilearn, whose brain the phantom deforms, is not installed: pip install "medtame[demo]"')
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    volumes = [nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") for name in ("t1", "gm", "wm")]
    x, y, z = (float(offset) for offset in volumes[0].affine[:3, 3])
    arrays = [np.asarray(volume.dataobj) for volume in volumes]
    planes = {level: np.stack([array[:, :, round(level - z)] for array in arrays]).astype(np.float32) / 255 for level in LEVELS_MM}
    return Template(planes, (x, y))


def spline(positions_mm: Array, controls: int) -> Array:
    """(N, controls) weights of a uniform cubic B-spline over the field; a row sums to one."""
    steps = np.clip(positions_mm, 0, FIELD_MM)[:, None] / FIELD_MM * (controls - 3)
    away = np.abs(steps - np.arange(-1, controls - 1))
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6)


def pixel_centres_mm(size: int) -> Array:
    return np.asarray((np.arange(size) + 0.5) * FIELD_MM / size)


def smooth_field(controls: Array, size: int) -> Array:
    """(..., G, G) control values, rows then columns, to (..., size, size)."""
    weights = spline(pixel_centres_mm(size), controls.shape[-1])
    return np.asarray(weights @ controls @ weights.T)


def displacement_mm(controls: Array, points_mm: Array) -> Array:
    """The displacement u (N, 2) at points (N, 2), x before y; controls (2, G, G)."""
    across, down = (spline(points_mm[:, axis], controls.shape[-1]) for axis in (0, 1))
    return np.asarray(np.einsum("ni,kij,nj->nk", down, controls, across))


def displacement(controls: Array, size: int) -> Array:
    """(2, size, size) pixels, x before y: where in the template's picture each pixel of the patient comes from, less its own place."""
    return smooth_field(controls, size) * size / FIELD_MM


def jacobian(controls: Array, size: int) -> Array:
    """(size, size) determinant of p -> p + u(p): below zero the deformation would fold."""
    x, y = displacement(controls, size)
    (x_down, x_across), (y_down, y_across) = np.gradient(x), np.gradient(y)
    return np.asarray((1 + x_across) * (1 + y_down) - x_down * y_across)


def random_deformation(strength_mm: float, rng: np.random.Generator) -> Array:
    """(2, G, G) control values in mm: a small affine part and a smooth random part, weakened until no place shrinks below a third."""
    turn, scales = rng.normal(0, 0.006 * strength_mm), rng.normal(1, 0.006 * strength_mm, 2)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scales
    own = np.arange(-1, CONTROLS - 1) * FIELD_MM / (CONTROLS - 3) - FIELD_MM / 2  # the spline of these values is the position itself
    grid = np.stack(np.meshgrid(own, own))
    affine = np.einsum("ij,jhw->ihw", matrix - np.eye(2), grid) + rng.normal(0, 0.3 * strength_mm, (2, 1, 1))
    wave = rng.normal(0, strength_mm, (2, CONTROLS, CONTROLS))
    while jacobian(affine + wave, 80).min() < 1 / 3:
        affine, wave = 0.9 * affine, 0.9 * wave
    return np.asarray(affine + wave)


def deformed(template: Template, level_mm: int, controls: Array, size: int) -> Anatomy:
    """The template's slice as this patient has it."""
    centres = pixel_centres_mm(size)
    x, y = np.stack(np.meshgrid(centres, centres)) + smooth_field(controls, size)
    t1, grey, white = _sampled(template, level_mm, x, y)
    tissue = np.where(t1 > BRAIN, CSF + np.argmax([1 - grey - white, grey, white], axis=0), BACKGROUND)
    return Anatomy(t1, tissue.astype(np.uint8), x - FIELD_MM / 2)


def landmarks_mm(template: Template, level_mm: int) -> Array:
    """(N, 2) common template points: those of a grid of 26 mm that lie in the brain."""
    lines = np.arange(13.0, FIELD_MM, 26.0)
    x, y = np.meshgrid(lines, lines)
    inside = _sampled(template, level_mm, x, y)[0] > BRAIN
    return np.stack([x[inside], y[inside]], axis=1)


def _sampled(template: Template, level_mm: int, x_mm: Array, y_mm: Array) -> Array:
    """(3, H, W) T1, grey and white matter, linear between voxels and zero outside, at picture positions (H, W)."""
    planes = torch.from_numpy(template.planes[level_mm])
    mni = (CENTRE_MNI_MM[0] + FIELD_MM / 2 - x_mm, CENTRE_MNI_MM[1] + FIELD_MM / 2 - y_mm)
    places = [2 * (mni[axis] - template.origin_mm[axis]) / (planes.shape[1 + axis] - 1) - 1 for axis in (1, 0)]
    grid = torch.from_numpy(np.stack(places, axis=-1).astype(np.float32))
    return np.asarray(grid_sample(planes[None], grid[None], align_corners=True)[0].numpy())


def carried_to_patient(points_mm: Array, controls: Array) -> Array:
    """(N, 2) where template points lie in the patient: p + u(p) = q, by damped fixed-point steps."""
    places = points_mm
    for _ in range(40):
        places = 0.5 * places + 0.5 * (points_mm - displacement_mm(controls, places))
    return places
