"""Names come from files, nothing is imported to list them, and settings are checked once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
from pydantic import Field

from medtame import catalogue
from medtame.errors import MedtameError, SettingsError, UnknownNameError


@dataclass(frozen=True)
class Finder:
    width: int = 3


@dataclass(frozen=True)
class Planted:
    """Settings of every kind."""

    steps: Annotated[int, Field(ge=0)] = 10
    rate: float = 0.5
    quick: bool = False
    penalties: tuple[float, ...] = (1.0, 2.0)
    words: tuple[str, ...] = ()
    finder: str | Finder = field(default="finder", metadata={"part": "planted_shelf"})


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shelf with the two files above, one in a folder, and what is not listed: base, private files, text."""
    folder = tmp_path / "planted_shelf"
    (folder / "inside").mkdir(parents=True)
    for file in ("__init__.py", "base.py", "_hidden.py", "planted.py", "inside/__init__.py", "inside/finder.py", "notes.txt"):
        (folder / file).write_text('raise RuntimeError("listing imports")' if file[0] not in "_" else "", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, kind in (("planted_shelf.planted", Planted), ("planted_shelf.inside.finder", Finder)):
        module = ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(kind, "__module__", name)
        module.__dict__.update({"Annotated": Annotated, "Field": Field, "Finder": Finder})
    return "planted_shelf"


def test_listing_is_the_files_in_order(shelf: str) -> None:
    assert catalogue.listing(shelf) == {"finder": "planted_shelf.inside.finder", "planted": "planted_shelf.planted"}


def test_listing_of_the_real_shelves_imports_neither_torch_nor_a_shelf() -> None:
    code = (
        "import sys; from medtame import catalogue; names = catalogue.names(catalogue.METHODS) + catalogue.names(catalogue.TASKS); "
        "heavy = [m for m in sys.modules if m == 'torch' or m.startswith(('medtame.strategies.', 'medtame.tasks.'))]; "
        "print('zero_shot' in names, 'classification' in names, 'base' in names, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True False []"


def test_every_listed_file_holds_the_class_of_its_name() -> None:
    for of in (catalogue.METHODS, catalogue.TASKS):
        for name in catalogue.names(of):
            kind = catalogue.settings_class(of, name)
            assert kind.__name__ == "".join(word.title() for word in name.split("_"))
            assert catalogue.name_of(kind()) == name


def test_two_files_of_one_name_are_refused(shelf: str, tmp_path: Path) -> None:
    (tmp_path / "planted_shelf" / "inside" / "planted.py").write_text("", encoding="utf-8")
    with pytest.raises(MedtameError, match="two files are called planted"):
        catalogue.listing(shelf)


def test_an_unknown_shelf_or_name_is_one_line() -> None:
    with pytest.raises(MedtameError, match="no shelf 'medtame_nowhere'"):
        catalogue.listing("medtame_nowhere")
    with pytest.raises(UnknownNameError, match=r"no method is called 'zero_shoot'\. Did you mean 'zero_shot'") as caught:
        catalogue.build(catalogue.METHODS, "zero_shoot")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match=r"no task is called 'clasification'\. Did you mean 'classification'"):
        catalogue.build(catalogue.TASKS, "clasification")


def test_the_strategy_is_the_folder() -> None:
    assert [catalogue.strategy_of(name) for name in ("zero_shot", "clap", "question_only")] == ["direct_use", "tuning", "none"]


def test_text_becomes_what_the_setting_is(shelf: str) -> None:
    built = catalogue.build(
        shelf, "planted", {"steps": "7", "rate": "1e-3", "quick": "true", "penalties": "3, 30,300", "words": "a disc,no disc"}
    )
    assert built == Planted(steps=7, rate=0.001, quick=True, penalties=(3.0, 30.0, 300.0), words=("a disc", "no disc"), finder=Finder())
    assert isinstance(built.steps, int)


def test_lists_from_json_become_tuples(shelf: str) -> None:
    assert catalogue.build(shelf, "planted", {"penalties": [1, 2]}).penalties == (1.0, 2.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": "many"}, r"planted cannot use steps = 'many'"),
        ({"steps": -1}, "greater than or equal to 0"),
        ({"steps": 1.5}, "planted cannot use steps = 1.5"),
        ({"penalties": "1,x"}, "planted cannot use penalties"),
        ({"stepz": 1}, "no setting of planted is called 'stepz'. Did you mean 'steps'"),
        ({"finder": "findr"}, "Did you mean 'finder'"),
    ],
)
def test_a_wrong_setting_is_one_line(shelf: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        catalogue.build(shelf, "planted", settings)
    assert "\n" not in str(caught.value)


def test_a_part_is_built_and_named_again(shelf: str) -> None:
    built = catalogue.build(shelf, "planted")
    assert built.finder == Finder()
    assert catalogue.settings_of(built)["finder"]["name"] == "finder"
    assert catalogue.build(shelf, "planted", catalogue.settings_of(built)) == built


def test_a_part_keeps_its_own_settings(shelf: str) -> None:
    built = catalogue.build(shelf, "planted", {"finder": Finder(width=9)})
    assert catalogue.build(shelf, "planted", catalogue.settings_of(built)) == built
