"""The task: which rows are learnt from, what is made of them, the threshold, masks, bad input, and words that are swapped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from doubles import disc, tiny_encoder
from medtame import catalogue
from medtame.data.anomalies import LEARNT, TRIED, MadeAnomaly
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, SettingsError
from medtame.run import fitted
from medtame.tasks.anomaly_detection import MADE, AnomalyDetection, balanced_loss, image_scores
from medtame.types import Grids, Scores

SMALL = AnomalyDetection(side=4, size=8, made=30, rows=200)


def discs(seed: int, n: int = 24) -> ManifestSamples:
    """A third each without anything, with a bright and with a dark disc; masks of the discs."""
    random, columns = np.random.default_rng(seed), {"image": [], "label": [], "mask": []}
    for i in range(n):
        kind = ("nothing", "bright", "dark")[i % 3]
        pixels, mask = disc(kind, ("left", "right")[i // 3 % 2], random)
        columns["image"].append(ArrayPicture(pixels, f"image-{seed}-{i}"))
        columns["label"].append("normal" if kind == "nothing" else kind)
        columns["mask"].append(None if kind == "nothing" else ArrayPicture(mask.astype(np.uint8), f"mask-{i}"))
    return ManifestSamples(columns, np.array([f"{seed}-{i}" for i in range(n)]))


@pytest.fixture(scope="module")
def data() -> tuple[ManifestSamples, ManifestSamples]:
    return discs(1), discs(2)


def method(name: str, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def test_only_normals_are_drawn_and_learnt_from(data):
    train, _ = data
    task = SMALL.settled(train)
    assert task.normal == "normal"
    strata = task.strata(train)
    assert {label for label, stratum in zip(train.column("label"), strata, strict=True) if stratum is not None} == {"normal"}
    problem = task.frame(train, "grids").problem(train, tiny_encoder(), 0)
    sources = {picture.source.name if isinstance(picture, MadeAnomaly) else picture.name for picture in problem.query.samples.pictures()}
    normal = {picture.name for picture, label in zip(train.pictures(), train.column("label"), strict=True) if label == "normal"}
    assert sources <= normal
    abnormal = problem.targets.flatten(1).sum(1) > 0
    made = torch.tensor([isinstance(picture, MadeAnomaly) for picture in problem.query.samples.pictures()])
    assert not bool(abnormal[~made].any())
    assert bool(abnormal[made].all())  # also those that are smaller than a cell
    assert {picture.recipe.kind for picture in problem.query.samples.pictures() if isinstance(picture, MadeAnomaly)} == set(LEARNT)


def test_scorers_get_balanced_patches_of_both_kinds(data):
    train, _ = data
    problem = SMALL.settled(train).frame(train, "scores").problem(train, tiny_encoder(), 0)
    assert problem.targets.sum(0).tolist() == [len(problem.targets) / 2] * 2
    assert len(problem.targets) <= SMALL.rows
    assert problem.query.wanted.names == ("normal", "abnormal")
    again = SMALL.settled(train).frame(train, "scores").problem(train, tiny_encoder(), 0)
    assert torch.equal(problem.query.regions, again.query.regions)


def test_no_rows_are_a_problem_without_rows(data):
    train, test = data
    run = fitted(train.take([]), SMALL.settled(train), method("zero_shot_states"), tiny_encoder())
    assert run.frame.threshold is None
    table = run.predict(test.only(["image"])).table
    assert {row["prediction"] for row in table} == {""}
    assert "normals of two patients" in table[0]["warning"]
    with pytest.raises(DataError, match="no normal image to learn from"):
        fitted(train.take([]), SMALL.settled(train), method("memory_bank"), tiny_encoder())


def test_the_threshold_keeps_its_rate_on_new_normals():
    """Scores of a fit that answers pure noise: over many draws new normals exceed the threshold at the stated rate."""
    task = replace(SMALL, normal="normal", false_positive_rate=0.2)
    random, rates = np.random.default_rng(0), []
    picture = ArrayPicture(np.full((8, 8), 0.5, dtype=np.float32), "grey")
    frame = task.frame(ManifestSamples({"image": []}, np.arange(0)), "grids")
    for _ in range(40):
        normals = ManifestSamples({"image": [picture] * 19, "label": ["normal"] * 19}, np.arange(19))
        problem = frame.problem(normals, tiny_encoder(), 0)

        def noise(part, query):
            return Grids(torch.from_numpy(random.normal(size=(len(query), 1, 1, 1))).float())

        threshold = frame.calibrated(problem, noise).threshold
        rates.append((random.normal(size=1000) > threshold).mean())
    assert np.mean(rates) == pytest.approx(0.2, abs=0.04)  # 20 ranks: exactly .2 in the mean


def test_the_threshold_is_learnt_from_fits_that_did_not_see_the_patient(data):
    train, _ = data
    task = SMALL.settled(train)
    frame, seen = task.frame(train, "grids"), []
    problem = frame.problem(train, tiny_encoder(), 0)

    def noted(part, query):
        seen.append((set(part.query.samples.groups.tolist()), set(query.samples.groups.tolist())))
        return Grids(torch.zeros(len(query), 1, 2, 2))

    assert frame.calibrated(problem, noted).threshold == 0
    assert len(seen) == 3
    assert all(not inside & outside for inside, outside in seen)
    one = train.take(np.flatnonzero(np.array(train.column("label")) == "normal")[:1])
    assert frame.calibrated(frame.problem(one, tiny_encoder(), 0), noted).threshold is None


def test_maps_land_on_their_source_and_scores_are_the_highest_cells(data):
    train, test = data
    run = fitted(train, SMALL.settled(train), method("memory_bank", side=8), tiny_encoder())
    said = run.predict(test.only(["image"]))
    assert said.arrays["0/map"].shape == test.pictures()[0].array().shape[:2]
    maps = torch.arange(16.0).reshape(1, 4, 4)
    assert image_scores(maps, 0.125).tolist() == [14.5]
    assert image_scores(maps, 0.01).tolist() == [15.0]
    frame = run.frame
    scores = Scores(torch.stack([torch.zeros(32), torch.arange(32.0)], 1))
    assert torch.equal(frame.maps(replace(run.query(test), wants="scores"), scores), torch.arange(32.0).reshape(2, 4, 4))


def test_discs_are_found(data):
    """The memory knows that a disc is no normal, and where it is."""
    train, test = data
    run = fitted(train, SMALL.settled(train), method("memory_bank", side=8), tiny_encoder())
    found = {name: one.value() for name, one in run.measure(test).items()}
    assert found["image_auroc"] > 0.95
    assert found["pixel_ap"] > 0.5
    assert found["pixel_pro"] > 0.7
    assert found["sensitivity"] > 0.7


def test_swapped_prompts_fall_below_chance(data):
    """Words that tell the discs apart, and the same words for the other state."""
    train, test = data
    bright = test.take(np.flatnonzero([label != "dark" for label in test.column("label")]))
    words = ("an image of nothing",), ("a medical image showing bright",)
    values = []
    for normal, abnormal in (words, words[::-1]):
        task = replace(SMALL.settled(train), prompts={"normal": normal, "abnormal": abnormal})
        run = fitted(train, task, method("zero_shot_states"), tiny_encoder())
        values.append(run.measure(bright)["image_auroc"].value())
    assert values[0] > 0.7
    assert values[1] < 0.3


def test_a_choice_is_made_by_kinds_that_are_never_learnt(data):
    train, _ = data
    task = SMALL.settled(train)
    trial = task.trial(train.take(np.flatnonzero(np.array(train.column("label")) == "normal")))
    labels = trial.column("label")
    assert labels.count(MADE) == 2 * labels.count("normal")
    kinds = {picture.recipe.kind for picture in trial.pictures() if isinstance(picture, MadeAnomaly)}
    assert kinds == set(TRIED)
    assert not kinds & set(LEARNT)
    assert all((mask is None) == (label == "normal") for mask, label in zip(trial.column("mask"), labels, strict=True))


def test_the_loss_counts_both_sides_alike():
    targets = torch.zeros(1, 1, 4, 4)
    targets[0, 0, 0, 0] = 1
    flat = balanced_loss(torch.zeros(1, 1, 4, 4), targets)
    assert float(flat) == pytest.approx(np.log(2) + 1 - 2 * 0.5 / (8 + 1))
    assert float(balanced_loss(40 * targets - 20, targets)) == pytest.approx(0, abs=1e-6)


def test_bad_input_is_one_line(data):
    train, test = data
    with pytest.raises(DataError, match=r"no label says that a row is normal \(bright, dark\)"):
        SMALL.settled(train.take(np.flatnonzero(np.array(train.column("label")) != "normal")))
    with pytest.raises(DataError, match=r"no training row has the label 'fine' \(bright, dark, normal\)"):
        replace(SMALL, normal="fine").settled(train)
    with pytest.raises(DataError, match="good and normal both say"):
        SMALL.settled(train.replaced(label=["good", "normal"] * (len(train) // 2)))
    with pytest.raises(SettingsError, match="not for 'broken'"):
        replace(SMALL, prompts={"broken": ("x",)}).usable(train)
    run = fitted(train, SMALL.settled(train), method("border_only"), tiny_encoder())
    small = test.replaced(mask=[ArrayPicture(np.ones((3, 3), dtype=np.uint8), "small")] * len(test))
    with pytest.raises(DataError, match=r"is \(3, 3\), its image \(48, 40\)"):
        run.measure(small)
    full = test.replaced(mask=[ArrayPicture(np.ones((48, 40), dtype=np.uint8), "full")] * len(test))
    with pytest.raises(DataError, match="labelled normal and its mask is not empty"):
        run.measure(full)


def test_a_map_of_another_image_is_brought_to_the_mask(data):
    """As the control with a blank image needs it: another size, and no answer better than chance."""
    train, test = data
    run = fitted(train, SMALL.settled(train), method("memory_bank", side=8), tiny_encoder())
    blank = test.replaced(image=[ArrayPicture(np.full((64, 64, 1), 0.5, dtype=np.float32), "blank")] * len(test))
    found = run.frame.measure(run.predict(blank), test)
    assert found["image_auroc"].value() == 0.5
    assert found["pixel_ap"].value() < 0.1


def test_an_all_black_image_has_an_answer(data):
    train, _ = data
    black = ManifestSamples(
        {"image": [ArrayPicture(np.zeros((48, 40), dtype=np.float32), "black")] * 2, "label": ["normal"] * 2}, np.arange(2)
    )
    run = fitted(black, SMALL.settled(train), method("text_and_memory", side=8), tiny_encoder())
    assert np.isfinite(run.predict(black.only(["image"])).arrays["scores"]).all()
