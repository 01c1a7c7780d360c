"""Who stands on which side: groups, the given split and its leaks, and folds where no split is given."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from medtame.data import dicom
from medtame.data.packed import PackedPicture
from medtame.data.samples import ManifestSamples
from medtame.data.series import SeriesPicture, patient_of
from medtame.errors import DataError, ImageError
from medtame.types import Array, Picture

DICOM_ENDINGS = dicom.SUFFIXES - {""}
GROUP_COLUMNS = ("patient", "case", "study", "group", "lesion")


@dataclass(frozen=True)
class Split:
    """Numbers of the training and the test rows, and how they came about. `test` is None where the data name no test part."""

    train: Array
    test: Array | None
    how: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Folds:
    """(train, test) row numbers of each fold, and what is to be said about them."""

    parts: list[tuple[Array, Array]]
    notes: list[str] = field(default_factory=list)


def groups_of(samples: ManifestSamples) -> tuple[Array, str]:
    """(N,) the group of each row as text, and a sentence that says where it comes from.

    The first of the columns patient, case, study, group, lesion; else the PatientID of DICOM files, shown only as a running
    number; else the image itself. A pair without such a column belongs to its fixed image: scans that share a pair, joined,
    would often be one group. A row without a value is grouped by its image.
    """
    images = _image_names(samples)
    named = next((name for name in GROUP_COLUMNS if name in samples), None)
    if named is not None:
        values = samples.column(named)
        source = f"the column {named!r}"
        groups = [None if value is None else f"{named} {value}" for value in values]
    else:
        groups, source = _dicom_patients(samples), "the PatientID of the DICOM files"
    empty = sum(group is None for group in groups)
    if empty == len(groups):
        own = "the fixed image" if "fixed" in samples else "the image" if "image" in samples else "their number: each stands alone"
        return np.array(images, dtype=object), f"Rows are grouped by {own} (no patient column)."
    rest = f" {empty} rows without one are grouped by their image." if empty else ""
    return np.array([image if group is None else group for group, image in zip(groups, images, strict=True)], dtype=object), (
        f"Rows are grouped by {source}.{rest}"
    )


def split(samples: ManifestSamples, *, allow_leakage: bool = False) -> Split:
    """The given split: rows whose `split` is `train` and `test`, in any case of letters. Other words stand in neither.

    Raises DataError where a group or an exact copy of a file stands in both, unless `allow_leakage`: then it is a warning.
    """
    if "split" not in samples or all(word is None for word in samples.column("split")):
        return Split(np.arange(len(samples)), None, "The data name no test part, so all rows are in folds.")
    words = [None if word is None else str(word).casefold() for word in samples.column("split")]
    train, test = (np.array([row for row, word in enumerate(words) if word == part], dtype=np.intp) for part in ("train", "test"))
    others = Counter(word or "(empty)" for word in words if word not in ("train", "test"))
    if not len(train):
        raise DataError(f"the column 'split' has no row 'train'; it has {', '.join(others) or 'test'}. Name the training rows 'train'")
    aside = f" Not used: {', '.join(f'{word} {count}' for word, count in others.items())}." if others else ""
    if not len(test):
        return Split(train, None, f"The column 'split' has {len(train)} training rows and no test part.{aside}")
    leaks = _leaks(samples, train, test)
    if leaks and not allow_leakage:
        raise DataError(
            f"train and test overlap: {'; '.join(leaks)}. Mend the column 'split' (medtame check names the images), or use --allow-leakage"
        )
    how = f"The column 'split' names {len(train)} training and {len(test)} test rows.{aside}"
    return Split(train, test, how, [f"Train and test overlap: {leak}." for leak in leaks])


def folds(
    samples: ManifestSamples, labels: Sequence[str | None] | None = None, k: int = 5, *, seed: int, alike: Array | None = None
) -> Folds:
    """At most k folds by group, labels dealt out evenly (scikit-learn's StratifiedGroupKFold); exact copies count as one group.

    `alike` (N,) may number rows of which those with one number belong together, such as near-duplicates.

    Fewer folds, with a note, where there are fewer groups. Raises DataError where there is only one group.
    """
    together = joined(samples, alike)
    strata = np.array(["" if label is None else str(label) for label in (labels if labels is not None else [None] * len(samples))])
    different, commonest = len(np.unique(together)), max(Counter(strata.tolist()).values(), default=0)
    count = min(k, different, commonest)
    if different < 2:
        raise DataError(f"{len(samples)} rows in {different} group(s) make no folds: give at least two groups, or a column 'split'")
    if count < 2:
        raise DataError(f"{len(samples)} rows with each class in one row make no folds: give two rows of a class, or a column 'split'")
    notes = [f"{count} folds instead of {k}: there are {different} groups."] if count < k else []
    maker = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label with fewer rows than folds; said below
        parts = [(train, test) for train, test in maker.split(np.zeros(len(samples)), strata, together) if len(train) and len(test)]
    rare = sorted(label for label, held in Counter(strata.tolist()).items() if held < count and label)
    if rare:
        notes.append(f"Fewer rows than folds, so missing from some: {', '.join(map(repr, rare))}.")
    return Folds(parts, notes)


def _image_names(samples: ManifestSamples) -> list[str]:
    """What stands for a row's image: one text for one file however it is spelled; a row without any is its own."""
    column = next((name for name in ("fixed", "image") if name in samples), None)
    if column is None:
        return [f"row {row}" for row in range(len(samples))]
    names: dict[Any, str] = {}
    for value in dict.fromkeys(value for value in samples.column(column) if value is not None):
        file = _file(value)
        names[value] = _path_name(samples.root, file) if file is not None else _other_name(value)
    return [f"row {row}" if value is None else names[value] for row, value in enumerate(samples.column(column))]


def _other_name(value: Picture) -> str:
    """A picture inside a shard has a name of its own; one in memory is known by what it shows."""
    return value.name if isinstance(value, PackedPicture) else value.digest()


def _file(value: Any) -> str | Path | None:
    """The file of a cell, the first one of a series; None for an empty cell and for pictures in memory."""
    if isinstance(value, SeriesPicture):
        return value.paths[0]
    return value if isinstance(value, (str, Path)) else None


def _path_name(root: Path, value: str | Path) -> str:
    """A path below the root in one spelling; another stays absolute. A link keeps its own name."""
    whole, base = Path(os.path.normpath(root / value)), Path(os.path.normpath(root))
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else whole.as_posix()


def _dicom_patients(samples: ManifestSamples) -> list[str | None]:
    """(N,) a running number of the patient, by first appearance: nothing that is computed from the ID leaves this function."""
    column = next((name for name in ("fixed", "image") if name in samples), None)
    numbers: dict[bytes, int] = {}
    known: dict[Any, bytes | None] = {None: None}
    groups: list[str | None] = []
    for value in samples.column(column) if column else [None] * len(samples):
        if value not in known:
            known[value] = _patient(value, samples.root)
        patient = known[value]
        groups.append(None if patient is None else f"DICOM patient {numbers.setdefault(patient, len(numbers) + 1)}")
    return groups


def _patient(value: Any, root: Path) -> bytes | None:
    """The PatientID of a DICOM file, never to be shown; None for other pictures."""
    if isinstance(value, PackedPicture):
        try:
            return dicom.patient_of(value.content()) if Path(value.member).suffix.lower() in DICOM_ENDINGS else None
        except ImageError:
            return None
    file = _file(value)
    if file is not None and not (root / file).is_file():
        raise DataError(f"there is no file {file}: correct the path")
    return None if file is None else patient_of(root / file)


def _leaks(samples: ManifestSamples, train: Array, test: Array) -> list[str]:
    """A phrase for each kind of overlap. It counts: a file's name may be a patient's."""
    found = []
    shared = set(samples.groups[train]) & set(samples.groups[test])
    if shared:
        rows = [row for row in test if samples.groups[row] in shared]
        found.append(f"{_many(len(shared), 'group')} in both ({_many(len(rows), 'test row')})")
    contents = _contents(samples, [name for name in ("image", "fixed", "moving") if name in samples])
    seen = {key for row in train for key, _ in contents[row]}
    copies = {key for row in test for key, _ in contents[row] if key in seen}
    if copies:
        found.append(f"{_many(len(copies), 'test image')} also in train, byte for byte")
    return found


def joined(samples: ManifestSamples, alike: Array | None = None) -> Array:
    """(N,) numbers of groups, those that hold copies of one file, or rows that are alike, taken as one."""
    column = next((name for name in ("fixed", "image") if name in samples), None)
    contents = _contents(samples, [column] if column else [])
    nodes: dict[tuple[str, str], int] = {}
    edges = [
        (nodes.setdefault(("group", str(group)), len(nodes)), nodes.setdefault(("file", key), len(nodes)))
        for group, keys in zip(samples.groups, contents, strict=True)
        for key, _ in keys
    ]
    own = [nodes.setdefault(("group", str(group)), len(nodes)) for group in samples.groups]
    if alike is not None:
        edges += [(node, nodes.setdefault(("alike", str(number)), len(nodes))) for node, number in zip(own, alike, strict=True)]
    ends = np.array(edges, dtype=np.intp).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(nodes), len(nodes)))
    return np.asarray(connected_components(links, directed=False)[1])[own]


