"""medtame pretrain: an encoder that every command takes, the same curve by any number of processes, and nothing lost by a kill."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import medtame
from medtame import cli, encoders
from medtame.encoders import pretrained
from medtame.errors import DataError, LearningError
from medtame.forgetting import ALIGNMENT, MADE, RECALL, Parted, aligned, changes, measured, natural_ranks
from medtame.learning import ranks
from medtame.pretrain import pretrain
from medtame.trust.seen_images import seen_rows
from pretraining import SETTINGS, small
from shop import family, written


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(encoders.FAMILIES, "tiny", family)
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shop(tmp_path) -> Path:
    return written(tmp_path / "shop", n=64)


@pytest.fixture
def made(shop) -> dict:
    return small(str(shop), "made")


def test_the_folder_is_an_encoder_that_sees_as_the_pretrained_towers_do(shop, made):
    """Loaded again: other vectors than the base's, right texts nearer, every moved weight as it was written."""
    new, base = encoders.load("made"), encoders.load("tiny")
    samples = medtame.load(shop, "image_text_retrieval").test
    assert not torch.equal(new.whole(samples), base.whole(samples))
    moved = load_file("made/weights.safetensors")
    assert {name.partition(".")[0] for name in moved} == {"image", "text"}
    for side in ("image", "text"):
        own = dict(getattr(new, f"{side}_tower").named_parameters())
        for name, value in pretrained.of_side(moved, side).items():
            assert torch.equal(own[name], value)
    assert encoders.card("made").image_identity == new.image_identity != base.image_identity
    assert new.scale == pytest.approx(json.loads(Path("made/medtame_encoder.json").read_text())["logit_scale"])
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "README.md",
        "medtame_encoder.json",
        "pretraining.json",
        "report.html",
        "seen.txt",
        "weights.safetensors",
    ]


def test_every_command_takes_it(shop, made, capsys):
    """compare, adapt and evaluate on labelled images that it did not learn from."""
    compared = medtame.compare(
        medtame.load(shop, "classification"), ["tiny", "made"], methods=["zero_shot"], shots=["all"], draws=1, out="out"
    )
    assert {row["encoder"] for row in compared.rows} == {"tiny", "made"}
    warning = next(one for one in compared.record["details"]["warnings"] if "learnt from when made was pretrained" in one)
    assert f"{made['learnt']} of 48 training images" in warning
    assert cli.app(["evaluate", "out/run", str(shop)], standalone_mode=False) in (0, None)


def test_an_image_that_it_has_seen_is_no_test_image(shop, made):
    """Refused by compare and evaluate, by what is in the file: a copy under another name is found too."""
    learnt = medtame.load(shop, "image_text_retrieval").train
    first = learnt.column("image")[0]
    other = written(Path("other"), n=24, seed=9)
    shutil.copy(shop.parent / first, next(iter(sorted((Path("other") / "images").glob("*.png")))))
    data = medtame.load(other, "classification")
    assert data.test is not None
    with pytest.raises(DataError, match=r"1 of \d+ test images \(the first in row 1\) were learnt from in pretraining of made"):
        medtame.compare(data, "made", methods=["zero_shot"], shots=["all"], draws=1, out="refused")
    assert not Path("refused").exists()
    run = medtame.adapt(medtame.load(written(Path("third"), n=24, seed=8), "classification"), medtame.encoder("made"), method="zero_shot")
    with pytest.raises(DataError, match="a number on them says nothing"):
        run.evaluate(data.test)


def test_a_copy_that_was_saved_again_is_no_test_image(shop, made):
    """Flipped and of another size: found by its signs. Another file of the same pixels: by these. Neighbours are not taken for copies."""
    learnt = medtame.load(shop, "image_text_retrieval").train
    other = written(Path("resaved"), n=24, seed=9)
    encoder = medtame.encoder("made")
    assert seen_rows(encoder, medtame.load(other, "classification").samples) == []
    first, second = (Image.open(shop.parent / name) for name in learnt.column("image")[:2])
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((96, 96), Image.Resampling.BICUBIC).save(other.parent / "images" / "003.png")
    second.save(other.parent / "images" / "005.png", compress_level=0)
    assert seen_rows(encoder, medtame.load(other, "classification").samples) == [3, 5]
    assert seen_rows(encoder, medtame.load(other, "classification").samples, copies=False) == []


def by_chance(rest: str):
    """The tiny encoder with its words mapped anywhere, as a family."""
    card, load = family(rest)

    def loaded():
        encoder = load()
        torch.nn.init.normal_(encoder.text_tower.aligned.weight, generator=torch.Generator().manual_seed(5))
        return encoder

    return card, loaded


def test_what_was_planted_is_learnt_and_only_what_is_true(tmp_path, monkeypatch):
    """Words that mean nothing at first: recall on test pairs rises, its paired interval above zero; with texts dealt out not."""
    monkeypatch.setitem(encoders.FAMILIES, "chance", by_chance)
    shop = written(tmp_path / "larger", n=240)
    settings = {"": {"steps": 200, "batch": 64, "learning_rate": 3e-3, "train": "all", "augment": "none"}}
    loaded = medtame.load(shop, "image_text_retrieval")
    data = Parted(loaded.train, loaded.test, loaded.task)
    gains = {}
    for name, manifest in (("true", shop), ("dealt out", dealt_out(shop))):
        pretrain(manifest, "chance", out=name, settings=settings, held=0)
        before, after = (measured({"pairs": data}, encoders.load(one), ("zero_shot",)) for one in ("chance", name))
        gains[name] = changes(before, after, {"pairs": data}, ("recall_at_1_image_to_text",))[0]
    assert gains["true"].low > 0
    assert gains["dealt out"].gain < gains["true"].gain - 0.3


