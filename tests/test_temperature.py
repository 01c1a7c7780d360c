"""The temperature of a comparison's run: from held-out training rows alone, kept with the run, and no answer is changed by it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import medtame
from medtame import encoders
from medtame.comparison import calibration, choice, grid_of, settled
from medtame.comparison.grid import Cell
from medtame.metrics.temperature import temperature
from medtame.run import fitted, tempered
from medtame.types import Candidates, Query, Scores
from shop import family, written

METHODS = ["nearest_prototype", "zero_shot"]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    return written(tmp_path / "data")


def heat_of(data, tmp_path, shots, method="nearest_prototype", folder="cells"):
    """The temperature of one method, chosen at these shots."""
    encoder = medtame.encoder("tiny")
    asked = settled(data, encoder, METHODS, shots, 2, "standard", 10, 0, {})
    grid = grid_of(data, encoder, asked, tmp_path / folder)
    best = choice.chosen(grid, [method], "balanced_accuracy", shots, 3, method, lambda name: None)
    found = {(method, shots[-1]): [grid.run(Cell(method, shots[-1], 0), lambda: 0.0)]}
    return calibration.fitted(grid, best, found, shots[-1], 3, lambda what: None), grid, best


def test_it_is_that_of_the_logits_of_all_training_rows_when_held_out(shop, tmp_path):
    data = medtame.load(shop)
    heat, grid, _ = heat_of(data, tmp_path, (4, "all"))
    logits, truth = [], []
    for inside, outside in choice.parted(grid, data.train, 3):
        run = fitted(data.train.take(inside), data.task, grid.method("nearest_prototype"), grid.encoder)
        rows = data.train.take(outside)
        logits.append(run.answer(run.query(rows)).values.double().numpy())
        truth += [run.frame.names.index(label) for label in rows.column("label")]
    assert heat.value == pytest.approx(temperature(np.concatenate(logits), np.array(truth)), rel=1e-3)
    assert heat.rows == len(truth) == len(data.train)
    few, _, _ = heat_of(data, tmp_path, (4,), folder="few")  # chosen at four shots, but the run learns from all rows
    assert (few.value, few.rows) == (pytest.approx(heat.value), heat.rows)


def test_no_test_label_moves_it(shop, tmp_path):
    data = medtame.load(shop)
    labels = list(data.samples.column("label"))
    for row in data.split.test:
        labels[row] = "bright"
    other = replace(data, samples=data.samples.replaced(label=labels))
    one, two = (heat_of(each, tmp_path, ("all",), folder=name)[0] for name, each in (("a", data), ("b", other)))
    assert one.value == two.value != 1.0


def test_with_one_row_a_class_it_is_not_chosen_by_data(shop, tmp_path):
    data = medtame.load(shop)
    labels = np.array(data.samples.column("label"))
    one_each = [int(data.split.train[np.flatnonzero(labels[data.split.train] == name)[0]]) for name in sorted(set(labels))]
    few = replace(data, split=replace(data.split, train=np.array(one_each)))
    heat, _, _ = heat_of(few, tmp_path, ("all",))
    assert heat.value == 1.0
    assert heat.how.startswith("not chosen by data: with 1 training row")


def test_the_kept_run_applies_it_and_the_report_shows_what_it_does(shop, tmp_path):
    data = medtame.load(shop)
    result = medtame.compare(data, "tiny", methods=METHODS, shots=(2, "all"), draws=3, out=tmp_path / "out")
    run = medtame.open(result.record["run"])
    heat = result.record["details"]["temperature"]
    assert run.about["temperature"] == heat["value"] != 1.0
    plain = calibration.without(run)
    cold, warm = plain.predict(data.test).arrays["scores"], run.predict(data.test).arrays["scores"]
    expected = torch.log_softmax(torch.log(torch.from_numpy(cold)) / heat["value"], 1).exp().numpy()
    np.testing.assert_allclose(warm, expected, atol=1e-5)
    assert not np.allclose(warm, cold, atol=1e-3)
    assert [row["prediction"] for row in run.predict(data.test).table] == [row["prediction"] for row in plain.predict(data.test).table]
    for name in ("ece", "brier"):
        before, after = (one.evaluate(data.test)[name] for one in (plain, run))
        shown = heat["metrics"][name]
        assert (shown["before"]["value"], shown["after"]["value"]) == (pytest.approx(before.value), pytest.approx(after.value))
        assert (shown["after"]["low"], shown["after"]["high"]) == (pytest.approx(after.low), pytest.approx(after.high))
        assert shown["gain"] == pytest.approx(before.value - after.value)
    drawn = [row["method"] for row in result.record["details"]["figures"]["reliability"]]
    assert drawn[1] == f"{result.best}, temperature {heat['value']:.2f}"
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Temperature of the run: {heat['value']:.2f}" in page
    assert "held out in 3 folds; no test row was asked" in page
    assert f"before the temperature {heat['value']:.2f}" in (tmp_path / "out" / "run" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["details"]["temperature"] == heat


def test_only_logits_of_exclusive_candidates_are_divided(shop):
    samples, values = medtame.load(shop).train.only(["image"]).take([0]), Scores(torch.tensor([[2.0, 4.0], [float("nan")] * 2]))
    query = Query(wants="scores", samples=samples, encoder=medtame.encoder("tiny"), source=np.zeros(2, dtype=int))
    one = Candidates(names=("a", "b"), prompts=(("a",), ("b",)))
    asked = replace(query, candidates=one)
    np.testing.assert_allclose(tempered(values, asked, 2.0).values.numpy(), [[1.0, 2.0], [np.nan, np.nan]])
    assert tempered(values, asked, 1.0) is values
    assert tempered(values, replace(query, candidates=replace(one, exclusive=False)), 2.0) is values
    assert tempered(values, query, 2.0) is values
