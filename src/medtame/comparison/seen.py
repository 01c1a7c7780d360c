"""What a reader sees beside the table: figures, cases, costs, prompts, protocol, parts, environment, and the card of the run."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtame import catalogue
from medtame.comparison.choice import Choice
from medtame.comparison.figures import figures
from medtame.comparison.gallery import pictures
from medtame.comparison.grid import Grid, Outcome, Shots
from medtame.comparison.table import Resampling
from medtame.metrics import LOWER_IS_BETTER
from medtame.report import html, model_card
from medtame.report.record import checked, finite
from medtame.run import Run, identity
from medtame.types import Encoder

FILES = ("image", "fixed", "moving", "mask")  # columns whose values are names of files
SHORTEST = 4  # letters of a name that is looked for in a sentence


def details(
    grid: Grid,
    shots: Sequence[Shots],
    best: Choice,
    found: Mapping[tuple[str, Shots], Sequence[Outcome]],
    warnings: Sequence[str],
    run: Run,
    resampling: Resampling,
    metric: str,
    command: str,
    seconds: float,
    *,
    names: bool = False,
) -> dict[str, Any]:
    """Everything under `details` of the record. `names`: with the names of images, which may name patients."""
    task, encoder = catalogue.name_of(grid.data.task), grid.encoder
    methods = list(dict.fromkeys(name for name, _ in found))
    classes = getattr(run.frame, "names", ())
    simulated = "simulated" in grid.data.samples and any(grid.data.samples.column("simulated"))
    return {
        "question": f"Which adaptation of {encoder.spec} works for {task.replace('_', ' ')} on these images, and does the language matter?",
        "simulated": simulated,
        "start": grid.data.task.start,
        "plain": grid.data.task.plain,
        "references": list(grid.data.task.references),
        "encoder": {
            "spec": encoder.spec,
            "image_identity": encoder.image_identity,
            "text_identity": encoder.text_identity,
            **about_encoder(encoder),
        },
        "warnings": list(warnings) if names else unnamed(warnings, grid),
        **parts(grid),
        "prompts": prompts(run),
        "protocol": {
            "regime": grid.regime,
            "draws": max(len(outcomes) for outcomes in found.values()),
            "shots": list(shots),
            "resamples": len(resampling.rows),
            "seed": grid.seed,
            "metric": metric,
            "lower_is_better": metric in LOWER_IS_BETTER,
            "how_best_was_chosen": best.how,
            "split_sentence": grid.data.split.how,
        },
        "environment": environment(),
        "command": command,
        "seconds": seconds,
        "baselines": [name for name in methods if catalogue.strategy_of(name) == "none"],
        "metrics": {name: metrics(found[name, shots[-1]], resampling) for name in methods},
        "figures": figures(found, best.method, [grid.data.task.start, grid.data.task.plain], shots[-1], classes, resampling),
        "costs": [cost(grid, name, found[name, shots[-1]]) for name in methods],
        **pictures(grid, best.method, run, names=names),
    }


def about_encoder(encoder: Encoder) -> dict[str, Any]:
    """What its card says, and the engine that encoded these images with the cosine to the plain one."""
    card, engine = getattr(encoder, "card", None), getattr(encoder, "engine", None)
    said = {} if card is None else {"medical_text": card.medical_text, "notes": card.notes, "licence": card.licence}
    return said | ({"engine": finite(engine)} if engine else {})


def metrics(outcomes: Sequence[Outcome], resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Every metric of a method at the most shots, with its interval."""
    rows = {}
    for name in outcomes[0].statistics:
        found = resampling.two_way(outcomes, name).interval
        rows[name] = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
    return rows


