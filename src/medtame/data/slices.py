"""Volumes slice by slice: each slice with its neighbours as channels, and masks back in the volume's own grid.

A volume is a NIfTI, NRRD, MHA or multi-frame DICOM file, or a DICOM series, of more than one slice. Its numbers are (S, H, W):
stored slice, row, column, `data.T` of a NIfTI file. NIfTI, NRRD and MHA may be cut across another axis (`PLANES`), upright and
with the patient's right on the left, as radiologists look at them; series and DICOM frames are cut as they were stored.
Intensities follow the convention of `images`, with the percentiles of the whole volume where there is no window; those of a series
or of DICOM frames are a slice's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from medtame.data import images, windows
from medtame.data.intensity import between, levels
from medtame.data.series import LabelPicture, SeriesPicture
from medtame.errors import ImageError
from medtame.types import Array, Geometry, Picture, Samples

Rows = TypeVar("Rows", bound=Samples)
Plane = Literal["stored", "axial", "coronal", "sagittal"]
PLANES: dict[str, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # axes: slice, row, column
GAP = 1.5  # a gap between slices that is this much wider than the middle one means that slices are missing
OWNER = "line of the row"  # a column of the query's own, beside those of the manifest
OFF_CENTRE = 0.5  # of the shortest side of a voxel: how far a mask's grid may lie from its image's


def is_volume(picture: Any) -> bool:
    """Whether a picture has several slices of which none was chosen. Raises ImageError for a file that cannot be read."""
    if isinstance(picture, SeriesPicture):
        return picture.frame is None and frames_of(picture) > 1
    shown = picture.shown() if isinstance(picture, LabelPicture) else picture
    return isinstance(shown, images.FilePicture) and shown.frame is None and shown.kind() is not None and frames_of(shown) > 1


@lru_cache(maxsize=2**17)
def frames_of(picture: Any) -> int:
    """How many slices a file has: each is opened once a process, not once a query."""
    return int(picture.frames())


@dataclass(frozen=True)
class Volume:
    """A volume and how it is cut. `axes`: its stored axes (column 0, row 1, slice 2) that become slice, row and column."""

    picture: Any  # a FilePicture, SeriesPicture or LabelPicture
    axes: tuple[int, int, int] = (2, 1, 0)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def of(cls, picture: Any, plane: str = "stored") -> Volume:
        """Cut in a plane. Raises ImageError where its file says no place in space, or misses slices."""
        volume = cls(picture)
        affine = volume.affine()
        if affine is None and (file := whole_file(picture)) is not None and file.path.name.lower().endswith((".nii", ".nii.gz")):
            raise ImageError(f"{picture.name} has a singular affine (its axes span no space), so no mask can be placed: mend its header")
        if isinstance(picture, SeriesPicture):
            check_gaps(picture)
        if plane == "stored" or whole_file(picture) is None:
            return volume
        if affine is None:
            raise ImageError(f"{picture.name} does not say how it lies in space, so it has no {plane} plane: set 'plane' to stored")
        from nibabel.orientations import io_orientation  # here, because most runs have no volume

        to_world = io_orientation(affine)  # (3, 2) for each stored axis: the axis of space, and whether it runs along it
        axes = [int(np.flatnonzero(to_world[:, 0] == axis)[0]) for axis in PLANES[plane]]
        along = [bool(to_world[axis, 1] > 0) for axis in axes]
        return cls(picture, (axes[0], axes[1], axes[2]), (not along[0], along[1], along[2]))

    def cut(self, numbers: Array) -> Array:
        """(S, H, W, ...) as stored, seen in this plane: (slices, rows, columns, ...)."""
        axes = [2 - axis for axis in self.axes]
        turned = numbers.transpose(*axes, *range(3, numbers.ndim))
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def uncut(self, numbers: Array) -> Array:
        """What `cut` gave, as stored."""
        turned = numbers[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return turned.transpose(np.argsort([2 - axis for axis in self.axes]))

    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) in this plane."""
        own = _first_geometry(self.picture)
        stored = (own.width, own.height, frames_of(self.picture))
        return stored[self.axes[0]], stored[self.axes[1]], stored[self.axes[2]]

    def affine(self) -> Array | None:
        """(4, 4) from (column, row, slice) as stored to millimetres, in RAS; None where the file does not say."""
        affine = _first_geometry(self.picture).affine
        return None if affine is None else np.array(affine)

    def spacing_mm(self) -> tuple[float, float, float] | None:
        """(slice, row, column) as stored."""
        affine = self.affine()
        if affine is None:
            return None
        column, row, along = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        return along, row, column

    def numbers(self) -> Array:
        """(S, H, W) the stored numbers, for masks. Raises ImageError."""
        file = whole_file(self.picture)
        if file is None:
            return np.stack([replace(self.picture, frame=k).values() for k in range(frames_of(self.picture))])
        found = images.whole_numbers(_whole(file.path, file.name, _stamp(file.path)))
        return np.isin(found, self.picture.numbers).astype(np.uint8) if isinstance(self.picture, LabelPicture) else found

    def slices(self, context: int = 0) -> list[SlicePicture]:
        return [SlicePicture(self, k, context) for k in range(self.shape()[0])]


