"""The command line as a user meets it: JSON, one line an error, exit codes, nothing half-written."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from medtame import cli, encoders
from shop import family, written


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "data")


@pytest.fixture
def medtame(monkeypatch, capsys):
    """Run a command line: exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medtame", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


COMPARE = {"schema", "task", "data", "rows", "not_run", "best", "controls", "run", "report", "details"}
ROW = {
    "method",
    "strategy",
    "learning",
    "encoder",
    "shots",
    "regime",
    "draws",
    "metric",
    "mean",
    "low",
    "high",
    "gain",
    "gain_low",
    "gain_high",
    "gain_over_probe",
    "gain_over_probe_low",
    "gain_over_probe_high",
    "gain_p",
    "gain_p_holm",
    "gain_over_probe_p",
    "gain_over_probe_p_holm",
    "harm_rate",
    "fit_seconds",
    "trainable_parameters",
}
CONTROL = {"arm", "metric", "mean", "low", "high", "difference", "difference_low", "difference_high", "verdict"}
METHOD = {"name", "strategy", "learning", "tasks", "trains", "cost", "papers"}


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, resource; sys.argv = ['medtame', '--help']\nfrom medtame import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "sys.stderr.write(repr([m for m in ('torch', 'pandas', 'sklearn', 'pydantic') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"
    for verb in ("demo", "compare", "adapt", "predict", "evaluate", "methods", "tasks"):
        assert verb in done.stdout


def test_compare_adapt_predict_evaluate(shop, medtame, tmp_path):
    code, out, _ = medtame(
        "compare", shop, "--encoder", "tiny", "--methods", "zero_shot,ridge_probe", "--shots", "1,4", "--draws", 2, "--out", "out", "--json"
    )
    record = json.loads(out)
    assert code == 0
    assert set(record) == COMPARE
    assert set(record["rows"][0]) == ROW
    assert set(record["controls"][0]) >= CONTROL
    assert {"n", "classes", "groups", "split"} == set(record["data"])
    assert (record["schema"], record["task"], record["data"]["n"]) == (1, "classification", 60)
    assert record["run"] == str(tmp_path / "out" / "run")

    code, out, _ = medtame("adapt", shop, "--encoder", "tiny", "--method", "clap", "--set", "steps=20", "--out", "run", "--json")
    assert code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["about"]["method"] == {"name": "clap", "settings": {"steps": 20, "learning_rate": 0.001, "constraint": 1.0}}
    assert (tmp_path / "run" / "README.md").read_text().startswith("---")

    code, out, _ = medtame("evaluate", "run", shop, "--split", "test", "--json")
    evaluated = json.loads(out)
    assert set(evaluated["metrics"]["balanced_accuracy"]) == {"value", "low", "high", "n"}
    assert evaluated["metrics"]["balanced_accuracy"]["n"] == evaluated["n"] == 16

    code, out, _ = medtame("predict", "run", shop.parent / "images", "--out", "seen")
    rows = list(csv.DictReader((tmp_path / "seen" / "predictions.csv").open()))
    assert code == 0
    assert list(rows[0]) == ["image", "prediction", "score_bright", "score_dark", "score_nothing", "max_score", "warning"]
    assert len(rows) == 60
    assert sum(float(rows[0][f"score_{name}"]) for name in ("bright", "dark", "nothing")) == pytest.approx(1)
    code, out, err = medtame("predict", "run", shop.parent / "images" / "000.png")
    assert out.splitlines()[0].startswith("image,prediction")
    assert "research use only" in err


