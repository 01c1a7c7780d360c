"""The command line. Each verb is a thin wrapper of the Python function of that name; nothing heavy is imported before it runs."""

from __future__ import annotations

import errno
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from medtame import __version__, literature_verbs, pretrain_verbs, search_verbs, shelf_verbs
from medtame.chat_options import AllowRemote, ChatUrl, without_address
from medtame.errors import MedtameError, StoppedError
from medtame.typed_words import free_folder, mapped, method_settings, pairs

if TYPE_CHECKING:
    from medtame.run import Data

app = typer.Typer(
    name="medtame",
    help="Adapt a general-purpose vision-language model to medical images, and learn honestly whether it helped. Research use only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])  # of the click that this typer carries
DATA_HELP = (
    "A manifest (CSV, TSV, Parquet, JSON, JSONL, COCO, dataset.json) or a folder (a class a sub-folder, DICOM series, BIDS, nnU-Net)."
)
DataPath = Annotated[Path, typer.Argument(help=DATA_HELP, metavar="DATA")]
RunPath = Annotated[Path, typer.Argument(help="A folder that adapt or compare wrote.", metavar="RUN")]
TaskName = Annotated[str, typer.Option("--task", help="What is asked: see `medtame tasks`.")]
EncoderName = Annotated[str, typer.Option("--encoder", help="See `medtame encoders`; a folder; in compare several by commas.")]
Window = Annotated[str, typer.Option("--window", help="Intensities: lung, brain, bone, …, dicom, percentile, or 40/400 (centre/width).")]
Slices = Annotated[int, typer.Option("--slices", help="Slices of a volume, evenly; scores are averaged. Segmentation: learnt from.", min=1)]
Columns = Annotated[str, typer.Option("--columns", help="Your column names: standard=yours, by commas, such as text=caption,patient=case.")]
Root = Annotated[Path | None, typer.Option("--root", help="Relative paths start here. Default: the manifest's folder.")]
Seed = Annotated[int, typer.Option("--seed", help="Draws, folds, initial weights.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output; progress stays on standard error.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="name=value of the method; task.name=value of the task. May be repeated.")
]
Leakage = Annotated[bool, typer.Option("--allow-leakage", help="Go on although train and test share patients or files; recorded.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")]
Normal = Annotated[str, typer.Option("--normal", help="Anomaly detection: the label of the rows that are learnt from.")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="JSON: class -> sentences. The same for every method.")]


def version(value: bool) -> None:
    if value:
        typer.echo(f"medtame {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(
    _version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Nothing is done before a verb is named."""


@app.command(epilog="Examples:  medtame demo   |   medtame demo --task segmentation --out seen")
def demo(
    task: TaskName = "classification",
    out: Annotated[Path | None, typer.Option("--out", help="A new or empty folder. Default: medtame-demo in this folder.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
    resume: Resume = False,
) -> None:
    """The whole path on simulated images with the embedded encoder: a table here and a report. Under 3 minutes."""
    from medtame import terminal, verbs

    with terminal.progress(quiet=as_json) as report:
        result = verbs.demo(
            task, out=free_folder(out, "medtame-demo", resume=resume), seed=seed, resume=resume, watch=report, command=command()
        )
    tell(result, as_json)


@app.command(epilog="Examples:  medtame check labels.csv   |   medtame check images/ --quick   |   medtame check cases.csv --json")
def check(
    data: DataPath,
    task: Annotated[str | None, typer.Option("--task", help="What will be asked. Default: judged by the columns.")] = None,
    encoder: EncoderName = "bundled",
    quick: Annotated[bool, typer.Option("--quick", help="Without the encoder: no shortcuts.")] = False,
    columns: Columns = "",
    root: Root = None,
    window: Window = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What the data hold and what is wrong: leakage, duplicates, shortcuts, identifiers. Exit code 0 usable, 1 look at it, 2 not usable."""
    from medtame import terminal, verbs

    with terminal.progress(quiet=as_json) as report:
        found = verbs.check(data, task, encoder, quick=quick, columns=mapped(columns), root=root, window=window, seed=seed, watch=report)
    typer.echo(json.dumps(found.json())) if as_json else terminal.show(*terminal.checked(found.json()))
    raise typer.Exit(found.exit_code)


@app.command(
    epilog="Examples:  medtame compare labels.csv --task classification --out out   |   "
    "medtame compare cases.csv --task image_text_retrieval --columns text=caption,patient=case --methods zero_shot,lora --out out"
)
def compare(
    data: DataPath,
    task: TaskName = "classification",
    methods: Annotated[str, typer.Option("--methods", help="fast, all, a strategy, or names by commas.")] = "fast",
    minutes: Annotated[float, typer.Option("--minutes", help="`fast`: methods whose whole grid fits in these minutes.")] = 2,
    encoder: EncoderName = "bundled",
    shots: Annotated[str, typer.Option("--shots", help="Such as 1,4,16,all. Default: the task's.")] = "",
    draws: Annotated[int, typer.Option("--draws", help="Supports drawn for each number of shots.", min=1)] = 20,
    regime: Annotated[str, typer.Option("--regime", help="standard, relaxed or realistic.")] = "standard",
    prompts: Prompts = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new or empty folder. Default: medtame-out in this folder.")] = None,
    columns: Columns = "",
    root: Root = None,
    window: Window = "",
    slices: Slices = 1,
    normal: Normal = "",
    settings: Settings = None,
    seed: Seed = 0,
    names: Annotated[bool, typer.Option("--names", help="Names of images in the report; they may name patients.")] = False,
    best: Annotated[str, typer.Option("--best", help="The method to control and save. Default: by cross-validation.")] = "",
    allow_leakage: Leakage = False,
    resume: Resume = False,
    chat_url: ChatUrl = None,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
) -> None:
    """Which adaptation works on these images: a table, a report, and the best method saved as a run."""
    from medtame import terminal
    from medtame.comparison import compare as compared
    from medtame.config import shots_of

    opened = loaded(data, task, columns, root, settings, prompts, window, slices, normal, allow_leakage=allow_leakage)
    with terminal.progress(quiet=as_json) as report:
        result = compared(
            opened,
            encoder.split(","),
            methods=methods if methods in ("fast", "all") else methods.split(","),
            shots=shots_of(shots) if shots else None,
            draws=draws,
            regime=regime,
            minutes=minutes,
            seed=seed,
            settings=method_settings(settings),
            out=free_folder(out, "medtame-out", resume=resume),
            resume=resume,
            watch=report,
            command=command(),
            names=names,
            best=best,
        )
    tell(result, as_json)


@app.command(epilog="Example:  medtame adapt labels.csv --task classification --method clap --out run")
def adapt(
    data: DataPath,
    method: Annotated[str, typer.Option("--method", help="See `medtame methods`.")],
    task: TaskName = "classification",
    encoder: EncoderName = "bundled",
    split: Annotated[str, typer.Option("--split", help="train, or all rows.")] = "train",
    prompts: Prompts = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new or empty folder. Default: medtame-run in this folder.")] = None,
    columns: Columns = "",
    root: Root = None,
    window: Window = "",
    slices: Slices = 1,
    normal: Normal = "",
    settings: Settings = None,
    seed: Seed = 0,
    allow_leakage: Leakage = False,
    resume: Resume = False,
    chat_url: ChatUrl = None,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
) -> None:
    """One method, fitted and saved as a run. Ctrl-C keeps the step that was reached in --out; --resume goes on with it."""
    from medtame import terminal, verbs

    opened = loaded(data, task, columns, root, settings, prompts, window, slices, normal, allow_leakage=allow_leakage)
    chosen = (method_settings(settings) or {}).get("", {})
    with terminal.progress(quiet=as_json) as report:
        record = verbs.adapt(
            opened,
            encoder,
            method,
            chosen,
            rows=split,
            out=free_folder(out, "medtame-run", resume=resume),
            seed=seed,
            resume=resume,
            watch=report,
            command=command(),
        )
    if as_json:
        typer.echo(json.dumps(record))
    else:
        told = [terminal.metrics(record["metrics"])] if record["metrics"] else []
        terminal.show(f"{method} is fitted: {record['run']}", *told, *[f"note: {note}" for note in record["notes"]])


@app.command(
    epilog="Examples:  medtame predict run scan.dcm   |   medtame predict run images/ --out seen   |   medtame predict run FIXED MOVING"
)
def predict(
    run: RunPath,
    images: Annotated[list[Path], typer.Argument(help="Image files and folders, or a manifest; for registration FIXED MOVING.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", "--question", help="Words that are asked: a gallery, prompts, a question.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for predictions.csv and masks. Default: the table on standard output.")
    ] = None,
    columns: Columns = "",
    root: Root = None,
    chat_url: ChatUrl = None,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
) -> None:
    """Predictions for images: a CSV table; masks as DICOM SEG, NIfTI or PNG in the geometry of their source. Research use only.

    An image that cannot be read is a row with a warning; the others are predicted.
    """
    from medtame import terminal, verbs

    said, written = verbs.predict(run, images, text, out, columns=mapped(columns), root=root)
    terminal.complain_of(said.table)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "table": said.table, "files": written, "use": "research use only: not for clinical decisions"}))
    elif out is None:
        said.to_csv(sys.stdout)
        terminal.complain("research use only: not for clinical decisions")
    else:
        terminal.show(f"{len(said.table)} rows: {written[0]} (research use only: not for clinical decisions)")