@dataclass(frozen=True)
class SlicePicture:
    """One slice of a volume; with a `context` its channels are the slices so many before it, itself, and so many after it.

    At an end the last slice stands for those beyond it. A slice of three colours keeps them instead. Satisfies `Picture`.
    """

    volume: Volume
    frame: int
    context: int = 0

    @property
    def name(self) -> str:
        return str(self.volume.picture.name)

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1; C is 3 with a context. Raises ImageError."""
        return images.unit(self.read())

    def read(self) -> Array:
        """`array`, but uint8 where the volume was stored in 8 bits. Raises ImageError."""
        own = self._seen(self.frame)
        if not self.context or own.shape[2] != 1:
            return own
        last = self.volume.shape()[0] - 1
        return np.concatenate([self._seen(min(max(self.frame + step, 0), last)) for step in (-self.context, 0, self.context)], 2)

    def _seen(self, frame: int) -> Array:
        """(H, W, C) one slice as it is to be seen."""
        picture, file = self.volume.picture, whole_file(self.volume.picture)
        if file is None or isinstance(picture, LabelPicture):
            return _frame(picture, frame) if file is None else images.three_axes(self.values() * np.uint8(255))
        stamp = _stamp(file.path)
        stored = self.volume.cut(_whole(file.path, file.name, stamp))[frame]
        window = windows.named(file.window)
        if stored.dtype == np.uint8 or window is not None:
            return images.three_axes(stored if stored.dtype == np.uint8 or window is None else window.unit(stored))
        low, high = _levels(file.path, file.name, stamp)
        return images.three_axes(between(stored, low, high) if low < high else np.zeros(stored.shape, dtype=np.float32))

    def frames(self) -> int:
        return 1

    def values(self) -> Array:
        """(H, W) the stored numbers. Raises ImageError."""
        if whole_file(self.volume.picture) is None:
            return np.asarray(replace(self.volume.picture, frame=self.frame).values())
        return np.asarray(self.volume.cut(self.volume.numbers())[self.frame])

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the volume's file (of the files of these slices) and of how it is cut."""
        picture, file = self.volume.picture, whole_file(self.volume.picture)
        if file is not None:
            of = [_digest(picture, _stamp(file.path))]
        else:
            last = self.volume.shape()[0] - 1
            steps = range(-self.context, self.context + 1, self.context or 1)
            of = [replace(picture, frame=min(max(self.frame + step, 0), last)).digest() for step in steps]
        how = f"medtame slice {self.volume.axes} {self.volume.flips} {self.frame} {self.context} {of}"
        return hashlib.sha256(how.encode()).hexdigest()

    def geometry(self) -> Geometry:
        """Size and spacing of the slice as it is cut; its place is the volume's."""
        _, height, width = self.volume.shape()
        spacing = self.volume.spacing_mm()
        sides = None if spacing is None else (spacing[2 - self.volume.axes[1]], spacing[2 - self.volume.axes[2]])
        return Geometry(height=height, width=width, spacing_mm=sides)


