"""Image files and folders as they are given to `predict` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medtame.data import manifest
from medtame.data.samples import ManifestSamples
from medtame.data.series import SeriesPicture
from medtame.errors import DataError


def opened_images(images: Sequence[str | Path] | str | Path) -> ManifestSamples:
    """Samples from a manifest, or from image files and folders (their images at any depth; DICOM files joined to series).

    Names are as they were given. Raises DataError where none is there, and for a folder without an image.
    """
    if isinstance(images, (str, Path)):
        if manifest.is_manifest(Path(images)):
            return manifest.read(images)
        images = [images]
    absent = [str(image) for image in images if not Path(image).is_file() and not Path(image).is_dir()]
    if len(absent) == len(images):
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise DataError(f"there is no file or folder {absent[0]}{more}: correct the path")
    found = [one for image in images for one in (in_folder(Path(image)) if Path(image).is_dir() else [str(image)])]
    return ManifestSamples({"image": found}, np.arange(len(found)), Path.cwd())


def in_folder(folder: Path) -> list[str | SeriesPicture]:
    """The images below a folder, named from it as it was given; a DICOM series is one."""
    whole = folder.absolute()
    found = manifest.images_below(folder)
    if not found:
        raise DataError(f"no image in {folder}: give image files, a folder that holds some, or a manifest")
    return [
        str(folder / Path(one).relative_to(whole)) if isinstance(one, str) else replace(one, name=str(folder / one.name)) for one in found
    ]
