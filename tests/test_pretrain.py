"""medtame pretrain: an encoder that every command takes, the same curve by any number of processes, and nothing lost by a kill."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import medtame
from encoders.made import hf_clip
from medtame import cli, encoders
from medtame.encoders import pretrained
from medtame.errors import DataError, EncoderError, LearningError, PairError, RunError, SettingsError
from medtame.forgetting import ALIGNMENT, aligned, changes, measured, natural_ranks
from medtame.learning import ranks
from medtame.pretrain import RECALL, objectives, pretrain
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
    data = medtame.load(shop, "image_text_retrieval")
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
    data = {"discs": medtame.load(shop, "classification")}
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


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"weights": {"linear_probe": 1.0}}, PairError, "linear_probe is no objective of pretraining: these are"),
        ({"weights": {"contrastive": -1.0}}, SettingsError, "the weight of contrastive is -1: give a number above 0"),
        ({"settings": {"sigmoid": {"steps": 2}}}, SettingsError, "for an objective that is not asked for: add --objective sigmoid"),
        ({"settings": {"": {"sides": ("audio",)}}}, SettingsError, "contrastive cannot use sides"),
    ],
)
def test_what_cannot_be_asked_is_one_line(shop, asked, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(")) as caught:
        pretrain(shop, "tiny", asked.get("weights"), out="refused", settings=asked.get("settings"))
    assert "\n" not in str(caught.value)
    assert not Path("refused").exists() or not list(Path("refused").iterdir())


def test_captions_that_are_all_the_same_teach_nothing(shop):
    pd.read_csv(shop).assign(text="one caption").to_csv(shop, index=False)
    with pytest.raises(DataError, match="the same text"):
        pretrain(shop, "tiny", out="same")


def test_few_pairs_are_one_batch_and_too_few_are_refused(shop):
    record = small(str(shop), "few", settings={"": {**SETTINGS[""], "batch": 60, "chunk": 60}})
    assert record["notes"][-1] == (f"All {record['learnt']} pairs are one batch; batches of 60 were asked for.")
    pd.read_csv(shop).query("split == 'train'").head(5).to_csv(shop, index=False)
    with pytest.raises(DataError, match="5 pairs are too few"):
        small(str(shop), "fewer")


def test_a_finished_encoder_is_not_overwritten(shop, made):
    with pytest.raises(RunError, match="the encoder in made is finished: give a new folder with --out"):
        small(str(shop), "made", resume=True)


def test_weights_of_another_shape_or_kind_are_refused(made):
    weights = load_file("made/weights.safetensors")
    name = next(name for name in weights if weights[name].ndim == 2)
    changed(weights | {name: torch.zeros(2, 3)})
    with pytest.raises(EncoderError, match=r"\(2, 3\) and its base has one of shape"):
        encoders.load("made")
    changed(weights | {"image.no.such": torch.zeros(1)})
    with pytest.raises(EncoderError, match="its base has no such weight"):
        encoders.load("made")
    save_file({"image.x": torch.zeros(1)}, "made/weights.safetensors")
    with pytest.raises(EncoderError, match="is damaged or of another encoder"):
        encoders.load("made")


def changed(weights) -> None:
    """Other weights, with a configuration that says they belong there."""
    save_file(weights, "made/weights.safetensors")
    config = json.loads(Path("made/medtame_encoder.json").read_text())
    config["weights_sha256"] = pretrained.sha256(Path("made/weights.safetensors"))
    Path("made/medtame_encoder.json").write_text(json.dumps(config))


def test_a_tokenizer_or_a_base_that_does_not_belong_is_refused(made):
    config = json.loads(Path("made/medtame_encoder.json").read_text())
    for key, words in (("tokenizer", "the tokenizer of made does not belong to it"), ("base_image_identity", "its base is now")):
        Path("made/medtame_encoder.json").write_text(json.dumps(config | {key: "another"}))
        with pytest.raises(EncoderError, match=words):
            encoders.load("made")


def test_objectives_take_their_own_settings_and_those_of_all():
    first, second = objectives({"contrastive": 1.0, "soft_target": 0.5}, {"": {"steps": 7}, "soft_target": {"temperature": 0.3}})
    assert (first.method.steps, second.method.steps, second.method.temperature, second.weight) == (7, 7, 0.3, 0.5)


def test_sections_choose_what_of_a_report_is_learnt(shop):
    table = pd.read_csv(shop)
    table.assign(text="COMPARISON: none. FINDINGS: " + table["text"]).to_csv(shop, index=False)
    small(str(shop), "sections", sections=("findings",), settings={"": {**SETTINGS[""], "steps": 1}})
    assert Path("sections", pretrained.CONFIG).is_file()


def test_an_image_of_one_colour_is_learnt_from_without_a_nan(shop):
    Image.new("L", (40, 48)).save(shop.parent / "images" / "010.png")
    record = small(str(shop), "flat")
    assert all(np.isfinite(point[1]) for point in record["curve"])


def packed(shop: Path, folder: Path) -> Path:
    """The training rows as three WebDataset shards, the last of them cut short; a pattern that names them."""
    folder.mkdir()
    rows = pd.read_csv(shop).query("split == 'train'")
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
        with tarfile.open(folder / f"pairs-{number}.tar", "w") as archive:
            for row in rows.iloc[part].itertuples():
                archive.add(shop.parent / row.image, f"{Path(row.image).stem}.png")
                words = row.text.encode()
                member = tarfile.TarInfo(f"{Path(row.image).stem}.txt")
                member.size = len(words)
                archive.addfile(member, io.BytesIO(words))
    last = folder / "pairs-2.tar"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return folder / "pairs-{0..2}.tar"


def test_a_broken_shard_is_counted_or_refused(shop):
    """Pairs stream from archives; one that is cut short is left out with a note, or refused."""
    shards = packed(shop, Path("shards"))
    record = small(str(shards), "streamed", settings={"": {**SETTINGS[""], "steps": 2}}, held=0)
    assert record["learnt"] == 32
    assert any("1 of 3 shards" in note for note in record["notes"])
    with pytest.raises(DataError, match="pairs-2"):
        small(str(shards), "strict", strict=True)
    assert not Path("strict").exists()


def test_a_full_disk_is_one_line_and_what_is_kept_is_gone_on_with(shop, monkeypatch):
    small(str(shop), "whole")
    save, calls = pretrained.save_file, []

    def full(tensors, path):
        calls.append(0)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(RunError, match=r"cannot write to full: no space left on device; .* --resume"):
        small(str(shop), "full")
    monkeypatch.setattr(pretrained, "save_file", save)
    small(str(shop), "full", resume=True)
    assert Path("full/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()


def test_a_base_that_is_a_folder_is_copied_and_moves_with_it(shop, tmp_path, monkeypatch):
    """The whole folder on another machine, the first base gone: the same vectors; and it may be continued again."""
    monkeypatch.setattr(socket.socket, "connect", lambda *given: pytest.fail("a socket was opened"))
    base = tmp_path / "clip"
    hf_clip(base)
    once = {"": {**SETTINGS[""], "steps": 2}}
    pretrain(shop, f"hf:{base}", out="first", settings=once)
    samples = medtame.load(shop, "image_text_retrieval").test
    seen = encoders.load("first").whole(samples), encoders.load("first").texts(["a bright disc"])
    Path("elsewhere").mkdir()
    Path("first").rename("elsewhere/first")
    shutil.rmtree(base)
    moved = encoders.load("elsewhere/first")
    assert torch.equal(moved.whole(samples), seen[0])
    assert torch.equal(moved.texts(["a bright disc"]), seen[1])
    record = pretrain(shop, "elsewhere/first", out="second", settings=once)
    assert record["base"]["spec"] == "elsewhere/first"
    assert not torch.equal(encoders.load("second").whole(samples), seen[0])


def test_train_says_what_moves(shop):
    assert (
        cli.app(
            ["pretrain", str(shop), "--encoder", "tiny:vit", "--train", "last:2", "--set", "steps=1", "--out", "two"], standalone_mode=False
        )
        is None
    )
    blocks = {name.split(".")[2] for name in load_file("two/weights.safetensors") if name.startswith("image.blocks.")}
    assert blocks == {"1", "2"}
    with pytest.raises(SettingsError, match="--train takes projections, last, last:BLOCKS, lora or all, not 'all:2'"):
        cli.app(["pretrain", str(shop), "--encoder", "tiny", "--train", "all:2", "--out", "three"], standalone_mode=False)
