"""Shares of a probe's gain: closed forms, planted clues, controls, and the phantom with and without its planted border."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from medtame.data import overview, splits
from medtame.data.images import ArrayPicture
from medtame.data.looks import look
from medtame.data.manifest import read
from medtame.data.phantom import make
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.trust.shortcuts import Shortcuts, clues, metadata, shortcuts
from medtame.types import Array

CLASSES = 4


def labelled(count: int, seed: int = 0) -> tuple[Array, list[str], Array, list[tuple[Array, Array]]]:
    """Class numbers, labels, groups of two, and one split in halves by group."""
    truth = np.repeat(np.random.default_rng(seed).integers(0, CLASSES, count // 2), 2)
    half = np.arange(count) < count // 2
    return truth, [f"c{number}" for number in truth], np.arange(count) // 2, [(np.flatnonzero(half), np.flatnonzero(~half))]


def telling(truth: Array, right: float, seed: int) -> Array:
    """One-hot features of the true class for that share of rows, of a random class for the others: a clue of known strength."""
    rng = np.random.default_rng(seed)
    shown = np.where(rng.random(len(truth)) < right, truth, rng.integers(0, truth.max() + 1, len(truth)))
    return np.eye(truth.max() + 1)[shown] + rng.normal(0, 0.01, (len(truth), truth.max() + 1))


def noise(count: int, seed: int = 9) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 6))


def test_the_share_is_that_of_the_gains_over_chance() -> None:
    """A clue that shows the class in half of the rows gains half of what one gains that always shows it."""
    truth, labels, groups, parts = labelled(1200)
    found = shortcuts(
        telling(truth, 1.0, 1), {"border": telling(truth, 0.5, 2), "metadata": telling(truth, 0.25, 3)}, labels, groups, parts
    )
    assert found.chance == 0.25
    assert found.probe.value == pytest.approx(1, abs=0.005)
    for name, expected in (("border", 0.5), ("metadata", 0.25)):
        clue = found.clues[name]
        assert clue.accuracy.value == pytest.approx(0.25 + 0.75 * expected, abs=0.05)
        assert clue.share.value == pytest.approx((clue.accuracy.value - 0.25) / (found.probe.value - 0.25), abs=1e-9)
        assert clue.share.low < expected < clue.share.high
    assert not found.clues["metadata"].flagged


def test_the_accuracy_is_scikit_learns_over_what_was_tested() -> None:
    truth, labels, groups, _ = labelled(400)
    order = np.random.default_rng(0).permutation(200)
    folds = [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(order, 4)]
    parts = [(np.setdiff1d(np.arange(400), fold), fold) for fold in folds]
    shown = telling(truth, 0.6, 1)
    found = shortcuts(shown, {"border": shown}, labels, groups, parts)
    assert found.probe.n == 400
    assert found.clues["border"].accuracy.value == pytest.approx(balanced_accuracy_score(truth, shown.argmax(1)), abs=0.02)


def test_a_clue_as_strong_as_the_probe_is_flagged_and_noise_is_not() -> None:
    truth, labels, groups, parts = labelled(400)
    given = {"border": telling(truth, 0.7, 2), "histogram": telling(truth, 0.7, 3), "metadata": noise(400)}
    found = shortcuts(telling(truth, 0.7, 1), given, labels, groups, parts)
    assert {name: clue.flagged for name, clue in found.clues.items()} == {"border": True, "histogram": True, "metadata": False}
    assert found.clues["metadata"].share.low < 0.1


def test_the_histogram_is_flagged_by_the_lower_end_of_its_share_and_the_border_by_its_value() -> None:
    """A share of .55 or so of 200 measured rows: more than one half as measured, less by its interval."""
    truth, labels, groups, parts = labelled(400)
    same = telling(truth, 0.5, 2)
    found = shortcuts(telling(truth, 0.85, 1), {"border": same, "histogram": same}, labels, groups, parts)
    for clue in found.clues.values():
        assert clue.share.low < 0.5 < clue.share.value
    assert flags(found) == {"border": True, "histogram": False}


def test_noise_is_rarely_flagged_in_small_data() -> None:
    flagged = 0
    for seed in range(20):
        truth, labels, groups, parts = labelled(60, seed)
        found = shortcuts(telling(truth, 0.6, seed), {"border": noise(60, seed)}, labels, groups, parts, seed=seed)
        flagged += found.clues["border"].flagged
    assert flagged <= 1


def test_a_probe_at_chance_says_nothing() -> None:
    truth, labels, groups, parts = labelled(400)
    found = shortcuts(noise(400), {"border": telling(truth, 0.9, 1)}, labels, groups, parts)
    assert "cannot be said" in found.said
    assert np.isnan(found.clues["border"].share.value)
    assert not found.clues["border"].flagged


def test_the_same_seed_gives_the_same_and_one_class_is_refused() -> None:
    truth, labels, groups, parts = labelled(120)
    given = {"border": telling(truth, 0.5, 2)}
    assert shortcuts(telling(truth, 0.8, 1), given, labels, groups, parts) == shortcuts(
        telling(truth, 0.8, 1), given, labels, groups, parts
    )
    with pytest.raises(DataError, match="one label"):
        shortcuts(noise(120), given, ["a"] * 60 + ["b"] * 60, groups, parts)


def test_metadata_holds_sites_and_sizes_and_never_label_patient_or_split() -> None:
    rng = np.random.default_rng(0)
    pictures = [ArrayPicture(rng.integers(0, 256, (20 + number, 30), dtype=np.uint8), f"{number}") for number in range(6)]
    columns = {
        "image": pictures,
        "label": list("abcabc"),
        "patient": list("uvwxyz"),
        "split": ["train"] * 3 + ["test"] * 3,
        "text": ["said"] * 6,
    }
    bare = ManifestSamples(columns, np.array(columns["patient"], dtype=object))
    told = bare.replaced(site=["A", "B", None, "A", "B", "A"], age=[50.0, None, 61.0, 40.0, 33.0, 70.0])
    features = {}
    for name, samples in (("bare", bare), ("told", told)):
        images = overview.images_of(samples)
        features[name] = metadata(samples, images, look(images.pictures))
    assert features["bare"].shape[1] == 5  # height, width, aspect, colour, size of the file
    assert features["bare"][:, 0].tolist() == [20, 21, 22, 23, 24, 25]
    added = features["told"][:, 5:]
    assert added[:, :3].tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert added[:, 3].tolist() == [50, -1, 61, 40, 33, 70]


def of_phantom(folder: Path, seed: int, border: float, patients: int, size: int) -> tuple[ManifestSamples, dict[str, Array], list[str]]:
    samples = read(make(folder, patients=patients, seed=seed, border_shortcut=border, size=size).images)
    images = overview.images_of(samples)
    labels = overview.one_label_an_image(samples, images)
    assert labels is not None
    return samples, clues(samples, images, look(images.pictures)), [str(label) for label in labels]


def flags(found: Shortcuts) -> dict[str, bool]:
    return {name: clue.flagged for name, clue in found.clues.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("border", [0.0, 1.0])
def test_the_phantoms_border_is_flagged_where_it_was_planted(tmp_path: Path, seed: int, border: float) -> None:
    """Its images are real pixels; the encoder is simulated: features that show the class in three rows of five."""
    samples, given, labels = of_phantom(tmp_path / "phantom", seed, border, 80, 64)
    shown = telling(np.unique(labels, return_inverse=True)[1], 0.6, seed)
    found = shortcuts(shown, given, labels, samples.groups, splits.folds(samples, labels, 2, seed=0).parts)
    assert flags(found) == {"border": border == 1, "histogram": border == 1, "metadata": False}


@pytest.mark.full
def test_forty_phantoms_with_the_bundled_encoder(tmp_path: Path) -> None:
    """Half an hour on one core. Nothing is flagged without the border, the border is flagged with it: each in 38 of 40 at least."""
    from medtame.run import encoder

    ready = encoder("bundled")
    right = {0.0: 0, 1.0: 0}
    for seed in range(100, 140):
        for border in right:
            samples, given, labels = of_phantom(tmp_path / f"{seed}-{border}", seed, border, 200, 128)
            parts = overview.parts_of(samples)
            found = shortcuts(ready.whole(samples).numpy(), given, labels, samples.groups, [(parts["train"], parts["test"])])
            right[border] += flags(found)["border"] if border else not any(flags(found).values())
    assert right[0.0] >= 38
    assert right[1.0] >= 38