def whole_file(picture: Any) -> images.FilePicture | None:
    """The NIfTI, NRRD or MHA file that holds all slices of a picture."""
    shown = picture.shown() if isinstance(picture, LabelPicture) else picture
    return shown if isinstance(shown, images.FilePicture) and shown.kind() in ("nifti", "volumes") else None


@lru_cache(maxsize=2**10)
def check_gaps(series: SeriesPicture) -> None:
    """Raises ImageError where slices of a series are missing: one gap is far wider than the others."""
    if len(series.paths) < 3:
        return
    found = [replace(series, frame=k).shown().geometry().affine for k in range(len(series.paths))]
    if any(affine is None for affine in found):
        return
    affines = np.array(found)
    gaps = np.abs(np.diff(affines[:, :3, 3], axis=0) @ (affines[0, :3, 2] / np.linalg.norm(affines[0, :3, 2])))
    widest = int(gaps.argmax())
    if gaps[widest] > GAP * np.median(gaps):
        raise ImageError(
            f"{series.name} misses slices: they lie {np.median(gaps):g} mm apart, but {gaps[widest]:g} mm between number {widest} and "
            f"{widest + 1} (from 0): add the missing files"
        )


def apart_mm(one: Volume, other: Volume) -> float:
    """How far corners of two grids of one shape lie apart, at most, in millimetres less what a voxel allows; 0 where a place is unknown."""
    affines = one.affine(), other.affine()
    if affines[0] is None or affines[1] is None:
        return 0.0
    slices, rows, columns = Volume(one.picture).shape()
    corners = np.array([[i, j, k, 1] for i in (0, columns - 1) for j in (0, rows - 1) for k in (0, slices - 1)], dtype=float)
    farthest = float(np.linalg.norm(corners @ (affines[0] - affines[1]).T[:, :3], axis=1).max())
    return farthest if farthest > OFF_CENTRE * min(one.spacing_mm() or (0.0,)) else 0.0


def whole(picture: Any) -> Array:
    """The stored numbers (S, H, W) of a volume, (H, W) of another picture. Raises ImageError."""
    return Volume(picture).numbers() if is_volume(picture) else np.asarray(picture.values())


def spacing_of(picture: Any) -> tuple[float, ...] | None:
    """(slice, row, column) of a volume, (row, column) of another picture, in mm."""
    return Volume(picture).spacing_mm() if is_volume(picture) else picture.geometry().spacing_mm


def runs(values: Sequence[object]) -> Array:
    """(N,) for each value the number of the first of those before it, without a gap, that equal it."""
    new = np.array([row == 0 or values[row] != values[row - 1] for row in range(len(values))], dtype=bool)
    return np.asarray(np.flatnonzero(new)[np.cumsum(new) - 1])


def sliced(samples: Rows, plane: str, context: int, chosen: Sequence[Array | None] | None = None) -> Rows:
    """A row a slice in the place of each line whose image is a volume; OWNER is the line of each row.

    Lines of one volume that lie together are brought together slice by slice, so that each slice is seen once. Masks and fields of
    view that are volumes are cut along. `chosen`: the slices of each line, else all. Raises ImageError as `Volume.of` does.
    """
    pictures = samples.pictures()
    if not any(map(is_volume, pictures)):
        return samples
    owner: list[int] = []
    frames: list[tuple[Volume, int] | None] = []
    first = runs(samples.column("image"))
    for start in np.unique(first).tolist():
        lines = np.flatnonzero(first == start).tolist()
        if not is_volume(pictures[start]):
            owner, frames = owner + lines, frames + [None] * len(lines)
            continue
        volume = Volume.of(pictures[start], plane)
        for frame in range(volume.shape()[0]):
            wanted = [line for line in lines if chosen is None or (kept := chosen[line]) is None or frame in kept]
            owner, frames = owner + wanted, frames + [(volume, frame)] * len(wanted)
    made = samples.take(owner)
    columns = {name: _cut(made, name, frames, context if name == "image" else 0) for name in ("image", "mask", "fov") if name in made}
    return made.replaced(**columns, **{OWNER: owner})


