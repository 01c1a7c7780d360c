"""A simulated data set with known truth: MR-like slices of a real average brain, deformed, with simulated lesions.

`make` writes it. Everything in it is simulated: no claim about medicine rests on it. Pictures are radiological: the
patient's left is on the right of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from medtame.data.phantom_anatomy import (
    CSF,
    FIELD_MM,
    GREY,
    LEVELS_MM,
    WHITE,
    Anatomy,
    Template,
    carried_to_patient,
    deformed,
    landmarks_mm,
    load_template,
    random_deformation,
)
from medtame.data.phantom_lesions import Lesion, make_lesion
from medtame.data.phantom_patients import CLASSES, Patient, dealt_patients, paired_patients
from medtame.data.phantom_scanner import GRADES, framed, picture
from medtame.data.phantom_words import NORMAL, caption, findings, labels, questions
from medtame.errors import DataError, SettingsError, UnknownNameError
from medtame.types import Array

Difficulty: TypeAlias = Literal["easy", "standard", "hard"]
Row: TypeAlias = dict[str, Any]
TISSUES: Mapping[str, int] = MappingProxyType({"grey matter": GREY, "white matter": WHITE, "cerebrospinal fluid": CSF})
BORDER_SHADES: Mapping[str, int] = MappingProxyType({kind: 40 + 45 * place for place, kind in enumerate(CLASSES)})
FOLDERS = ("images", "masks", "tissues", "landmarks", "truth")
SMALLEST, FEWEST = 64, 2 * len(CLASSES)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Where the manifests lie. What is below `truth/` is for tests and audits, not for methods.

    anomalies: an image with its label and, where it is not normal, the mask of its lesion.
    boxes: `xmin ymin xmax ymax` are corners in pixels: xmax is one more than the last column of the lesion.
    pairs: `patient` names both patients; nobody is in two pairs.
    truth: image, label (before label noise), side, size, level_mm, border (grey level or empty), patient, split.
    deformations: npz, a (2, G, G) array a patient, in mm, to be read by `phantom_anatomy.displacement`.
    """

    folder: Path
    images: Path
    masks: Path
    anomalies: Path
    questions: Path
    boxes: Path
    pairs: Path
    truth: Path
    deformations: Path


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    seed: int
    difficulty: str
    size: int
    border_shortcut: float
    site_effect: float
    uninformative_text: bool


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """One image of one patient, before it is written. `stem` is its file's name without folder and ending."""

    stem: str
    patient: Patient
    level_mm: int
    anatomy: Anatomy
    lesion: Lesion | None
    landmarks: Array  # (N, 2) pixels, x before y
    border: int | None


def make(
    folder: Path,
    *,
    patients: int = 120,
    seed: int = 0,
    difficulty: Difficulty = "standard",
    size: int = 160,
    border_shortcut: float = 0.0,
    label_noise: float = 0.0,
    site_effect: float = 1.0,
    uninformative_text: bool = False,
    images_per_patient: int = 1,
    test_share: float = 0.33,
) -> Phantom:
    """Write a simulated data set into a new or empty folder; the same arguments give the same bytes.

    Args:
        folder: new or empty.
        patients: at least ten; the five classes are dealt out evenly.
        difficulty: lesion contrast, noise, texture and deformation together.
        size: height and width in pixels, at least 64; the field is 208 mm.
        border_shortcut: probability that the border of an image has the grey level of its class.
        label_noise: share of training images whose `label` is replaced; `labels`, words and `truth` stay true.
        site_effect: how much the three scanner sites differ, 0 not at all, 1 as made, at most 2.
        uninformative_text: `findings` and `text` say nothing about the image; `labels` and questions stay true.
        images_per_patient: slices at different levels, each with the patient's kind of lesion on the same side; at most 7.
        test_share: share of the patients of each class in the test split, which gets at least one.

    Raises:
        DataError: the folder is not empty, or is a file.
        SettingsError: a value is unknown or out of range.
        MissingExtraError: nilearn is not installed.
    """
    _check_counts(patients, seed, difficulty, size, images_per_patient)
    _check_ranges(border_shortcut, label_noise, site_effect, test_share)
    template = load_template()
    _prepare(folder)
    recipe = _Recipe(
        seed=seed,
        difficulty=difficulty,
        size=size,
        border_shortcut=border_shortcut,
        site_effect=site_effect,
        uninformative_text=uninformative_text,
    )
    people = dealt_patients(patients, images_per_patient, test_share, seed)
    deformations = {person.name: _deformation(person, recipe) for person in people}
    tables: dict[str, list[Row]] = {name: [] for name in ("images", "masks", "anomalies", "questions", "boxes", "truth/images")}
    for one in _slices(people, deformations, template, recipe):
        _write_slice(folder, one, recipe)
        for name, rows in _rows(folder, one, recipe).items():
            tables[name] += rows
    _mislabel(tables["images"], label_noise, np.random.default_rng([seed, 1]))
    tables["pairs"] = [row for moving, fixed in paired_patients(people) for row in _pair_rows(moving, fixed)]
    for name, rows in tables.items():
        pd.DataFrame(rows).assign(simulated="yes").to_csv(folder / f"{name}.csv", index=False, encoding="utf-8", lineterminator="\n")
    np.savez(folder / "truth" / "deformations.npz", allow_pickle=False, **deformations)
    csv = {name: folder / f"{name}.csv" for name in ("images", "masks", "anomalies", "questions", "boxes", "pairs")}
    return Phantom(folder=folder, **csv, truth=folder / "truth" / "images.csv", deformations=folder / "truth" / "deformations.npz")


