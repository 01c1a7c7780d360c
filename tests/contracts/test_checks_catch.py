"""Each check catches a method, task, folder or source file that breaks its contract, and passes the honest one beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import broken
import checks
import pytest
import sources
import torch
from cases import Case, answers_of_fresh_process, case

from doubles import tiny_encoder
from medtame import catalogue
from medtame.errors import LearningError
from medtame.strategies.base import Method
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.tasks.classification import Classification

ENCODER = tiny_encoder()


@pytest.fixture(autouse=True)
def shelved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The broken methods lie on the catalogue's shelf; one thread, as in the fresh process."""
    broken.shelve(monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of(method: Method, task: Classification | None = None) -> Case:
    made = case(method, Classification(), ENCODER)
    return made if task is None else replace(made, task=task.settled(made.train))


def catches(check: Callable[..., None], honest: Any, wrong: Any, words: str, *more: Any) -> None:
    check(honest, *more)
    with pytest.raises(AssertionError, match=words):
        check(wrong, *more)


def test_1_a_method_that_answers_unfitted_or_fits_again() -> None:
    catches(checks.unfitted_cannot_answer, of(broken.Honest()), of(broken.AnswersUnfitted()), "unfitted method could be asked")
    catches(checks.unfitted_cannot_answer, of(broken.Honest()), of(broken.FittedFitsAgain()), "fitted again")


def test_2_a_method_that_changes_its_settings() -> None:
    honest, wrong = broken.Honest(strength=3.0), broken.DoublesItsSettings(strength=3.0)
    checks.settings_round_trip(catalogue.METHODS, honest)
    with pytest.raises(AssertionError, match="settings change"):
        checks.settings_round_trip(catalogue.METHODS, wrong)


def test_3_a_method_that_ignores_the_seed() -> None:
    catches(checks.same_seed_same_answer, of(broken.Descends()), of(broken.IgnoresTheSeed()), "two fits with one seed differ in")


def test_4_a_method_that_looks_at_the_other_rows() -> None:
    catches(checks.rows_stand_alone, of(broken.Honest()), of(broken.LooksAtItsNeighbours()), "batches of 5")
    catches(checks.rows_stand_alone, of(broken.Honest()), of(broken.CountsItsRows()), "another order")


def test_5_methods_that_a_folder_does_not_hold(tmp_path: Path) -> None:
    cases = {kind.__name__: of(kind()) for kind in (broken.Honest, broken.Forgetful, broken.ChangesWhenLoaded)}
    for name, one in cases.items():
        checks.save(one, tmp_path / name)
    found = answers_of_fresh_process([tmp_path / name for name in cases], tmp_path / "answers.npz", broken=True)
    checks.answers_equal_after_reload(cases["Honest"], found["Honest"])
    with pytest.raises(AssertionError, match="cannot use its folder: IndexError"):
        checks.answers_equal_after_reload(cases["Forgetful"], found["Forgetful"])
    with pytest.raises(AssertionError, match="answers otherwise"):
        checks.answers_equal_after_reload(cases["ChangesWhenLoaded"], found["ChangesWhenLoaded"])


def test_6_a_method_that_holds_an_address_and_a_folder_with_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"cannot be saved: .*address"):
        checks.save(of(broken.CarriesAnAddress()), tmp_path / "address")
    honest, folder = of(broken.Honest()), tmp_path / "honest"
    checks.save(honest, folder)
    checks.folder_is_plain(honest, folder)
    (folder / "extra.pkl").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"holds extra\.pkl"):
        checks.folder_is_plain(honest, folder)
    (folder / "extra.pkl").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "server": "http://example.org"}), encoding="utf-8")
    with pytest.raises(AssertionError, match="holds an address"):
        checks.folder_is_plain(honest, folder)


def test_6_a_loader_that_trusts_every_class(tmp_path: Path) -> None:
    checks.save(of(broken.Honest()), tmp_path / "run")
    checks.foreign_classes_refused(tmp_path / "run", tmp_path / "scratch")
    with pytest.raises(AssertionError, match="'os:system' is opened"):
        checks.foreign_classes_refused(tmp_path / "run", tmp_path / "again", broken.trusting_open)


def test_7_a_method_that_needs_two_rows_a_class() -> None:
    catches(checks.one_shot, of(broken.Honest()), of(broken.NeedsTwoRows()), "not finite")


def test_8_a_method_that_counts_the_classes_it_saw() -> None:
    catches(checks.missing_class, of(broken.Honest()), of(broken.CountsSeenClasses()), r"answers are \(24, 2\), not \(24, 3\)")


def test_9_methods_that_meet_one_class() -> None:
    catches(checks.one_class_only, of(ZeroShot()), of(broken.FailsOnOneClass()), "give ValueError")
    with pytest.raises(AssertionError, match="says nothing"):
        checks.one_class_only(of(broken.Honest()))
    with pytest.raises(AssertionError, match="needs no labels and refuses"):
        checks.one_class_only(of(broken.AsksForNothingAndRefuses()))


