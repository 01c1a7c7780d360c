"""`medtame pretrain`: continue an encoder on pairs of images and texts, on the command line."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medtame.errors import SettingsError, StoppedError
from medtame.typed_words import free_folder, mapped, method_settings

RESEARCH_USE = "research use only: not for clinical decisions"
DATA_HELP = "A manifest with the columns image and text; rows with the split `test` are measured on and never learnt from."


def mount(app: typer.Typer) -> None:
    """The verb, on a command line."""
    app.command(
        epilog="Examples:  medtame pretrain cases.csv --columns text=caption,patient=case --out mine   |   "
        "medtame pretrain notes.csv --objective contrastive --objective sigmoid=0.5 --train last:2 --set steps=200 --out mine   |   "
        "medtame pretrain cases.csv --watch probes=labels.csv --out mine   |   "
        "torchrun --nproc-per-node 2 -m medtame pretrain cases.csv --out mine   |   then: medtame compare labels.csv --encoder bundled,mine"
    )(pretrain)


def pretrain(
    data: Annotated[Path, typer.Argument(help=DATA_HELP, metavar="PAIRS")],
    encoder: Annotated[str, typer.Option("--encoder", help="What is continued: see `medtame encoders`; or a folder.")] = "bundled",
    objective: Annotated[
        list[str] | None,
        typer.Option("--objective", help="contrastive, sigmoid, soft_target, … or NAME=WEIGHT. May be repeated: a weighted sum."),
    ] = None,
    train: Annotated[str, typer.Option("--train", help="What moves: projections, last, last:3 (blocks), lora, or all.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, such as steps=200 or train=all; captioning.width=64 for one objective.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder: the encoder. Default: medtame-encoder in this folder.")] = None,
    watch: Annotated[
        list[str] | None, typer.Option("--watch", help="NAME=labels.csv: labelled images, measured before and after. May be repeated.")
    ] = None,
    watch_columns: Annotated[
        list[str] | None,
        typer.Option("--watch-columns", help="NAME:standard=yours,… of a watched manifest, such as probes:label=finding. May be repeated."),
    ] = None,
    sections: Annotated[str, typer.Option("--sections", help="Of reports, by commas, such as findings,impression. Default: all.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a shard that cannot be read; else it is skipped and counted.")] = False,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Go on although training and test rows share patients or files; recorded.")
    ] = False,
    held: Annotated[float, typer.Option("--held", help="Share of the cases kept aside to measure on.", min=0, max=0.5)] = 0.1,
    keep_every: Annotated[float, typer.Option("--keep-every", help="Seconds after which the state is kept, at most.", min=0)] = 30,
    columns: Annotated[str, typer.Option("--columns", help="Your column names: standard=yours, by commas, such as text=caption.")] = "",
    root: Annotated[Path | None, typer.Option("--root", help="Relative paths start here. Default: the manifest's folder.")] = None,
    window: Annotated[str, typer.Option("--window", help="Intensities: lung, brain, bone, …, or 40/400 (centre/width).")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Order, pairs kept aside, first weights.", min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output; progress stays on standard error.")] = False,
) -> None:
    """Continue an encoder on your pairs of images and texts; the result is an encoder that every command takes. Research use only."""
    from medtame import pretrain as verb
    from medtame import terminal

    first = int(os.environ.get("RANK", "0")) == 0
    folder = free_folder(out, "medtame-encoder", resume=resume)
    if first and not resume:
        free(folder)
    try:
        with terminal.progress(quiet=as_json or not first) as report:
            record = verb.pretrain(
                data,
                encoder,
                weights_of(objective),
                out=folder,
                settings=with_train(method_settings(settings), train),
                columns=mapped(columns),
                root=root,
                window=window,
                sections=[part.strip() for part in sections.split(",") if part.strip()],
                strict=strict,
                allow_leakage=allow_leakage,
                held=held,
                watched=named(watch),
                watched_columns=columns_of_each(watch_columns, named(watch)),
                seed=seed,
                resume=resume,
                keep_every_seconds=keep_every,
                watch=report,
                command=shlex.join(["medtame", *sys.argv[1:]]),
            )
    except KeyboardInterrupt as stopped:
        raise StoppedError(str(stopped)) if stopped.args else stopped from None
    if not first:
        return
    if as_json:
        typer.echo(json.dumps(record))
        return
    terminal.show(table(record), record["verdict"], *record["notes"], f"encoder: {folder}", f"page: {folder / 'report.html'}", RESEARCH_USE)


def weights_of(objectives: list[str] | None) -> dict[str, float]:
    """Objective -> weight, of `name` or `name=weight`."""
    found: dict[str, float] = {}
    for text in objectives or ["contrastive"]:
        name, sign, weight = (part.strip() for part in text.partition("="))
        if name in found:
            raise SettingsError(f"--objective {name} is given twice: give it once, with one weight")
        try:
            found[name] = float(weight) if sign else 1.0
        except ValueError:
            raise SettingsError(f"--objective takes NAME or NAME=WEIGHT, such as captioning=0.5, not {text!r}") from None
    return found


def with_train(settings: dict[str, dict[str, str]], train: str) -> dict[str, dict[str, str]]:
    """The settings of all objectives with what `--train` says: a part, or last:BLOCKS."""
    part, sign, blocks = train.partition(":")
    if sign and part != "last":
        raise SettingsError(f"--train takes projections, last, last:BLOCKS, lora or all, not {train!r}")
    asked = {"train": part} if train else {}
    return {**settings, "": {**settings.get("", {}), **asked, **({"blocks": blocks} if sign else {})}}


def named(watched: list[str] | None) -> dict[str, Path]:
    """Name -> manifest, of NAME=PATH or a path alone."""
    found: dict[str, Path] = {}
    for text in watched or ():
        name, sign, path = text.partition("=")
        place = Path(path if sign else text)
        found[name if sign else (place.parent.name or place.stem)] = place
    return found


def columns_of_each(given: list[str] | None, watched: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Name of a watched manifest -> standard column -> the user's, of NAME:standard=yours,…"""
    found: dict[str, dict[str, str]] = {}
    for text in given or ():
        name, _, columns = text.partition(":")
        if name not in watched:
            known = f"these are: {', '.join(watched)}" if watched else "none is"
            raise SettingsError(f"--watch-columns {text!r} names no manifest that is watched ({known}): write NAME:label=yours")
        found[name] = mapped(columns)
    return found


def free(folder: Path) -> None:
    from medtame.verbs import free as empty

    empty(folder)


def table(record: dict[str, Any]) -> Any:
    """What changed, a line a metric; photographs after them."""
    from medtame import terminal

    lines = [
        (
            one["on"],
            one["method"],
            one["metric"],
            terminal.number(one["before"]),
            terminal.number(one["after"]),
            terminal.interval(one, "gain", "low", "high"),
        )
        for one in record["changes"]
    ]
    lines += [
        (one["photograph"], "zero_shot", f"rank of {one['right']}", str(one["rank"]), str(one["rank_after"]), "")
        for one in record["natural"]
    ]
    return terminal.listing(("measured on", "by", "metric", "before", "after", "difference [95 % interval]"), lines)
