"""`medtame search`: images by words or by an image, and captions that do not belong, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medtame.errors import SettingsError
from medtame.typed_words import filters_of, mapped

DATA_HELP = "A manifest, a folder of images, or an index that --index wrote."
SHOWN, LETTERS = ("text", "label", "modality", "region"), 90  # cells of the table, where there are some; of a text
RESEARCH_USE = "research use only: not for clinical decisions"


def mount(app: typer.Typer) -> None:
    """The verb, on a command line."""
    app.command(
        epilog='Examples:  medtame search bundled cases.csv --text "enlarged heart" --where modality=CT --index kept   |   '
        "medtame search bundled kept --image scan.png --out found.html   |   medtame search run kept --text effusion   |   "
        "medtame search bundled cases.csv --columns text=caption,patient=case --misfits 20 --out misfits.html"
    )(search)


def search(
    what: Annotated[str, typer.Argument(help="An encoder (see `medtame encoders`), or a run that changes one.", metavar="ENCODER_OR_RUN")],
    data: Annotated[Path, typer.Argument(help=DATA_HELP, metavar="DATA")],
    text: Annotated[str, typer.Option("--text", help="Words that are looked for; with --image the sum of both unit vectors.")] = "",
    image: Annotated[Path | None, typer.Option("--image", help="An image that is looked for.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="column=value, such as modality=CT. May be repeated: all must hold.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many are shown.", min=1)] = 10,
    index: Annotated[Path | None, typer.Option("--index", help="Keep the index in this folder; later calls add new images only.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every row, however many there are.")] = False,
    misfits: Annotated[int, typer.Option("--misfits", help="Instead: so many captions that fit their image least.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write an HTML page with pictures.")] = None,
    columns: Annotated[str, typer.Option("--columns", help="Your column names: standard=yours, by commas, such as text=caption.")] = "",
    root: Annotated[Path | None, typer.Option("--root", help="Relative paths start here. Default: the manifest's folder.")] = None,
    window: Annotated[str, typer.Option("--window", help="Intensities: lung, brain, bone, …, or 40/400 (centre/width).")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Folds of --misfits.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output; progress stays on standard error.")] = False,
) -> None:
    """Images by words, by an image, or by both; or which captions do not belong. Research use only."""
    from medtame import misfits as pairs
    from medtame import search as found
    from medtame import terminal
    from medtame.report import search_page

    asked = filters_of(where)
    if misfits and (text or image is not None or asked or index is not None):
        raise SettingsError("--misfits judges every pair of the data: leave --text, --image, --where and --index out")
    with terminal.progress(quiet=as_json) as report:
        space = found.space(what, watch=lambda done, of: report("images", done, of))
        if misfits:
            samples = found.read(data, mapped(columns), root).windowed(window)
            record = pairs.misfits(samples, space.encoder, seed=seed).json(misfits)
        else:
            result = found.search(
                space,
                data,
                text=text,
                image=image,
                filters=asked,
                count=top,
                folder=index,
                exactly=exact,
                columns=mapped(columns),
                root=root,
                window=window,
            )
            record = result.json()
    if out is not None:
        search_page.write(record, out, window)
    if as_json:
        typer.echo(json.dumps(record))
        return
    notes = [f"note: {note}" for note in record["notes"]]
    page = [] if out is None else [f"page: {out}"]
    terminal.show(terminal.listing(*(suspects(record) if misfits else hits(record))), *notes, record["how"], *page, RESEARCH_USE)


Lines = tuple[tuple[str, ...], list[tuple[str, ...]]]


def hits(record: dict[str, Any]) -> Lines:
    """Titles and lines of what was found, with the cells that most lists have."""
    shown = [name for name in SHOWN if any(name in one["cells"] for one in record["hits"])]
    lines = [
        (str(one["rank"]), one["image"], f"{one['score']:.3f}", *(short(one["cells"].get(n, "")) for n in shown)) for one in record["hits"]
    ]
    return ("", "image", "cosine", *shown), lines


def suspects(record: dict[str, Any]) -> Lines:
    numbers = ("fit", "image_to_text", "text_to_image")
    lines: list[tuple[str, ...]] = [
        (str(one["rank"]), one["image"], one["case"], *(f"{one[name]:+.2f}" for name in numbers), short(one["text"]))
        for one in record["pairs"]
    ]
    return ("", "image", "case", "fit", "image to text", "text to image", "text"), lines


def short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
