"""Learning that is broken off: what is kept, what is gone on with bit for bit, what is refused, and what the terminal says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import medtame
from medtame import catalogue, encoders, resumed, terminal, verbs
from medtame.errors import LearningError, RunError
from medtame.learning.loop import Step
from medtame.strategies.base import Learner
from shop import family, written

STEPS = 6
METHODS = ("clap", "lp_plus_plus", "coop", "lora", "promptsrc")  # in closed loops of their own, and with sums beside the state


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "data", n=24)


def stopping_at(number):
    def watch(step):
        if step.number == number:
            raise KeyboardInterrupt

    return watch


def adapted(shop, method="clap", settings=None, **more):
    chosen = {"steps": STEPS, **(settings or {})}
    return medtame.adapt(medtame.load(shop, "classification"), medtame.encoder("tiny:vit"), method=method, settings=chosen, **more)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(shop, method):
    adapted(shop, method, out="whole")
    with pytest.raises(KeyboardInterrupt, match=r"step 3 is kept in part: go on .* --resume"):
        adapted(shop, method, out="part", watch=stopping_at(3))
    assert [path.name for path in Path("part").iterdir()] == [resumed.NAME]
    seen = []
    adapted(shop, method, out="part", resume=True, watch=lambda step: seen.append(step.number))
    assert seen == [4, 5, 6]
    assert sorted(path.name for path in Path("part").iterdir()) == ["config.json", "weights.safetensors"]
    assert Path("part/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()
    about = json.loads(Path("part/config.json").read_text())["about"]
    assert about["resumed"] == "Gone on after step 3 of 6; the seconds of the fit are those after it."


def test_a_state_goes_on_only_with_what_it_was_begun_with(shop, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        adapted(shop, out="part", watch=stopping_at(2))
    held = Path("part", resumed.NAME).read_bytes()
    for words, more in {
        r"another method \('clap', now 'text_initialised_probe'\)": {"method": "text_initialised_probe"},
        r"another learning_rate \(0.001, now 0.0001\)": {"settings": {"learning_rate": 1e-4}},
        r"another steps \(6, now 7\)": {"settings": {"steps": 7}},
        r"another seed \(0, now 1\)": {"seed": 1},
        "another rows": {"rows": "all"},
    }.items():
        with pytest.raises(RunError, match=words):
            adapted(shop, out="part", resume=True, **more)
    (shop.parent / "images" / "010.png").write_bytes((shop.parent / "images" / "011.png").read_bytes())
    with pytest.raises(RunError, match="another rows: go on as it was begun, or give a new folder"):
        adapted(shop, out="part", resume=True)
    assert Path("part", resumed.NAME).read_bytes() == held


def test_a_folder_without_a_state_is_begun_if_empty_and_refused_if_not(shop):
    run = adapted(shop, out="new", resume=True)
    assert "resumed" not in run.about
    with pytest.raises(RunError, match="the run in new is finished"):
        adapted(shop, out="new", resume=True)
    Path("other").mkdir()
    Path("other/mine.txt").write_text("")
    with pytest.raises(RunError, match="other holds no learning to go on with"):
        adapted(shop, out="other", resume=True)
    Path("broken").mkdir()
    Path("broken", resumed.NAME).write_bytes(b"half a fi")
    with pytest.raises(RunError, match=r"learning.safetensors cannot be read .*: remove it and begin again"):
        adapted(shop, out="broken", resume=True)


CTRL_C_INSIDE_A_STEP = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from medtame import cli, encoders
from medtame.learning.loop import Descent
from shop import family
encoders.FAMILIES["tiny"] = family
stepped, calls = Descent.stepped, []
def asked_to_stop(self, *more):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGINT)  # before the weights of this step have moved
    stepped(self, *more)
Descent.stepped = asked_to_stop
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process of a shell ignores it
sys.argv = ["medtame", *{words!r}]
cli.main()
"""
KILLED_WHILE_WRITING = """
import os, signal, torch
from pathlib import Path
from medtame import resumed
from medtame.learning.loop import Step
resumed.EVERY_SECONDS = 0.0
save_file, calls = resumed.save_file, []
def half(tensors, path, metadata):
    calls.append(0)
    save_file(tensors, path, metadata=metadata)
    if len(calls) == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
resumed.save_file = half
with resumed.kept(Path("killed"), {belongs!r}, lambda step: None, resume=False) as learning:
    for number in range(1, 10):
        learning(Step(number, 9, 1.0, lambda number=number: {{"value": torch.full((1000,), float(number))}}))
"""


def in_a_process(script, **words):
    return subprocess.run([sys.executable, "-c", script.format(**words)], capture_output=True, text=True, check=False)


def test_ctrl_c_inside_a_step_on_the_command_line(shop):
    words = ("adapt", str(shop), "--encoder", "tiny", "--method", "clap", "--set", f"steps={STEPS}", "--out", "part")
    stopped = in_a_process(CTRL_C_INSIDE_A_STEP, tests=str(Path(__file__).parent), words=words)
    assert stopped.returncode == 130
    assert stopped.stderr.count("\n") == 1
    assert "medtame: stopped; step 4 is kept in " in stopped.stderr  # the step is finished first
    fit = {"data": medtame.load(shop, "classification"), "encoder": medtame.encoder("tiny"), "method": "clap", "settings": {"steps": STEPS}}
    medtame.adapt(**fit, out="whole")
    medtame.adapt(**fit, out="part", resume=True)
    assert Path("part/weights.safetensors").read_bytes() == Path("whole/weights.safetensors").read_bytes()
    assert sorted(path.name for path in Path("part").iterdir()) == ["config.json", "weights.safetensors"]


