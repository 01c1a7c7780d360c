"""Images that an encoder is known to have learnt from are no test images."""

from __future__ import annotations

import hashlib

from medtame.data import duplicates
from medtame.data.images import FilePicture
from medtame.data.packed import PackedPicture
from medtame.data.samples import ManifestSamples
from medtame.data.series import SeriesPicture
from medtame.data.splits import Split
from medtame.errors import DataError
from medtame.types import Array, Encoder, Picture, Samples

LOOK = "look:"  # before the signs, among the digests of files and pixels
ALIKE = 0.975  # least agreement with the signs of a copy: copies have .98 and more, other patients' fundus photographs up to .96
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


def marks(samples: ManifestSamples, column: str = "image") -> set[str]:
    """What finds the images of a column again: SHA-256 of each file and of its pixels, and the signs of its looks, after LOOK."""
    found = set(contents(samples, column))
    for picture in samples.windowed("").pictures(column):
        pixels, small = drawn(picture)
        found |= {pixels} if pixels else set()
        found |= {f"{LOOK}{signs}"} if (signs := duplicates.look(small)) else set()
    return found


def drawn(picture: Picture) -> tuple[str, Array]:
    """SHA-256 of the pixels and a thumbnail (32, 32); nothing of an image that cannot be read."""
    read = duplicates.fingerprints([picture])
    return read.digests[0], read.thumbnails[0]


def seen_rows(encoder: Encoder, samples: Samples, *, copies: bool = True) -> list[int]:
    """Rows (0-based) with an image that the encoder has learnt from, which its card says: the same bytes, or, with `copies`, the same
    pixels, or nearly (saved again, resized, flipped).
    """
    seen: frozenset[str] = getattr(getattr(encoder, "card", None), "seen", frozenset())
    if not seen or not isinstance(samples, ManifestSamples):
        return []
    found: set[int] = set()
    for column in COLUMNS:
        if column in samples:
            found |= {row for row, one in enumerate(contents(samples, column)) if one in seen}
            rest = [row for row in range(len(samples)) if row not in found]
            found |= {rest[k] for k in copied(samples.take(rest), column, seen)} if copies and rest else set()
    return sorted(found)


def copied(samples: ManifestSamples, column: str, seen: frozenset[str]) -> list[int]:
    """Rows whose pixels were seen, or nearly. Nothing is read where `seen` tells of files alone."""
    looks = [one.removeprefix(LOOK) for one in seen if one.startswith(LOOK)]
    if not looks:
        return []
    read = duplicates.fingerprints(samples.windowed("").pictures(column))
    alike = duplicates.agreement(read.thumbnails, looks) >= ALIKE
    return [row for row, (pixels, near) in enumerate(zip(read.digests, alike.tolist(), strict=True)) if pixels in seen or near]


def refuse_seen(encoder: Encoder, samples: Samples) -> None:
    """Raises DataError where a test image was seen in pretraining, or is a copy of one that was."""
    rows = seen_rows(encoder, samples)
    if rows:
        told = f"{len(rows)} of {len(samples)} test images (the first in row {rows[0] + 1}) were learnt from in pretraining"
        raise DataError(
            f"{told} of {encoder.spec}, or are copies of such: a number on them says nothing; leave them out, or measure it on others"
        )


def told(encoder: Encoder, samples: ManifestSamples, split: Split) -> list[str]:
    """What is to be said where training images were seen in pretraining. Raises DataError where a test image was."""
    refuse_seen(encoder, samples if split.test is None else samples.take(split.test))
    rows = seen_rows(encoder, samples.take(split.train), copies=False)
    if not rows:
        return []
    few = f"{len(rows)} of {len(split.train)} training images were learnt from when {encoder.spec} was pretrained"
    return [f"{few}: what is measured on training rows (the choice of the best, the recommendation) favours that encoder."]
