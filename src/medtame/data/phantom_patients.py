"""Who is in the phantom: the facts, site, split and slice levels of each simulated patient, dealt out evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from medtame.data.phantom_anatomy import LEVELS_MM
from medtame.data.phantom_lesions import KINDS, Side, Size
from medtame.data.phantom_scanner import SCANNERS, Scanner
from medtame.data.phantom_words import NORMAL, Facts
from medtame.types import Array

CLASSES = (NORMAL, *KINDS)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One simulated patient. Two patients of one split with the same `pair` have the same slice levels."""

    number: int
    facts: Facts
    scanner: Scanner
    sex: str
    age: int
    split: str
    pair: str
    levels_mm: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"sim{self.number:04d}"


def dealt_patients(count: int, images_per_patient: int, test_share: float, seed: int) -> list[Patient]:
    """Classes are dealt evenly, each into both splits; sites evenly within a class and split; the rest is drawn."""
    rng = np.random.default_rng([seed, 0])
    kinds = rng.permutation(np.arange(count) % len(CLASSES))
    splits, sites = _dealt_within_classes(kinds, test_share, rng)
    pairs = _paired(splits, rng)
    levels = {pair: rng.choice(LEVELS_MM, images_per_patient, replace=False) for pair in dict.fromkeys(pairs)}
    return [
        Patient(
            number=number + 1,
            facts=Facts(CLASSES[kinds[number]], get_args(Side)[rng.integers(2)], get_args(Size)[rng.integers(2)]),
            scanner=SCANNERS[sites[number]],
            sex=str(rng.choice(["F", "M"])),
            age=int(rng.integers(20, 90)),
            split=splits[number],
            pair=pairs[number],
            levels_mm=tuple(sorted(int(level) for level in levels[pairs[number]])),
        )
        for number in range(count)
    ]


def paired_patients(patients: list[Patient]) -> list[tuple[Patient, Patient]]:
    """(moving, fixed) of one split; nobody is in two pairs, so no two pairs share a patient."""
    by_pair: dict[str, list[Patient]] = {}
    for patient in patients:
        by_pair.setdefault(patient.pair, []).append(patient)
    return [(two[0], two[1]) for two in by_pair.values() if len(two) == 2]


def _dealt_within_classes(kinds: Array, test_share: float, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    splits, sites = [""] * len(kinds), [0] * len(kinds)
    for kind in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        tests = min(max(1, round(test_share * len(members))), len(members) - 1)
        first_site = int(rng.integers(len(SCANNERS)))
        for place, member in enumerate(members):
            splits[member] = "test" if place < tests else "train"
            sites[member] = (first_site + place) % len(SCANNERS)
    return splits, sites


def _paired(splits: list[str], rng: np.random.Generator) -> list[str]:
    """The pair of each patient: two and two, in random order within a split."""
    names = [""] * len(splits)
    for split in ("train", "test"):
        for place, member in enumerate(rng.permutation(np.flatnonzero(np.array(splits) == split))):
            names[member] = f"{split} {place // 2}"
    return names
