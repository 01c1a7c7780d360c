"""What continuing an encoder gave and what it cost: the same measures before and after, paired, on data that it did not learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from medtame import catalogue
from medtame.data import splits
from medtame.data.samples import ManifestSamples
from medtame.encoders import pretrained as encoder_folder
from medtame.encoders import resolved
from medtame.metrics.intervals import difference, resampled_groups, two_way
from medtame.metrics.statistic import Mean, Statistic
from medtame.report import pretraining_page
from medtame.report.record import finite
from medtame.run import RESAMPLES, RESEARCH_USE, Data, encoder, fitted, identity
from medtame.tasks.base import Task
from medtame.trust.seen_images import seen_rows
from medtame.types import Encoder

METHODS = ("zero_shot", "linear_probe")
ALIGNMENT = "cosine of own texts minus others"
PHOTOGRAPHS = (  # of other packages, which are not shipped: file, and what ImageNet calls what is on it
    ("sklearn", "datasets/images/china.jpg", ("palace", "monastery")),
    ("sklearn", "datasets/images/flower.jpg", ("daisy",)),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", ("military uniform",)),
)
RECALL = ("recall_at_10_image_to_text", "recall_at_10_text_to_image")
KEPT_ASIDE, TEST = "pairs kept aside", "test pairs"
MADE = ".pretraining.json"  # what is told of the learning, until all is measured
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Change:
    """A metric before and after, and the difference with its paired 95 % interval over patients or cases."""

    on: str  # the data
    method: str
    metric: str
    before: float
    after: float
    gain: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Parted:
    """Training and test rows of a task."""

    train: ManifestSamples
    test: ManifestSamples
    task: Task


Measured = Mapping[tuple[str, str], Mapping[str, Statistic]]  # (data, method) -> metrics


def measured(data: Mapping[str, Parted], encoder: Encoder, methods: Sequence[str] = METHODS, *, seed: int = 0) -> Measured:
    """Each method fitted on the training rows of each data set and measured on its test rows."""
    found: dict[tuple[str, str], Mapping[str, Statistic]] = {}
    for name, one in data.items():
        for method in methods:
            run = fitted(one.train, one.task, catalogue.build(catalogue.METHODS, method), encoder, seed=seed)
            found[name, method] = run.measure(one.test)
    return found


def sides(data: Data, seed: int) -> tuple[ManifestSamples, ManifestSamples]:
    """Training and test rows: those of the column split, or the first of five folds by patients."""
    if data.test is not None:
        return data.train, data.test
    train, test = splits.folds(data.samples, data.task.strata(data.samples).tolist(), seed=seed).parts[0]
    return data.samples.take(train), data.samples.take(test)


def changes(before: Measured, after: Measured, data: Mapping[str, Parted], metrics: Sequence[str] = (), *, seed: int = 0) -> list[Change]:
    """The first metric of each, or those named, of every data set and method."""
    found = []
    for name, method in before:
        counts = resampled_groups(data[name].test.groups, RESAMPLES, seed)
        once = np.ones((len(counts), 1), dtype=np.int32)
        for metric in metrics or (next(iter(before[name, method])),):
            old, new = (two_way([side[name, method][metric]], counts, once) for side in (before, after))
            gap = difference(new, old)
            found.append(Change(name, method, metric, old.interval.value, new.interval.value, gap.value, gap.low, gap.high, gap.n))
    return found


def natural_ranks(encoder: Encoder) -> list[dict[str, Any]]:
    """Of three photographs that come with scikit-learn and matplotlib: the rank of the right name among ImageNet's 1000.

    Three say whether something broke, not how much. Photographs whose package is not there are left out.
    """
    from timm.data import ImageNetInfo  # here, because timm takes a second to import

    known = ImageNetInfo()
    names = [known.index_to_description(number, detailed=False) for number in range(known.num_classes())]
    there = [(path, right) for package, place, right in PHOTOGRAPHS if (path := in_package(package, place)) is not None]
    if not there:
        return []
    photographs = ManifestSamples({"image": [str(path) for path, _ in there]}, np.arange(len(there)))
    scores = encoder.whole(photographs) @ encoder.texts([f"a photo of a {name.partition(',')[0]}" for name in names]).T
    ranks = []
    for (path, right), row in zip(there, scores.numpy(), strict=True):
        numbers = [k for k, name in enumerate(names) if name.partition(",")[0] in right]
        best = max(float(row[k]) for k in numbers)
        ranks.append({"photograph": path.name, "right": " or ".join(right), "rank": int((row > best).sum()) + 1, "of": len(names)})
    return ranks


def in_package(package: str, place: str) -> Path | None:
    found = find_spec(package)
    paths = [Path(folder) / place for folder in (found.submodule_search_locations or ())] if found is not None else []
    return next((path for path in paths if path.is_file()), None)


def alignment(data: Mapping[str, Parted], encoder: Encoder) -> Measured:
    """`aligned` of the test pairs of each data set, as `measured` gives metrics."""
    found = {}
    for name, one in data.items():
        test = one.task.usable(one.test)
        texts, own = np.unique(np.asarray([str(text) for text in test.column("text")], dtype=object), return_inverse=True)
        groups = np.asarray(test.groups, dtype=str)
        right = np.zeros((len(test), len(texts)), dtype=bool)
        for group in np.unique(groups):
            right[np.ix_(groups == group, np.unique(own[groups == group]))] = True
        images, words = encoder.whole(test).double().numpy(), encoder.texts(texts.tolist()).double().numpy()
        found[name, "vectors"] = {ALIGNMENT: aligned(images, words, right)}
    return found


def aligned(images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> Mean:
    """How much nearer an image is to its own texts than to others, as cosines: (n, D), (m, D), (n, m) bool."""
    cosines = images @ texts.T
    own = np.where(right, cosines, 0).sum(1) / np.maximum(right.sum(1), 1)
    other = np.where(right, 0, cosines).sum(1) / np.maximum((~right).sum(1), 1)
    return Mean(own - other)


def pairs_of(aside: Data, data: Data) -> dict[str, Data]:
    """The pairs that recall is measured on: those kept aside, and the manifest's own test part."""
    found = {KEPT_ASIDE: aside} if aside.test is not None else {}
    return found | ({TEST: data} if data.test is not None else {})


