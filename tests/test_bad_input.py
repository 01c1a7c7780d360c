"""Bad input of a classification by the command line: one line that names it and says how to mend it, exit 2, nothing lost."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from medtame import catalogue, cli, encoders, ranges
from medtame.data.draws import draw
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, SettingsError
from medtame.learning.loop import Descent
from medtame.tasks.classification import Classification
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


def changed(table, change):
    """The table with every row passed through `change` (None: the row is dropped)."""
    with table.open(encoding="utf-8") as file:
        rows = [change(number, row) for number, row in enumerate(csv.DictReader(file))]
    kept = [row for row in rows if row is not None]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return kept


def compared(medtame, table, *more):
    return medtame(
        "compare", table, "--encoder", "tiny", "--shots", "2", "--draws", "2", "--out", "out", "--methods", "linear_probe", *more
    )


def one_line(err, *words):
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def test_a_class_in_test_only_is_named_and_may_be_left_out(shop, medtame):
    rows = changed(shop, lambda number, row: row | {"label": "photograph"} if number in (0, 1) else row)
    assert {row["split"] for row in rows[:2]} == {"test"}
    code, out, err = compared(medtame, shop)
    assert (code, out) == (2, "")
    one_line(err, "'photograph' is in test only (2 rows)", "--set task.classes=bright,dark,nothing")
    code, out, _ = compared(medtame, shop, "--set", "task.classes=bright,dark,nothing", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["data"]["n"] == 58
    assert "2 of 60 rows are left out, for their class is not asked about: 'photograph' 2." in record["details"]["warnings"]


def test_classes_restrict_train_and_test(shop, medtame):
    code, out, _ = compared(medtame, shop, "--set", "task.classes=dark,bright", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["data"]["classes"] == {"bright": 20, "dark": 20}
    assert record["data"]["split"]["train"] + record["data"]["split"]["test"] == 40
    assert list(record["details"]["prompts"]) == ["dark", "bright"]  # in the order asked for
    assert any(note.startswith("20 of 60 rows are left out") and "'nothing' 20" in note for note in record["details"]["warnings"])
    code, out, _ = medtame("evaluate", "out/run", shop, "--json")
    evaluated = json.loads(out)
    assert evaluated["n"] == record["data"]["split"]["test"]
    assert any("are left out" in note for note in evaluated["notes"])
    code, _, err = compared(medtame, shop, "--set", "task.classes=dark,pink")
    assert code == 2
    one_line(err, "'pink' is not a class of the training rows (dark)")
    code, _, err = compared(medtame, shop, "--set", "task.classes=pink,red")
    assert code == 2
    one_line(err, "no row is of the classes pink, red", "bright, dark, nothing")


def test_prompts_that_are_alike_are_refused(shop, medtame, tmp_path):
    same = tmp_path / "same.json"
    same.write_text(json.dumps({name: ["an image"] for name in ("bright", "dark", "nothing")}), encoding="utf-8")
    code, _, err = compared(medtame, shop, "--prompts", same)
    assert code == 2
    one_line(err, "the prompts of 'bright' and of 'dark' (and of 1 more) are the same ('an image')", "give each a sentence of its own")
    code, _, err = compared(medtame, shop, "--set", "task.templates=an image")
    assert code == 2
    one_line(err, "words cannot tell them apart", "write {} for the name")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("there is no file",)),
        ("{bad", ("is no file of findings", '{"classes"')),
        ('{"classes": {"bright": ["a disc"], "dark": ["a hole"]}}', ("says nothing of the class 'nothing'", "add the class")),
        (
            '{"classes": {"bright": ["a disc"], "dark": ["a hole"], "nothing": ["plain grey"], "pink": ["x"]}}',
            ("speaks of 'pink'", "remove it"),
        ),
    ],
)
def test_a_findings_file_that_does_not_fit(shop, medtame, tmp_path, content, words):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    code, _, err = compared(medtame, shop, "--methods", "descriptors", "--set", f"descriptors.file={file}")
    assert code == 2
    one_line(err, "mine.json", *words)


def test_a_regime_that_does_not_exist_or_cannot_be_served(shop, medtame, tmp_path):
    code, _, err = compared(medtame, shop, "--regime", "odd")
    assert code == 2
    one_line(err, "no regime is called 'odd'", "realistic, relaxed, standard")
    assert not (tmp_path / "out").exists()
    code, out, _ = compared(medtame, shop, "--regime", "realistic", "--json")
    assert (code, {row["regime"] for row in json.loads(out)["rows"]}) == (0, {"realistic"})
    rare = ["a"] * 2000 + ["b"]
    with pytest.raises(DataError, match=r"hold 'a' alone in 99.9% of cases \(2,000 of 2,001 training rows\): use the regime standard"):
        draw(rare, np.arange(2001), 2, seed=0, regime="realistic")
    assert len(draw(rare, np.arange(2001), 2, seed=0, regime="relaxed").rows) == 4


def test_two_images_are_too_few_to_measure_but_enough_to_fit(shop, medtame):
    changed(shop, lambda number, row: row | {"split": ""} if number in (0, 2) else None)
    code, _, err = compared(medtame, shop)
    assert code == 2
    one_line(err, "2 rows", "each class in one row", "column 'split'")
    assert medtame("adapt", shop, "--encoder", "tiny", "--method", "linear_probe", "--split", "all", "--out", "run")[0] == 0


def test_features_that_are_no_numbers(shop, medtame, monkeypatch):
    def broken(rest):
        card, load = family(rest)

        def opened():
            made = load()
            with torch.no_grad():
                made.image_tower.out.bias.fill_(float("nan"))
            return made

        return card, opened

    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": broken})
    code, _, err = compared(medtame, shop)
    assert code == 2
    one_line(err, "the encoder tiny gives features that are no numbers", "check its weights")


def test_very_many_classes_are_not_all_named():
    names = [f"class {k}" for k in range(10_000)]
    train = ManifestSamples({"image": ["a.png"] * 10_000, "label": names}, np.arange(10_000))
    task = Classification().settled(train)
    assert len(task.learnt) == 10_000
    with pytest.raises(DataError) as found:
        task.servable(train.replaced(label=[f"other {k}" for k in range(10_000)]))
    assert len(str(found.value)) < 500
    assert "and 9,995 more" in str(found.value)
    with pytest.raises(DataError, match="10,000 classes for 10,000 test rows are 100,000,000 scores"):
        task.servable(train)
    task.servable(train.take(range(5000)))


def test_a_column_without_a_name_and_what_is_no_file(shop, medtame):
    code, _, err = compared(medtame, shop, "--columns", "image=")
    assert code == 2
    one_line(err, "--columns image= has a name on one side only", "such as image=filename")
    code, out, err = medtame("check", "/dev/null")
    assert (code, err) == (2, "")
    assert out.startswith("error: /dev/null is neither a file nor a folder: give a .csv")
    assert len(out.splitlines()) == 2  # the error, and what follows from it


def test_a_cache_that_cannot_be_written_is_a_sentence(shop, medtame, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "taken"))
    code, out, err = compared(medtame, shop, "--json")
    assert code == 0
    one_line(err, "medtame: warning: features are not kept on disk", "set MEDTAME_CACHE to another folder")
    assert json.loads(out)["best"]


def adapted(medtame, table, method, *more, encoder="tiny:vit"):
    return medtame("adapt", table, "--encoder", encoder, "--method", method, "--out", "out", *more)


def wordless(rest):
    """The tiny encoder without its text side."""
    card, made = (part() for part in family(rest))
    return lambda: replace(card, text_identity="", has_text=False), lambda: replace(made, text_identity="", text_tower=None)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("coop", "tokens=65", ("coop cannot use tokens = '65'", "less than or equal to 64", "Its settings: steps")),
        ("lora", "rank=0", ("lora cannot use rank = '0'", "greater than 0")),
        ("lora", "blocks=99", ("blocks=99 were asked for", "give a number from 1 to")),
        ("coop", "place=left", ("place = 'left'", "'end', 'middle' or 'front'")),
        ("promptsrc", "middle=two", ("middle = 'two'", "valid number")),
        ("kgcoop", "wieght=1", ("no setting of kgcoop is called 'wieght'. Did you mean 'weight'?",)),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(shop, medtame, tmp_path, method, settings, words):
    code, out, err = adapted(medtame, shop, method, "--set", settings)
    assert (code, out) == (2, "")
    one_line(err, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["visual_prompt", "maple", "promptsrc"])
def test_an_image_side_without_tokens(shop, medtame, tmp_path, method):
    code, _, err = adapted(medtame, shop, method, encoder="tiny")
    assert code == 2
    one_line(err, "the image side of tiny is no transformer, so it has no tokens for prompts: use coop or lora")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["coop", "lora", "test_time_prompt", "entropy_tuning", "zero_shot"])
def test_an_encoder_without_a_text_side(shop, medtame, tmp_path, monkeypatch, method):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": wordless})
    code, _, err = adapted(medtame, shop, method)
    assert code == 2
    one_line(err, f"{method} needs a text side, which the encoder tiny", "use linear_probe")
    assert not (tmp_path / "out").exists()
    code, _, err = adapted(medtame, shop, "linear_probe")
    assert (code, err) == (0, "")


def test_a_class_name_of_300_tokens(shop, medtame, tmp_path):
    name = " ".join(f"word{number}" for number in range(300))
    changed(shop, lambda number, row: row | {"label": name if row["label"] == "dark" else row["label"]})
    for method in ("coop", "cocoop", "kgcoop", "prograd", "maple", "test_time_prompt"):
        code, _, err = adapted(medtame, shop, method)
        assert code == 2, method
        one_line(err, "fills all 64 tokens that the encoder reads: shorten the class name")
        assert len(err) < 200
        assert not (tmp_path / "out").exists()
    told = "3 texts are longer than the 64 tokens that tiny:vit reads, so the rest is not seen: shorten what is long (an image of word0 "
    code, out, _ = adapted(medtame, shop, "zero_shot", "--json")
    assert code == 0
    assert [note[: len(told)] for note in json.loads(out)["notes"]] == [told]
    code, _, err = medtame("predict", "out", shop.parent / "images" / "000.png")
    assert code == 0
    assert f"medtame: warning: {told}" in err
    code, out, _ = medtame(
        "compare", shop, "--encoder", "tiny", "--shots", "1", "--draws", "1", "--out", "two", "--methods", "clap", "--json"
    )
    assert code == 0
    assert sum(note.startswith(told.replace("tiny:vit", "tiny")) for note in json.loads(out)["details"]["warnings"]) == 1
    code, out, _ = medtame("adapt", shop, "--encoder", "tiny", "--method", "linear_probe", "--out", "three", "--json")
    assert json.loads(out)["notes"] == []  # it reads no words


def test_a_loss_that_is_no_number_names_the_step_and_a_lower_rate_goes_on_from_the_last_good_one(shop, medtame, tmp_path, monkeypatch):
    code, _, err = adapted(medtame, shop, "visual_prompt", "--set", "learning_rate=1e30")
    assert code == 2
    one_line(err, "the loss of step 2 of 60 is nan: lower learning_rate (it is 1e+30)")
    assert not (tmp_path / "out").exists()  # the first step spoilt it, so there is no state to keep
    spoilt = Descent.stepped

    def stepped(self, values, slopes, moments, rate):
        spoilt(self, values, slopes, moments, rate)
        if next(iter(moments["steps"])) == 4 and self.learning_rate > 0.005:
            values[0].fill_(torch.nan)

    monkeypatch.setattr(Descent, "stepped", stepped)
    code, out, err = adapted(medtame, shop, "visual_prompt", "--set", "steps=6", "--json")
    assert code == 2
    one_line(err, "the loss of step 5 of 6 is nan", "the state of step 3", "--resume and a lower --set learning_rate")
    assert json.loads(out)["error"] in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["learning.safetensors"]
    again = ("--set", "steps=6", "--resume", "--json")
    code, _, err = adapted(medtame, shop, "visual_prompt", *again)
    assert code == 2
    one_line(err, "broke off (the loss of step 5 of 6 is nan", "a lower --set learning_rate")
    code, out, _ = adapted(medtame, shop, "visual_prompt", *again, "--set", "learning_rate=0.001")
    assert code == 0
    assert json.loads(out)["notes"][0].startswith("Gone on after step 3 of 6 with learning_rate 0.001 in the place of 0.01")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "weights.safetensors"]


def test_an_unreachable_server_keeps_the_run(shop, medtame, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTAME_CHAT_URL", "")  # so that what the option sets is taken back
    fast = ("--set", "model=grey", "--set", "retries=0", "--chat-url", "http://127.0.0.1:9/v1")
    code, out, err = adapted(medtame, shop, "chat_model", *fast)
    assert (code, out) == (2, "")
    one_line(err, "the chat server cannot be reached (1 try)", "the fitted run is kept in ", "measure it with medtame evaluate")
    assert "127.0.0.1" not in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "weights.safetensors"]
    assert medtame("predict", "out", shop, *fast[4:])[0] == 2


def test_the_ranges_that_are_printed_are_those_that_are_refused(medtame):
    seen = 0
    for name in catalogue.names(catalogue.METHODS):
        for key, limits in ranges.of(catalogue.settings_class(catalogue.METHODS, name)).items():
            numeric = limits["kind"] in ("number", "whole number")
            assert not numeric or {"ge", "gt"} & set(limits), f"{name}.{key} has no lower bound"
            inside, outside = probes(limits) if numeric else ([], [])
            if limits["kind"] == "choice":
                inside, outside = limits["choices"], ["none of these"]
            for value in inside:
                assert getattr(catalogue.build(catalogue.METHODS, name, {key: value}), key) == value
            for value in outside:
                with pytest.raises(SettingsError, match=rf"{name} cannot use {key} = "):
                    catalogue.build(catalogue.METHODS, name, {key: value})
            seen += bool(outside)
    assert seen > 200
    code, out, _ = medtame("methods", "coop")
    assert code == 0
    for words in ("tokens = 0 (whole number, 0 to 64)", "learning_rate = 0.2 (number, above 0)", "place = 'end' (end, middle or front)"):
        assert words in out
    for title in ("formula", "good when", "poor when", "cost", "settings", "needs of the encoder", "arxiv:2109.01134"):
        assert title in out
    found = json.loads(medtame("methods", "coop", "--json")[1])
    assert found["ranges"]["tokens"] == {"kind": "whole number", "ge": 0, "le": 64}
    assert found["formula"].endswith("only the context vectors are learnt.")
    assert found["good_when"]


def probes(limits):
    """Values at and just beyond each bound."""
    step = limits.get("multiple_of", 1) if limits["kind"] == "whole number" else 1e-6
    inside, outside = [], []
    for bound, sign in (("ge", -1), ("le", 1)):
        if bound in limits:
            inside.append(limits[bound])
            outside.append(limits[bound] + sign * step)
    for bound, sign in (("gt", 1), ("lt", -1)):
        if bound in limits:
            inside.append(limits[bound] + sign * step)
            outside.append(limits[bound])
    if "multiple_of" in limits:
        outside.append(inside[0] + 1)
    return inside, outside