@app.command(epilog="Example:  medtame evaluate run labels.csv --split test")
def evaluate(
    run: RunPath,
    data: DataPath,
    split: Annotated[str, typer.Option("--split", help="test, all, or another word of the column split.")] = "test",
    columns: Columns = "",
    root: Root = None,
    seed: Seed = 0,
    chat_url: ChatUrl = None,
    allow_remote: AllowRemote = False,
    as_json: Json = False,
) -> None:
    """Metrics of a run with 95 % intervals over patients."""
    from medtame import terminal, verbs

    record = verbs.evaluate(run, data, split, columns=mapped(columns), root=root, seed=seed)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        terminal.show(terminal.metrics(record["metrics"]), *[f"note: {note}" for note in record.get("notes", [])])


search_verbs.mount(app)
pretrain_verbs.mount(app)
shelf_verbs.mount(app)
literature_verbs.mount(app)


def loaded(
    data: Path,
    task: str,
    columns: str,
    root: Path | None,
    settings: Sequence[str] | None,
    prompts: Path | None,
    window: str,
    slices: int,
    normal: str,
    *,
    allow_leakage: bool,
) -> Data:
    """The data with the task's settings from the command line."""
    from medtame.config import prompts_of
    from medtame.run import load

    chosen: dict[str, Any] = {name.removeprefix("task."): value for name, value in pairs(settings) if name.startswith("task.")}
    if prompts is not None:
        chosen["prompts"] = prompts_of(prompts)
    if slices > 1:
        chosen["slices"] = slices
    if normal:
        chosen["normal"] = normal
    return load(data, task, columns=mapped(columns), root=root, settings=chosen, window=window, allow_leakage=allow_leakage)