def told(folder: Path, base: Encoder, data: Mapping[str, Data], made: dict[str, Any], seed: int, watch: Progress) -> dict[str, Any]:
    """The record, with its page and the card of the encoder: what changed on pairs, on labelled images, on photographs."""
    new = encoder(str(folder), watch=lambda done, of: watch("encoding images anew", done, of))
    notes, usable = list(made["notes"]), dict[str, Parted]()
    for name, one in data.items():
        train, test = sides(one, seed)
        rows = sorted({*seen_rows(new, test), *seen_rows(base, test)})
        kept = np.delete(np.arange(len(test)), rows)
        if rows:
            notes.append(f"{name}: {len(rows)} of {len(test)} test images were learnt from and are left out.")
        if len(kept) > 1:
            usable[name] = Parted(train, test.take(kept), one.task)
    found: list[Change] = []
    for number, (name, parted) in enumerate(usable.items()):
        watch(f"measuring {name} before and after", number, len(usable))
        methods = ("zero_shot",) if name in (KEPT_ASIDE, TEST) else METHODS
        here = {name: parted}
        before, after = (measured(here, side, methods, seed=seed) for side in (base, new))
        found += changes(before, after, here, RECALL if name in (KEPT_ASIDE, TEST) else (), seed=seed)
    paired = {name: parted for name, parted in usable.items() if name in (KEPT_ASIDE, TEST)}
    found += changes(alignment(paired, base), alignment(paired, new), paired, seed=seed)
    photographs = [{**old, "rank_after": now["rank"]} for old, now in zip(natural_ranks(base), natural_ranks(new), strict=True)]
    record: dict[str, Any] = {
        "schema": 1,
        "encoder": str(folder.absolute()),
        "base": {
            **identity(base),
            "spec_shown": base.spec if encoder_folder.folder_of(resolved(base.spec)) is None else "a folder, copied",
        },
        "licence": getattr(getattr(base, "card", None), "licence", "unknown"),
        "fingerprint": fingerprint(new),
        **made,
        "changes": [one.json() for one in found],
        "natural": photographs,
        "verdict": verdict(found),
        "notes": notes,
        "use": RESEARCH_USE,
    }
    record = finite(record)
    pretraining_page.write(record, folder)
    (folder / MADE).unlink(missing_ok=True)
    return record


def verdict(found: Sequence[Change]) -> str:
    """Whether it helped, in a sentence: by recall of texts on the manifest's test pairs, else on those kept aside."""
    one = next((each for name in (TEST, KEPT_ASIDE) for each in found if each.on == name), None)
    if one is None:
        return "No pair was left to measure on, so nothing says whether it helped."
    told = (
        f"recall at 10 of an image's texts on {one.n} {one.on}: {one.before:.3f} before, {one.after:.3f} after, difference {one.gain:+.3f}"
    )
    words = "It helped" if one.low > 0 else "It did harm" if one.high < 0 else "No measurable benefit"
    return f"{words}: {told} [{one.low:+.3f}, {one.high:+.3f}]."


def fingerprint(new: Encoder) -> str:
    """Of all images that were learnt from, in any order."""
    seen = sorted(getattr(getattr(new, "card", None), "seen", ()))
    return hashlib.sha256("".join(seen).encode()).hexdigest()[:16]
