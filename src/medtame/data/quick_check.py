"""The check without an encoder: what the manifest holds, what cannot be read, who stands on both sides, what is there twice.

`compare` makes it first. One decode an image; about as long as reading the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from medtame.data import duplicates, overlap, overview
from medtame.data.class_names import in_quotes
from medtame.data.duplicates import Pair
from medtame.data.findings import Finding, Severity, exit_code, finding, many
from medtame.data.looks import Looks, look
from medtame.data.overview import Images
from medtame.data.samples import ManifestSamples
from medtame.data.splits import GROUP_COLUMNS, Split
from medtame.types import Array, Samples

FEWEST = 2  # images of a class
LISTED = 50  # pairs and groups of duplicates in the record
Where: TypeAlias = Sequence[frozenset[str]]  # the parts that each image brings rows to
OPTIONAL = frozenset({"split", "label"})  # an empty cell of these is told of elsewhere


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found: `record` (plain JSON), `findings`, and what a longer check goes on with."""

    record: dict[str, Any]
    findings: list[Finding]
    images: Images
    looks: Looks

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)


def quick(
    samples: ManifestSamples,
    split: Split | None = None,
    *,
    task: str | None = None,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> Findings:
    """Everything that can be said without an encoder.

    Args:
        split: the split that will be used; by default the column `split`.
        task: its name, or None where it is not known; one class only is an error in classification.
        watch: told how many images are read, of how many.

    Raises DataError for an empty cell in an image column.
    """
    images = overview.images_of(samples)
    looks = look(images.pictures, watch)
    parts = overview.parts_of(samples, split)
    labels = overview.one_label_an_image(samples, images)
    classify = task == "classification" or (task is None and labels is not None and "prompt" not in samples)
    shared, where = overlap.overlaps(samples, images, parts), overlap.parts_of_images(images, parts)
    exact, near = duplicates.exact_groups(looks.fingerprints), duplicates.near_pairs(looks.fingerprints)
    record = overview.counted(samples, images, looks, parts)
    record |= {
        "shared": {one.kind: one.count for one in shared},
        "duplicates": _twice(looks, where, exact, near),
        "tags": dict(Counter(tag for header in images.headers if header for tag in sorted(header.identifying)).most_common()),
        "burned_in_text": int((looks.text > 0).sum()),
        "constant": int((looks.constant & looks.readable).sum()),
        "unreadable": len(looks.unreadable),
    }
    found = [
        *_no_rows(samples),
        *_unreadable(looks),
        *_overlaps(looks, shared),
        *_exact(looks, where, exact, labels),
        *_near(samples, images, looks, where, near, labels),
        *(_classes(samples, parts) if classify else []),
        *_empty(samples, record, classify),
        *_constant(looks),
        *_private(images, looks),
    ]
    return Findings(record, found, images, looks)


# ---- the record -----------------------------------------------------------------------------------------------


def _twice(looks: Looks, where: Where, exact: Sequence[Sequence[int]], near: Sequence[Pair]) -> dict[str, Any]:
    return {
        "exact_groups": len(exact),
        "exact_images": sum(len(group) for group in exact),
        "exact_groups_across_parts": sum(_apart(group, where) for group in exact),
        "near_pairs": len(near),
        "near_pairs_across_parts": sum(overlap.across(where[pair.a], where[pair.b]) for pair in near),
        "exact": [[looks.names[number] for number in group] for group in exact[:LISTED]],
        "near": [
            {"a": looks.names[pair.a], "b": looks.names[pair.b], "correlation": round(pair.correlation, 4), "how": pair.how}
            for pair in near[:LISTED]
        ],
    }


def _apart(group: Sequence[int], where: Where) -> bool:
    return len(frozenset[str]().union(*(where[number] for number in group))) > 1


def _names(looks: Looks, numbers: Sequence[int] | Array) -> list[str]:
    return [looks.names[int(number)] for number in numbers]


# ---- findings -------------------------------------------------------------------------------------------------


def _no_rows(samples: ManifestSamples) -> list[Finding]:
    return [] if len(samples) else [finding("error", "no_rows", "there is no row", "write a row an image into the manifest")]


def _unreadable(looks: Looks) -> list[Finding]:
    if not looks.unreadable:
        return []
    said = f"{many(len(looks.unreadable), 'image')} of {len(looks)} cannot be read; {next(iter(looks.unreadable.values()))}"
    mend = "export these files again, or take their rows out of the manifest"
    return [finding("error", "unreadable", said, mend, _names(looks, list(looks.unreadable)))]


def _overlaps(looks: Looks, shared: Sequence[overlap.Shared]) -> list[Finding]:
    mend = "put all rows of one patient (study, group) on one side in the column split, or leave the column out"
    return [
        finding(
            "error" if one.decides else "warning",
            "shared_" + one.kind.replace(" ", "_"),
            f"{many(one.count, 'value')} of {one.kind} in more than one part of the split ({many(len(one.images), 'image')})",
            mend,
            _names(looks, one.images),
        )
        for one in shared
    ]


def _exact(looks: Looks, where: Where, exact: Sequence[Sequence[int]], labels: Sequence[str | None] | None) -> list[Finding]:
    apart = [group for group in exact if _apart(group, where)]
    inside = [group for group in exact if not _apart(group, where)]
    unlike = [group for group in exact if _labelled_otherwise(group, labels)]
    keep, side = "keep one image of each", "put all on one side of the split"
    return [
        *_groups("error", "exact_across", looks, apart, "with equal pixels in more than one part of the split", f"{keep}, or {side}"),
        *_groups("warning", "exact_labels", looks, unlike, "with equal pixels and different labels", "find out which label is right"),
        *_groups("warning", "exact", looks, inside, "with equal pixels", f"{keep}, or give all of them one value in a column group"),
    ]


def _groups(severity: Severity, code: str, looks: Looks, groups: Sequence[Sequence[int]], said: str, mend: str) -> list[Finding]:
    if not groups:
        return []
    message = f"{many(len(groups), 'group')} of images {said} ({' = '.join(_names(looks, groups[0][:3]))})"
    return [finding(severity, code, message, mend, [looks.names[number] for group in groups for number in group])]


def _near(
    samples: Samples, images: Images, looks: Looks, where: Where, near: Sequence[Pair], labels: Sequence[str | None] | None
) -> list[Finding]:
    """Across parts it is a leak; where folds will be made, so it may become one; else it is worth knowing."""
    groups = [{samples.groups[row] for row in rows} for rows in images.rows]
    folded = not any("test" in parts for parts in where)
    apart = [pair for pair in near if overlap.across(where[pair.a], where[pair.b])]
    loose = [pair for pair in near if folded and groups[pair.a].isdisjoint(groups[pair.b])]
    told = {*apart, *loose}
    rest = [pair for pair in near if pair not in told]
    unlike = [pair for pair in near if _labelled_otherwise((pair.a, pair.b), labels)]
    look_at = "look at them"
    group = "give both one value in a column group, so that folds keep them together"
    return [
        *_pairs("warning", "near_across", looks, apart, "in different parts of the split", f"{look_at}; put both on one side, or drop one"),
        *_pairs("warning", "near_groups", looks, loose, "in different groups", f"{look_at}; {group}"),
        *_pairs("warning", "near_labels", looks, unlike, "with different labels", f"{look_at}; find out which label is right"),
        *_pairs("info", "near", looks, rest, "on one side of the split", f"{look_at}; two views of one patient may stay"),
    ]


def _pairs(severity: Severity, code: str, looks: Looks, pairs: Sequence[Pair], said: str, mend: str) -> list[Finding]:
    if not pairs:
        return []
    first = f"{looks.names[pairs[0].a]} and {looks.names[pairs[0].b]}"
    how = "" if pairs[0].how == duplicates.ORIENTATIONS[0] else f", {pairs[0].how}"
    names = dict.fromkeys(looks.names[number] for pair in pairs for number in (pair.a, pair.b))
    return [finding(severity, code, f"{many(len(pairs), 'pair')} of nearly equal images {said} ({first}{how})", mend, list(names))]


def _labelled_otherwise(numbers: Sequence[int], labels: Sequence[str | None] | None) -> bool:
    return labels is not None and len({labels[number] for number in numbers} - {None}) > 1


def _classes(samples: ManifestSamples, parts: Mapping[str, Array]) -> list[Finding]:
    labels = np.array(samples.column("label"), dtype=object) if "label" in samples else np.empty(0, dtype=object)
    counts = Counter(label for label in labels.tolist() if label is not None)
    if len(counts) < 2:
        said = f"all labelled rows have the label {next(iter(counts))!r}" if counts else "no row has a label"
        return [finding("error", "single_class", said, "classification needs two classes or more: write them into the column label")]
    told = []
    tiny = sorted(label for label, count in counts.items() if count < FEWEST)
    if tiny:
        said = f"fewer than {FEWEST} rows of {in_quotes(tiny)}"
        told.append(finding("warning", "tiny_class", said, "add rows of it, join it with another class, or leave it out"))
    for part in ("train", "test"):
        if part in parts and {"train", "test"} <= parts.keys():
            absent = sorted(set(counts) - set(labels[parts[part]].tolist()))
            if absent:
                said = f"no row of {in_quotes(absent)} in {part}"
                told.append(finding("warning", f"class_not_in_{part}", said, "move some of its patients there in the column split"))
    return told


def _empty(samples: ManifestSamples, record: Mapping[str, Any], classify: bool) -> list[Finding]:
    told = []
    if classify and 0 < record["without_label"] < len(samples):
        said = f"{many(record['without_label'], 'row')} without a label"
        told.append(finding("info", "unlabelled", said, "label them, or leave them: they are not learnt from and not measured"))
    for name, count in record["missing"].items():
        if name in GROUP_COLUMNS:
            said = f"{many(count, 'row')} without a value of {name}"
            mend = "fill it in: a row without one counts as a patient of its own, which may put one patient on both sides"
            told.append(finding("warning", "missing_group", said, mend))
        elif name not in OPTIONAL and count < len(samples):
            told.append(finding("info", "missing", f"{many(count, 'row')} without a value of {name}", "fill it in if it is known"))
    if not any(name in samples for name in GROUP_COLUMNS) and "fixed" not in samples and record["groups"] == record["images"]:
        mend = "if a patient has several images, add a column patient, or name yours with --columns patient=YOURS"
        told.append(finding("info", "no_patient", "no column says whose an image is, so each image is taken for a patient", mend))
    return told


def _constant(looks: Looks) -> list[Finding]:
    numbers = np.flatnonzero(looks.constant & looks.readable)
    if not len(numbers):
        return []
    said = f"{many(len(numbers), 'image')} of one grey value throughout"
    return [finding("warning", "constant", said, "take these rows out, or export the files again", _names(looks, numbers))]


def _private(images: Images, looks: Looks) -> list[Finding]:
    """What may tell who the patient is: tags by their names, never their values; text in the pixels."""
    told = []
    filled = {number: header.identifying for number, header in enumerate(images.headers) if header and header.identifying}
    if filled:
        counts = Counter(tag for keywords in filled.values() for tag in sorted(keywords))
        listed = ", ".join(f"{tag} ({count})" for tag, count in counts.most_common())
        said = f"tags that may identify a patient are filled in {many(len(filled), 'DICOM file')}: {listed}"
        told.append(
            finding(
                "warning", "identifying_tags", said, "de-identify the files before you share them or a run", _names(looks, list(filled))
            )
        )
    marked = [number for number, header in enumerate(images.headers) if header and header.burned_in]
    if marked:
        said = f"{many(len(marked), 'DICOM file')} with BurnedInAnnotation YES, or ultrasound or secondary capture that does not say NO"
        told.append(finding("warning", "burned_in_tag", said, "look at them for names and dates in the picture", _names(looks, marked)))
    written = np.flatnonzero(looks.text > 0)
    if len(written):
        said = f"{many(len(written), 'image')} may hold burned-in text"
        mend = "look at them: it may name a patient, or give the class away; cover it in all images, or crop it away"
        told.append(finding("warning", "burned_in_text", said, mend, _names(looks, written)))
    return told
