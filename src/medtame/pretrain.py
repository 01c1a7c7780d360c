"""Pretrain: continue an encoder on pairs of images and texts, and say with intervals whether it helped and what it forgot.

pairs -> objectives -> steps -> an encoder folder -> the same measures before and after. Under torchrun the processes share each batch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from medtame import catalogue, resumed
from medtame.data.report_text import chosen
from medtame.data.samples import ManifestSamples
from medtame.data.splits import Split
from medtame.encoders import load as load_encoder
from medtame.encoders import pretrained as encoder_folder
from medtame.encoders import resolved
from medtame.encoders.towers import Digests
from medtame.errors import DataError, PairError, RunError, SettingsError
from medtame.features.store import Store
from medtame.forgetting import METHODS, Change, alignment, changes, measured, natural_ranks, sides
from medtame.learning import ranks
from medtame.learning.glance import Glance, add_to_curve, line, read_curve
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import Weighted, moving, pretrained
from medtame.report import pretraining_page
from medtame.report.record import finite
from medtame.run import RESEARCH_USE, Data, encoder, identity, load, threads_of
from medtame.run import threads as limited
from medtame.strategies.base import Pretrainer
from medtame.trust.seen_images import seen_rows
from medtame.types import Array, Encoder, Query

TASK = "image_text_retrieval"
FEWEST = 8  # pairs
HELD, MOST_HELD, HELD_OF = 0.1, 500, 40  # a share of the cases is kept aside; at most so many pairs; of so many pairs at least
GLANCES = 5  # how often recall is looked at while learning
RECALL = ("recall_at_10_image_to_text", "recall_at_10_text_to_image")
LARGEST_SCALE = 100.0
CURVE = f".{resumed.NAME}.curve"  # beside the state while it is learnt
KEPT_ASIDE, TEST = "pairs kept aside", "test pairs"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Objective:
    """An objective with its weight in the sum."""

    name: str
    weight: float
    method: Pretrainer


def objectives(weights: Mapping[str, float], settings: Mapping[str, Mapping[str, Any]]) -> list[Objective]:
    """Objectives by name, with the settings under "" for all of them and those under their own name. Raises SettingsError, PairError."""
    made = []
    for name, weight in weights.items():
        kind = catalogue.settings_class(catalogue.METHODS, name)
        if not issubclass(kind, Pretrainer):
            known = [
                one
                for one in catalogue.names(catalogue.METHODS)
                if issubclass(catalogue.settings_class(catalogue.METHODS, one), Pretrainer)
            ]
            raise PairError(f"{name} is no objective of pretraining: these are {', '.join(known)}")
        if not (math.isfinite(weight) and weight > 0):
            raise SettingsError(f"the weight of {name} is {weight:g}: give a number above 0, such as {name}=0.5")
        made.append(Objective(name, weight, catalogue.build(catalogue.METHODS, name, {**settings.get("", {}), **settings.get(name, {})})))
    stray = sorted(set(settings) - {"", *weights})
    if stray:
        raise SettingsError(f"--set {stray[0]}.… is for an objective that is not asked for: add --objective {stray[0]}")
    return made


@dataclass(frozen=True)
class Material:
    """Training rows of the manifest, some cases of them kept aside; its test rows are in neither part."""

    data: Data

    @classmethod
    def of(cls, data: Data, sections: Sequence[str], share: float, seed: int) -> Material:
        samples = data.train
        if sections:
            samples = samples.replaced(text=[chosen(str(text), sections) for text in samples.column("text")])
        whole = cls(Data(samples, data.task, Split(np.arange(len(samples)), None, "No pair was kept aside.")))
        if len(samples) < HELD_OF or share == 0:
            return whole
        names, of_row = np.unique(np.asarray(samples.groups, dtype=str), return_inverse=True)
        order = np.random.default_rng((seed, len(names))).permutation(len(names))
        sizes = np.bincount(of_row)[order].cumsum()
        count = int((sizes <= min(MOST_HELD, max(2, round(share * len(samples))))).sum())
        aside = np.isin(of_row, order[: max(1, count)])
        if len(set(samples.take(np.flatnonzero(aside)).column("text"))) < 2:
            return whole
        told = f"{int(aside.sum())} pairs of {max(1, count)} cases were kept aside."
        return cls(Data(samples, data.task, Split(np.flatnonzero(~aside), np.flatnonzero(aside), told)))

    @property
    def learnt(self) -> ManifestSamples:
        return self.data.train

    @property
    def held(self) -> ManifestSamples | None:
        return self.data.test


def paired_up(samples: ManifestSamples, opened: Encoder, first: Pretrainer, seed: int) -> Pairs:
    """Pairs of all rows; a text is right for the images of its own case, and for those with the same text. Raises DataError."""
    texts = [str(text) for text in samples.column("text")]
    distinct, own = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    _, case = np.unique(np.asarray(samples.groups, dtype=str), return_inverse=True)
    if len(distinct) < 2:
        raise DataError(f"all {len(texts)} pairs have the same text ({texts[0][:60]!r}): pretraining needs images with different texts")
    if len(texts) < FEWEST:
        raise DataError(f"{len(texts)} pairs are too few to tell right texts from wrong ones: give {FEWEST} or more")

    def right(rows: Array, ids: Array) -> Tensor:
        return torch.from_numpy((case[rows][:, None] == case[rows][None]) | (own[rows][:, None] == ids[None]))

    query = Query(wants="scores", samples=samples.only(("image",)), encoder=opened, source=np.arange(len(texts)))
    return Pairs.of(query, distinct.tolist(), [(int(k),) for k in own], right, first.moving(seed))


def pretrain(
    path: str | Path,
    spec: str = "bundled",
    weights: Mapping[str, float] | None = None,
    *,
    out: str | Path,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    columns: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    window: str = "",
    sections: Sequence[str] = (),
    strict: bool = False,
    held: float = HELD,
    watched: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    resume: bool = False,
    keep_every_seconds: float = resumed.EVERY_SECONDS,
    watch: Progress = lambda what, done, of: None,
    command: str = "medtame.pretrain(...)",
) -> dict[str, Any]:
    """Continue an encoder on the training rows of a manifest of pairs; `out` becomes the folder of an encoder.

    Args:
        weights: objective -> weight in the sum. Default: contrastive alone.
        settings: "" -> settings of all objectives; an objective -> its own.
        sections: of reports, such as findings and impression; the whole text where a report has none of them.
        strict: refuse shards and pairs that cannot be read, in place of leaving them out with a note.
        held: share of the cases kept aside, on which recall is measured before and after; 0 for none.
        watched: name -> a labelled manifest on which zero-shot and a probe are measured before and after.
        keep_every_seconds: how often the state is kept, at least; a killed run loses at most that.
    """
    folder, started = Path(out), time.perf_counter()
    asked = objectives(weights or {"contrastive": 1.0}, settings or {})
    if (folder / encoder_folder.CONFIG).is_file():
        raise RunError(f"the encoder in {folder} is finished: give a new folder with --out")
    with ranks.joined():
        data = load(path, TASK, columns=columns, root=root, window=window, strict=strict)
        others = {name: load(one, "classification") for name, one in (watched or {}).items()}
        base = encoder(spec, watch=lambda done, of: watch("encoding images", done, of))
        material = Material.of(data, sections, held, seed)
        first = asked[0].method
        with limited(threads_of(first)):
            pairs = paired_up(material.learnt, base, first, seed)
            parts = {one.name: (one.weight, one.method.part(pairs)) for one in asked}
            belongs = belonging(material, asked, base, seed)
            with kept(folder, belongs, resume=resume, every=keep_every_seconds) as learning:
                ended, curve = learnt(pairs, parts, first, learning, material.held, folder, seed, watch)
                seconds = time.perf_counter() - started
                if ranks.rank() > 0:
                    return {}
                written(pairs, ended, asked, spec, folder, material)
        few = [f"All {len(pairs)} pairs are one batch; batches of {first.batch} were asked for."] if len(pairs) < first.batch else []
        made = {
            "how": how(asked),
            "seconds": seconds,
            "curve": curve,
            "command": command,
            "learnt": len(pairs),
            "held": material.data.split.how,
            "notes": [*data.samples.notes, *few],
        }
        return told(folder, base, {**pairs_of(material, data), **others}, made, seed, watch)


def kept(folder: Path, belongs: Mapping[str, Any], *, resume: bool, every: float) -> Any:
    """The learning of the folder, which the first process alone writes; the others go on where it does."""
    if ranks.rank() == 0:
        return resumed.kept(folder, belongs, lambda step: None, resume=resume, every_seconds=every)
    learning = resumed.Learning(folder, belongs, lambda step: None)
    if resume:
        learning.read()
    return nullcontext(learning)


def learnt(
    pairs: Pairs,
    parts: Weighted,
    method: Pretrainer,
    learning: resumed.Learning,
    held: ManifestSamples | None,
    folder: Path,
    seed: int,
    watch: Progress,
) -> tuple[dict[str, Tensor], list[tuple[int, float, float]]]:
    """The weights that the steps end with, and the curve: step, loss, recall at 10 on held pairs."""
    how, first = method.descent(), ranks.rank() == 0
    named, glance = moving(pairs, parts), Glance(pairs, held if first else None)
    steps = pretrained(pairs, parts, how, chunk=method.chunk, seed=seed, resume=learning.start)
    begin = 0 if learning.start is None else int(learning.start["step"])
    curve = read_curve(folder / CURVE, begin)
    every, began = max(1, how.steps // GLANCES), time.perf_counter()
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value, curve
        if step.number % every == 0 or step.number == step.of:
            glance.look()
        speed = (step.number - begin) * min(how.batch, len(pairs)) / max(time.perf_counter() - began, 1e-9)
        watch(line(step, named, speed, glance.value), step.number, step.of)
        if first:
            curve.append((step.number, step.loss, glance.value))
            add_to_curve(folder / CURVE, curve[-1])
            learning(step)


def belonging(material: Material, asked: Sequence[Objective], base: Encoder, seed: int) -> dict[str, Any]:
    """All that a state depends on: it is gone on with only where all of it is the same."""
    first = asked[0]
    return {
        "method": "+".join(one.name for one in asked),
        "settings": catalogue.settings_of(first.method),
        "objectives": {one.name: [one.weight, own(one.method)] for one in asked},
        "seed": seed,
        "encoder": identity(base),
        "rows": resumed.fingerprint(material.learnt),
    }


def own(method: Pretrainer) -> dict[str, Any]:
    """Settings that the objective alone has; those of all are the first one's."""
    shared = {field.name for field in fields(Pretrainer)}
    return {name: value for name, value in catalogue.settings_of(method).items() if name not in shared}