def tell(result: Any, as_json: bool) -> None:
    from medtame import terminal

    if as_json:
        typer.echo(json.dumps(result.json()))
        return
    record = result.json()
    parts = [terminal.comparison(record)]
    if record["details"]["encoder_gains"]:
        parts.append(terminal.encoders(record))
    if record["details"]["baseline_gains"]:
        parts.append(terminal.baselines(record))
    if record["controls"]:
        parts.append(terminal.controls(record))
    notes = [f"note: {note}" for note in record["details"]["warnings"]]
    for row in record["not_run"]:
        notes.append(f"not run: {row['method']}, {row['reason'] or terminal.about(row['minutes'])}")
    advice = record["details"]["recommendation"]
    notes += [f"recommended: {advice['method']}; {advice['why']}. {advice['on_test']}".rstrip()] if advice else []
    best = f"best (*): {record['best']}, {record['details']['protocol']['how_best_was_chosen']}"
    terminal.show(
        *parts, *notes, best, f"run: {record['run']}", f"report: {record['report']}", "research use only: not for clinical decisions"
    )


def command() -> str:
    """How to repeat it."""
    return shlex.join(["medtame", *without_address(sys.argv[1:])])


STOPPED = 130


def main() -> None:
    """Every user's error is one line and exit code 2 (with --json also an object on standard output); Ctrl-C is 130."""
    from medtame import terminal

    try:
        with warnings.catch_warnings():
            warnings.showwarning = terminal.warn
            code = app(standalone_mode=False) or 0  # typer turns Ctrl-C into this code
        if code == STOPPED:
            terminal.complain("stopped; what is finished is kept: go on with --resume")
        sys.exit(code)
    except UsageError as error:
        terminal.fail(f"{error.format_message()} See: medtame --help", as_json="--json" in sys.argv)
        sys.exit(2)
    except MedtameError as error:
        terminal.fail(str(error), as_json="--json" in sys.argv)
        sys.exit(STOPPED if isinstance(error, StoppedError) else 2)
    except MemoryError as error:
        told = f" ({error})" if str(error) else ""
        said = f"the memory is full{told}: give fewer rows or classes; finished cells are kept, so go on with --resume"
        terminal.fail(said, as_json="--json" in sys.argv)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT):
            raise
        said = (
            f"cannot write {error.filename or 'a file'} ({error.strerror}): free the disk or give another folder with --out; then --resume"
        )
        terminal.fail(said, as_json="--json" in sys.argv)
        sys.exit(2)
