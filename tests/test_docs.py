"""The documents keep their promises: links, names of files, commands, and the public names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

import medtame
from medtame import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def commands(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|)\n(.*?)```", text, re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.removeprefix("$ ").startswith("medtame ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_of_the_pages_exist(page):
    known = {command.name or command.callback.__name__: command for command in cli.app.registered_commands}
    for line in commands(page):
        words = line.split()
        assert words[1] in known, line
        options = {name for parameter in typer.main.get_command(cli.app).commands[words[1]].params for name in parameter.opts}
        for option in re.findall(r"--[a-z-]+", line):
            assert option in options | {"--help"}, line


def test_the_public_names_are_the_designs():
    assert set(medtame.__all__) == {"MedtameError", "__version__", "adapt", "compare", "encoder", "load", "open"}
    for name in medtame.__all__:
        assert getattr(medtame, name) is not None
    from medtame import errors

    assert medtame.MedtameError is errors.MedtameError
    assert callable(medtame.compare)
    with pytest.raises(AttributeError):
        medtame.nothing  # noqa: B018


def test_no_path_of_a_machine_is_named():
    files = [
        path
        for folder in ("src", "tests", "docs", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".j2")
    ]
    for path in [*files, ROOT / "README.md", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]:
        text = path.read_text(encoding="utf-8")
        for word in ("/wor" + "k/", "/ro" + "ot/"):
            assert word not in text, f"{path} names {word}"
