"""What tests of `medtame pretrain` run in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import timm.data  # noqa: F401 (so that forked processes have it)

from medtame import cli, encoders
from medtame.pretrain import pretrain
from shop import family

SETTINGS = {"": {"steps": 30, "batch": 8, "chunk": 4, "train": "all", "learning_rate": 1e-3}}


def small(manifest: str, out: str, *, resume: bool = False, **more: object) -> dict:
    """A short pretraining of the tiny encoder whose state is kept after each step."""
    encoders.FAMILIES["tiny"] = family
    asked = {"settings": SETTINGS, "seed": 3, "keep_every_seconds": 0.0} | more
    return pretrain(manifest, "tiny", {"contrastive": 1.0, "sigmoid": 0.5}, out=Path(out), resume=resume, **asked)


if __name__ == "__main__":
    encoders.FAMILIES["tiny"] = family
    sys.argv[0] = "medtame"
    cli.main()