# ---- settings -------------------------------------------------------------------------------------------------


def _check_counts(patients: int, seed: int, difficulty: str, size: int, images_per_patient: int) -> None:
    if difficulty not in GRADES:
        raise UnknownNameError("difficulty", difficulty, GRADES)
    if seed < 0:
        raise SettingsError(f"seed is {seed}: give zero or more")
    if patients < FEWEST:
        raise SettingsError(f"patients is {patients}: give at least {FEWEST}, so that each of {len(CLASSES)} classes is in both splits")
    if size < SMALLEST:
        raise SettingsError(f"size is {size} pixels: give at least {SMALLEST}, so that small lesions have pixels")
    if not 1 <= images_per_patient <= len(LEVELS_MM):
        raise SettingsError(f"images_per_patient is {images_per_patient}: give 1 to {len(LEVELS_MM)}, the number of slice levels")


def _check_ranges(border_shortcut: float, label_noise: float, site_effect: float, test_share: float) -> None:
    for name, value, most in (("border_shortcut", border_shortcut, 1), ("label_noise", label_noise, 1), ("site_effect", site_effect, 2)):
        if not 0 <= value <= most:
            raise SettingsError(f"{name} is {value}: give 0 to {most}")
    if not 0 < test_share < 1:
        raise SettingsError(f"test_share is {test_share}: give more than 0 and less than 1")


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: give a new or empty folder")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: give a new or empty folder")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)


# ---- slices ---------------------------------------------------------------------------------------------------


def _stem(patient: Patient, level_mm: int) -> str:
    return f"{patient.name}_{level_mm}mm"


def _rng(patient: Patient, recipe: _Recipe, *use: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, 2, patient.number, *use])


def _deformation(patient: Patient, recipe: _Recipe) -> Array:
    return random_deformation(GRADES[recipe.difficulty].deformation_mm, _rng(patient, recipe, 0))


def _slices(people: list[Patient], deformations: Mapping[str, Array], template: Template, recipe: _Recipe) -> Iterator[_Slice]:
    points = {level: landmarks_mm(template, level) for level in LEVELS_MM}
    for person in people:
        controls, facts = deformations[person.name], person.facts
        for level in person.levels_mm:
            anatomy = deformed(template, level, controls, recipe.size)
            lesion = make_lesion(facts.kind, facts.side, facts.size, anatomy, _rng(person, recipe, 1)) if facts.kind != NORMAL else None
            shortcut = _rng(person, recipe, 2, level).random() < recipe.border_shortcut
            yield _Slice(
                stem=_stem(person, level),
                patient=person,
                level_mm=level,
                anatomy=anatomy,
                lesion=lesion,
                landmarks=carried_to_patient(points[level], controls) * recipe.size / FIELD_MM - 0.5,
                border=BORDER_SHADES[facts.kind] if shortcut else None,
            )


