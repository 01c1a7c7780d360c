"""Pretrain on pairs of your own, then see what it gave and what it cost: the whole way in one file.

    python examples/pretrain_your_pairs.py --out mine                                    # on simulated images, a few minutes
    python examples/pretrain_your_pairs.py --pairs cases.csv --columns text=caption,patient=case --labels labels.csv --out mine

A manifest of pairs has the columns image and text, and better also patient or case; rows with the split `test` are measured on and never
learnt from. `labels` is a manifest of labelled images that must not get worse: zero-shot and a probe are measured on it before and after.
The folder `mine` is an encoder: medtame compare labels.csv --encoder bundled,mine. Research use only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from medtame.data import phantom
from medtame.pretrain import pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue an encoder on your pairs of images and texts.")
    parser.add_argument("--pairs", type=Path, help="a manifest with images and texts; without it, simulated images")
    parser.add_argument("--columns", default="", help="your column names: standard=yours, by commas")
    parser.add_argument("--labels", type=Path, help="a manifest of labelled images, measured before and after")
    parser.add_argument("--encoder", default="bundled", help="what is continued")
    parser.add_argument(
        "--objective", default="contrastive", help="or sigmoid, soft_target, local_alignment, captioning, masked_image, distillation"
    )
    parser.add_argument("--train", default="last", help="projections, last, lora, or all")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="a new folder: the encoder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs, columns, labels = asked.pairs, dict(part.split("=") for part in asked.columns.split(",") if part), asked.labels
        if pairs is None:
            made = phantom.make(Path(scratch) / "phantom", patients=200, seed=0)
            pairs, labels, columns = made.images, made.images, {}
        record = pretrain(
            pairs,
            asked.encoder,
            {asked.objective: 1.0},
            out=asked.out,
            settings={"": {"train": asked.train, "steps": asked.steps, "augment": "none"}},
            columns=columns,
            watched={} if labels is None else {"labels": labels},
            watch=lambda what, done, of: sys.stderr.write(f"{done} of {of}: {what}\n") and None,
        )
    for one in record["changes"]:
        told = f"{one['before']:.3f} before, {one['after']:.3f} after, {one['gain']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        sys.stdout.write(f"{one['on']}, {one['method']}, {one['metric']}: {told}\n")
    sys.stdout.write(f"{record['verdict']}\nA page: {asked.out / 'report.html'}. Research use only.\n")


if __name__ == "__main__":
    main()
