"""Images that an encoder is known to have learnt from are no test images."""

from __future__ import annotations

from medtame.data.samples import ManifestSamples
from medtame.data.splits import Split
from medtame.encoders.towers import Digests
from medtame.errors import DataError
from medtame.types import Encoder, Samples

COLUMNS = ("image", "fixed", "moving")


def seen_rows(encoder: Encoder, samples: Samples) -> list[int]:
    """Rows (0-based) with an image that the encoder has learnt from, byte for byte; its card says which these are."""
    seen: frozenset[str] = getattr(getattr(encoder, "card", None), "seen", frozenset())
    if not seen or not isinstance(samples, ManifestSamples):
        return []
    plain, rows = samples.windowed(""), set[int]()
    for column in (name for name in COLUMNS if name in samples):
        rows |= {row for row, digest in enumerate(Digests().of(plain.pictures(column))) if digest in seen}
    return sorted(rows)


def refuse_seen(encoder: Encoder, samples: Samples) -> None:
    """Raises DataError where a test image was seen in pretraining."""
    rows = seen_rows(encoder, samples)
    if rows:
        told = f"{len(rows)} of {len(samples)} test images (the first in row {rows[0] + 1}) were learnt from in pretraining"
        raise DataError(f"{told} of {encoder.spec}: a number on them says nothing; leave them out, or measure the encoder on others")


def told(encoder: Encoder, samples: ManifestSamples, split: Split) -> list[str]:
    """What is to be said where training images were seen in pretraining. Raises DataError where a test image was."""
    refuse_seen(encoder, samples if split.test is None else samples.take(split.test))
    rows = seen_rows(encoder, samples.take(split.train))
    if not rows:
        return []
    few = f"{len(rows)} of {len(split.train)} training images were learnt from when {encoder.spec} was pretrained"
    return [f"{few}: what is measured on training rows (the choice of the best, the recommendation) favours that encoder."]
