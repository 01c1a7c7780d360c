"""Pretrain: continue an encoder on pairs of images and texts, and say with intervals whether it helped and what it forgot.

pairs -> objectives -> steps -> an encoder folder -> the same measures before and after. Under torchrun the processes share each batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from medtame import catalogue, resumed
from medtame.data.samples import ManifestSamples
from medtame.encoders import card as encoder_card
from medtame.encoders import load as load_encoder
from medtame.encoders import pretrained as encoder_folder
from medtame.encoders import resolved
from medtame.errors import PairError, RunError, SettingsError
from medtame.forgetting import MADE, pairs_of, told
from medtame.learning import ranks
from medtame.learning.contrast import heat_learnt
from medtame.learning.glance import Glance, add_to_curve, line, read_curve
from medtame.learning.pairs import Pairs
from medtame.learning.pretraining import Weighted, moving, pretrained
from medtame.pairs_at_hand import HELD, Material, in_words, paired_up, readable
from medtame.run import encoder, identity, load, threads_of
from medtame.run import threads as limited
from medtame.state import write_text
from medtame.strategies.base import Pretrainer
from medtame.trust.seen_images import marks
from medtame.types import Encoder

TASK = "image_text_retrieval"
GLANCES = 5  # how often recall is looked at while learning
SHARED = {field.name for field in fields(Pretrainer)}  # settings of all objectives
CURVE = f".{resumed.NAME}.curve"  # beside the state while it is learnt
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
        shared = sorted(set(settings.get(name, {})) & SHARED)
        if shared and len(weights) > 1:
            raise SettingsError(f"{shared[0]} holds for all objectives of a sum: --set {shared[0]}=… in the place of {name}.{shared[0]}=…")
        made.append(Objective(name, weight, catalogue.build(catalogue.METHODS, name, {**settings.get("", {}), **settings.get(name, {})})))
    stray = sorted(set(settings) - {"", *weights})
    if stray:
        raise SettingsError(f"--set {stray[0]}.… is for an objective that is not asked for: add --objective {stray[0]}")
    return made


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
    allow_leakage: bool = False,
    held: float = HELD,
    watched: Mapping[str, str | Path] | None = None,
    watched_columns: Mapping[str, Mapping[str, str]] | None = None,
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
        strict: refuse shards and images that cannot be read, in place of leaving them out with a note.
        allow_leakage: go on although training and test rows share patients or files; recorded.
        held: share of the cases kept aside, on which recall is measured before and after; 0 for none.
        watched: name -> a labelled manifest on which zero-shot and a probe are measured before and after.
        watched_columns: name -> standard column -> yours, of a watched manifest.
        keep_every_seconds: how often the state is kept, at least; a killed run loses at most that.
    """
    folder, started = Path(out), time.perf_counter()
    if seed < 0:
        raise SettingsError(f"the seed is {seed}: give a whole number from 0 on")
    asked, first_of_all = objectives(weights or {"contrastive": 1.0}, settings or {}), resolved(spec)
    finished = (folder / encoder_folder.CONFIG).is_file()
    if finished and not (resume and (folder / MADE).is_file()):
        raise RunError(f"the encoder in {folder} is finished: give a new folder with --out")
    with ranks.joined():
        loaded = load(path, TASK, columns=columns, root=root, window=window, allow_leakage=allow_leakage, strict=strict)
        data = readable(in_words(loaded, sections), strict=strict, watch=watch)
        others = {
            name: load(one, "classification", columns=(watched_columns or {}).get(name), window=window)
            for name, one in (watched or {}).items()
        }
        base = encoder(first_of_all, watch=lambda done, of: watch("encoding images", done, of))
        material = Material.of(data, held, seed)
        measured_on = {**pairs_of(material.data, data), **others}
        if finished and ranks.rank() > 0:
            return {}
        if finished:
            return told(folder, base, measured_on, json.loads((folder / MADE).read_text(encoding="utf-8")), seed, watch)
        first = asked[0].method
        with limited(threads_of(first)):
            pairs = paired_up(material.learnt, base, first, seed)
            parts = {one.name: (one.weight, one.method.part(pairs)) for one in asked}
            belongs = belonging(material, asked, base, seed)
            with kept(folder, belongs, resume=resume, every=keep_every_seconds) as learning:
                ended, curve = learnt(pairs, parts, first, learning, material.held, folder, seed, watch)
                if ranks.rank() > 0:
                    return {}
                batches = f"All {len(pairs)} pairs are one batch; batches of {first.batch} were asked for."
                made = {
                    "how": how(asked),
                    "seconds": time.perf_counter() - started,
                    "curve": curve,
                    "command": command,
                    "learnt": len(pairs),
                    "held": material.data.split.how,
                    "notes": [*data.samples.notes, *([batches] if len(pairs) < first.batch else [])],
                }
                write_text(folder / MADE, json.dumps(made))
                written(pairs, ended, asked, first_of_all, folder, material.learnt)
        return told(folder, base, measured_on, made, seed, watch)


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
            if first and curve and curve[-1][0] > begin:
                learning.write(resumed.State.after(step))  # what is gone on from where the encoder cannot be written
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
    return {name: value for name, value in catalogue.settings_of(method).items() if name not in SHARED}


def written(pairs: Pairs, ended: dict[str, Tensor], asked: Sequence[Objective], spec: str, folder: Path, learnt: ManifestSamples) -> None:
    """The encoder's folder; Ctrl-C before its last file leaves the state of the last step."""
    image, text = pairs.values(ended)
    scale, bias = heat_of(asked, ended, pairs.encoder)
    teachers = [getattr(one.method, "teacher", "") for one in asked]
    cards = [getattr(pairs.encoder, "card", None), *(encoder_card(teacher) for teacher in teachers if teacher)]
    made = encoder_folder.Continued(
        base=resolved(spec),
        how=how(asked),
        image=image,
        text=text,
        scale=scale,
        bias=bias,
        seen={*marks(learnt), *(digest for one in cards if one is not None for digest in one.seen)},
        licence=getattr(cards[0], "licence", "unknown"),
    )
    try:
        encoder_folder.save(made, load_encoder(spec), folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        told = "the state of the last step is kept there: make room and go on with --resume"
        raise RunError(f"cannot write to {folder}: {reason.lower()}; {told}") from None


def heat_of(asked: Sequence[Objective], ended: Mapping[str, Tensor], base: Encoder) -> tuple[float, float]:
    """Logit scale and bias of one objective, the first that has learnt them; else the base's."""
    own = base.scale, base.bias
    return next((heat for one in asked if (heat := heat_learnt(ended, one.name, base)) != own), own)


def how(asked: Sequence[Objective]) -> str:
    """Objectives and what moved, in a few words."""
    sums = " + ".join(one.name if len(asked) == 1 else f"{one.weight:g} {one.name}" for one in asked)
    first = asked[0].method
    return f"{sums}, {first.train} of {' and '.join(first.sides)}, {first.steps} steps"