def test_the_shelves_are_json(shop, medtame):
    _, out, _ = medtame("methods", "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert set(found["clap"]) == METHOD
    assert found["clap"]["strategy"] == "tuning"
    assert found["affine"]["strategy"] == "none"
    assert found["linear_probe"]["tasks"]
    _, out, _ = medtame("methods", "clap", "--json")
    assert json.loads(out)["settings"]["steps"] == 300
    _, out, _ = medtame("tasks", "--json")
    assert {"classification", "segmentation", "registration"} <= {row["name"] for row in json.loads(out)}


def bad(medtame, *words):
    """The one line of an error; no traceback."""
    code, _, err = medtame(*words)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert "Traceback" not in err
    assert len(lines) == 1, err
    assert lines[0].startswith("medtame: ")
    return lines[0]


def rewritten(manifest, change):
    rows = list(csv.DictReader(manifest.open()))
    rows = [row for row in map(change, rows) if row is not None]
    path = manifest.with_name("changed.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_wrong_names_say_the_near_one(shop, medtame):
    assert "'zero_shot'" in bad(medtame, "compare", shop, "--encoder", "tiny", "--methods", "zeroshot", "--out", "out")
    assert "'classification'" in bad(medtame, "compare", shop, "--task", "clasification", "--out", "out")
    assert "'steps'" in bad(medtame, "adapt", shop, "--encoder", "tiny", "--method", "clap", "--set", "stepz=3", "--out", "out")
    assert "'tiny'" in bad(medtame, "adapt", shop, "--encoder", "tinny", "--method", "clap", "--out", "out2")
    assert "standard" in bad(medtame, "compare", shop, "--encoder", "tiny", "--regime", "standart", "--out", "out3")
    assert "--shots" not in bad(medtame, "compare", shop, "--encoder", "tiny", "--shots", "1,two", "--out", "out4")
    assert "No such command" in bad(medtame, "comprae", shop)


def test_a_missing_file_names_itself(shop, medtame, tmp_path):
    assert "nothing.csv" in bad(medtame, "compare", "nothing.csv", "--out", "out")
    (tmp_path / "data" / "images" / "004.png").unlink()
    assert "004.png" in bad(medtame, "compare", shop, "--encoder", "tiny", "--out", "out")
    assert not (tmp_path / "out").exists()
    assert "config.json" in bad(medtame, "evaluate", tmp_path, shop)


def test_an_unreadable_image_names_itself_and_leaves_no_run(shop, medtame, tmp_path):
    (tmp_path / "data" / "images" / "004.png").write_bytes(b"not an image")
    assert "004.png" in bad(medtame, "adapt", shop, "--encoder", "tiny", "--method", "ridge_probe", "--out", "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_class_and_a_class_without_training_rows(shop, medtame):
    one = rewritten(shop, lambda row: row | {"label": "bright"})
    assert "two classes" in bad(medtame, "compare", one, "--encoder", "tiny", "--out", "out")
    tested = rewritten(shop, lambda row: row | {"label": "odd"} if row["split"] == "test" and row["label"] == "dark" else row)
    assert "'odd'" in bad(medtame, "compare", tested, "--encoder", "tiny", "--methods", "ridge_probe", "--shots", "4", "--out", "out2")


def test_an_empty_text_column_says_which(shop, medtame):
    empty = rewritten(shop, lambda row: row | {"text": ""})
    assert "'text'" in bad(medtame, "compare", empty, "--encoder", "tiny", "--task", "image_text_retrieval", "--out", "out")
    assert "--columns question=YOURS" in bad(
        medtame, "compare", shop, "--encoder", "tiny", "--task", "visual_question_answering", "--out", "out2"
    )


def test_a_patient_on_both_sides_is_refused_and_may_be_allowed(shop, medtame):
    leaking = rewritten(shop, lambda row: row | {"patient": "p1"})
    assert "--allow-leakage" in bad(medtame, "adapt", leaking, "--encoder", "tiny", "--method", "ridge_probe", "--out", "run")
    code, _, err = medtame("adapt", leaking, "--encoder", "tiny", "--method", "ridge_probe", "--out", "run", "--allow-leakage", "--json")
    assert code == 0, err


def test_a_folder_that_cannot_be_written(shop, medtame, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for verb in (("compare", "--methods", "zero_shot"), ("adapt", "--method", "zero_shot")):
        assert "file" in bad(medtame, verb[0], shop, "--encoder", "tiny", *verb[1:], "--out", "file/out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    assert "--resume" in bad(medtame, "compare", shop, "--encoder", "tiny", "--out", "full")


def test_a_full_disk_is_one_line_and_finished_cells_stay(shop, tmp_path):
    """A real limit on the size of files, in a process of its own: the report is larger, cells are smaller."""
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(path) for path in sys.path if "tests" in str(path)]!r}
from shop import family
from medtame import cli, encoders
encoders.FAMILIES = {{"tiny": family}}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import medtame.comparison
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
sys.argv = ["medtame", "compare", {str(shop)!r}, *"--encoder tiny --methods zero_shot --shots 1 --draws 2 --out out".split()]
cli.main()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "--out" in lines[0]
    assert len(list((tmp_path / "out" / "cells").rglob("*.npz"))) >= 4
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert not left
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_full_memory_is_one_line_and_finished_cells_stay(shop, medtame, monkeypatch, tmp_path):
    from medtame.comparison import grid

    run, done = grid.Grid.run, []

    def until_full(self, cell, clock):
        if len(done) == 3:
            np.empty((2**40, 2**10))  # numpy asks for 8 pebibytes
        done.append(cell)
        return run(self, cell, clock)

    monkeypatch.setattr(grid.Grid, "run", until_full)
    words = ("compare", shop, "--encoder", "tiny", "--methods", "zero_shot", "--shots", "1", "--draws", 3, "--out", "out")
    said = bad(medtame, *words)
    assert "the memory is full (Unable to allocate" in said
    assert "--resume" in said
    assert len(list((tmp_path / "out" / "cells").rglob("*.npz"))) == 3


def test_ctrl_c_is_130_and_keeps_cells(shop, medtame, monkeypatch, tmp_path):
    from medtame.comparison import grid

    keep, kept = grid.Grid.keep, []

    def counted(self, cell, outcome):
        keep(self, cell, outcome)
        kept.append(cell)
        if len(kept) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(grid.Grid, "keep", counted)
    words = ("compare", shop, "--encoder", "tiny", "--methods", "zero_shot", "--shots", "1", "--draws", 3, "--out", "out")
    code, _, err = medtame(*words)
    assert code == 130
    assert "--resume" in err
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 5
    monkeypatch.setattr(grid.Grid, "keep", keep)
    assert medtame(*words, "--resume", "--json")[0] == 0


def test_prompts_come_from_a_file_and_reach_every_method(shop, medtame, tmp_path):
    prompts = {"bright": ["a bright disc"], "dark": ["a dark disc"], "nothing": ["nothing disc"]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    words = ("compare", shop, "--encoder", "tiny", "--methods", "zero_shot", "--shots", "4", "--draws", 1, "--prompts", "prompts.json")
    _, out, _ = medtame(*words, "--out", "out", "--json")
    assert json.loads(out)["details"]["prompts"] == prompts
    (tmp_path / "prompts.json").write_text(json.dumps({"brigth": ["x"]}))
    assert "'brigth'" in bad(medtame, *words, "--out", "out2")
    (tmp_path / "prompts.json").write_text("{")
    assert "prompts.json" in bad(medtame, *words, "--out", "out3")


def test_times_of_methods_that_were_not_run_are_in_minutes_or_seconds():
    from medtame import terminal

    assert [terminal.about(minutes) for minutes in (0.001, 0.4, 1.9, 2.0, 11.2)] == [
        "about 1 seconds",
        "about 24 seconds",
        "about 114 seconds",
        "about 2 minutes",
        "about 11 minutes",
    ]
