"""What a manifest holds, counted: rows, images, classes, parts, sizes, formats, modalities, empty cells. No judgement here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtame.data import dicom, tags
from medtame.data.looks import Looks
from medtame.data.packed import PackedPicture
from medtame.data.samples import ManifestSamples
from medtame.data.sources import Source
from medtame.data.splits import Split
from medtame.errors import DataError
from medtame.types import Array, Picture, Samples

IMAGE_COLUMNS = ("image", "fixed", "moving")
PARTS = ("train", "val", "test")
SEVERAL_ANSWERS = ("question", "xmin")  # columns of manifests in which one image has many rows with other truths


@dataclass(frozen=True, eq=False)
class Images:
    """The M different images of N rows: where they lie, the rows of each, the header where it is a DICOM file.

    `formats` (M,) dicom, or the end of the file's name; `sizes_bytes` (M,) -1 where it is not known.
    """

    pictures: tuple[Picture, ...]
    rows: tuple[tuple[int, ...], ...]
    headers: tuple[tags.Header | None, ...]
    formats: tuple[str, ...]
    sizes_bytes: Array

    def __len__(self) -> int:
        return len(self.pictures)

    def among(self, rows: Sequence[int] | Array) -> Array:
        """(M,) bool: which images have a row among these."""
        wanted = set(np.asarray(rows).tolist())
        return np.array([not wanted.isdisjoint(own) for own in self.rows], dtype=bool)


def images_of(samples: ManifestSamples) -> Images:
    """The different images of all image columns, in the order of their first row. Raises DataError for an empty cell."""
    rows: dict[Picture, list[int]] = {}
    paths: dict[Picture, Path | None] = {}
    for column in IMAGE_COLUMNS:
        if column in samples:
            for row, (picture, path) in enumerate(zip(samples.pictures(column), _paths(samples, column), strict=True)):
                rows.setdefault(picture, []).append(row)
                paths[picture] = path
    headers = tags.headers([_source(picture, path) for picture, path in paths.items()])
    formats = ["dicom" if header else _ending(_named(*both)) for header, both in zip(headers, paths.items(), strict=True)]
    sizes = np.array([_size_bytes(*both) for both in paths.items()], dtype=np.int64)
    return Images(tuple(rows), tuple(tuple(own) for own in rows.values()), tuple(headers), tuple(formats), sizes)


def _paths(samples: ManifestSamples, column: str) -> Sequence[Path | None]:
    try:
        return samples.paths(column)
    except DataError:
        return [samples.root / value if isinstance(value, (str, Path)) else None for value in samples.column(column)]


def _source(picture: Picture, path: Path | None) -> Callable[[], Source] | Path | None:
    """What a header is read from; of a picture inside a shard its bytes, fetched when they are wanted."""
    if not isinstance(picture, PackedPicture):
        return path
    suffix = Path(picture.member).suffix.lower()
    return picture.content if suffix in dicom.SUFFIXES else None


def _named(picture: Picture, path: Path | None) -> Path | None:
    return Path(picture.member) if isinstance(picture, PackedPicture) else path


def _size_bytes(picture: Picture, path: Path | None) -> int:
    if isinstance(picture, PackedPicture):
        return picture.size_bytes
    return path.stat().st_size if path is not None and path.is_file() else -1


def _ending(path: Path | None) -> str:
    if path is None:
        return "in memory"
    return "nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower().lstrip(".") or "no ending"


def parts_of(samples: Samples, split: Split | None = None) -> dict[str, Array]:
    """Row numbers of train, val and test, by the split that is used, else by the column `split`; empty parts are left out."""
    words = [str(word).casefold() for word in samples.column("split")] if "split" in samples else []
    parts = {name: np.flatnonzero([word == name for word in words]) for name in PARTS} if words else {}
    if split is not None and split.test is not None:
        parts |= {"train": split.train, "test": split.test}
    return {name: parts[name] for name in PARTS if name in parts and len(parts[name])}


def one_label_an_image(samples: Samples, images: Images) -> list[str | None] | None:
    """(M,) the label of each image, or None where the manifest is not of that kind: no labels, boxes, questions, two labels an image."""
    if "label" not in samples or any(column in samples for column in SEVERAL_ANSWERS):
        return None
    labels = samples.column("label")
    of_image = [{labels[row] for row in rows} for rows in images.rows]
    if any(len(found) > 1 for found in of_image):
        return None
    return [next(iter(found)) for found in of_image]


def counted(samples: ManifestSamples, images: Images, looks: Looks, parts: Mapping[str, Array]) -> dict[str, Any]:
    """The record's plain numbers: JSON values, no identifier among them."""
    labels = samples.column("label") if "label" in samples else []
    sizes: Counter[tuple[int, int]] = Counter((height, width) for height, width in looks.sizes[looks.readable].tolist())
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    readable = int(looks.readable.sum())
    colour = int(looks.colour.sum())
    return {
        "n": len(samples),
        "images": len(images),
        "groups": len(set(samples.groups.tolist())),
        "classes": dict(sorted(Counter(str(label) for label in labels if label is not None).items())),
        "without_label": sum(label is None for label in labels),
        "split": {name: len(rows) for name, rows in parts.items()},
        "sizes": {
            "different": len(sizes),
            "smallest": list(by_area[0]) if sizes else None,
            "largest": list(by_area[-1]) if sizes else None,
            "commonest": [[height, width, count] for (height, width), count in sizes.most_common(5)],
        },
        "formats": dict(Counter(images.formats).most_common()),
        "modalities": dict(Counter(header.modality if header else "unknown" for header in images.headers).most_common()),
        "colour": {"grey": readable - colour, "colour": colour},
        "missing": {name: empty for name, values in samples.columns.items() if (empty := sum(value is None for value in values))},
    }
