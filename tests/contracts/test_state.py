"""One function saves fitted things and one loads them: the same comes back, and what is damaged is named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from doubles import tiny_encoder
from medtame import state
from medtame.encoders.towers import TowerEncoder
from medtame.errors import RunError
from medtame.strategies.tuning import clap
from medtame.strategies.tuning.clap import ClapAdapted
from medtame.types import Adapted, Answer, Query


@dataclass(frozen=True)
class Everything(Adapted):
    weight: Tensor
    inner: Any = None
    parts: dict[str, Any] = field(default_factory=dict)
    pair: tuple[Any, ...] = ()
    listed: list[Any] = field(default_factory=list)

    def answer(self, query: Query) -> Answer:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class above counts as one of medtame's."""
    monkeypatch.setattr(Everything, "__module__", clap.__name__)
    monkeypatch.setattr(clap, "Everything", Everything, raising=False)


def opener(spec: str) -> TowerEncoder:
    return tiny_encoder(spec)


def there_and_back(value: Any, folder: Path) -> Any:
    state.save(value, folder, {"made": "here"})
    return state.load(folder, (Adapted,), opener)[0]


def same(a: Any, b: Any) -> bool:
    """Bit-equal, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Adapted):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_kind_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    made = (torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    value = Everything(made, parts={"view": made.T, "empty": made[:0], "one": made[0, 0], "slice": made[:, 1:3]})
    assert same(there_and_back(value, tmp_path), value)


def test_nested_values_keep_their_types(tmp_path: Path) -> None:
    inner = ClapAdapted(("a", "b"), torch.eye(2))
    value = Everything(
        torch.ones(1),
        inner=Everything(torch.zeros(2), inner=inner),
        parts={"deep": {"tensor": torch.arange(3), "tuple": (1, 2.5, None, True, "é λ"), "class": "not a class", "encoder": "a word"}},
        pair=((1, (2, torch.ones(2))), [], (), "x"),
        listed=[(1,), [2, {"k": torch.ones(1, 1)}], None],
    )
    assert same(there_and_back(value, tmp_path), value)


def test_a_dictionary_whose_key_is_a_path_does_not_collide(tmp_path: Path) -> None:
    value = Everything(torch.ones(1), parts={"a.b": torch.tensor([1.0]), "a": {"b": torch.tensor([2.0])}})
    assert same(there_and_back(value, tmp_path), value)


def test_a_key_that_json_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="key"):
        state.save(Everything(torch.ones(1), parts={1: "one"}), tmp_path / "run", {})  # type: ignore[dict-item]


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    value = Everything(torch.ones(1), listed=[0.1 + 0.2, 1e-300, -0.0, 2**53 + 1])
    back = there_and_back(value, tmp_path)
    assert [repr(number) for number in back.listed] == [repr(number) for number in value.listed]


def test_an_encoder_is_kept_by_its_name(tmp_path: Path) -> None:
    back = there_and_back(Everything(torch.ones(1), inner=tiny_encoder("tiny-two")), tmp_path)
    assert isinstance(back.inner, TowerEncoder)
    assert back.inner.spec == "tiny-two"
    assert "stem" not in (tmp_path / "config.json").read_text(encoding="utf-8"), "no weight of an encoder is stored"


def test_about_is_plain(tmp_path: Path) -> None:
    about = {"seed": 1, "names": ["a"], "nested": {"pair": [1, 2.5, None]}}
    state.save({"x": Everything(torch.ones(1))}, tmp_path, about)
    value, back = state.load(tmp_path, (Adapted,), opener)
    assert back == about
    assert list(value) == ["x"]


def test_a_gradient_is_not_kept(tmp_path: Path) -> None:
    back = there_and_back(Everything(torch.ones(2, requires_grad=True)), tmp_path)
    assert not back.weight.requires_grad


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.org/model", "holds an address"),
        ("see http://127.0.0.1", "holds an address"),
        (lambda: 0, "is a function"),
        ({1, 2}, "is a set"),
        (object(), "is a object"),
        (b"bytes", "is a bytes"),
        (complex(1, 2), "is a complex"),
        (torch.nn.Linear(1, 1), "is a Linear"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"k": (v,)}], ids=["bare", "listed", "nested"])
def test_what_is_neither_tensor_nor_plain_is_refused(tmp_path: Path, value: Any, words: str, wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(RunError, match=words) as caught:
        state.save(Everything(torch.ones(1), inner=wrap(value)), tmp_path / "run", {})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is written before the value is known to be sound"


def test_an_address_in_about_or_in_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="address"):
        state.save(Everything(torch.ones(1)), tmp_path / "run", {"made_from": "ftp://example.org"})
    with pytest.raises(RunError, match="address"):
        state.save(Everything(torch.ones(1), parts={"http://example.org": 1}), tmp_path / "run", {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    state.save(Everything(torch.arange(100.0), parts={"k": 1}), tmp_path / "run", {})
    return tmp_path / "run"


def rewritten(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    change(config)
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no config": lambda run: (run / "config.json").unlink(),
    "no weights": lambda run: (run / "weights.safetensors").unlink(),
    "empty config": lambda run: (run / "config.json").write_text("", encoding="utf-8"),
    "half a config": lambda run: (run / "config.json").write_text((run / "config.json").read_text(encoding="utf-8")[:60], encoding="utf-8"),
    "not UTF-8": lambda run: (run / "config.json").write_bytes(b"\xff\xfe{}"),
    "a list": lambda run: (run / "config.json").write_text("[]", encoding="utf-8"),
    "another format": lambda run: rewritten(run, lambda config: config.update(format=99)),
    "no value": lambda run: rewritten(run, lambda config: config.pop("value")),
    "a dictionary without a kind": lambda run: rewritten(run, lambda config: config.update(value={"what": 1})),
    "a class that is no text": lambda run: rewritten(run, lambda config: config["value"].update({"class": 3})),
    "fields that are no dictionary": lambda run: rewritten(run, lambda config: config["value"].update(fields=[1])),
    "a field too many": lambda run: rewritten(run, lambda config: config["value"]["fields"].update(new=1)),
    "a field too few": lambda run: rewritten(run, lambda config: config["value"]["fields"].pop("weight")),
    "a tensor that is not there": lambda run: rewritten(run, lambda config: config["value"]["fields"].update(weight={"tensor": "nowhere"})),
    "a tensor of a number": lambda run: rewritten(run, lambda config: config["value"]["fields"].update(weight={"tensor": [1]})),
    "empty weights": lambda run: (run / "weights.safetensors").write_bytes(b""),
    "half the weights": lambda run: (run / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:200]),
    "other bytes": lambda run: (run / "weights.safetensors").write_bytes(b"\x80\x04K\x01." * 50),
    "a folder as config": lambda run: ((run / "config.json").unlink(), (run / "config.json").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_one_line(run: Path, damage: str) -> None:
    DAMAGE[damage](run)
    with pytest.raises(RunError) as caught:
        state.load(run, (Adapted,), opener)
    assert "\n" not in str(caught.value)
    assert "run" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "medtame.state:Path",
        "medtame.types:Query",
        "medtame.strategies.base:Adapted",
        "builtins:dict",
        "os:system",
        "medtame",
        ":",
        "medtame.x:",
    ],
)
def test_a_class_that_is_no_fitted_thing_of_medtame_is_refused(name: str) -> None:
    with pytest.raises((RunError, ImportError)):
        state.allowed_class(name, (Adapted,))


def test_a_fitted_thing_of_medtame_is_allowed() -> None:
    assert state.allowed_class("medtame.strategies.tuning.clap:ClapAdapted", (Adapted,)) is ClapAdapted


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    state.write_text(tmp_path / "a.txt", "before")

    def fails(temporary: str) -> None:
        Path(temporary).write_text("half", encoding="utf-8")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        state.write_whole(tmp_path / "a.txt", fails)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