def _contents(samples: ManifestSamples, columns: Sequence[str]) -> list[list[tuple[str, str]]]:
    """For each row, (what tells its files apart, name) of its images. Only files of equal size are read and hashed."""
    sizes: dict[Path | PackedPicture, int] = {}
    for column in columns:
        for value in samples.column(column):
            if isinstance(value, PackedPicture):
                sizes.setdefault(value, value.size_bytes)
            if isinstance(value, (str, Path)):
                path = Path(os.path.normpath(samples.root / value))
                if path not in sizes:
                    sizes[path] = path.stat().st_size if path.is_file() else -1
    common = Counter(sizes.values())
    keys = {one: _hash(one) if _may_be_there_twice(one, size, common) else str(one) for one, size in sizes.items()}

    def key(value: str | Path | Picture) -> tuple[str, str]:
        if isinstance(value, (str, Path)):
            return keys[Path(os.path.normpath(samples.root / value))], str(value)
        if isinstance(value, PackedPicture):
            return keys[value], value.name
        return value.digest(), value.name

    rows: list[list[tuple[str, str]]] = [[] for _ in range(len(samples))]
    for column in columns:
        for row, value in enumerate(samples.column(column)):
            if value is not None:
                rows[row].append(key(value))
    return rows


def _may_be_there_twice(one: Path | PackedPicture, size: int, common: Counter[int]) -> bool:
    return common[size] > 1 if size >= 0 else isinstance(one, PackedPicture)


def _hash(one: Path | PackedPicture) -> str:
    if isinstance(one, PackedPicture):
        try:
            return one.content_hash()
        except ImageError:
            return one.name
    with one.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
