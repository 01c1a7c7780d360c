"""medtame pretrain and what may be wrong with what it is given: words, pictures, groups, folders, settings, disks."""

from __future__ import annotations

import errno
import io
import json
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import medtame
from encoders.made import hf_clip
from medtame import cli, encoders, forgetting
from medtame.encoders import pretrained
from medtame.errors import DataError, EncoderError, PairError, RunError, SettingsError
from medtame.forgetting import MADE
from medtame.learning.contrast import bounded
from medtame.pairs_at_hand import in_words
from medtame.pretrain import heat_of, objectives, pretrain
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
    assert record["base"]["spec"] == "pretrained:elsewhere/first"
    assert not torch.equal(encoders.load("second").whole(samples), seen[0])


def test_a_watched_manifest_has_its_own_column_names(shop, capsys):
    table = pd.read_csv(shop).rename(columns={"label": "finding", "patient": "id"})
    table.to_csv(shop.with_name("mine.csv"), index=False)
    asked = ["pretrain", str(shop), "--encoder", "tiny", "--set", "steps=1", "--held", "0", "--watch", f"disc={shop.with_name('mine.csv')}"]
    told = ["--watch-columns", "disc:label=finding,patient=id", "--json", "--out", "watched"]
    assert cli.app([*asked, *told], standalone_mode=False) is None
    record = json.loads(capsys.readouterr().out)
    assert {one["method"] for one in record["changes"] if one["on"] == "disc"} == {"zero_shot", "linear_probe"}
    with pytest.raises(SettingsError, match=r"--watch-columns 'other:label=finding' names no manifest that is watched \(these are: disc\)"):
        cli.app([*asked, "--watch-columns", "other:label=finding", "--out", "none"], standalone_mode=False)


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


def test_what_an_earlier_pretraining_has_seen_is_not_forgotten(shop):
    """Continued again on other pairs: the first images are no test images of the second encoder either, nor of its own verdict."""
    small(str(shop), "first")
    learnt = medtame.load(shop, "image_text_retrieval").train
    other = written(Path("other"), n=64, seed=9)
    tests = pd.read_csv(other).query("split == 'test'")["image"]
    for image in tests[:3]:
        shutil.copy(shop.parent / learnt.column("image")[0], other.parent / image)
    record = pretrain(other, "first", out="second", settings={"": {**SETTINGS[""], "steps": 1}})
    assert encoders.card("first").seen < encoders.card("second").seen
    assert f"test pairs: 3 of {len(tests)} test images were learnt from and are left out." in record["notes"]
    assert {one["n"] for one in record["changes"] if one["on"] == "test pairs"} == {len(tests) - 3}


def test_stopped_while_it_is_measured_the_record_is_made_later(shop, monkeypatch):
    """The encoder is whole; --resume learns nothing again and makes the page with the curve of the learning."""
    ranked = forgetting.natural_ranks

    def stopped(encoder):
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "natural_ranks", stopped)
    with pytest.raises(KeyboardInterrupt):
        small(str(shop), "stopped")
    weights = Path("stopped/weights.safetensors").read_bytes()
    assert not Path("stopped/report.html").exists()
    monkeypatch.setattr(forgetting, "natural_ranks", ranked)
    record = small(str(shop), "stopped", resume=True)
    assert [point[0] for point in record["curve"]] == list(range(1, 31))
    assert Path("stopped/report.html").is_file()
    assert not Path("stopped", MADE).exists()
    assert Path("stopped/weights.safetensors").read_bytes() == weights


def test_pictures_that_cannot_be_read_are_left_out_or_refused(shop):
    (shop.parent / "images" / "010.png").write_bytes(b"no picture")
    record = small(str(shop), "mended", settings={"": {**SETTINGS[""], "steps": 2}}, held=0)
    assert any(note.startswith("1 pair was left out: could not be read") for note in record["notes"])
    assert record["learnt"] == 47
    with pytest.raises(DataError, match="1 training images cannot be read"):
        small(str(shop), "strict", strict=True)


def test_one_group_and_copies_are_kept_on_one_side(shop):
    """All rows of one patient: nothing is kept aside; a copy of a file never stands in both parts."""
    table = pd.read_csv(shop).drop(columns="split")
    table.assign(patient="unknown").to_csv(shop.with_name("one.csv"), index=False)
    assert small(str(shop.with_name("one.csv")), "one", settings={"": {**SETTINGS[""], "steps": 1}})["held"] == "No pair was kept aside."
    for row in range(0, 60, 2):
        shutil.copy(shop.parent / table["image"][row], shop.parent / table["image"][row + 1])
    table.drop(columns="patient").to_csv(shop.with_name("copies.csv"), index=False)
    record = small(str(shop.with_name("copies.csv")), "copies", settings={"": {**SETTINGS[""], "steps": 1}})
    assert not any("left out" in note for note in record["notes"])
    assert record["changes"]


def test_words_are_those_without_marks_on_both_sides(shop):
    """Texts that differ in marks only are one text; a text of marks alone is no text."""
    table = pd.read_csv(shop)
    table["text"] = [f"XXXX {text}" if row % 2 else f"{text} [**2001**]" for row, text in enumerate(table["text"])]
    table.loc[table.index[-1], "text"] = "XXXX XXXX"
    table.to_csv(shop, index=False)
    data = in_words(medtame.load(shop, "image_text_retrieval"), ())
    assert len(set(data.train.column("text")) | set(data.test.column("text"))) == 6
    assert sum(map(len, (data.train, data.test))) == 63


def test_scale_and_bias_are_of_one_objective_and_else_the_base():
    """The first objective whose scale has moved; one that never moved has learnt none."""
    base = encoders.load("tiny")
    still, moved = torch.tensor(np.log(base.scale)), torch.tensor(np.log(7.0))
    asked = objectives({"captioning": 0.5, "contrastive": 1.0, "sigmoid": 1.0}, {"captioning": {"contrastive": 0}})
    sigmoid = {"sigmoid.log_scale": torch.tensor(1.0), "sigmoid.bias": torch.tensor(-9.0)}
    ended = {"captioning.log_scale": still, "contrastive.log_scale": moved, **sigmoid}
    assert heat_of(asked, ended, base) == (pytest.approx(7.0), base.bias)
    assert heat_of(asked[:1], {"captioning.log_scale": still}, base) == (base.scale, base.bias)
    assert heat_of(asked[2:], ended, base) == (pytest.approx(np.e), -9.0)


def test_a_temperature_at_its_bound_can_come_down_again():
    for start in (3.0, float(np.log(100.0)), 5.0):
        log_scale = torch.tensor(start, requires_grad=True)
        scale = bounded(log_scale)
        assert float(scale) == pytest.approx(min(np.exp(start), 100.0), rel=1e-5)
        scale.backward()
        assert float(log_scale.grad) == pytest.approx(np.exp(start), rel=1e-5)


def test_settings_of_all_are_not_set_for_one_of_a_sum():
    with pytest.raises(SettingsError, match=r"steps holds for all objectives of a sum: --set steps=… in the place of sigmoid.steps=…"):
        objectives({"contrastive": 1.0, "sigmoid": 1.0}, {"sigmoid": {"steps": 500}})
    assert objectives({"sigmoid": 1.0}, {"sigmoid": {"steps": 500}})[0].method.steps == 500
