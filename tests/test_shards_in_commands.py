"""Every command reads an archive of a data set as it reads the files: `check`, `compare` and `search` say the same of both."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

import medtame
from medtame import cli, encoders
from shop import family, written

METHODS = ["zero_shot", "ridge_probe"]
LATER = ("fit_seconds", "fit_cpu_seconds", "peak_megabytes")


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A table of files, and a folder with two archives of the same rows: label in .cls, text in .txt, the rest in .json."""
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    table = written(tmp_path / "data")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    (tmp_path / "shards").mkdir()
    for number, part in enumerate((rows[:40], rows[40:])):
        with tarfile.open(tmp_path / "shards" / f"pairs-{number}.tar", "w") as archive:
            for row in part:
                key = Path(row["image"]).stem
                words = {".cls": row["label"], ".txt": row["text"], ".json": json.dumps({"patient": row["patient"], "split": row["split"]})}
                members = {".png": (table.parent / row["image"]).read_bytes()} | {end: word.encode() for end, word in words.items()}
                for ending, content in members.items():
                    entry = tarfile.TarInfo(key + ending)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return table, tmp_path / "shards"


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    monkeypatch.setattr(sys, "argv", ["medtame", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code in (0, 1, None), said.err
    return json.loads(said.out)


def test_compare_gives_the_same_table(both: tuple[Path, Path], tmp_path: Path) -> None:
    found = []
    for number, data in enumerate(both):
        loaded = medtame.load(data)
        assert (len(loaded.train), len(loaded.test)) == (44, 16)
        result = medtame.compare(loaded, "tiny", methods=METHODS, shots=(1, "all"), draws=2, out=tmp_path / f"out{number}")
        found.append([{name: value for name, value in row.items() if name not in LATER} for row in result.rows])
    assert found[0] == found[1]
    assert {row["method"] for row in found[0]} >= set(METHODS)


def test_check_says_the_same(both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files, shards = (called(monkeypatch, capsys, "check", data, "--quick", "--json") for data in both)
    for key in ("n", "images", "groups", "classes", "split", "sizes", "formats", "shared", "unreadable", "exit_code"):
        assert files[key] == shards[key]
    assert [one["code"] for one in files["findings"]] == [one["code"] for one in shards["findings"]]
    pattern = called(monkeypatch, capsys, "check", both[1] / "pairs-{0..1}.tar", "--quick", "--json")
    assert pattern["n"] == 60


def test_search_finds_the_same_images_and_shows_them(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--text", "a bright disc on the left", "--json")
    page = tmp_path / "page.html"
    files, shards = (called(monkeypatch, capsys, "search", "tiny", data, *words, "--out", page) for data in both)
    assert [hit["score"] for hit in files["hits"]] == [hit["score"] for hit in shards["hits"]]
    assert [Path(hit["image"]).name for hit in files["hits"]] == [Path(hit["image"]).name for hit in shards["hits"]]
    assert page.read_text(encoding="utf-8").count("data:image/png;base64,") == 10
    again = called(monkeypatch, capsys, "search", "tiny", both[1], *words, "--index", tmp_path / "kept")
    assert again["hits"] == shards["hits"]