def dealt_out(shop: Path) -> Path:
    """The manifest with the texts of the training rows dealt out at random."""
    table = pd.read_csv(shop)
    rows = table["split"] == "train"
    table.loc[rows, "text"] = table.loc[rows, "text"].sample(frac=1, random_state=1).to_numpy()
    table.to_csv(shop.with_name("dealt.csv"), index=False)
    return shop.with_name("dealt.csv")


def test_no_step_changes_nothing_and_is_no_benefit(shop):
    record = small(str(shop), "none", settings={"": {**SETTINGS[""], "steps": 0}})
    assert {one["on"] for one in record["changes"]} == {"pairs kept aside", "test pairs"}
    assert {one["metric"] for one in record["changes"]} == {*RECALL, ALIGNMENT}
    for one in record["changes"]:
        assert one["before"] == pytest.approx(one["after"], abs=1e-3)
    assert record["verdict"].startswith("No measurable benefit")
    assert record["learnt"] + int(record["held"].split()[0]) == 48


def test_before_and_after_are_paired(shop):
    """Against itself every difference is 0 with no width; a broken encoder loses on the probe."""
    loaded = medtame.load(shop, "classification")
    data = {"discs": Parted(loaded.train, loaded.test, loaded.task)}
    base = encoders.load("tiny")
    torch.manual_seed(0)
    broken = base.changed(image=Noise(base.image_tower), identity="noise")
    same = changes(measured(data, base), measured(data, base), data)
    assert [(one.gain, one.low, one.high) for one in same] == [(0.0, 0.0, 0.0)] * 2
    worse = {one.method: one for one in changes(measured(data, base), measured(data, broken), data)}
    assert worse["linear_probe"].high < 0
    assert worse["linear_probe"].metric == "balanced_accuracy"


class Noise(torch.nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, pixels):
        whole, maps = self.tower(pixels)
        return torch.nn.functional.normalize(torch.randn_like(whole), dim=1), maps


def test_alignment_is_own_minus_other_cosine():
    images, texts = np.eye(3), np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.8]])
    right = np.eye(3, dtype=bool)
    assert aligned(images, texts, right).value() == pytest.approx(np.mean([1 - 0, 1 - 0.3, 0.8 - 0]))


def test_photographs_are_ranked_by_bundled():
    """The general encoder knows what is on them: each right name among the first ten of a thousand."""
    found = natural_ranks(medtame.encoder("bundled"))
    assert len(found) == 3
    assert all(one["rank"] <= 10 and one["of"] == 1000 for one in found)


# ---- killed, stopped, gone on with ----------------------------------------------------------------------------


def killed_often(shop: Path, kills: int, seed: int) -> None:
    """Pretrainings that are killed at random moments until so many kills, each gone on with: all end as an undisturbed one."""
    processes, moments = multiprocessing.get_context("forkserver"), random.Random(seed)
    processes.set_forkserver_preload(["pretraining"])

    def begun(out: str):
        process = processes.Process(target=small, args=(str(shop), out), kwargs={"resume": Path(out).exists()})
        process.start()
        return process

    started = time.perf_counter()
    begun("whole").join()
    long = time.perf_counter() - started
    whole = load_file("whole/weights.safetensors")
    numbers = iter(f"killed-{number}" for number in range(1000))
    out = next(numbers)
    while True:
        if Path(out, "report.html").is_file() and not Path(out, MADE).exists():
            out = next(numbers)  # killed after its last file
        process = begun(out)
        process.join(None if kills == 0 else moments.uniform(0.1, 1.1) * long)
        if process.is_alive():
            process.kill()
            process.join()
            kills -= 1
            continue
        assert process.exitcode == 0
        found = load_file(f"{out}/weights.safetensors")
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        if kills == 0:
            return
        out = next(numbers)


def test_a_killed_run_is_gone_on_with_bit_for_bit(shop):
    killed_often(shop, 3, seed=0)


@pytest.mark.full
def test_fifty_kills_lose_nothing(shop):
    killed_often(shop, 50, seed=1)


def test_a_loss_that_is_no_number_keeps_the_last_good_state(shop, monkeypatch):
    """It stops at that step and says so; gone on with, it ends as if it had not happened."""
    small(str(shop), "whole")
    summed, calls = ranks.summed, []

    def burst(slopes):
        calls.append(0)
        return summed(slopes) | ({"loss": torch.tensor(float("nan"))} if len(calls) == 6 else {})

    monkeypatch.setattr(ranks, "summed", burst)
    with pytest.raises(LearningError, match="the loss of step 6 of 30 is nan: lower learning_rate") as caught:
        small(str(shop), "burst")
    assert "the state of step 4, the last with a loss that is a number, is kept in burst" in str(caught.value)
    assert not Path("burst", pretrained.CONFIG).exists()
    slower = SETTINGS[""] | {"learning_rate": 5e-4}
    record = small(str(shop), "burst", settings={"": slower}, resume=True)
    assert [point[0] for point in record["curve"]] == list(range(1, 31))


def test_one_and_two_processes_have_one_curve(shop):
    """torchrun with two ranks (gloo): the same losses to 1e-4, and one folder, which the first of them writes."""
    words = ["pretrain", str(shop), "--encoder", "tiny", "--seed", "3", "--set", "chunk=4"]
    for name, value in SETTINGS[""].items():
        words += [] if name == "chunk" else ["--set", f"{name}={value}"]
    script = str(Path(__file__).with_name("pretraining.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, *words, "--out", "two"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("research use only") == 1
    alone = pretrain(shop, "tiny", out="one", settings=SETTINGS, seed=3)
    both = json.loads(Path("two/pretraining.json").read_text())
    one, two = (np.array([point[:2] for point in record["curve"]], dtype=float) for record in (alone, both))
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert one[-1, 1] < one[0, 1]
