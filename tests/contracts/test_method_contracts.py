"""Every method keeps the contract on every task that it meets: a new method file is tested by existing.

A learner is tested on the first of its tasks; `pytest -m full` tests it on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import checks
import pytest
import sources
import torch
from cases import Case, answers_of_fresh_process, case, has
from tiny import METHOD_SETTINGS, TASK_SETTINGS, tiny

import medtame
from doubles import ENCODERS
from medtame import catalogue
from medtame.encoders.towers import TowerEncoder
from medtame.run import unmet
from medtame.strategies.base import Learner, Method
from medtame.tasks.base import Task
from medtame.types import Array

SOURCE = Path(medtame.__file__).parent
METHODS: dict[str, Method] = {
    name: catalogue.build(catalogue.METHODS, name, METHOD_SETTINGS.get(name)) for name in catalogue.names(catalogue.METHODS)
}
TASKS: dict[str, Task] = {
    name: catalogue.build(catalogue.TASKS, name, TASK_SETTINGS.get(name)) for name in catalogue.names(catalogue.TASKS)
}
PAIRS = [(method, task) for method in METHODS for task in TASKS if not unmet(TASKS[task], METHODS[method])]
APART = [(method, task) for method in METHODS for task in TASKS if unmet(TASKS[task], METHODS[method])]

Condition = Callable[[Method, Task], bool]


def pairs(condition: Condition = lambda method, task: True) -> Any:
    """The pairs that a contract speaks about; those of a learner beyond its first are marked `full`."""
    met = [(method, task) for method, task in PAIRS if condition(METHODS[method], TASKS[task])]
    firsts = dict(reversed(met))
    later = {(method, task): isinstance(METHODS[method], Learner) and firsts[method] != task for method, task in met}
    params = [pytest.param(pair, id="-".join(pair), marks=[pytest.mark.full] if later[pair] else []) for pair in met]
    return pytest.mark.parametrize("pair", params)


def classed(method: Method, task: Task) -> bool:
    """The task settles its classes before the draw."""
    return has(task, "learnt")


@cache
def encoder(spec: str) -> TowerEncoder:
    return ENCODERS[spec]()


@cache
def case_of(pair: tuple[str, str]) -> Case:
    blocks = "image_blocks" in METHODS[pair[0]].towers
    return case(METHODS[pair[0]], TASKS[pair[1]], encoder("tiny_vit" if blocks else "tiny"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equal results are promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_tiny_data_set(task: str) -> None:
    train, test = tiny(task)
    assert set(TASKS[task].requires) <= set(train.columns)
    assert not set(train.groups) & set(test.groups)
    assert len(set(train.groups)) < len(train), "a few patients have several images"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_a_task(method: str) -> None:
    assert any(name == method for name, _ in PAIRS), f"{method} meets no task: its needs are {sorted(METHODS[method].needs)}"


@pairs()
def test_1_unfitted_cannot_answer(pair: tuple[str, str]) -> None:
    checks.unfitted_cannot_answer(case_of(pair))


@pytest.mark.parametrize("method", METHODS)
def test_2_method_settings_round_trip(method: str) -> None:
    checks.settings_round_trip(catalogue.METHODS, METHODS[method])


@pytest.mark.parametrize("task", TASKS)
def test_2_task_settings_round_trip(task: str) -> None:
    checks.settings_round_trip(catalogue.TASKS, TASKS[task])


@pairs()
def test_3_same_seed_same_answer(pair: tuple[str, str]) -> None:
    checks.same_seed_same_answer(case_of(pair))


@pairs()
def test_4_rows_stand_alone(pair: tuple[str, str]) -> None:
    checks.rows_stand_alone(case_of(pair))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each pair that this session saves."""
    folder = tmp_path_factory.mktemp("runs")
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "runs" in item.fixturenames and "pair" in item.callspec.params:
            pair = item.callspec.params["pair"]
            with suppress(Exception):  # the test of this pair says what is wrong
                case_of(pair).run.save(folder / "-".join(pair))
    return folder


