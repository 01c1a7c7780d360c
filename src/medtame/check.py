"""`medtame check`: what a manifest holds and what is wrong with it, before anything is learnt from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtame.data import manifest, overview, quick_check, splits
from medtame.data.findings import Finding, exit_code, finding
from medtame.data.quick_check import Findings
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.report.record import finite
from medtame.run import encoder as opened
from medtame.trust import shortcuts
from medtame.types import Encoder

FOLDS = 5
Watch = Callable[[str, int, int], None]
CLUES = {
    "border": "the border of the image",
    "histogram": "the histogram of grey values",
    "metadata": "metadata (size, format, columns such as site)",
}
MENDS = {
    "border": "look whether frames, text or surroundings differ by class; crop the border in all images, or use one source",
    "histogram": "look whether grey values tell the disease or the source; bring all to one intensity range, or use one source",
    "metadata": "balance the classes over sites, sizes and formats, or use images of one source",
}


@dataclass(frozen=True)
class CheckResult:
    """`record` is plain JSON with the findings in it; `exit_code` 0 usable, 1 look at it, 2 not usable."""

    record: dict[str, Any]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def json(self) -> dict[str, Any]:
        return self.record


def check(
    data: str | Path | ManifestSamples,
    task: str | None = None,
    *,
    encoder: str | Encoder = "bundled",
    columns: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    window: str = "",
    quick: bool = False,
    seed: int = 0,
    watch: Watch = lambda what, done, of: None,
) -> CheckResult:
    """Count, look for what is broken, twice, shared or telling, and measure shortcuts.

    Args:
        data: a manifest, a folder, or samples. A manifest that cannot be read is a finding, not an exception.
        task: its name; without one it is judged by the columns.
        encoder: for the probe against which shortcuts are measured.
        window: an intensity window by name.
        quick: leave the shortcuts out, which need the encoder.
        watch: told (what, done, of).

    Raises EncoderError where the encoder cannot be opened.
    """
    named = {"schema": 1, "data": "samples in memory" if isinstance(data, ManifestSamples) else str(data), "task": task}
    try:
        samples = data if isinstance(data, ManifestSamples) else manifest.read(data, columns=columns, root=root).windowed(window)
        split, told = _split(samples)
        found = quick_check.quick(samples, split, task=task, watch=lambda done, of: watch("reading images", done, of))
    except DataError as error:
        wrong = finding(
            "error", "manifest", str(error), "correct the manifest; --columns names your columns, --root the folder of the images"
        )
        return _result(named, {}, [wrong])
    reason = "it was not asked for" if quick else _unfit(samples, found, task)
    if reason:
        return _result(named, found.record | {"shortcuts": None, "no_shortcuts_because": reason}, [*told, *found.findings])
    try:
        measured = measure(samples, found, encoder, seed=seed, watch=watch)
    except DataError as error:
        return _result(named, found.record | {"shortcuts": None, "no_shortcuts_because": str(error)}, [*told, *found.findings])
    return _result(named, found.record | {"shortcuts": measured.json()}, [*told, *found.findings, *flagged(measured)])


def measure(samples: ManifestSamples, found: Findings, encoder: str | Encoder, *, seed: int, watch: Watch) -> shortcuts.Shortcuts:
    """Shortcuts over the images that can be read and have a label: on the given split, else over folds by group.

    Raises DataError where there are too few groups for folds.
    """
    labels = overview.one_label_an_image(samples, found.images) or []
    used = np.flatnonzero(found.looks.readable & np.array([label is not None for label in labels], dtype=bool))
    chosen = samples.take([found.images.rows[number][0] for number in used])
    truth = [str(labels[number]) for number in used]
    parts = overview.parts_of(chosen)
    given = {"train", "test"} <= parts.keys()
    sides = [(parts["train"], parts["test"])] if given else splits.folds(chosen, truth, FOLDS, seed=seed).parts
    ready = opened(encoder, watch=lambda done, of: watch("encoding images", done, of)) if isinstance(encoder, str) else encoder
    probe = ready.whole(chosen).numpy()
    watch("measuring shortcuts", 0, 1)
    clues = {name: features[used] for name, features in shortcuts.clues(samples, found.images, found.looks).items()}
    measured = shortcuts.shortcuts(probe, clues, truth, chosen.groups, sides, seed=seed)
    watch("measuring shortcuts", 1, 1)
    return measured


def flagged(measured: shortcuts.Shortcuts) -> list[Finding]:
    """A warning for each clue that reaches half of the probe's gain or more."""
    if measured.said:
        mend = "give more images, or another encoder, before you trust a comparison on these data"
        return [finding("info", "shortcuts_unknown", f"no share of shortcuts: {measured.said}", mend)]
    return [
        finding("warning", f"shortcut_{name}", _gives(CLUES[name], clue, measured), MENDS[name])
        for name, clue in measured.clues.items()
        if clue.flagged
    ]