def written(pairs: Pairs, ended: dict[str, Tensor], asked: Sequence[Objective], spec: str, folder: Path, material: Material) -> None:
    """The encoder's folder; Ctrl-C before its last file leaves the state of the last step."""
    image, text = pairs.values(ended)
    scale = next(
        (float(one.exp().clamp(max=LARGEST_SCALE)) for name, one in ended.items() if name.endswith(".log_scale")), pairs.encoder.scale
    )
    bias = next((float(ended[f"{one.name}.bias"]) for one in asked if f"{one.name}.bias" in ended), 0.0)
    plain = load_encoder(spec)
    made = encoder_folder.Continued(
        base=resolved(spec),
        how=how(asked),
        image=image,
        text=text,
        scale=scale,
        bias=bias,
        seen=Digests(Store()).of(material.learnt.windowed("").pictures()),
        licence=getattr(getattr(pairs.encoder, "card", None), "licence", "unknown"),
    )
    try:
        encoder_folder.save(made, plain, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"cannot write to {folder}: {reason.lower()}; what was learnt is kept there: make room and go on with --resume"
        ) from None


def how(asked: Sequence[Objective]) -> str:
    """Objectives and what moved, in a few words."""
    sums = " + ".join(one.name if len(asked) == 1 else f"{one.weight:g} {one.name}" for one in asked)
    first = asked[0].method
    return f"{sums}, {first.train} of {' and '.join(first.sides)}, {first.steps} steps"