def test_10_a_method_that_prefers_the_first_class() -> None:
    catches(checks.classes_permuted, of(broken.Honest()), of(broken.PrefersTheFirst()), "another order")


def test_11_a_method_that_starts_elsewhere() -> None:
    catches(checks.starts_at_zero_shot, of(ZeroShot()), of(broken.StartsElsewhere()), "differs from zero_shot", ZeroShot())


def test_12_a_task_that_tells_the_truth_and_a_method_that_learns_nothing() -> None:
    honest = of(broken.Honest())
    catches(
        checks.shuffled_labels_are_not_learned, honest, of(broken.Honest(), broken.TellingClassification()), "fitted on shuffled labels"
    )
    catches(checks.true_labels_are_learned, honest, of(broken.FailsToLearn()), "reaches 0.33")


def test_a_learner_that_learns_from_nothing() -> None:
    with pytest.raises(LearningError, match="the loss of step 1 of 3 is nan"):
        of(broken.LearnsFromNothing()).fit()


def test_13_tasks_that_leak() -> None:
    honest = of(broken.Honest())
    catches(checks.truth_is_hidden, honest, of(broken.Honest(), broken.TellingClassification()), "the query holds the truth column 'label'")
    catches(checks.truth_is_hidden, honest, of(broken.Honest(), broken.LeakyClassification()), "the problem holds the truth column 'label'")


def test_14_a_method_that_hides_what_it_trains() -> None:
    catches(checks.cost_is_recorded, of(broken.Descends()), of(broken.HidesItsCost()), "0 numbers are trainable")


def test_15_refusals_that_do_not_help() -> None:
    method, task = broken.AsksTheImpossible(), Classification()
    checks.pair_refused(method, task)
    with pytest.raises(AssertionError, match="names no method"):
        checks.pair_refused(method, task, broken.curt_meet)
    with pytest.raises(AssertionError, match="which does not fit either"):
        checks.pair_refused(method, task, broken.misleading_meet)


def test_16_a_learner_that_loses_its_momentum() -> None:
    catches(checks.resume_is_exact, of(broken.Descends()), of(broken.LosesItsMomentum()), "ends elsewhere")


def test_17_methods_that_touch_the_encoder() -> None:
    catches(checks.encoder_is_unchanged, of(broken.Honest()), of(broken.ChangesTheTower()), "fit changes image_tower")
    catches(checks.encoder_is_unchanged, of(broken.Honest()), of(broken.LeavesTheTowerOpen()), "leaves text_tower open to gradients")


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


HONEST_SOURCE = {
    "strategies/tuning/one.py": '"""One."""\nfrom medtame.strategies.base import Method\nfrom medtame.types import Query\n',
    "tasks/two.py": '"""Two."""\nfrom medtame.tasks.base import Task\n',
    "run.py": '"""Run."""\nfrom medtame import catalogue\n',
}


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("strategies/tuning/other.py", "from medtame.strategies.tuning.one import One", "only base may be imported"),
        ("strategies/tuning/other.py", "import medtame.strategies.tuning.one", "only base may be imported"),
        ("strategies/fusion/other.py", "def f():\n    from medtame.strategies.tuning import one", "only base may be imported"),
        ("strategies/tuning/other.py", "from medtame.tasks.base import Task", "blind to each other"),
        ("tasks/other.py", "from medtame.strategies import base", "blind to each other"),
        ("tasks/other.py", "from medtame import catalogue", "imports the catalogue"),
        ("trust/other.py", "from medtame.catalogue import build", "imports the catalogue"),
        ("strategies/tuning/other.py", "from . import one", "relative import"),
    ],
)
def test_18_a_file_that_looks_across(tmp_path: Path, file: str, line: str, words: str) -> None:
    sources.shelves_are_blind(written(tmp_path, HONEST_SOURCE))
    with pytest.raises(AssertionError, match=words):
        sources.shelves_are_blind(written(tmp_path, {file: f'"""Other."""\n{line}\n'}))


def test_19_methods_that_do_not_say_what_they_are() -> None:
    catches(sources.method_says_what_it_is, broken.Honest, broken.SaysNothing, "SaysNothing has no docstring")
    catches(sources.method_says_what_it_is, broken.Descends, broken.NamesNobody, "names no author")
    catches(sources.method_says_what_it_is, broken.Honest, broken.HasNoPaper, "declares no papers")


def test_20_a_file_that_is_long_or_unexplained(tmp_path: Path) -> None:
    short = written(tmp_path / "a", {"x.py": '"""X."""\n' + "x = 1\n" * 399})
    catches(
        sources.source_is_short_and_explained, short, written(tmp_path / "b", {"x.py": '"""X."""\n' + "x = 1\n" * 400}), "has 401 lines"
    )
    catches(sources.source_is_short_and_explained, short, written(tmp_path / "c", {"x.py": "x = 1\n"}), "no module docstring")