def test_killed_while_it_writes_the_state_before_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = in_a_process(KILLED_WHILE_WRITING, belongs=belongs())
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path("killed").iterdir())) == 2  # the state, and half of the next one under a name that counts for nothing
    with resumed.kept(Path("killed"), belongs(), lambda step: None, resume=True) as learning:
        assert learning.note.startswith("Gone on after step 2 of 9")
        assert learning.start["value"].tolist() == [2.0] * 1000
    assert not list(Path("killed").iterdir())


def steps_of(values, of=9):
    """Steps whose loss is given and whose state is their number, from a learner that fails after the last one."""
    for number, loss in enumerate(values, 1):
        yield Step(number, of, loss, lambda number=number: {"value": torch.tensor([float(number)])})
    raise LearningError(f"the loss of step {len(values) + 1} of {of} is nan: lower learning_rate (it is 1)")


def learnt(folder, losses):
    with resumed.kept(folder, belongs(), lambda step: None, resume=False) as learning:
        for step in steps_of(losses):
            learning(step)


def belongs(**settings):
    return {"method": "planted", "settings": {"learning_rate": 1.0, **settings}, "seed": 0}


def test_where_a_loss_is_no_number_the_last_state_with_a_loss_is_kept_and_a_lower_rate_may_go_on(tmp_path):
    with pytest.raises(LearningError, match=r"step 5 of 9 is nan.*the state of step 3, .* is kept in .*--resume and a lower --set"):
        learnt(tmp_path, [4.0, 3.0, 2.0, 9.0])  # the state of step 4 is the one whose loss is no number
    assert load_file(tmp_path / resumed.NAME)["value"].item() == 3
    for same in (belongs(), belongs(learning_rate=2.0)):
        with pytest.raises(RunError, match=r"another learning_rate|broke off \(the loss of step 5 of 9 is nan"):
            resumed.Learning(tmp_path, same, lambda step: None).read()
    with pytest.raises(RunError, match="another"):
        resumed.Learning(tmp_path, belongs(learning_rate=0.1, batch=3), lambda step: None).read()
    lower = resumed.Learning(tmp_path, belongs(learning_rate=0.1), lambda step: None)
    lower.read()
    assert lower.start["value"].item() == 3
    assert lower.note == "Gone on after step 3 of 9 with learning_rate 0.1 in the place of 1; the seconds of the fit are those after it."


def test_without_a_state_with_a_loss_nothing_is_written(tmp_path):
    with pytest.raises(LearningError, match=r"^the loss of step 2 of 9 is nan: lower learning_rate \(it is 1\)$"):
        learnt(tmp_path, [4.0])
    assert not list(tmp_path.iterdir())


def test_large_states_are_copied_and_written_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(resumed, "SMALL_BYTES", 0)
    clock = [0.0]
    learning = resumed.Learning(tmp_path, belongs(), lambda step: None, clock=lambda: clock[0])
    states, held = [], []
    for number in range(1, 10):

        def state(number=number):
            states.append(number)
            return {"value": torch.tensor([float(number)])}

        clock[0] = 10.0 * number
        learning(Step(number, 20, 1.0, state))
        held.append(int(load_file(learning.path)["value"]) if learning.path.exists() else 0)
    learning.release()
    assert states == [1, 4, 7]
    assert held == [0, 0, 1, 1, 1, 4, 4, 4, 7]  # each once its loss is known, every 30 s


def test_each_step_is_told_with_its_loss(shop):
    told, losses = [], []
    data, settings, fixed = medtame.load(shop, "classification"), {"steps": STEPS}, {"rows": "all", "seed": 0, "command": "medtame adapt"}
    adapted(shop, "clap", rows="all", watch=lambda step: losses.append(step.loss))
    verbs.adapt(data, "tiny:vit", "clap", settings, out=Path("run"), resume=False, watch=lambda *words: told.append(words), **fixed)
    assert [words for words in told if words[0] != "encoding images"] == [
        (f"clap, loss {loss:.3g}", number, STEPS) for number, loss in enumerate(losses, 1)
    ]


def test_the_bar_shows_step_loss_and_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with terminal.progress(quiet=True) as report:
        report("encoding images", 6, 6)
        report("clap, loss 0.512", 300, 1000)  # gone on with
        report("clap, loss 0.497", 301, 1000)
    said = capsys.readouterr()
    assert said.out == ""
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.err).strip().splitlines()[-1]
    assert re.fullmatch(r". clap, loss 0.497 \S+ +301/1000 .*elapsed 0:00:0\d left \S+", last), last


def test_a_learner_that_breaks_off_does_not_cost_the_grid(shop):
    methods, settings = ["lora", "nearest_prototype"], {"lora": {"steps": 3, "learning_rate": 1e30}}
    data, encoder = medtame.load(shop, "classification"), medtame.encoder("tiny:vit")
    found = medtame.compare(data, encoder, methods=methods, settings=settings, shots=(2,), draws=2, out="out").json()
    assert {row["method"] for row in found["rows"]} >= {"nearest_prototype"}
    assert "lora" not in {row["method"] for row in found["rows"]}
    (left,) = found["not_run"]
    assert (left["method"], left["minutes"]) == ("lora", None)
    assert left["reason"].startswith("the loss of step ")


def test_every_learner_says_when_it_is_good_and_when_not():
    kinds = {name: catalogue.settings_class(catalogue.METHODS, name) for name in catalogue.names(catalogue.METHODS)}
    learners = {name: kind for name, kind in kinds.items() if issubclass(kind, Learner)}
    assert {"coop", "lora", "unet", "biomedcoop", "text_query_decoder"} <= set(learners)
    for name, kind in kinds.items():
        assert kind.good_when, name
        assert kind.poor_when, name
        for said in (kind.good_when, kind.poor_when):
            assert "\n" not in said
            assert 10 < len(said) < 120
            assert not said.endswith(".")
