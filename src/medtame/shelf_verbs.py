"""`medtame methods`, `tasks` and `encoders`: what there is to choose from, on the command line."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def mount(app: typer.Typer) -> None:
    """The verbs, on a command line."""
    app.command(epilog="Examples:  medtame methods   |   medtame methods clap   |   medtame methods --matrix")(methods)
    app.command(epilog="Example:  medtame tasks")(tasks)
    app.command(epilog="Examples:  medtame encoders   |   medtame encoders biomedclip   |   medtame encoders --json")(encoders)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its settings.")] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Strategies by tasks, from the code.")] = False,
    as_json: Json = False,
) -> None:
    """The shelf of methods; of one of them its formula, when to take it and when not, and its settings with their ranges."""
    from medtame import shelves

    if matrix:
        record = shelves.matrix()
        say(record, *shelves.matrix_table(record), as_json=as_json)
    elif name:
        found = shelves.method(name)
        say(found, ("", ""), list(shelves.told(found)), as_json=as_json)
    else:
        listed(shelves.methods(), ("name", "strategy", "learning", "trains", "tasks"), as_json=as_json)


def tasks(as_json: Json = False) -> None:
    """The shelf of tasks."""
    from medtame import shelves

    listed(shelves.tasks(), ("name", "columns", "references", "methods", "settings"), as_json=as_json)


def encoders(
    name: Annotated[str | None, typer.Argument(help="A short name, or any encoder as --encoder takes it.")] = None,
    as_json: Json = False,
) -> None:
    """The shelf of encoders: what is known, what lies on this machine, what would have to be fetched."""
    from medtame import shelves

    if name:
        found = shelves.encoder(name)
        say(found, ("", ""), [(key, shelves.plain(value)) for key, value in found.items()], as_json=as_json)
    else:
        listed(shelves.encoders(), ("name", "state", "source", "licence", "medical_text", "prompt_style"), as_json=as_json)


def listed(rows: list[dict[str, Any]], keys: tuple[str, ...], *, as_json: bool) -> None:
    """A table of some keys of rows, or all of them as JSON."""
    from medtame import shelves

    say(rows, keys, [tuple(shelves.plain(row[key]) for key in keys) for row in rows], as_json=as_json)


def say(record: Any, titles: tuple[str, ...], lines: list[tuple[str, ...]], *, as_json: bool) -> None:
    from medtame import terminal

    typer.echo(json.dumps(record)) if as_json else terminal.show(terminal.listing(titles, lines))