@pytest.fixture(scope="module")
def reloaded(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Array]]:
    """What one fresh process answers with all the folders."""
    folders = sorted(folder for folder in runs.iterdir() if (folder / "config.json").is_file())
    return answers_of_fresh_process(folders, tmp_path_factory.mktemp("answers") / "answers.npz")


@pairs()
def test_5_saved_and_asked_in_a_fresh_process(pair: tuple[str, str], reloaded: Mapping[str, Mapping[str, Array]], tmp_path: Path) -> None:
    checks.save(case_of(pair), tmp_path)
    checks.answers_equal_after_reload(case_of(pair), reloaded["-".join(pair)])


@pairs()
def test_6_a_run_folder_is_plain(pair: tuple[str, str], tmp_path: Path) -> None:
    checks.save(case_of(pair), tmp_path)
    checks.folder_is_plain(case_of(pair), tmp_path)


def test_6_foreign_classes_are_refused(tmp_path: Path) -> None:
    checks.save(case_of(("zero_shot", "classification")), tmp_path / "run")
    checks.foreign_classes_refused(tmp_path / "run", tmp_path / "scratch")


@pairs(lambda method, task: 1 in task.shots)
def test_7_one_shot(pair: tuple[str, str]) -> None:
    checks.one_shot(case_of(pair))


@pairs(classed)
def test_8_a_missing_class(pair: tuple[str, str]) -> None:
    checks.missing_class(case_of(pair))


@pairs(classed)
def test_9_one_class_only(pair: tuple[str, str]) -> None:
    checks.one_class_only(case_of(pair))


@pairs(classed)
def test_10_classes_permuted(pair: tuple[str, str]) -> None:
    checks.classes_permuted(case_of(pair))


@pairs(lambda method, task: method.starts_at_zero_shot and has(task, "templates"))
def test_11_starts_at_zero_shot(pair: tuple[str, str]) -> None:
    checks.starts_at_zero_shot(case_of(pair), METHODS["zero_shot"])


@pairs(lambda method, task: "candidates" in method.reads and not {"findings", "owned_findings"} & method.reads)
def test_11_names_are_no_words(pair: tuple[str, str]) -> None:
    checks.names_are_no_words(case_of(pair))


@pairs(classed)
def test_12_shuffled_labels_are_not_learned(pair: tuple[str, str]) -> None:
    checks.shuffled_labels_are_not_learned(case_of(pair))


@pairs(lambda method, task: classed(method, task) and catalogue.name_of(method) in task.references and "labels" in method.needs)
def test_12_true_labels_are_learned(pair: tuple[str, str]) -> None:
    checks.true_labels_are_learned(case_of(pair))


@pairs()
def test_13_truth_is_hidden(pair: tuple[str, str]) -> None:
    checks.truth_is_hidden(case_of(pair))


@pairs()
def test_14_cost_is_recorded(pair: tuple[str, str]) -> None:
    checks.cost_is_recorded(case_of(pair))


@pytest.mark.parametrize("pair", [pytest.param(pair, id="-".join(pair)) for pair in APART])
def test_15_a_pair_that_does_not_meet_is_refused(pair: tuple[str, str]) -> None:
    checks.pair_refused(METHODS[pair[0]], TASKS[pair[1]])


@pairs(lambda method, task: isinstance(method, Learner))
def test_16_resume_is_exact(pair: tuple[str, str]) -> None:
    checks.resume_is_exact(case_of(pair))


@pairs()
def test_17_the_encoder_is_unchanged(pair: tuple[str, str]) -> None:
    checks.encoder_is_unchanged(case_of(pair))


def test_18_shelves_are_blind() -> None:
    sources.shelves_are_blind(SOURCE)


@pytest.mark.parametrize("method", METHODS)
def test_19_every_method_says_what_it_is(method: str) -> None:
    sources.method_says_what_it_is(type(METHODS[method]))


@pytest.mark.parametrize("task", TASKS)
def test_19_every_task_has_a_docstring(task: str) -> None:
    assert sources.docstring(type(TASKS[task]))


def test_20_source_is_short_and_explained() -> None:
    sources.source_is_short_and_explained(SOURCE)
