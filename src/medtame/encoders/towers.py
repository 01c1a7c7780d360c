"""An encoder made of two towers, read image by image and run in batches. Every family of encoders ends here."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medtame.data.images import CONVENTION, FilePicture
from medtame.data.packed import PackedPicture
from medtame.errors import EncoderError
from medtame.types import Picture, Samples

IMAGES_AT_ONCE = 32
STRINGS_AT_ONCE = 16  # of about one length: what is padded is work for nothing
PIXEL_MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """What is known of an encoder before its weights are read: enough to find its features in a cache."""

    spec: str
    image_identity: str
    text_identity: str  # empty where it has no text side
    scale: float
    bias: float
    dimension: int  # D
    scales: tuple[tuple[int, int], ...]  # (F, G) of each map of `grid`, coarsest first
    has_text: bool
    notes: str  # one line for tables: what it is and what it is not
    medical_text: bool | None = None  # whether it was trained on medical text; None: unknown
    licence: str = "unknown"
    seen: frozenset[str] = frozenset()  # digests of images that it is known to have learnt from
    text_length: int | None = None  # the most tokens of a text; None: known once it is opened


class Memory:
    """Tensors by key; beyond `limit_bytes` those not used for longest are forgotten. A copy of it starts empty."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Memory], tuple[int]]:
        return Memory, (self.limit_bytes,)

    def get(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def put(self, key: str, row: Tensor) -> None:
        """Keep a row, which must own its numbers: a view would hold its whole batch."""
        with self._lock:
            self._forget(key)
            self._rows[key] = row
            self.held_bytes += row.nbytes
            while self.held_bytes > self.limit_bytes:
                self._forget(next(iter(self._rows)))

    def _forget(self, key: str) -> None:
        row = self._rows.pop(key, None)
        self.held_bytes -= 0 if row is None else row.nbytes


class DigestMemo(Protocol):
    """Digests of files that outlive the process, by a name that does not show the path."""

    def known_digests(self, names: Sequence[str]) -> Mapping[str, str]: ...
    def keep_digests(self, digests: Mapping[str, str]) -> bool: ...


class Digests:
    """Digests of pictures, worked out once: of a file while its size and times stand, of another picture while it lives."""

    def __init__(self, memo: DigestMemo | None = None) -> None:
        self.memo = memo
        self._files: dict[str, str] = {}
        self._others: dict[int, tuple[weakref.ref[Picture], str]] = {}

    def __reduce__(self) -> tuple[type[Digests], tuple[DigestMemo | None]]:
        return Digests, (self.memo,)

    def of(self, pictures: Sequence[Picture]) -> list[str]:
        """The digest of each picture, in order. Raises ImageError for a file that cannot be read."""
        names = [file_name(picture) for picture in pictures]
        unknown = list(dict.fromkeys(name for name in names if name is not None and name not in self._files))
        if self.memo is not None and unknown:
            self._files.update(self.memo.known_digests(unknown))
        new = {name: p.digest() for name, p in zip(names, pictures, strict=True) if name is not None and name not in self._files}
        self._files.update(new)
        if self.memo is not None and new:
            self.memo.keep_digests(new)
        return [self._other(p) if name is None else self._files[name] for name, p in zip(names, pictures, strict=True)]

    def _other(self, picture: Picture) -> str:
        known = self._others.get(id(picture))
        if known is not None and known[0]() is picture:
            return known[1]
        digest, number = picture.digest(), id(picture)
        self._others[number] = (weakref.ref(picture, lambda gone: self._dead(number, gone)), digest)
        return digest

    def _dead(self, number: int, gone: weakref.ref[Picture]) -> None:
        if number in self._others and self._others[number][0] is gone:
            del self._others[number]


def file_name(picture: Picture) -> str | None:
    """A hash of a file's path, frame, window, size and times, which says nothing about the patient; None for what is no file.

    Of a picture inside a shard: the shard's, and the place in it.
    """
    if not isinstance(picture, FilePicture | PackedPicture):
        return None
    try:
        status = picture.path.stat()
    except OSError:
        return None  # its digest says what is wrong
    if picture.path.suffix.lower() == ".mhd":
        return None  # its pixels lie in another file
    folder = "" if picture.path.is_absolute() else str(Path.cwd())
    return _hashed(picture, folder, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=2**17)
def _hashed(picture: FilePicture | PackedPicture, folder: str, *changes: int) -> str:
    """Of what tells a file apart: a picture whose path may start at `folder`, its size and times."""
    inside = () if isinstance(picture, FilePicture) else (getattr(picture.shard, "column", ""), picture.place, picture.extent)
    parts = (CONVENTION, Path(folder) / picture.path, picture.frame, picture.window, *changes, *inside)
    return hashlib.sha256("\n".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerEncoder:
    """Two towers and how images are prepared for them. Satisfies `Encoder`.

    `image_tower` takes prepared pixels (N, 3, S, S) and gives whole (N, D), unit norm, and a tuple of maps (N, F, G, G),
    coarsest first, the first with F = D. `text_tower` is a `TextTower`, or None. `prepare` takes one image (1, C, H, W), C being
    1 or 3, uint8 where it was stored in 8 bits, else float32 in 0..1, and resizes and normalises it as the checkpoint wants:
    (1, 3, S, S). Where that cuts something off, `prepare_grid` is the same without the cut: a map must cover its whole image.

    Towers are never run under `no_grad`: frozen ones record no graph anyway, changed ones can be trained through `whole`,
    `grid` and `texts`. Prepared pixels are remembered, and shared with the encoders that `changed` makes.
    """

    spec: str
    image_identity: str
    text_identity: str
    scale: float
    bias: float
    image_tower: nn.Module
    text_tower: Any
    prepare: Callable[[Tensor], Tensor]
    prepare_grid: Callable[[Tensor], Tensor] | None = None
    pixels: Memory = field(default_factory=lambda: Memory(PIXEL_MEMORY_BYTES), repr=False)
    digests: Digests = field(default_factory=Digests, repr=False)

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        """(N, D), unit norm, in the text's space. Raises ImageError."""
        return self.wholes(samples.pictures(column))

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        """One map (N, F, G, G) a scale, coarsest first; the first lies in the text's space. Raises ImageError."""
        return self.both(samples.pictures(column))[1]

    def wholes(self, pictures: Sequence[Picture]) -> Tensor:
        """`whole` of pictures."""
        return torch.cat([whole for whole, _ in self._batches(pictures, self.prepare)])

    def both(self, pictures: Sequence[Picture]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`whole` and `grid` of pictures, in one pass where both see the same pixels."""
        wholes, scales = zip(*self._batches(pictures, self.prepare_grid or self.prepare), strict=True)
        whole = torch.cat(wholes) if self.prepare_grid is None else self.wholes(pictures)
        return whole, tuple(torch.cat(maps) for maps in zip(*scales, strict=True))

    def texts(self, strings: Sequence[str]) -> Tensor:
        """(N, D), unit norm. A string that occurs twice is encoded once. Raises EncoderError where there is no text side."""
        if self.text_tower is None:
            raise EncoderError(f"the encoder {self.spec} has no text side: choose a method that reads no words, or another encoder")
        unique = list(dict.fromkeys(strings)) or [""]
        by_length = sorted(range(len(unique)), key=lambda i: len(unique[i]))
        parts = []
        for start in range(0, len(unique), STRINGS_AT_ONCE):
            ids, mask = self.text_tower.tokens([unique[i] for i in by_length[start : start + STRINGS_AT_ONCE]])
            parts.append(self.text_tower.encode(self.text_tower.embed(ids), mask))
        place = {unique[i]: row for row, i in enumerate(by_length)}
        return torch.cat(parts)[torch.tensor([place[string] for string in strings], dtype=torch.long)]

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> TowerEncoder:
        """The same encoder with another tower. It must be in eval mode where that matters; its identity joins that side's."""
        return replace(
            self,
            image_tower=self.image_tower if image is None else image,
            text_tower=self.text_tower if text is None else text,
            image_identity=self.image_identity if image is None else f"{self.image_identity}+{identity}",
            text_identity=self.text_identity if text is None else f"{self.text_identity}+{identity}",
        )

    def _batches(self, pictures: Sequence[Picture], prepare: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The image tower's output, some images at a time; no pictures give one batch of none."""
        if not pictures:
            yield self.image_tower(prepare(torch.zeros(1, 1, 8, 8))[:0])
        for start in range(0, len(pictures), IMAGES_AT_ONCE):
            part = pictures[start : start + IMAGES_AT_ONCE]
            yield self.image_tower(torch.cat([self._prepared(p, key, prepare) for p, key in zip(part, self.digests.of(part), strict=True)]))

    def _prepared(self, picture: Picture, key: str, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        """(1, 3, S, S)"""
        key = key if prepare is self.prepare else f"grid {key}"
        known = self.pixels.get(key)
        if known is None:
            known = prepare(_read(picture)[None])
            self.pixels.put(key, known)
        return known


def _read(picture: Picture) -> Tensor:
    """(C, H, W), uint8 where the image was stored in 8 bits, else float32 in 0..1."""
    return torch.from_numpy(np.array(picture.read().transpose(2, 0, 1), order="C"))


def frozen(tower: nn.Module) -> nn.Module:
    """The tower in eval mode, with no parameter that asks for a gradient."""
    return tower.eval().requires_grad_(False)
