"""Cases: which rows are shown, what is said of them, and that no name of a file is told unless it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medtame
from medtame import encoders
from medtame.comparison import grid_of, seen, settled
from medtame.comparison.gallery import Judgement, best, cases, judgements, judgements_of_findings, pictures
from medtame.comparison.grid import Grid
from medtame.run import Data, adapt
from medtame.types import Picture
from shop import family, written


class Drawn:
    """A picture in memory with a name that must not be told."""

    name = "anna_schmidt_1950.png"

    def array(self) -> np.ndarray:
        return np.zeros((4, 4, 1), dtype=np.float32)


class Rows:
    def take(self, rows: list[int]) -> Rows:
        return self

    def pictures(self) -> list[Picture]:
        return [Drawn()]  # type: ignore[list-item]


def table(*probabilities: tuple[float, ...], names: str = "abc") -> list[dict[str, Any]]:
    rows = []
    for p in probabilities:
        scores = {f"score_{name}": value for name, value in zip(names, p, strict=True)}
        rows.append({"prediction": names[int(np.argmax(p))], "max_score": max(p), **scores})
    return rows


def shown(found: list[Judgement]) -> dict[str, list[str]]:
    made = cases(found, Rows(), [f"row {k}" for k in range(100)])  # type: ignore[arg-type]
    return {name: [case["image"] for case in taken] for name, taken in made.items()}


def test_worst_is_by_the_truth_and_a_confident_mistake_by_what_was_said() -> None:
    rows = table((0.5, 0.48, 0.02), (0.9, 0.06, 0.04), (0.1, 0.8, 0.1), *[(0.6, 0.2, 0.2)] * 8)
    found = shown(judgements(rows, ["c", "c", "b", *["b"] * 8]))
    assert found["worst_cases"][:3] == ["row 0", "row 1", "row 3"]
    assert found["confident_mistakes"][:3] == ["row 1", "row 3", "row 4"]
    assert len(found["worst_cases"]) == 8
    assert found["best_cases"] == ["row 2"]


def test_with_two_classes_the_mistakes_are_told_once() -> None:
    found = shown(judgements(table((0.7, 0.3), (0.9, 0.1), (0.2, 0.8), names="ab"), ["b", "b", "b"]))
    assert found == {"best_cases": ["row 2"], "worst_cases": ["row 1", "row 0"], "confident_mistakes": []}


def test_the_best_are_taken_from_every_class_in_turn() -> None:
    right = [Judgement(k, "easy", "easy", 0.99, 0.99 - k / 1000) for k in range(20)] + [Judgement(20, "hard", "hard", 0.4, 0.4)]
    assert [one.row for one in best(right)] == [0, 20, 1, 2, 3, 4, 5, 6]


def test_refusals_and_rows_without_a_label_are_no_cases() -> None:
    rows = [*table((0.7, 0.2, 0.1)), {"prediction": "refused", "max_score": np.nan, "score_a": np.nan}, *table((0.7, 0.2, 0.1))]
    assert [one.row for one in judgements(rows, [None, "a", "b"])] == [2]


def test_a_finding_is_judged_for_itself() -> None:
    rows = [{"score_mass": 0.9, "score_cyst": 0.2}, {"score_mass": 0.1, "score_cyst": 0.6}]
    found = judgements_of_findings(rows, ("mass", "cyst"), np.array([[0.0, 1.0], [np.nan, 1.0]]))
    assert [(one.row, one.truth, one.said) for one in found] == [(0, "no mass", "mass"), (0, "cyst", "no cyst"), (1, "cyst", "cyst")]
    assert [(one.sure, one.true) for one in found] == [(0.9, pytest.approx(0.1)), (0.8, 0.2), (0.6, 0.6)]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    return written(tmp_path / "data")


def opened(shop: Path, folder: Path) -> tuple[Data, Grid]:
    data, encoder = medtame.load(shop), medtame.encoder("tiny")
    asked = settled(data, encoder, ["ridge_probe"], (4,), 2, "standard", 1.0, 0, {})
    return data, grid_of(data, encoder, asked, folder)


def test_no_name_of_a_file_reaches_the_report_unless_it_is_asked_for(shop: Path, tmp_path: Path) -> None:
    result = medtame.compare(medtame.load(shop), "tiny", methods=["ridge_probe"], shots=(1, 4), draws=2, out=tmp_path / "out")
    for name in ("result.json", "report.html", "run/README.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert ".png" not in text.replace("image/png", "")
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    told = [case for name in ("best_cases", "worst_cases", "confident_mistakes") for case in record["details"][name]]
    assert told
    data, grid = opened(shop, tmp_path / "cells")
    labels, test = data.samples.column("label"), set((np.array(data.split.test) + 1).tolist())
    for case in told:
        row = int(case["image"].removeprefix("row "))
        assert row in test
        assert labels[row - 1] == case["truth"]
    run = adapt(data, grid.encoder, method=result.best)
    named = pictures(grid, result.best, run, names=True)
    names = data.samples.column("image")
    assert {case["image"] for taken in named.values() for case in taken} <= {names[row - 1] for row in test}
    assert [case["image"] for case in named["best_cases"]] == [
        names[int(case["image"].removeprefix("row ")) - 1] for case in pictures(grid, result.best, run)["best_cases"]
    ]


def test_a_name_in_a_warning_becomes_its_row(shop: Path, tmp_path: Path) -> None:
    _, grid = opened(shop, tmp_path / "cells")
    said = seen.unnamed(["Overlap: images/004.png = images/000.png.", "Nothing named."], grid)
    assert said == ["Overlap: row 5 = row 1.", "Nothing named."]


def test_parts_are_counted_and_leakage_is_told(shop: Path, tmp_path: Path) -> None:
    data, grid = opened(shop, tmp_path / "cells")
    found = seen.parts(grid)
    assert [(part["name"], part["rows"]) for part in found["parts"]] == [("train", len(data.split.train)), ("test", len(data.split.test))]
    labels = np.array(data.samples.column("label"))
    for part, rows in zip(found["parts"], (data.split.train, data.split.test), strict=True):
        assert part["classes"] == {label: int((labels[rows] == label).sum()) for label in sorted(set(labels))}
        assert part["groups"] == len({data.samples.groups[row] for row in rows})
    assert "no patient or case stands on both sides" in found["leakage"]
    folded = medtame.load(written(tmp_path / "unsplit", split=False))
    asked = settled(folded, grid.encoder, ["ridge_probe"], (4,), 2, "standard", 1.0, 0, {})
    (whole,) = seen.parts(grid_of(folded, grid.encoder, asked, tmp_path / "folds"))["parts"]
    assert (whole["name"], whole["rows"]) == ("5 folds", 60)