def _gives(what: str, clue: shortcuts.Clue, measured: shortcuts.Shortcuts) -> str:
    reached = f"balanced accuracy {clue.accuracy.value:.2f}, probe {measured.probe.value:.2f}, chance {measured.chance:.2f}"
    interval = f"95 % interval {clue.share.low:.0%} to {clue.share.high:.0%}"
    return f"{what} alone gives {clue.share.value:.0%} of what a probe gains over chance ({interval}; {reached})"


def lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The record as (title, text) lines for a table, without the findings. Empty where the manifest could not be read."""
    if "n" not in record:
        return []
    sizes, twice = record["sizes"], record["duplicates"]
    smallest, largest = (" x ".join(map(str, sizes[name] or ())) for name in ("smallest", "largest"))
    split = ", ".join(f"{name} {count:,}" for name, count in record["split"].items()) or "none: folds by group"
    told = [
        ("rows", f"{record['n']:,} of {record['images']:,} images in {record['groups']:,} groups"),
        ("classes", _counts(record["classes"]) or "none"),
        ("split", split),
        ("sizes", f"{sizes['different']:,} different, {smallest} to {largest}" if sizes["smallest"] else "no image could be read"),
        ("formats", _counts(record["formats"])),
        ("modalities", _counts(record["modalities"])),
        ("colour", _counts(record["colour"])),
        ("empty cells", _counts(record["missing"]) or "none"),
        ("unreadable, constant", f"{record['unreadable']:,}, {record['constant']:,}"),
        ("shared across the split", _counts(record["shared"]) or "nothing"),
        ("equal images", f"{twice['exact_groups']:,} groups, {twice['exact_groups_across_parts']:,} across the split"),
        ("nearly equal images", f"{twice['near_pairs']:,} pairs, {twice['near_pairs_across_parts']:,} across the split"),
        ("identifying tags", _counts(record["tags"]) or "none"),
        ("burned-in text", f"{record['burned_in_text']:,} images may hold some"),
    ]
    return [*told, *_shortcut_lines(record)]


def _shortcut_lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = record.get("shortcuts")
    if measured is None:
        return [("shortcuts", f"not measured: {record.get('no_shortcuts_because', '')}")]
    probe = measured["probe"]
    told = [("probe", f"balanced accuracy {probe['value']:.2f} (chance {measured['chance']:.2f})")]
    for name, clue in measured["clues"].items():
        share = clue["share"]
        said = "share cannot be said" if share["value"] is None else f"share {share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
        told.append((f"{name} alone", f"{clue['accuracy']['value']:.2f}, {said}" + (", flagged" if clue["flagged"] else "")))
    return told


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _split(samples: ManifestSamples) -> tuple[splits.Split | None, list[Finding]]:
    """The split as it would be used; leaks are told of by the check itself."""
    try:
        return splits.split(samples, allow_leakage=True), []
    except DataError as error:
        return None, [finding("error", "split", str(error), "use the words train, val and test in the column split")]


def _unfit(samples: ManifestSamples, found: Findings, task: str | None) -> str:
    """Why shortcuts cannot be measured, or nothing."""
    labels = overview.one_label_an_image(samples, found.images)
    if task not in (None, "classification") or labels is None:
        return "shortcuts are measured for classification, where each image has one label"
    known = {label for label, readable in zip(labels, found.looks.readable, strict=True) if readable and label is not None}
    return "" if len(known) > 1 else "there are fewer than two classes with images that can be read"


def _result(named: Mapping[str, Any], record: Mapping[str, Any], findings: list[Finding]) -> CheckResult:
    order = {"error": 0, "warning": 1, "info": 2}
    ordered = sorted(findings, key=lambda one: order[one.severity])
    told = {"findings": [one.json() for one in ordered], "exit_code": exit_code(ordered)}
    return CheckResult(finite({**named, **record, **told}), ordered)
