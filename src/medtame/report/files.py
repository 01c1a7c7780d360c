"""Predictions as files: a table, and masks and fields in the geometry of their source."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from medtame.data.dicom import is_dicom
from medtame.data.slices import Volume
from medtame.errors import RunError
from medtame.report import coco_json
from medtame.types import Array, Picture, Predicted, Samples

NIFTI = (".nii", ".nii.gz")


def write(said: Predicted, samples: Samples, folder: Path) -> list[str]:
    """predictions.csv and one file an array of a row, or one COCO JSON of all boxes; returns the absolute paths, the table first.

    The column `file` of the table names a row's file. A mask is DICOM SEG where its source is DICOM; NIfTI with the affine
    of its source for all slices of a volume, and for one slice where the source is NIfTI (in the whole grid), NRRD or MHA (that
    slice); else PNG (255 = object) at the size of its source. Displacements are .npz in pixels. Raises RunError where the folder is
    not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: give a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: Mapping[str, Picture] = {picture.name: picture for picture in samples.pictures()} if "image" in samples else {}
    table, files = [dict(row) for row in said.table], []
    for key, array in said.arrays.items():
        number, _, kind = key.partition("/")
        if not number.isdecimal():
            continue
        row, place = table[int(number)], folder / f"{int(number):05d}_{kind}"
        if kind == "mask" and array.ndim == 3:
            files.append(_volume(array, pictures.get(str(row["image"])), place))
        elif kind == "mask":
            files.append(_mask(array, pictures.get(str(row["image"])), row, place))
        else:
            files.append(place.with_suffix(".npz"))
            np.savez_compressed(files[-1], allow_pickle=False, **{kind: array})
        row["file"] = files[-1].name
    if any(key.startswith("boxes/") for key in said.arrays):
        files.append(_boxes(said.arrays, pictures, folder / "predictions.coco.json"))
    Predicted(table=table).to_csv(folder / "predictions.csv")
    return [str(path.absolute()) for path in (folder / "predictions.csv", *files)]


def _boxes(arrays: Mapping[str, Array], pictures: Mapping[str, Picture], path: Path) -> Path:
    """All boxes with their scores, those that do not count too, in pixels of their source; an image that was asked twice is told once."""
    names = [str(name) for name in arrays["images"]]
    rows = {name: row for row, name in reversed([*enumerate(names)])}
    told = sorted(rows.values())
    shown = [pictures[names[row]] for row in told]
    coco_json.write(shown, [arrays[f"boxes/{row}"] for row in told], [str(name) for name in arrays["names"]], path)
    return path


def _mask(mask: Array, picture: Picture | None, row: dict[str, Any], place: Path) -> Path:
    """Write a mask in the best format that its source allows; a row that gets a poorer one says so."""
    source, frame = _source(picture)
    if source is not None and picture is not None:
        if source.name.lower().endswith(NIFTI):
            return _in_volume(mask, source, frame, place)
        if is_dicom(source):
            path = _segmentation(mask, str(row.get("structure", "object")), source, frame, place)
            if path is not None:
                return path
            row["warning"] = "; ".join(filter(None, [row.get("warning"), "this DICOM file cannot carry a SEG, so its mask is a PNG"]))
        elif picture.geometry().affine is not None:
            path = place.with_suffix(".nii.gz")
            nibabel.save(nibabel.Nifti1Image(_binary(mask).T[:, :, None], np.array(picture.geometry().affine)), path)
            return path
    Image.fromarray(_binary(mask) * 255).save(place.with_suffix(".png"))
    return place.with_suffix(".png")


def _source(picture: Picture | None) -> tuple[Path | None, int | None]:
    """The file that the shown slice was read from, and its number there; a slice of a series is a file of its own."""
    shown: Any = picture
    shown = shown.shown() if hasattr(shown, "shown") else shown
    return getattr(shown, "path", None), getattr(shown, "frame", None)


def _in_volume(mask: Array, source: Path, frame: int | None, place: Path) -> Path:
    """The mask in the grid of its volume, zero in all other slices."""
    whole: Any = nibabel.load(source)
    shape = (*whole.shape[:3], 1)[:3]
    volume = np.zeros(shape, dtype=np.uint8)
    volume[:, :, shape[2] // 2 if frame is None else frame] = _binary(mask).T
    nibabel.save(nibabel.Nifti1Image(volume, whole.affine), place.with_suffix(".nii.gz"))
    return place.with_suffix(".nii.gz")


def _volume(mask: Array, picture: Picture | None, place: Path) -> Path:
    """A mask (S, H, W) in the grid of its volume: affine, units and codes of a NIfTI source are kept."""
    path, (source, _) = place.with_suffix(".nii.gz"), _source(picture)
    affine: Any = None if picture is None else Volume(picture).affine()
    header = None
    if source is not None and source.name.lower().endswith(NIFTI):
        of: Any = nibabel.load(source)
        affine, header = of.affine, of.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
    nibabel.save(nibabel.Nifti1Image(_binary(mask).T, np.eye(4) if affine is None else affine, header), path)
    return path


def _segmentation(mask: Array, structure: str, source: Path, frame: int | None, place: Path) -> Path | None:
    """A DICOM SEG; None where the source lacks what it must repeat, such as a frame of reference of several frames."""
    from medtame.report import dicom_seg  # here, because highdicom takes a second to import

    path = place.with_suffix(".dcm")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on values of the source that are not as the standard wants them; they may name a patient
            dicom_seg.write(mask, structure, source, frame, path)
    except (ValueError, AttributeError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return None
    return path


def _binary(mask: Array) -> Array:
    return (np.asarray(mask) > 0).astype(np.uint8)
