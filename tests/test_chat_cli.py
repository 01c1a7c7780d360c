"""Chat models from the command line: where they are asked is said for one call, is in no file, and refusals are told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asking import GREYS, pictures, served
from doubles import tiny_encoder
from medtame import chat_options, cli, encoders
from medtame import run as path
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.tasks.image_text_retrieval import ImageTextRetrieval
from medtame.tasks.visual_question_answering import VisualQuestionAnswering
from medtame.types import Scores
from shop import family

KEY = "sk-very-secret"
TINY = ("--encoder", "tiny:a")
ENVIRONMENT = ("MEDTAME_CHAT_URL", "MEDTAME_CHAT_ALLOW_REMOTE")
Medtame = Callable[..., tuple[int, str, str]]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Images of three greys, each of its own patient, half of them for the test."""
    lines = ["image,label,patient,split"]
    for part in ("train", "test"):
        samples = pictures(6, part)
        for i, (picture, label) in enumerate(zip(samples.pictures(), samples.column("label"), strict=True)):
            Image.fromarray(np.round(picture.array()[..., 0] * 255).astype(np.uint8)).save(tmp_path / f"{part}{i}.png")
            lines.append(f"{part}{i}.png,{label},{part}-{i},{part}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "labels.csv"


@pytest.fixture
def medtame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Medtame:
    """A command line as if in a process of its own: exit code, standard output, standard error."""
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDTAME_CHAT_KEY", KEY)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that what a call sets is taken back after the test
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
        monkeypatch.setattr(sys, "argv", ["medtame", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


def test_adapt_predict_evaluate_and_nothing_of_the_address_is_kept(manifest: Path, medtame: Medtame, tmp_path: Path) -> None:
    with served("I cannot say.", first=5, count=1) as server:
        asked = ("--chat-url", server.url)
        made = medtame(
            "adapt", manifest, "--method", "chat_model", "--set", "model=grey", "--set", "parallel=1", "--out", "run", *TINY, *asked
        )
        assert made[0] == 0, made[2]
        assert "note: 1 of 6 rows got no answer" in made[1]
        again = json.loads(medtame("evaluate", "run", manifest, f"--chat-url={server.url}", "--json")[1])
        assert again["metrics"]["balanced_accuracy"]["value"] == pytest.approx(5 / 6)
        assert again["notes"] == ["1 of 6 rows got no answer: wrong in every accuracy and recall, left out of AUROC and calibration"]
        assert len(server.seen()) == 6, "the second call finds the answers on disk"
        assert {one["key"] for one in server.seen()} == {f"Bearer {KEY}"}
        said = medtame("predict", "run", "train0.png", "train1.png", "train2.png", *asked)
        assert [line.split(",")[1] for line in said[1].splitlines()[1:]] == list(GREYS)
        kept = [file for folder in ("run", "cache") for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert len(kept) > 3
        for secret in (KEY, "127.0.0.1", str(server.port), "--chat-url"):
            assert not [file.name for file in kept if secret.encode() in file.read_bytes()], secret
    assert "--chat-url" in medtame("predict", "run", "test5.png", "train3.png")[2]


def test_compare_asks_it_beside_others_or_leaves_it_out_with_its_reason(manifest: Path, medtame: Medtame, tmp_path: Path) -> None:
    how = ("compare", manifest, "--shots", "1", "--draws", "1", "--methods", "direct_use", "--set", "chat_model.model=grey", *TINY)
    alone = medtame(*how, "--out", "alone", "--json")
    assert alone[0] == 0, alone[2]
    reasons = {row["method"]: row["reason"] for row in json.loads(alone[1])["not_run"]}
    assert "no chat server is given" in reasons["chat_model"]
    assert "local_vlm needs a folder" in reasons["local_vlm"]
    with served("white or black", first=2, count=1) as server:
        found = medtame(*how, "--set", "chat_model.parallel=1", "--out", "asked", "--json", "--chat-url", server.url)
        assert found[0] == 0, found[2]
        record = json.loads(found[1])
        row = next(row for row in record["rows"] if row["method"] == "chat_model")
        assert row["mean"] == pytest.approx(5 / 6)
        assert any("chat_model-1-0: 1 of 6 rows got no answer" in note for note in record["details"]["warnings"])
        assert "1 of 6 rows got no answer" in (tmp_path / "asked" / "report.html").read_text(encoding="utf-8")
        for file in (file for file in (tmp_path / "asked").rglob("*") if file.is_file()):
            for secret in (KEY, "127.0.0.1", str(server.port), "--chat-url"):
                assert secret.encode() not in file.read_bytes(), file


def test_images_stay_here_unless_it_is_allowed(manifest: Path, medtame: Medtame) -> None:
    line = ("adapt", manifest, "--method", "chat_model", "--set", "model=grey", "--set", "retries=0", "--set", "timeout_seconds=1", *TINY)
    code, _, told = medtame(*line, "--out", "one", "--chat-url", "http://192.0.2.7:9/v1")
    assert code == 2
    assert "images would leave it: add --allow-remote" in told
    assert len(told.strip().splitlines()) == 1
    assert "192.0.2.7" not in told


def test_the_address_is_taken_out_of_the_command_that_is_kept() -> None:
    line = ["predict", "run", "--chat-url", "http://localhost/v1", "a.png", "--chat-url=http://b", "--allow-remote"]
    assert chat_options.without_address(line) == ["predict", "run", "a.png", "--allow-remote"]


def test_a_refusal_in_retrieval_is_no_text_and_no_rank() -> None:
    train = pictures(6, "train")
    worded = train.replaced(text=[f"{label} {i}" for i, label in enumerate(train.column("label"))])
    run = path.fitted(worded, ImageTextRetrieval(), ZeroShot(), tiny_encoder())
    query = run.query(worded)
    right = torch.tensor([[float(text == own) for text in query.wanted.names] for own in worded.column("text")])
    values = right.clone()
    values[2] = torch.nan
    found = run.frame.read(query, Scores(values))
    assert [row["warning"] for row in found.table] == ["", "", "no answer", "", "", ""]
    assert [row["text_1"] for row in found.table][2] == ""
    assert found.table[2]["image_rank_for_text_1"] == ""
    whole = run.frame.measure(run.frame.read(query, Scores(right)), worded)["recall_at_1_image_to_text"].value()
    assert (whole, run.frame.measure(found, worded)["recall_at_1_image_to_text"].value()) == (1.0, pytest.approx(5 / 6))
    assert path.refusals(found).startswith("1 of 6 rows got no answer")
    assert path.refusals(replace(found, table=found.table[:2])) == ""


def test_two_refusals_are_no_consistent_answer() -> None:
    samples = pictures(4).replaced(question=["what is it", "what is this"] * 2, answer=["grey"] * 4, linked_qid=[1, 1, 2, 2])
    run = path.fitted(samples, VisualQuestionAnswering(answers=("white",)).settled(samples), ZeroShot(), tiny_encoder())
    query = run.query(samples)
    values = torch.tensor([[1.0, 0.0], [1.0, 0.0], [torch.nan, torch.nan], [torch.nan, torch.nan]])
    found = run.frame.measure(run.frame.read(query, Scores(values)), samples)
    assert found["paraphrase_consistency"].value() == 0.5
    assert found["accuracy"].value() == 0.5