def _write_slice(folder: Path, one: _Slice, recipe: _Recipe) -> None:
    """The image, its label map and its landmarks; masks are written with their rows."""
    noise = _rng(one.patient, recipe, 3, one.level_mm)
    pixels = picture(one.anatomy, one.lesion, one.patient.scanner, recipe.site_effect, GRADES[recipe.difficulty], noise)
    _save(folder / f"images/{one.stem}.png", framed(pixels, one.border))
    _save(folder / f"tissues/{one.stem}.png", one.anatomy.tissue)
    lines = [f"{number},{x:.3f},{y:.3f}\n" for number, (x, y) in enumerate(one.landmarks, 1)]
    (folder / f"landmarks/{one.stem}.csv").write_text("point,X,Y\n" + "".join(lines), encoding="utf-8", newline="\n")


def _save(path: Path, pixels: Array) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


# ---- rows of the manifests ------------------------------------------------------------------------------------


def _rows(folder: Path, one: _Slice, recipe: _Recipe) -> dict[str, list[Row]]:
    """The rows of one image in each manifest."""
    patient, facts = one.patient, one.patient.facts
    image = {"image": f"images/{one.stem}.png"}
    who = {"patient": patient.name, "split": patient.split}
    words, ill = _rng(patient, recipe, 4, one.level_mm), one.lesion is not None
    told = {
        "label": facts.kind,
        "labels": labels(facts),
        "findings": findings(facts, words, uninformative=recipe.uninformative_text),
        "text": caption(facts, words, uninformative=recipe.uninformative_text),
    }
    person = {"patient": patient.name, "site": patient.scanner.name, "sex": patient.sex, "age": patient.age, "split": patient.split}
    true = {"label": facts.kind, "side": facts.side if ill else None, "size": facts.size if ill else None}
    asked = questions(facts, words)
    return {
        "images": [image | told | person],
        "masks": [image | row | who for row in _mask_rows(folder, one)],
        "anomalies": [image | {"label": facts.kind, "mask": f"masks/{one.stem}_{_file_word(facts.kind)}.png" if ill else None} | who],
        "questions": [image | {"question": question, "answer": answer, "answer_type": kind} | who for question, answer, kind in asked],
        "boxes": [image | {"label": facts.kind} | _box(one.lesion.mask) | who] if one.lesion else [],
        "truth/images": [image | true | {"level_mm": one.level_mm, "border": one.border} | who],
    }


def _mask_rows(folder: Path, one: _Slice) -> Iterator[Row]:
    """A mask a structure, written as 0 and 255. Tissue under a lesion stays what the template says."""
    masks = {name: one.anatomy.tissue == value for name, value in TISSUES.items()}
    if one.lesion:
        masks[one.patient.facts.kind] = one.lesion.mask
    for prompt, mask in masks.items():
        path = f"masks/{one.stem}_{_file_word(prompt)}.png"
        _save(folder / path, mask.astype(np.uint8) * 255)
        yield {"mask": path, "prompt": prompt}


def _file_word(prompt: str) -> str:
    return prompt.replace(" ", "_")


def _box(mask: Array) -> Row:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return {"xmin": columns[0], "ymin": rows[0], "xmax": columns[-1] + 1, "ymax": rows[-1] + 1}


def _pair_rows(moving: Patient, fixed: Patient) -> Iterator[Row]:
    for level in moving.levels_mm:
        a, b = _stem(moving, level), _stem(fixed, level)
        yield {
            "moving": f"images/{a}.png",
            "fixed": f"images/{b}.png",
            "moving_labels": f"tissues/{a}.png",
            "fixed_labels": f"tissues/{b}.png",
            "moving_landmarks": f"landmarks/{a}.csv",
            "fixed_landmarks": f"landmarks/{b}.csv",
            "patient": f"{moving.name} {fixed.name}",
            "split": moving.split,
        }


def _mislabel(rows: list[Row], share: float, rng: np.random.Generator) -> None:
    """Replace the label of that share of the training rows, in place, by another class."""
    train = [row for row in rows if row["split"] == "train"]
    for place in rng.choice(len(train), round(share * len(train)), replace=False):
        train[place]["label"] = str(rng.choice([kind for kind in CLASSES if kind != train[place]["label"]]))