def pairs_of(material: Material, data: Data) -> dict[str, Data]:
    """The pairs that recall is measured on: those kept aside, and the manifest's own test part."""
    found = {KEPT_ASIDE: material.data} if material.held is not None else {}
    return found | ({TEST: data} if data.test is not None else {})


def told(folder: Path, base: Encoder, data: Mapping[str, Data], made: dict[str, Any], seed: int, watch: Progress) -> dict[str, Any]:
    """The record, with its page and the card of the encoder: what changed on pairs, on labelled images, on photographs."""
    new = encoder(str(folder), watch=lambda done, of: watch("encoding images anew", done, of))
    notes, usable = list(made["notes"]), {}
    for name, one in data.items():
        rows = seen_rows(new, sides(one, seed)[1])
        if rows:
            notes.append(f"{name} was left out: {len(rows)} of its test images were learnt from.")
        else:
            usable[name] = one
    found: list[Change] = []
    for number, (name, one) in enumerate(usable.items()):
        watch(f"measuring {name} before and after", number, len(usable))
        methods = ("zero_shot",) if name in (KEPT_ASIDE, TEST) else METHODS
        before, after = (measured({name: one}, side, methods, seed=seed) for side in (base, new))
        found += changes(before, after, {name: one}, RECALL if methods == ("zero_shot",) else (), seed=seed)
    paired = {name: one for name, one in usable.items() if name in (KEPT_ASIDE, TEST)}
    found += changes(alignment(paired, base, seed=seed), alignment(paired, new, seed=seed), paired, seed=seed)
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
    return record


def verdict(found: Sequence[Change]) -> str:
    """Whether it helped, in a sentence: by recall of texts on the manifest's test pairs, else on those kept aside."""
    one = next((each for name in (TEST, KEPT_ASIDE) for each in found if each.on == name), None)
    if one is None:
        return "Nothing was kept aside, so nothing says whether it helped."
    told = (
        f"recall at 10 of an image's texts on {one.n} {one.on}: {one.before:.3f} before, {one.after:.3f} after, difference {one.gain:+.3f}"
    )
    words = "It helped" if one.low > 0 else "It did harm" if one.high < 0 else "No measurable benefit"
    return f"{words}: {told} [{one.low:+.3f}, {one.high:+.3f}]."


def fingerprint(new: Encoder) -> str:
    """Of all images that were learnt from, in any order."""
    seen = sorted(getattr(getattr(new, "card", None), "seen", ()))
    return hashlib.sha256("".join(seen).encode()).hexdigest()[:16]
