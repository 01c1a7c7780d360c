"""What the verbs of the command line do with files: the demo, a run with its card, predictions, an evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medtame import catalogue
from medtame.check import CheckResult
from medtame.check import check as looked_at
from medtame.comparison import Comparison, Progress, answer_cost, compare, seen
from medtame.data import manifest, phantom, readable
from medtame.data.given_images import opened_images
from medtame.data.samples import ManifestSamples
from medtame.data.slices import is_volume
from medtame.encoders import text_lengths
from medtame.errors import DataError, MedtameError, PairError, RunError, StoppedError
from medtame.learning.loop import Step
from medtame.report import files
from medtame.report.record import finite
from medtame.run import Data, Run, encoder, load, open
from medtame.run import adapt as fit
from medtame.types import Predicted

MANIFESTS = {
    "classification": "images",
    "segmentation": "masks",
    "anomaly_detection": "anomalies",
    "visual_question_answering": "questions",
    "image_text_retrieval": "images",
    "registration": "pairs",
    "report_generation": "images",
    "object_detection": "boxes",
}
PATIENTS = {"classification": 300, "registration": 24, "segmentation": 36, "visual_question_answering": 90}
SHOTS: dict[str, tuple[int | Literal["all"], ...]] = {
    "segmentation": ("all",),
    "anomaly_detection": (0, 4, "all"),
}  # a few minutes on a laptop
METHODS = {  # of a task whose fits are not milliseconds: those that are shown, in three draws
    "anomaly_detection": ("in_context_residual", "text_and_memory", "described_anomalies", "linear_probe", "k_nearest_neighbours"),
    "object_detection": ("nearest_prototype", "ridge_probe", "text_query_detector"),
    "segmentation": ("text_query_decoder", "fixed_code_decoder"),
}
SMALLER: dict[str, dict[str, Any]] = {  # settings of a task that is learnt by steps
    "object_detection": {"size": 64, "steps": 150},
    "segmentation": {"size": 96},
}
METHOD_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "object_detection": {"text_query_detector": {"steps": 150}},
    "segmentation": {"text_query_decoder": {"steps": 60}, "fixed_code_decoder": {"steps": 60}},
}
DRAWS, FEW_DRAWS, MINUTES = 10, 3, 1.0
BLANK = "the image is one colour everywhere, so nothing can be seen on it"


def demo(task: str, *, out: Path, seed: int, resume: bool, watch: Progress, command: str) -> Comparison:
    """Compare the fast methods on simulated images, which are made in `out`/phantom."""
    catalogue.settings_class(catalogue.TASKS, task)
    if task not in MANIFESTS:
        raise PairError(f"the phantom has no manifest for {task} yet: {', '.join(MANIFESTS)}")
    folder = out / "phantom"
    if not (resume and (folder / "images.csv").is_file()):
        free(out)
        watch("simulated images", 0, 1)
        phantom.make(folder, patients=PATIENTS.get(task, 150), seed=seed)
    data = load(folder / f"{MANIFESTS[task]}.csv", task, settings=SMALLER.get(task))
    return compare(
        data,
        methods=METHODS.get(task, "fast"),
        shots=SHOTS.get(task),
        minutes=MINUTES,
        draws=FEW_DRAWS if task in METHODS else DRAWS,
        seed=seed,
        settings=METHOD_SETTINGS.get(task),
        out=out / "comparison",
        resume=resume,
        watch=watch,
        command=command,
    )


def free(out: Path) -> None:
    """A folder that is new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is not empty: give a new folder with --out, or --resume to go on with what is there")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out} ({error.strerror}): give another folder with --out") from None


def check(
    data: Path,
    task: str | None,
    spec: str,
    *,
    quick: bool,
    columns: Mapping[str, str],
    root: Path | None,
    window: str,
    seed: int,
    watch: Progress,
) -> CheckResult:
    """What the data hold and what is wrong with them."""
    if task is not None:
        catalogue.settings_class(catalogue.TASKS, task)
    return looked_at(data, task, encoder=spec, columns=columns, root=root, window=window, quick=quick, seed=seed, watch=watch)


def adapt(
    data: Data,
    spec: str,
    method: str,
    settings: Mapping[str, Any],
    *,
    rows: str,
    out: Path,
    seed: int,
    resume: bool,
    watch: Progress,
    command: str,
) -> dict[str, Any]:
    """Fit, save, and measure on the test rows where there are any that were not learnt from."""
    if not resume:
        free(out)

    def stepped(step: Step) -> None:
        watch(f"{method}, loss {step.loss:.3g}", step.number, step.of)

    try:
        opened = encoder(spec, watch=lambda done, of: watch("encoding images", done, of))
        run = fit(data, opened, method=method, settings=settings, rows=rows, out=out, seed=seed, resume=resume, watch=stepped)
    except KeyboardInterrupt as stopped:
        raise StoppedError(str(stopped)) if stopped.args else stopped from None
    finally:
        with suppress(OSError):
            out.rmdir()  # where nothing was written
    notes = [run.about["resumed"]] if "resumed" in run.about else []
    notes += [cut] if (cut := unread(run, data.train, None)) else []
    try:
        found, refused = ({}, "") if rows == "all" or data.test is None else run.judged(data.test)
        notes += [taken] if (taken := cost(run, data, rows)) else []
    except (MedtameError, KeyboardInterrupt) as error:
        carded(run, data, {}, [*notes, "Not measured yet."], out, command)
        kept = f"the fitted run is kept in {out}: measure it with medtame evaluate"
        raise (StoppedError(f"stopped; {kept}") if isinstance(error, KeyboardInterrupt) else MedtameError(f"{error}; {kept}")) from None
    metrics = {name: asdict(interval) for name, interval in found.items()}
    return carded(run, data, metrics, notes + [refused] * bool(refused), out, command)


