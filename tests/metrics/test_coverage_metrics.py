"""Coverage of the intervals in a simulated few-shot experiment whose truth is known in closed form.

Images of a patient are alike (a random effect of the patient in every feature), patients have one to five images, and every support is
drawn from one pool of training patients. Two methods classify by the nearer of two class means, one of them with half of the
features. The truth is the balanced accuracy that a method has on all patients, a mean over the supports that this pool can give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtr

from medtame.metrics.intervals import difference, resampled_draws, resampled_groups, two_way
from medtame.metrics.statistic import BalancedAccuracy
from medtame.types import Array

FEATURES, APART, PATIENT = 6, 1.3, 0.7  # distance of the class means; share of the deviation that is the patient's (of 1 in all)
RESAMPLES, SUPPORTS = 300, 300  # of the bootstrap; that the truth is a mean of


@dataclass(frozen=True)
class Setting:
    patients: int
    draws: int
    shots: int
    pool: int  # training patients


USUAL = Setting(patients=50, draws=20, shots=1, pool=60)
OTHERS = (
    Setting(patients=50, draws=20, shots=4, pool=60),
    Setting(patients=120, draws=5, shots=1, pool=60),
    Setting(patients=15, draws=20, shots=4, pool=40),
    Setting(patients=120, draws=20, shots=8, pool=30),
)


def cohort(rng: np.random.Generator, patients: int, most: int) -> tuple[Array, Array, Array]:
    """Features (N, F), class (N,) and patient (N,) of 1 to `most` images a patient; a patient has one class."""
    kind = rng.permutation(np.arange(patients) % 2)
    owner = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    own = PATIENT * rng.normal(size=(patients, FEATURES))
    rest = np.sqrt(1 - PATIENT**2) * rng.normal(size=(len(owner), FEATURES))
    features = own[owner] + rest
    features[:, 0] += APART * kind[owner]
    return features, kind[owner], owner


def answered(features: Array, means: Array) -> tuple[Array, Array]:
    """(D, N) the nearer class mean (D, 2, F), and (D,) the balanced accuracy on all patients there are."""
    side, middle = means[:, 1] - means[:, 0], means.mean(1)
    length = np.linalg.norm(side, axis=1)
    offset = (middle * side).sum(1)
    centre = APART * side[:, 0]
    truth = (ndtr(offset / length) + ndtr((centre - offset) / length)) / 2
    return (features @ side.T > offset).T.astype(int), truth


def experiment(setting: Setting, seed: int) -> tuple[tuple[bool, bool, bool], float]:
    """Whether the intervals of both methods and of their difference hold the truth; whether the first holds that of all pools."""
    rng = np.random.default_rng([seed, 11])
    features, truth, patient = cohort(rng, setting.patients, 5)
    pool, kind, _ = cohort(rng, setting.pool, 2)
    rows = [np.flatnonzero(kind == k) for k in (0, 1)]
    picked = [of[rng.random((SUPPORTS, len(of))).argpartition(setting.shots - 1, 1)[:, : setting.shots]] for of in rows]
    means = np.stack([pool[one].mean(1) for one in picked], 1)
    counts = resampled_groups(patient, RESAMPLES, seed), resampled_draws(setting.draws, RESAMPLES, seed)
    found, right = [], []
    for used in (FEATURES, FEATURES // 2):
        said, exact = answered(features[:, :used], means[..., :used])
        found.append(two_way([BalancedAccuracy(one, truth, 2) for one in said[: setting.draws]], *counts))
        right.append(exact.mean())
    intervals = (found[0].interval, right[0]), (found[1].interval, right[1]), (difference(*found), right[0] - right[1])
    return tuple(one.low <= value <= one.high for one, value in intervals), right[0]  # type: ignore[return-value]


def coverage(setting: Setting, simulations: int) -> Array:
    """Of the first method, the second, and their difference."""
    return np.mean([experiment(setting, seed)[0] for seed in range(simulations)], axis=0)


def test_intervals_of_supports_from_one_pool_cover() -> None:
    """A few of the simulations below: their own error is 1.3 % (one standard deviation)."""
    found = coverage(USUAL, 300)
    assert ((found >= 0.92) & (found <= 0.98)).all(), found


@pytest.mark.full
@pytest.mark.parametrize("setting", [USUAL, *OTHERS], ids=str)
def test_intervals_cover_in_93_to_97_per_cent_of_2000_simulations(setting: Setting) -> None:
    found = coverage(setting, 2000)
    assert ((found >= 0.93) & (found <= 0.97)).all(), found
