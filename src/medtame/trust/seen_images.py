"""Images that an encoder is known to have learnt from are no test images."""

from __future__ import annotations

import hashlib

from medtame.data.images import FilePicture
from medtame.data.packed import PackedPicture
from medtame.data.samples import ManifestSamples
from medtame.data.series import SeriesPicture
from medtame.data.splits import Split
from medtame.errors import DataError
from medtame.types import Encoder, Picture, Samples

COLUMNS = ("image", "fixed", "moving")


def contents(samples: ManifestSamples, column: str = "image") -> list[str]:
    """SHA-256 of the bytes of each row's file, however it is read: of a series of its files, of a picture in no file of its numbers."""
    return [content(picture) for picture in samples.windowed("").pictures(column)]


def content(picture: Picture) -> str:
    """Raises ImageError."""
    if isinstance(picture, PackedPicture):
        return picture.content_hash()
    paths = picture.paths if isinstance(picture, SeriesPicture) else (picture.path,) if isinstance(picture, FilePicture) else ()
    if not paths:
        return picture.digest()
    try:
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    except OSError:
        return picture.digest()  # says what is wrong
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def seen_rows(encoder: Encoder, samples: Samples) -> list[int]:
    """Rows (0-based) with an image that the encoder has learnt from, byte for byte; its card says which these are."""
    seen: frozenset[str] = getattr(getattr(encoder, "card", None), "seen", frozenset())
    if not seen or not isinstance(samples, ManifestSamples):
        return []
    found = [contents(samples, column) for column in COLUMNS if column in samples]
    return [row for row in range(len(samples)) if any(one[row] in seen for one in found)]


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
