"""The contract of methods and tasks, a function each: plain asserts, with a message that says who broke what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, ask, different, distance, finite, has, identical, joined, parts, rows_of, same_array, tensors, with_steps
from torch import Tensor

from doubles import ENCODERS, tiny_encoder
from medtame import catalogue
from medtame import run as path
from medtame.data.draws import draw
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError, RunError, SettingsError
from medtame.learning.loop import Step
from medtame.run import Run
from medtame.strategies.base import Learner, Method
from medtame.tasks.base import Task
from medtame.trust.controls import reworded, reworded_problem
from medtame.types import Adapted, Array, Encoder, Query, Scores

NEAR = 3e-5  # regions pooled in another batch differ in the last bits, and a separable fit has large weights


# ---- 1 to 4: types, settings, seeds, rows ---------------------------------------------------------------------


def unfitted_cannot_answer(case: Case) -> None:
    assert not hasattr(case.method, "answer"), f"{case.name}: the settings have `answer`, so an unfitted method could be asked"
    assert isinstance(case.run.adapted, Adapted), f"{case.name}: fit gives a {type(case.run.adapted).__name__}, not an Adapted"
    for name in ("fit", "learn"):
        assert not hasattr(case.run.adapted, name), f"{case.name}: what fit gives has `{name}`, so a fitted method could be fitted again"


def settings_round_trip(shelf: str, value: Any) -> None:
    """Through JSON and back it is the same; a setting that does not exist is refused with the nearest that does."""
    name = catalogue.name_of(value)
    again = catalogue.build(shelf, name, json.loads(json.dumps(catalogue.settings_of(value))))
    assert again == value, f"{name}: settings change on their way through JSON: {value} became {again}"
    for known in catalogue.settings_of(value):
        with pytest.raises(SettingsError, match=f"Did you mean '{known}'") as caught:
            catalogue.build(shelf, name, {f"{known}x": 1})
        assert "\n" not in str(caught.value), f"{name}: the error has more than one line: {caught.value}"
    with pytest.raises(SettingsError):
        catalogue.build(shelf, name, {"no_such_setting": 1})


def same_seed_same_answer(case: Case) -> None:
    runs = []
    for other in (1, 2):  # whatever the caller did with the global generators
        torch.manual_seed(other)
        np.random.seed(other)  # noqa: NPY002
        runs.append(case.fit())
    changed = different(*(tensors(run.adapted) for run in runs))
    assert not changed, f"{case.name}: two fits with one seed differ in {', '.join(changed[:5])}"
    torch.manual_seed(1)
    first = ask(runs[0], case.test)
    torch.manual_seed(2)
    assert identical(first, ask(runs[1], case.test)), f"{case.name}: the answers of two fits with one seed differ"


def rows_stand_alone(case: Case) -> None:
    """Batch size and order of rows and samples do not matter; `set` methods see all rows, `stream` methods an order."""
    answer, query, scope = case.run.adapted.answer, case.run.query(case.test), case.method.scope
    whole = answer(query)
    if scope == "row":
        apart = distance(joined([answer(part) for part in query.batches(5)]), whole)
        assert apart <= NEAR, f"{case.name}: answers in batches of 5 images differ from one batch by {apart:.2g}"
    if scope != "stream":
        order = np.random.default_rng(5).permutation(len(query))
        apart = distance(answer(query.take(order)), rows_of(whole, order))
        assert apart <= NEAR, f"{case.name}: rows in another order get answers that differ by {apart:.2g}"
        order = np.random.default_rng(6).permutation(len(query.samples))
        moved = replace(query, samples=query.samples.take(order), source=order.argsort()[query.source])
        apart = distance(answer(moved), whole)
        assert apart <= NEAR, f"{case.name}: images in another order get answers that differ by {apart:.2g}"


# ---- 5 and 6: the folder --------------------------------------------------------------------------------------


def save(case: Case, folder: Path) -> None:
    error = raised(lambda: case.run.save(folder))
    assert error is None, f"{case.name} cannot be saved: {error}"


def answers_equal_after_reload(case: Case, reloaded: Mapping[str, Array]) -> None:
    assert "error" not in reloaded, f"{case.name}: a fresh process cannot use its folder: {reloaded['error']}"
    before = parts(case.said)
    same = before.keys() == reloaded.keys() and all(same_array(before[part], reloaded[part]) for part in before)
    assert same, f"{case.name}: a fresh process answers otherwise than the run that was saved"


def folder_is_plain(case: Case, folder: Path) -> None:
    """Only tensors, JSON and Markdown; no address."""
    kinds = {".json", ".safetensors", ".md"}
    strange = sorted(file.name for file in folder.rglob("*") if file.is_file() and file.suffix not in kinds)
    assert not strange, f"{case.name}: its folder holds {', '.join(strange)}; a run is {', '.join(sorted(kinds))} only"
    text = (folder / "config.json").read_text(encoding="utf-8")
    assert "://" not in text, f"{case.name}: config.json holds an address"
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{case.name}: config.json holds {word}, which is not JSON"))


FOREIGN = (
    "os:system",
    "builtins:eval",
    "subprocess:Popen",
    "medtame.run:Path",  # medtame imports it
    "medtame.run:Run",  # medtame's own, but no fitted thing
    "medtame.strategies.base:Adapted",  # imported there, made elsewhere
    "medtame.strategies.base:Method",
    "medtame.state:load",
    "medtame.types:Query",
    "medtame.no_such_module:Adapted",
    "medtame.types:no_such_class",
    "not.medtame:Adapted",
    "",
)


def foreign_classes_refused(folder: Path, scratch: Path, open_run: Callable[[Path, Callable[[str], Encoder]], Run] = path.open) -> None:
    """Whatever class a config names in the place of a fitted thing, opening it is a one-line RunError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scratch.mkdir()
    (scratch / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    for name in FOREIGN:
        config["value"]["dict"]["adapted"] = {"class": name, "fields": {}}
        (scratch / "config.json").write_text(json.dumps(config), encoding="utf-8")
        error = raised(lambda: open_run(scratch, lambda spec: tiny_encoder()))
        assert error is not None, f"a run that names {name!r} is opened"
        assert isinstance(error, RunError), f"a run that names {name!r} gives {type(error).__name__} ({error}), not a RunError"
        assert "\n" not in str(error), f"the refusal of {name!r} has more than one line: {error}"


def raised(act: Callable[[], Any]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


# ---- 7 to 12: few labels, wrong labels ------------------------------------------------------------------------


def one_shot(case: Case) -> None:
    rows = draw(case.task.strata(case.train), case.train.groups, 1, seed=0).rows
    answer = ask(case.fit(train=case.train.take(rows)), case.test)
    assert finite(answer), f"{case.name}: fitted on {len(rows)} rows, one a stratum, its answers are not finite"


def missing_class(case: Case) -> None:
    """The classes are settled, one has no support row: it stays among the candidates, and every answer is finite."""
    first = case.task.learnt[0]  # type: ignore[attr-defined]
    run = case.fit(train=case.train.take(np.flatnonzero(case.task.strata(case.train) != first)))
    query, answer = run.query(case.test), ask(run, case.test)
    wanted = (len(query), len(query.wanted.names))
    assert isinstance(answer, Scores), f"{case.name}: gives {type(answer).__name__}"
    assert tuple(answer.values.shape) == wanted, f"{case.name}: without {first!r} answers are {tuple(answer.values.shape)}, not {wanted}"
    assert finite(answer), f"{case.name}: without a support row of {first!r} its answers are not finite"


def one_class_only(case: Case) -> None:
    """Support rows of one class: a one-line DataError; a method that needs no labels fits."""
    only = case.train.take(np.flatnonzero(case.task.strata(case.train) == case.task.learnt[0]))  # type: ignore[attr-defined]
    error = raised(lambda: case.fit(train=only))
    if "labels" not in case.method.needs:
        assert error is None, f"{case.name}: needs no labels and refuses rows of one class: {error}"
        assert finite(ask(case.fit(train=only), case.test)), f"{case.name}: fitted on one class its answers are not finite"
        return
    assert error is not None, f"{case.name}: learns from the labels of one class alone and says nothing"
    assert isinstance(error, DataError), f"{case.name}: rows of one class give {type(error).__name__} ({error}), not a DataError"
    assert "\n" not in str(error), f"{case.name}: the error has more than one line: {error}"


def classes_permuted(case: Case) -> None:
    """The order of classes is a convention: scores belong to names."""
    classes = case.task.learnt  # type: ignore[attr-defined]
    order = [*range(1, len(classes)), 0]
    turned = replace(case.task, learnt=tuple(classes[k] for k in order))  # type: ignore[call-arg]
    answer = ask(case.fit(task=turned), case.test)
    assert isinstance(answer, Scores), f"{case.name}: gives {type(answer).__name__}"
    assert isinstance(case.said, Scores), f"{case.name}: gives {type(case.said).__name__}"
    apart = distance(answer, Scores(case.said.values[:, order]))
    assert apart <= 1e-4, f"{case.name}: with the classes in another order their scores differ by {apart:.2g}"


def starts_at_zero_shot(case: Case, zero_shot: Method) -> None:
    """With no step made, one prompt a class and no words a row, its answers are those of zero_shot."""
    learner, named = isinstance(case.method, Learner), has(case.method, "steps")
    assert named or not learner, f"{case.name}: says that it starts at zero-shot and has no setting `steps`"
    task = replace(case.task, templates=("an image of {}",))  # type: ignore[call-arg]
    start, plain = case.fit(task=task, method=with_steps(case.method, 0)), case.fit(task=task, method=zero_shot)
    apart = distance(ask(start, case.test), ask(plain, case.test))
    assert apart <= NEAR, f"{case.name}: with no step made it differs from zero_shot by {apart:.2g}"


def names_are_no_words(case: Case) -> None:
    """Words reach a method by the candidates' prompts alone: with random codes for prompts, other names change no answer.

    Else the control random_text would not be random.
    """
    problem, query, said = reworded_problem(case.problem(), "random_text"), reworded(case.run.query(case.test), "random_text"), []
    for name in ("{}", "candidate {}"):
        adapted = case.method.fit(replace(problem, query=renamed(problem.query, name)))
        said.append(adapted.answer(renamed(query, name)))
    assert identical(*said), f"{case.name}: reads the candidates' names besides their prompts, so no control of words reaches them"


def renamed(query: Query, name: str) -> Query:
    """The same prompts under other names."""
    if query.candidates is None:
        return query
    names = tuple(name.format(one if name == "{}" else number) for number, one in enumerate(query.candidates.names))
    return replace(query, candidates=replace(query.candidates, names=names))


def shuffled_labels_are_not_learned(case: Case) -> None:
    """Three fits on labels dealt evenly inside each true class stay below chance + .17 on average.

    Each is measured against every cyclic renaming of the test labels: what images and words alone say of a class scores exactly
    chance, and more is only for who saw the test labels.
    """
    names = case.task.learnt  # type: ignore[attr-defined]
    truth, tested, chance = np.array(case.train.column("label")), case.test.column("label"), 1 / len(names)
    random, scores = np.random.default_rng(4), []
    for _ in range(3):
        dealt = np.empty(len(case.train), dtype=object)
        for name in names:
            rows = random.permutation(np.flatnonzero(truth == name))
            dealt[rows] = [names[i % len(names)] for i in range(len(rows))]
        run = case.fit(train=case.train.replaced(label=list(dealt)))
        for turn in range(len(names)):
            renamed = [names[(names.index(name) + turn) % len(names)] for name in tested]
            scores.append(balanced_accuracy(run, case.test.replaced(label=renamed)))
    found = float(np.mean(scores))
    assert found < chance + 0.17, f"{case.name}: fitted on shuffled labels it reaches {found:.2f}, chance is {chance:.2f}"


def true_labels_are_learned(case: Case) -> None:
    found, chance = balanced_accuracy(case.run, case.test), 1 / len(case.task.learnt)  # type: ignore[attr-defined]
    assert found > chance + 0.3, f"{case.name}: reaches {found:.2f} on discs that any probe tells apart, chance is {chance:.2f}"


def balanced_accuracy(run: Run, test: ManifestSamples) -> float:
    names, said = run.query(test).wanted.names, parts(ask(run, test))["values"].argmax(1)
    truth = np.array([names.index(label) for label in test.column("label")])
    return float(np.mean([(said[truth == k] == k).mean() for k in set(truth.tolist())]))


# ---- 13 to 17: truth, cost, pairs, resuming, the encoder ------------------------------------------------------


def truth_is_hidden(case: Case) -> None:
    """No column but the task's inputs can be read from a query or from what fit sees, nor from parts of them."""
    truth = sorted(set(case.test.columns) - set(case.task.inputs))
    assert truth, f"{case.name}: the tiny data has no truth"
    query, problem = case.run.query(case.test), case.problem()
    seen = {
        "the query": query.samples,
        "a part of the query": query.take([0]).samples,
        "a batch of the query": next(query.batches(4)).samples,
        "the problem": problem.query.samples,
        "a fold of the problem": next(problem.folds(3))[1].query.samples,
    }
    for where, samples in seen.items():
        for column in truth:
            assert column not in samples, f"{case.name}: {where} holds the truth column {column!r}"
            with pytest.raises(DataError):
                samples.column(column)
        assert not set(truth) & set(getattr(samples, "columns", ())), f"{case.name}: {where} keeps truth columns"


def cost_is_recorded(case: Case) -> None:
    cost = case.run.about["cost"]
    assert cost["fit_seconds"] > 0, f"{case.name}: no seconds were recorded"
    assert cost["fit_cpu_seconds"] >= 0, f"{case.name}: no processor time was recorded"
    assert cost["peak_megabytes"] > 50, f"{case.name}: {cost['peak_megabytes']} MB is less than Python with torch takes"
    assert cost["support_rows"] == len(case.train), f"{case.name}: {cost['support_rows']} support rows, not {len(case.train)}"
    assert cost["seed"] == 3, f"{case.name}: the seed was not recorded"
    trains = case.method.learning != "none"
    assert trains == (cost["trainable_parameters"] > 0), (
        f"{case.name}: learning is {case.method.learning!r} and {cost['trainable_parameters']} numbers are trainable"
    )


def pair_refused(method: Method, task: Task, meet: Callable[[Task, Method], Any] = path.meet) -> None:
    """A pair that does not meet is a one-line PairError that names methods which do, all of them truly."""
    with pytest.raises(PairError) as caught:
        meet(task, method)
    text = str(caught.value)
    assert "\n" not in text, f"the refusal has more than one line: {text}"
    named = [name for name in catalogue.names(catalogue.METHODS) if re.search(rf"\b{name}\b", text.rpartition(":")[2])]
    assert named, f"the refusal names no method that fits: {text}"
    wrong = [name for name in named if path.unmet(task, catalogue.build(catalogue.METHODS, name))]
    assert not wrong, f"the refusal recommends {', '.join(wrong)}, which does not fit either: {text}"


def resume_is_exact(case: Case) -> None:
    """Stopped before the last step and taken up in a new generator, it ends where the uninterrupted one did, bit for bit."""
    assert isinstance(case.method, Learner), f"{case.name} has no steps"
    whole, steps = drained(case.method.learn(case.problem()))
    assert steps, f"{case.name}: no step was made"
    numbers = [step.number for step, _ in steps]
    assert numbers == list(range(1, steps[-1][0].of + 1)), f"{case.name}: steps are numbered {numbers[:5]}"
    stop = max(len(steps) - 2, 0)
    resumed, rest = drained(case.method.learn(case.problem(), resume=steps[stop][1]))
    assert len(rest) == len(steps) - 1 - stop, f"{case.name}: resumed after step {stop + 1} of {len(steps)} it makes {len(rest)} steps"
    changed = different(tensors(whole), tensors(resumed))
    assert not changed, f"{case.name}: resumed after step {stop + 1} it ends elsewhere: {', '.join(changed[:5])}"


def drained(steps: Generator[Step, None, Adapted]) -> tuple[Adapted, list[tuple[Step, dict[str, Tensor]]]]:
    """What a learner returns, and its steps, each with the state that it had."""
    kept = []
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value, kept
        kept.append((step, step.state()))


def encoder_is_unchanged(case: Case) -> None:
    """Fit and answer leave towers, vectors and flags of the encoder as they were."""
    encoder, towers = ENCODERS[case.encoder.spec](), ("image_tower", "text_tower")
    before = {tower: {name: value.clone() for name, value in getattr(encoder, tower).state_dict().items()} for tower in towers}
    vectors, texts = seen_by(encoder, case)
    ask(case.fit(encoder=encoder), case.test)
    after = seen_by(encoder, case)
    for tower in towers:
        module = getattr(encoder, tower)
        changed = different(before[tower], module.state_dict())
        assert not changed, f"{case.name}: fit changes {tower}.{changed[0]}"
        assert not any(parameter.requires_grad for parameter in module.parameters()), f"{case.name}: fit leaves {tower} open to gradients"
        assert not any(part.training for part in module.modules()), f"{case.name}: fit leaves {tower} in training mode"
    assert torch.equal(vectors, after[0]), f"{case.name}: after fit the encoder sees images otherwise"
    assert torch.equal(texts, after[1]), f"{case.name}: after fit the encoder reads texts otherwise"


def seen_by(encoder: Encoder, case: Case) -> tuple[Tensor, Tensor]:
    column = next(name for name in case.task.inputs if name in case.test)
    with torch.no_grad():
        return encoder.whole(case.test, column).clone(), encoder.texts(["a bright disc", "a dark disc"]).clone()
