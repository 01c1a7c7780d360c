"""What a reader sees beside the table: worst cases, examples, prompts, protocol, environment, and the card of the run."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medtame import catalogue
from medtame.comparison.choice import Choice
from medtame.comparison.grid import Grid, Outcome, Shots
from medtame.comparison.table import Resampling
from medtame.metrics import LOWER_IS_BETTER
from medtame.report import model_card
from medtame.report.record import finite
from medtame.run import Run, fitted, identity
from medtame.types import Array, Encoder, Picture, Samples

SIDE = 128  # pixels of a thumbnail
SHOWN = 8


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
) -> dict[str, Any]:
    """Everything under `details` of the record."""
    task, encoder = catalogue.name_of(grid.data.task), grid.encoder
    methods = list(dict.fromkeys(name for name, _ in found))
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
        "warnings": list(warnings),
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
        **pictures(grid, best.method, run),
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


def prompts(run: Run) -> dict[str, list[str]]:
    """The wording of each candidate, or the distinct prompts of the rows; at most 40 are shown."""
    known = getattr(run.frame, "prompts", None)
    if known is not None:
        return {name: list(sentences) for name, sentences in zip(run.frame.names, known, strict=True)}  # type: ignore[attr-defined]
    named = getattr(run.frame, "structures", ()) or getattr(run.frame, "answers", ())
    return {name: [name] for name in named[:40]}


def environment() -> dict[str, Any]:
    return {
        "medtame": version("medtame"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
    }


def pictures(grid: Grid, method: str, run: Run) -> dict[str, list[dict[str, Any]]]:
    """Worst cases where rows have a label, overlays where they have masks: of the best method on test rows of the first part."""
    part = grid.parts[0]
    test = grid.data.samples.take(part.test)
    if len(grid.parts) > 1:
        run = fitted(grid.data.samples.take(part.train), grid.data.task, grid.method(method), grid.encoder, seed=grid.seed)
    if "label" in grid.data.task.requires:
        return {"worst_cases": worst(run, test), "examples": []}
    if "mask" in grid.data.task.requires:
        return {"worst_cases": [], "examples": overlays(run, test)}
    return {"worst_cases": [], "examples": told(run, test)}


def worst(run: Run, test: Samples) -> list[dict[str, Any]]:
    """The wrong answers that were given with the most confidence."""
    rows = run.predict(test).table
    wrong = [
        k for k, (row, label) in enumerate(zip(rows, test.column("label"), strict=True)) if label is not None and row["prediction"] != label
    ]
    wrong.sort(key=lambda k: -rows[k]["max_score"])
    chosen = test.take(wrong[:SHOWN])
    pairs = zip(wrong[:SHOWN], chosen.pictures(), chosen.column("label"), strict=True)
    return [
        {
            "image": picture.name,
            "thumbnail": thumbnail(picture),
            "truth": label,
            "said": rows[k]["prediction"],
            "confidence": rows[k]["max_score"],
        }
        for k, picture, label in pairs
    ]


def overlays(run: Run, test: Samples) -> list[dict[str, Any]]:
    """Masks on their images: predicted in orange, true outline in blue."""
    few = test.take(np.linspace(0, len(test) - 1, min(SHOWN, len(test))).astype(int))
    said = run.predict(few)
    rows = []
    for k, (picture, mask) in enumerate(zip(few.pictures(), few.pictures("mask"), strict=True)):
        caption = f"{said.table[k].get('structure', '')}: predicted (orange), true outline (blue)"
        drawn = overlay(picture.array(), np.asarray(said.arrays[f"{k}/mask"]) > 0, mask.values() > 0)
        rows.append({"image": picture.name, "thumbnail": encoded(drawn), "caption": caption})
    return rows


def told(run: Run, test: Samples) -> list[dict[str, Any]]:
    """Images with what was said of them."""
    few = test.take(np.arange(min(SHOWN, len(test))))
    column = "image" if "image" in few else "fixed"
    rows = run.predict(few).table
    skipped = ("image", "fixed", "moving", "warning")
    return [
        {
            "image": picture.name,
            "thumbnail": thumbnail(picture),
            "caption": "; ".join(f"{k}: {short(v)}" for k, v in row.items() if k not in skipped),
        }
        for picture, row in zip(few.pictures(column), rows, strict=True)
    ]


def short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)[:160]


def overlay(pixels: Array, predicted: Array, true: Array) -> Array:
    """(H, W, 3): the image with a filled prediction and the outline of the truth."""
    image = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels.copy()
    image[predicted] = 0.6 * image[predicted] + 0.4 * np.array([1.0, 0.55, 0.0])
    if true.shape == predicted.shape:
        inner = true & np.roll(true, 1, 0) & np.roll(true, -1, 0) & np.roll(true, 1, 1) & np.roll(true, -1, 1)
        image[true & ~inner] = np.array([0.1, 0.45, 1.0])
    return np.asarray(image)


def thumbnail(picture: Picture) -> str:
    return encoded(picture.array())


def encoded(pixels: Array) -> str:
    """A small PNG, base64."""
    eight = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(eight[:, :, 0] if eight.shape[2] == 1 else eight)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def card(run: Run, record: Mapping[str, Any], folder: Path) -> None:
    """README.md of a run."""
    name = catalogue.name_of(run.method)
    at_most = record.get("details", {}).get("metrics", {}).get(name) or record.get("metrics", {})
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
            "metrics": at_most,
            "warnings": record.get("details", {}).get("warnings", []),
            "prompts": prompts(run),
            "environment": environment(),
            "command": record.get("command") or record.get("details", {}).get("command", ""),
        },
    )
