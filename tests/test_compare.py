"""The grid: the same supports for all, kept cells, the budget, the choice without test rows, the record."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import medtame
from medtame import encoders
from medtame.comparison import budget, choice, grid_of, settled
from medtame.comparison.grid import Cell, Outcome
from medtame.comparison.table import Resampling
from medtame.errors import PairError, RunError, SettingsError
from medtame.metrics import LOWER_IS_BETTER
from medtame.metrics.intervals import resampled_groups
from medtame.metrics.statistic import Mean
from medtame.strategies.tuning.nearest_prototype import NearestPrototype
from shop import family, written


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    return written(tmp_path / "data")


METHODS = ["zero_shot", "ridge_probe", "nearest_prototype"]


def test_the_record_holds_a_row_a_method_and_shots_and_the_run_opens(shop, tmp_path):
    data = medtame.load(shop)
    result = medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4, "all"), draws=3, out=tmp_path / "out")
    names = {(row["method"], row["shots"]) for row in result.rows}
    assert names == {(m, k) for m in [*METHODS, "linear_probe"] for k in (1, 4, "all")}
    for row in result.rows:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["draws"] == (1 if row["shots"] == "all" else 3)
    by_name = {(row["method"], row["shots"]): row for row in result.rows}
    zero, ridge = by_name["zero_shot", "all"], by_name["ridge_probe", "all"]
    assert ridge["gain"] == pytest.approx(ridge["mean"] - zero["mean"])
    assert by_name["linear_probe", 4]["gain_over_probe"] == 0
    on_disk = json.loads((tmp_path / "out" / "result.json").read_text())
    assert on_disk == json.loads(json.dumps(result.json()))
    run = medtame.open(result.record["run"])
    evaluated = run.evaluate(data.test)["balanced_accuracy"]
    best = by_name[result.best, "all"]
    assert evaluated.value == pytest.approx(best["mean"])
    assert (evaluated.low, evaluated.high) == (pytest.approx(best["low"]), pytest.approx(best["high"]))
    assert run.predict([shop.parent / "images" / "000.png"]).table[0]["prediction"] in ("bright", "dark", "nothing")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!")


def test_a_killed_comparison_goes_on_and_ends_as_an_unbroken_one(shop, tmp_path):
    data = medtame.load(shop)

    def kill(what, done, of):
        if what.startswith("ridge_probe, 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4), draws=3, out=tmp_path / "broken", watch=kill)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken" / "cells").rglob("*.npz")}
    assert len(kept) >= 9
    with pytest.raises(RunError, match="--resume"):
        medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4), draws=3, out=tmp_path / "broken")
    again = medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4), draws=3, out=tmp_path / "broken", resume=True)
    whole = medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4), draws=3, out=tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    timeless = [[{k: v for k, v in row.items() if k != "fit_seconds"} for row in result.rows] for result in (again, whole)]
    assert timeless[0] == timeless[1]
    assert again.best == whole.best
    with pytest.raises(RunError, match="another seed"):
        medtame.compare(data, "tiny", methods=METHODS, shots=(1, 4), draws=3, seed=1, out=tmp_path / "whole", resume=True)


def test_a_damaged_cell_is_made_again(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)
    cell = Cell("ridge_probe", 4, 0)
    first = grid.run(cell, lambda: 0.0)
    path = next(grid.folder.glob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert grid.kept(cell) is None
    second = grid.run(cell, lambda: 0.0)
    assert second.statistics["accuracy"].value() == first.statistics["accuracy"].value()


def grid_and_asked(shop, tmp_path, **changes):
    data = medtame.load(shop)
    encoder = medtame.encoder("tiny")
    asked = settled(data, encoder, METHODS, (1, 4), 2, "standard", 10, 0, changes.get("settings", {}))
    return grid_of(data, encoder, asked, tmp_path / "cells"), asked


def test_every_method_meets_the_same_supports(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)
    one, two = (grid.support(grid.parts[0], 4, 1)[0].column("image") for _ in range(2))
    assert one == two
    smaller = grid.support(grid.parts[0], 1, 1)[0].column("image")
    assert set(smaller) <= set(one)
    assert set(one) <= set(grid.data.train.column("image"))


def test_test_labels_change_no_fit_and_no_choice(shop, tmp_path):
    data = medtame.load(shop)
    poisoned = list(data.samples.column("label"))
    for row in data.split.test:
        poisoned[row] = "bright"
    other = replace(data, samples=data.samples.replaced(label=poisoned))
    results = [
        medtame.compare(one, "tiny", methods=METHODS, shots=(4,), draws=2, out=tmp_path / f"out{i}") for i, one in enumerate((data, other))
    ]
    first, second = (medtame.open(result.record["run"]) for result in results)
    assert results[0].best == results[1].best
    pictures = data.test.only(["image"])
    assert np.array_equal(first.predict(pictures).arrays["scores"], second.predict(pictures).arrays["scores"])


def test_without_a_test_part_each_row_is_measured_once_in_folds_by_patient(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    data = medtame.load(written(tmp_path / "data", split=False))
    asked = settled(data, medtame.encoder("tiny"), METHODS, (4,), 2, "standard", 10, 0, {})
    grid = grid_of(data, medtame.encoder("tiny"), asked, tmp_path / "cells")
    assert len(grid.parts) == 5
    assert sorted(np.concatenate([part.test for part in grid.parts]).tolist()) == list(range(60))
    for part in grid.parts:
        assert not set(data.samples.groups[part.train]) & set(data.samples.groups[part.test])
    outcome = grid.run(Cell("ridge_probe", 4, 0), lambda: 0.0)
    assert outcome.statistics["accuracy"].rows == 60


class Timed:
    """A grid in which a cell takes the seconds of its method; `slow` is a learner that can be glimpsed."""

    seconds = {"zero_shot": 0.1, "cheap": 1.0, "middle": 8.0, "dear": 1000.0, "slow": 500.0}  # noqa: RUF012

    def __init__(self):
        self.ran = []

    def run(self, cell, clock):
        self.ran.append(cell.method)
        return Outcome({}, {"seconds": self.seconds[cell.method] * (2 if cell.shots == "all" else 1)})

    def asked(self, method, shots):
        return shots

    def glimpse(self, cell, clock):
        return self.seconds["slow"] if cell.method == "slow" else None


def test_the_minutes_are_dealt_cheap_first_and_never_below_three_draws():
    grid, shots = Timed(), (1, 4, "all")
    plan = budget.planned(grid, ["slow", "dear", "middle", "cheap"], ["zero_shot"], shots, 20, 6.0, 5, lambda: 0.0, lambda method: None)

    def spent(name, draws):
        one = Timed.seconds[name]
        return one * draws * 2 + 2 * one + 5 * 2 * one

    assert plan.draws["zero_shot"] == plan.draws["cheap"] == 20
    assert 3 <= plan.draws["middle"] < 20
    assert plan.not_run["dear"] == pytest.approx(spent("dear", 3) / 60)
    assert plan.not_run["slow"] == pytest.approx((500 * (3 + 3 + 1) + 5 * 500) / 60)
    assert "slow" not in grid.ran
    total = sum(spent(name, draws) for name, draws in plan.draws.items())
    assert total <= 360 < total - spent("middle", plan.draws["middle"]) + spent("middle", plan.draws["middle"] + 1)
    assert budget.planned(Timed(), ["dear"], ["zero_shot"], shots, 20, None, 5, lambda: 0.0, lambda m: None).draws == {
        "zero_shot": 20,
        "dear": 20,
    }


def test_a_glimpse_extrapolates_the_first_steps_of_a_learner(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)
    ticks = iter(range(1000))
    assert grid.glimpse(Cell("clap", 4, 0), lambda: float(next(ticks))) == pytest.approx(300.0)
    assert grid.glimpse(Cell("ridge_probe", 4, 0), lambda: 0.0) is None


def test_at_one_shot_nothing_is_chosen_by_data(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)
    said = choice.chosen(grid, METHODS, "balanced_accuracy", (1,), 5, "clap", lambda method: None)
    assert said.method == "clap"
    assert said.how.startswith("not chosen by data")
    chosen = choice.chosen(grid, METHODS, "balanced_accuracy", (4,), 3, "clap", lambda method: None)
    assert chosen.method == max(chosen.scores, key=chosen.scores.get)
    assert set(chosen.scores) == set(METHODS)


def test_a_gain_is_positive_where_lower_is_better_and_paired_on_the_draws_that_both_have():
    rows = Resampling(resampled_groups(np.array(["a", "b", "c", "d"]), 200, 0), 0)
    better, worse = Mean(np.array([1.0, 2, 1, 2])), Mean(np.array([3.0, 4, 3, 4]))
    three = [Outcome({"hd95_mm": better, "dice": better}, {})] * 3
    one = [Outcome({"hd95_mm": worse, "dice": worse}, {})]
    assert rows.gain(three, one, "hd95_mm").value == pytest.approx(2.0)
    low = rows.gain(three, one, "dice")
    assert low.value == pytest.approx(-2.0)
    assert low.low == pytest.approx(-2.0)


def test_names_are_checked_before_anything_is_run(shop, tmp_path):
    data, encoder = medtame.load(shop), medtame.encoder("tiny")
    with pytest.raises(medtame.MedtameError, match="zero_shot"):
        settled(data, encoder, ["zeroshot"], None, 2, "standard", 10, 0, {})
    with pytest.raises(PairError, match="does not serve"):
        settled(data, encoder, ["affine"], None, 2, "standard", 10, 0, {})
    with pytest.raises(SettingsError, match="above zero"):
        settled(data, encoder, ["zero_shot"], (), 2, "standard", 10, 0, {})
    tuning = settled(data, encoder, ["tuning"], None, 2, "standard", 10, 0, {})
    assert set(tuning.methods) >= {"clap", "linear_probe", "lora"}
    assert "zero_shot" not in tuning.methods
    fast = settled(data, encoder, "fast", None, 2, "standard", 10, 0, {})
    assert "affine" not in fast.methods
    assert fast.minutes == 10


def test_a_cell_of_other_settings_is_made_again(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)
    cell = Cell("ridge_probe", 1, 0)
    grid.run(cell, lambda: 0.0)
    assert grid.kept(cell) is not None
    other = replace(grid, settings={"ridge_probe": {"penalty": 5.0}})
    assert other.kept(cell) is None


def test_regimes_and_several_encoders_stand_in_one_table(shop, tmp_path, monkeypatch):
    def second(rest):
        card, load = family(rest)
        changed = {"spec": "second", "image_identity": "second-image"}
        return lambda: replace(card(), **changed), lambda: replace(load(), **changed)

    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family, "second": second})
    data = medtame.load(shop)
    result = medtame.compare(
        data, ["tiny", "second"], methods=["ridge_probe"], shots=(2,), draws=2, regime="realistic", out=tmp_path / "out", seed=3
    )
    rows = {(row["method"], row["encoder"]): row for row in result.rows}
    assert {encoder for _, encoder in rows} == {"tiny", "second"}
    assert {row["regime"] for row in result.rows} == {"realistic"}
    assert rows["ridge_probe", "tiny"]["mean"] == rows["ridge_probe", "second"]["mean"]
    cells = {path.parent.name for path in (tmp_path / "out" / "cells").rglob("*.npz")}
    assert cells == {"tiny", "second"}


def test_two_encoders_stand_on_the_same_supports_and_are_compared_in_pairs(shop, tmp_path):
    data = medtame.load(shop)
    both = medtame.compare(data, ["tiny", "tiny:vit"], methods=["ridge_probe"], shots=(1, "all"), draws=3, out=tmp_path / "both")
    alone = medtame.compare(data, "tiny:vit", methods=["ridge_probe"], shots=(1, "all"), draws=3, out=tmp_path / "alone")
    own = both.rows[0].keys() - {"fit_seconds", "gain_p_holm", "gain_over_probe_p_holm"}  # corrected for the methods of both encoders
    timeless = [{key: value for key, value in row.items() if key in own} for row in both.rows + alone.rows]
    assert [row for row in timeless[: len(both.rows)] if row["encoder"] == "tiny:vit"] == timeless[len(both.rows) :]  # the same supports
    mean = {(row["encoder"], row["method"], row["shots"]): row["mean"] for row in both.rows}
    gains = both.record["details"]["encoder_gains"]
    assert {(row["method"], row["shots"]) for row in gains} == {(row["method"], row["shots"]) for row in alone.rows}
    for row in gains:
        assert (row["encoder"], row["over"]) == ("tiny:vit", "tiny")
        key = row["method"], row["shots"]
        assert row["gain"] == pytest.approx(mean["tiny:vit", *key] - mean["tiny", *key], abs=1e-9)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    with pytest.raises(SettingsError, match="named twice"):
        medtame.compare(data, ["tiny", "tiny"], methods=["ridge_probe"], out=tmp_path / "twice")


def test_the_method_that_is_named_best_is_controlled_and_compared_with_each_baseline(shop, tmp_path):
    data = medtame.load(shop)
    methods = ["nearest_prototype", "ridge_probe", "prior"]
    found = medtame.compare(data, "tiny", methods=methods, shots=("all",), best="nearest_prototype", out=tmp_path / "named")
    assert found.best == found.record["best"] == "nearest_prototype"
    assert found.record["details"]["protocol"]["how_best_was_chosen"] == "the name after --best, not by data"
    measured = found.record["details"]["metrics"]
    gains = found.record["details"]["baseline_gains"]
    assert {(row["method"], row["over"]) for row in gains} == {("nearest_prototype", "prior")}
    assert {row["metric"] for row in gains} == set(measured["prior"]) & set(measured["nearest_prototype"])
    for row in gains:
        ours, theirs = (measured[name][row["metric"]]["value"] for name in ("nearest_prototype", "prior"))
        sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
        if ours is not None and theirs is not None:
            assert row["gain"] == pytest.approx(sign * (ours - theirs), abs=1e-9), row
    assert "nearest_prototype against the baselines" in re.sub(r"<[^>]*>", "", (tmp_path / "named" / "report.html").read_text())
    with pytest.raises(SettingsError, match="--best clap is not compared"):
        medtame.compare(data, "tiny", methods=methods, shots=("all",), best="clap", out=tmp_path / "other")


def test_unlabelled_rows_are_training_rows_outside_the_support(shop, tmp_path):
    grid, _ = grid_and_asked(shop, tmp_path)

    class Reads(NearestPrototype):
        unlabelled = True

    (part,) = grid.parts
    support, _ = grid.support(part, 2, 1)
    rest = grid.unlabelled(Reads(), part, 2, 1)
    images = [set(samples.column("image")) for samples in (support, rest, grid.data.samples.take(part.test))]
    assert not images[0] & images[1]
    assert not images[2] & (images[0] | images[1])
    assert images[0] | images[1] == set(grid.data.train.column("image"))
    assert grid.unlabelled(Reads(), part, "all", 0) is None
    assert grid.unlabelled(NearestPrototype(), part, 2, 1) is None


def test_a_method_that_refuses_these_data_is_set_aside_with_its_reason(shop, tmp_path, monkeypatch):
    from medtame.strategies.tuning.ridge_probe import RidgeProbe

    def refuse(self, problem):
        raise SettingsError("ridge_probe cannot serve these rows: a test's reason")

    monkeypatch.setattr(RidgeProbe, "fit", refuse)
    data = medtame.load(shop)
    monkeypatch.setattr("medtame.comparison.catalogue.names", lambda shelf: ["nearest_prototype", "ridge_probe"])
    for number, minutes in enumerate((10, 10_000)):
        methods = ("fast", "all")[number]
        found = medtame.compare(data, "tiny", methods=methods, minutes=minutes, shots=(1, "all"), draws=2, out=tmp_path / methods)
        assert [row["reason"] for row in found.record["not_run"]] == ["ridge_probe cannot serve these rows: a test's reason"]
        assert "ridge_probe" not in {row["method"] for row in found.rows}
        assert "a test's reason" in (tmp_path / methods / "report.html").read_text().replace("&#39;", "'")
    with pytest.raises(SettingsError, match="a test's reason"):
        medtame.compare(data, "tiny", methods=["ridge_probe"], shots=(1,), draws=2, out=tmp_path / "named")


def test_nearly_equal_images_stay_in_one_fold(tmp_path, monkeypatch):
    """Two patients with copies of one picture, saved anew: a fold that parts them would measure memory."""
    from PIL import Image

    from medtame.comparison import looked_at

    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    table = written(tmp_path / "data", split=False)
    random = np.random.default_rng(0)
    for number in range(0, 60, 12):  # textured pictures, each with a smaller copy of another patient
        pixels = np.kron(random.integers(0, 255, (16, 16)), np.ones((12, 12))).astype(np.uint8)
        Image.fromarray(pixels).save(table.parent / "images" / f"{number:03d}.png")
        Image.fromarray(pixels).resize((150, 150)).save(table.parent / "images" / f"{number + 6:03d}.png")
    data = medtame.load(table)
    _, alike = looked_at(data, [], lambda what, done, of: None)
    asked = settled(data, medtame.encoder("tiny"), METHODS, (4,), 2, "standard", 10, 0, {})
    for number in range(0, 60, 12):
        assert alike[number] == alike[number + 6]
    grid = grid_of(data, medtame.encoder("tiny"), asked, tmp_path / "cells", alike)
    for part in grid.parts:
        assert not set(alike[part.train]) & set(alike[part.test])
    apart = grid_of(data, medtame.encoder("tiny"), asked, tmp_path / "cells")
    assert any(set(alike[part.train]) & set(alike[part.test]) for part in apart.parts)  # as it was without looking
