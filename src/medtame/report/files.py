"""Predictions as files: a table, and masks and fields in the geometry of their source."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medtame.errors import RunError
from medtame.types import Array, Predicted, Samples


def write(said: Predicted, samples: Samples, folder: Path) -> list[str]:
    """predictions.csv and one file an array of a row; returns the absolute paths, the table first.

    Masks are PNG (255 = object) at the size of their source, or NIfTI with its affine where the source is NIfTI; displacements
    are .npz in pixels. Raises RunError where the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: give a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    said.to_csv(folder / "predictions.csv")
    files = [folder / "predictions.csv"]
    for key, array in said.arrays.items():
        row, _, kind = key.partition("/")
        if not row.isdecimal():
            continue
        name = f"{int(row):05d}_{kind}"
        if kind == "mask":
            files.append(_mask(array, _source(said, samples, int(row)), folder / name))
        else:
            files.append(folder / f"{name}.npz")
            np.savez_compressed(files[-1], allow_pickle=False, **{kind: array})
    return [str(path.absolute()) for path in files]


def _source(said: Predicted, samples: Samples, row: int) -> Path | None:
    """The file that a row's image was read from, where it is a file."""
    name = said.table[row]["image"]
    for picture in samples.pictures("image"):
        if picture.name == name:
            path: Path | None = getattr(picture, "path", None)
            return path
    return None


def _mask(mask: Array, source: Path | None, path: Path) -> Path:
    if source is not None and source.name.endswith((".nii", ".nii.gz")):
        whole = nibabel.load(source)
        volume = np.zeros(whole.shape[:3], dtype=np.uint8)
        volume[:, :, whole.shape[2] // 2] = mask.T
        nibabel.save(nibabel.Nifti1Image(volume, whole.affine), path.with_suffix(".nii.gz"))
        return path.with_suffix(".nii.gz")
    Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255).save(path.with_suffix(".png"))
    return path.with_suffix(".png")