def cost(grid: Grid, name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a method costs: means over draws, the most memory over all of them."""
    costs, method = [outcome.cost for outcome in outcomes], grid.method(name)
    return {
        "method": name,
        "fits": method.trains,
        "draws": len(outcomes),
        "fit_seconds": float(np.mean([one["fit_seconds"] for one in costs])),
        "seconds": float(np.mean([one["seconds"] for one in costs])),
        "trainable_parameters": int(max(one["trainable_parameters"] for one in costs)),
        "peak_megabytes": max(one["peak_megabytes"] for one in costs),
        "stores_support": method.stores_support,
    }


def parts(grid: Grid) -> dict[str, Any]:
    """Rows, groups and classes of each side of the split, and what is known of leakage between them."""
    data, strata = grid.data, grid.data.task.strata(grid.data.samples)
    sides = {"train": data.split.train, "test": data.split.test}
    if data.split.test is None:
        sides = {f"{len(grid.parts)} folds": np.concatenate([part.test for part in grid.parts])}
    counted = [
        {
            "name": name,
            "rows": len(rows),
            "groups": len(set(data.samples.groups[rows].tolist())),
            "classes": dict(sorted(Counter(str(label) for label in strata[rows].tolist() if label is not None).items())),
        }
        for name, rows in sides.items()
        if rows is not None
    ]
    shared = max(len(set(data.samples.groups[part.train]) & set(data.samples.groups[part.test])) for part in grid.parts)
    copies = any("byte for byte" in warning for warning in data.split.warnings)
    said = f"{shared} patients or cases stand on both sides" if shared else "no patient or case stands on both sides"
    files = "some test images are exact copies of training images" if copies else "no test image is an exact copy of a training image"
    near = "Nearly equal images were looked for too; what was found stands in the notes."
    return {
        "parts": counted,
        "leakage": f"Checked before anything was fitted: {said}; {files}. {near}",
    }


def unnamed(sentences: Sequence[str], grid: Grid) -> list[str]:
    """The sentences with the number of its row in place of a file's name."""
    samples = grid.data.samples
    rows = {str(name): row for column in FILES if column in samples for row, name in enumerate(samples.column(column), start=1)}
    named = [name for name in rows if len(name) >= SHORTEST and any(name in sentence for sentence in sentences)]
    if not named:
        return list(sentences)
    any_name = re.compile("|".join(re.escape(name) for name in sorted(named, key=len, reverse=True)))
    return [any_name.sub(lambda found: f"row {rows[found.group()]}", sentence) for sentence in sentences]


def prompts(run: Run) -> dict[str, list[str]]:
    """The wording of each candidate, or the distinct prompts of the rows; at most 40 are shown."""
    known = getattr(run.frame, "prompts", None)
    if known is not None:
        return dict([(name, list(said)) for name, said in zip(run.frame.names, known, strict=True)][:40])  # type: ignore[attr-defined]
    named = getattr(run.frame, "structures", ()) or getattr(run.frame, "answers", ())
    return {name: [name] for name in named[:40]}


def environment() -> dict[str, Any]:
    return {
        "medtame": version("medtame"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit_learn": version("scikit-learn"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
    }


def card(run: Run, record: Mapping[str, Any], folder: Path) -> None:
    """README.md of a run; after a comparison with all that its report says of the method."""
    name, details = catalogue.name_of(run.method), record.get("details", {})
    model_card.write(
        folder / "README.md",
        {
            "task": record["task"],
            "method": name,
            "strategy": catalogue.strategy_of(name),
            "learning": run.method.learning,
            "settings": catalogue.settings_of(run.method),
            "papers": list(run.method.papers),
            "encoder": identity(run.encoder) | about_encoder(run.encoder),
            "data": run.about.get("data", {}),
            "stores_support_rows": run.method.stores_support,
            "metrics": details.get("metrics", {}).get(name) or record.get("metrics", {}),
            "warnings": details.get("warnings", []),
            "prompts": prompts(run),
            "environment": environment(),
            "command": record.get("command") or details.get("command", ""),
            **({} if not details else compared(name, record)),
        },
    )


def compared(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison adds to the card of its best method."""
    details, largest = record["details"], record["details"]["protocol"]["shots"][-1]
    rows = "all training rows, as in this run" if largest == "all" else f"{largest} shots; this run has learnt from all training rows"
    return {
        "answer": html.headline(checked(record)).sentence,
        "how_chosen": details["protocol"]["how_best_was_chosen"],
        "metrics_of": f"Measured on the test rows after learning from {rows}{cooler(details.get('temperature'))}",
        "figures": details["figures"],
        "controls": record["controls"],
        "cost": next((cost for cost in details["costs"] if cost["method"] == name), None),
        "parts": details["parts"],
        "leakage": details["leakage"],
        "simulated": details["simulated"],
    }


def cooler(heat: Mapping[str, Any] | None) -> str:
    """What a temperature of the run makes of the numbers of its method."""
    if not heat or heat["value"] == 1:
        return ""
    return f"; calibration (ece) and brier there are those before the temperature {heat['value']:.2f} that this run applies"