def cost(run: Run, data: Data, rows: str) -> str:
    """What an answer costs beside zero_shot where the method works when it is asked; empty where it does not."""
    if not answer_cost.works_when_asked(run.task, run.method):
        return ""
    start = fit(data, run.encoder, method=answer_cost.REFERENCE, rows=rows)
    runs = {answer_cost.REFERENCE: start, catalogue.name_of(run.method): run}
    return answer_cost.told(runs, data.train if data.test is None else data.test)


def carded(run: Run, data: Data, metrics: dict[str, Any], notes: list[str], out: Path, command: str) -> dict[str, Any]:
    """The record of a run that `adapt` made, with its card written."""
    record: dict[str, Any] = {
        "schema": 1,
        "task": catalogue.name_of(data.task),
        "method": catalogue.name_of(run.method),
        "run": str(out.absolute()),
        "metrics": metrics,
        "command": command,
        "notes": notes,
    }
    record = finite(record)
    seen.card(run, record, out)
    return record


def predict(
    folder: Path, images: Sequence[Path], words: Sequence[str] | None, out: Path | None, *, columns: Mapping[str, str], root: Path | None
) -> tuple[Predicted, list[str]]:
    """Predictions of a run, and the files written to `out`."""
    run = open(folder)
    samples = asked(run, images, columns, root)
    said = predicted(run, samples, words or None)
    return said, [] if out is None else files.write(said, samples, out)


def unread(run: Run, samples: ManifestSamples, words: Sequence[str] | None) -> str:
    """A sentence about texts of which a method that reads words sees the beginning only; empty where it sees all."""
    return text_lengths.told(run.query(samples, words)) if "text" in run.method.towers else ""


def predicted(run: Run, samples: ManifestSamples, words: Sequence[str] | None) -> Predicted:
    """Predictions of all images that can be read; each other one is a row at the end that says why. Raises where none can be read."""

    def said_of(some: ManifestSamples) -> Predicted:
        said = warned(run.predict(some, words), some)
        if cut := unread(run, some, words):  # after it: now all of them are known to be readable
            warnings.warn(cut, stacklevel=2)
        return said

    return readable.predicted(said_of, samples, in_space="mask" in run.task.requires)


def warned(said: Predicted, samples: ManifestSamples) -> Predicted:
    """With a warning in each line of an image that is one colour everywhere, where the task has not said so itself."""
    if "image" not in samples:
        return said
    flat = {picture.name for picture in samples.pictures() if not is_volume(picture) and not np.ptp(picture.array())}
    lines = [one for one in said.table if one.get("image") in flat and BLANK not in str(one.get("warning", ""))]
    added = {id(one): one | {"warning": "; ".join(filter(None, [str(one.get("warning") or ""), BLANK]))} for one in lines}
    return replace(said, table=[added.get(id(one), one) for one in said.table])


def asked(run: Run, images: Sequence[Path], columns: Mapping[str, str], root: Path | None) -> ManifestSamples:
    """The samples that the arguments of `predict` mean."""
    if "fixed" in run.task.requires and len(images) == 2 and not any(path.is_dir() for path in images):
        fixed, moving = (str(path) for path in images)
        return ManifestSamples({"fixed": [fixed], "moving": [moving]}, np.arange(1), Path.cwd())
    tables = [path for path in images if manifest.is_manifest(path)]
    if tables and len(images) > 1:
        raise DataError(f"{tables[0]} is a manifest and stands beside {len(images) - 1} more: give one manifest, or images and folders")
    if tables:
        return manifest.read(images[0], columns=columns, root=root)
    found = opened_images(list(images))
    needed = [name for name in run.task.inputs if name in run.task.requires and name not in ("prompt", "question")]
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(f"{catalogue.name_of(run.task)} needs {' and '.join(needed)}: give a manifest with these columns")
    return found


def evaluate(folder: Path, data: Path, split: str, *, columns: Mapping[str, str], root: Path | None, seed: int) -> dict[str, Any]:
    """The metrics of a run on rows of a manifest: `test`, `all`, or another word of the column split."""
    run = open(folder)
    samples = manifest.read(data, columns=columns, root=root)
    if split != "all":
        words = [str(word).casefold() for word in samples.column("split")] if "split" in samples else []
        rows = np.flatnonzero([word == split.casefold() for word in words])
        if not len(rows):
            known = ", ".join(sorted(set(words))) or "no column split"
            raise DataError(f"no row has the split {split!r} ({known}): name one of these with --split, or all")
        samples = samples.take(rows)
    before, samples = samples.notes, run.task.usable(samples)
    notes = [note for note in samples.notes if note not in before]
    found, refused = run.judged(samples, seed=seed)
    notes += [refused] if refused else []
    metrics = {name: asdict(interval) for name, interval in found.items()}
    record = {"schema": 1, "task": catalogue.name_of(run.task), "split": split, "n": len(samples), "metrics": metrics, **by(run, samples)}
    record |= {"notes": notes} if notes else {}
    plain: dict[str, Any] = finite(record)
    return plain


def by(run: Run, samples: ManifestSamples) -> dict[str, Any]:
    """The same metrics by site and sex, where the manifest has them and a group has ten rows or more."""
    found: dict[str, Any] = {}
    for column in ("site", "sex"):
        values = samples.column(column) if column in samples else []
        for value in sorted({str(value) for value in values if value is not None}):
            rows = samples.rows_where(column, value)
            if len(rows) >= 10:
                found[f"{column} {value}"] = {name: asdict(metric) for name, metric in run.evaluate(samples.take(rows)).items()}
    return {"by_group": found} if found else {}