def _cut(samples: Samples, name: str, frames: Sequence[tuple[Volume, int] | None], context: int) -> list[Picture | None]:
    """The slice of each row's picture; pictures that are no volumes, and empty cells, as they are."""
    filled = [row for row, value in enumerate(samples.column(name)) if value is not None]
    found: list[Any] = [None] * len(frames)
    for row, picture in zip(filled, samples.take(filled).pictures(name), strict=True):
        cut = frames[row]
        found[row] = picture if cut is None or not is_volume(picture) else SlicePicture(replace(cut[0], picture=picture), cut[1], context)
    return found


def owners(samples: Samples) -> list[int]:
    """(N,) the line of each row."""
    return samples.column(OWNER) if OWNER in samples else list(range(len(samples)))


def to_learn_from(samples: Rows, most: int, plane: str, context: int, seed: int) -> Rows:
    """`sliced` lines with their masks, at most `most` slices a volume and structure, as `balanced_slices` has them."""
    pictures, masks = samples.pictures(), samples.pictures("mask")
    chosen: list[Array | None] = [None] * len(samples)
    first = runs(samples.column("image"))
    for start in np.unique(first).tolist():
        if is_volume(pictures[start]):
            lines = np.flatnonzero(first == start).tolist()
            volume = Volume.of(pictures[start], plane)
            marked = [np.asarray(volume.cut(whole(masks[line])).any((1, 2))) for line in lines]
            for line, frames in zip(lines, balanced_slices(marked, most, np.random.default_rng([seed, start])), strict=True):
                chosen[line] = frames
    return sliced(samples, plane, context, chosen)


def balanced_slices(marked: Sequence[Array], most: int, rng: np.random.Generator) -> list[Array]:
    """For each structure of one volume, numbers of slices to learn from, at most `most`, in order.

    Half of them show the structure and half do not; where one kind runs short the other fills up. All structures take from one
    order of the slices, so that they share many. `marked`: (slices,) booleans a structure.
    """
    order, chosen = rng.permutation(len(marked[0])) if marked else np.zeros(0, int), []
    for shows in marked:
        inside, outside = order[shows[order]], order[~shows[order]]
        few = min(len(outside), most // 2)
        kept = inside[: most - few]
        chosen.append(np.sort(np.concatenate([kept, outside[: most - len(kept)]])))
    return chosen


# ---- files, each read once ------------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _whole(path: Path, name: str, stamp: tuple[int, int]) -> Array:
    """(S, H, W) or (S, H, W, 3) of a NIfTI, NRRD or MHA file; the last few are kept."""
    return images.FilePicture(path, name).volume()


@lru_cache(maxsize=64)
def _levels(path: Path, name: str, stamp: tuple[int, int]) -> tuple[float, float]:
    return levels(_whole(path, name, stamp))


@lru_cache(maxsize=2**14)
def _first_geometry(picture: Any) -> Geometry:
    """Of the first slice, asked once a process."""
    found: Geometry = replace(picture, frame=0).geometry()
    return found


@lru_cache(maxsize=16)
def _frame(picture: Any, frame: int) -> Array:
    return np.asarray(replace(picture, frame=frame).read())


@lru_cache(maxsize=4096)
def _digest(picture: Any, stamp: tuple[int, int]) -> str:
    return str(picture.digest())
