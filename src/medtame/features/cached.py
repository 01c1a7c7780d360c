"""The feature cache: an encoder around an encoder. What was once computed is never computed again, and weights open only then."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medtame.encoders.towers import Digests, EncoderCard, Memory, TowerEncoder
from medtame.errors import EncoderError
from medtame.features.engines import PLAIN, Ladder, candidates_here
from medtame.features.store import Store
from medtame.types import Array, Encoder, Picture, Samples

ROW_MEMORY_BYTES = 2**30
IMAGES_A_CHUNK = 64
STRINGS_A_CHUNK = 256
BYTES_A_READ = 64 * 2**20


@dataclass(frozen=True, eq=False)
class CachedEncoder:
    """An encoder whose frozen features are kept. Satisfies `Encoder`.

    `loader` is called when a feature is missing, or a tower is asked for, and not before. Rows are kept in 16 bits, on disk
    (`store`) or in memory only (None), and always come back from 16 bits, so that the first and every later run give the same
    numbers. After each chunk the rows are written: a killed run keeps them. `watch` is told images done and images to do.
    Where many images are missing, the image tower may be run by one of the `engines`, as `features/engines.py` says; rows of
    another engine than the plain one have their own place in the store. Copies for other processes travel without weights, rows
    and watcher.
    """

    card: EncoderCard
    loader: Callable[[], TowerEncoder]
    store: Store | None = None
    watch: Callable[[int, int], None] | None = None
    rows: Memory = field(default_factory=lambda: Memory(ROW_MEMORY_BYTES), repr=False)
    engines: tuple[str, ...] = field(default_factory=candidates_here)  # those that may be tried; none: the plain tower only

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("opened", "digests", "ladder")}
        return kept | {"watch": None}

    @property
    def spec(self) -> str:
        return self.card.spec

    @property
    def image_identity(self) -> str:
        return self.card.image_identity

    @property
    def text_identity(self) -> str:
        return self.card.text_identity

    @property
    def scale(self) -> float:
        return self.card.scale

    @property
    def bias(self) -> float:
        return self.card.bias

    @property
    def engine(self) -> dict[str, Any]:
        """What runs the image tower: `engine`, its smallest `cosine` to the plain one (None: it is the plain one), and what was tried."""
        return asdict(self.ladder.verdict)

    @cached_property
    def ladder(self) -> Ladder:
        return Ladder(self.image_identity, None if self.store is None else self.store.folder, self.engines)

    @cached_property
    def digests(self) -> Digests:
        return Digests(self.store)

    @cached_property
    def opened(self) -> TowerEncoder:
        """The encoder itself. Raises EncoderError where it is not the one that the card describes."""
        encoder = self.loader()
        found, stated = (encoder.image_identity, encoder.text_identity), (self.image_identity, self.text_identity)
        if found != stated:
            raise EncoderError(f"the encoder {self.spec} is {' and '.join(found)}, its card says {' and '.join(stated)}: open it anew")
        return replace(encoder, digests=self.digests)

    @property
    def image_tower(self) -> nn.Module:
        return self.opened.image_tower

    @property
    def text_tower(self) -> Any:
        return self.opened.text_tower if self.card.has_text else None

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        """(N, D), unit norm, in the text's space. Raises ImageError."""
        return self._images(samples.pictures(column), {"whole": (self.card.dimension,)})["whole"]

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        """One map (N, F, G, G) a scale, coarsest first; `whole` is kept too, from the same pass. Raises ImageError."""
        maps = {f"map-{number}": (channels, side, side) for number, (channels, side) in enumerate(self.card.scales)}
        found = self._images(samples.pictures(column), maps)
        return tuple(found[kind] for kind in maps)

    def texts(self, strings: Sequence[str]) -> Tensor:
        """(N, D), unit norm. Raises EncoderError where there is no text side."""
        if not self.card.has_text:
            return self.opened.texts(strings)  # says so
        keys = [hashlib.sha256(string.encode(errors="surrogatepass")).hexdigest() for string in strings]
        of_key = dict(zip(keys, strings, strict=True))
        found, missing = self._known(self.text_identity, {"text": (self.card.dimension,)}, keys)
        for part in _parts(missing, STRINGS_A_CHUNK):
            with torch.no_grad():
                made = {"text": self._halves(self.opened.texts([of_key[key] for key in part]))}
            self._keep(self.text_identity, found, keys, part, made)
        return found["text"]

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> Encoder:
        """The same encoder with another tower. The changed side leaves the cache, the other stays in it."""
        inner = self.opened.changed(image=image, text=text, identity=identity)
        return HalfCached(inner, self if image is None else inner, self if text is None else inner)

    def _images(self, pictures: Sequence[Picture], kinds: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The wanted kinds of rows of all pictures; what is missing is computed, some pictures at a time."""
        keys = self.digests.of(pictures)
        of_key = dict(zip(keys, pictures, strict=True))
        found, missing = self._known(self._place(), kinds, keys)
        if not missing:
            return found
        self._watched(0, len(missing))
        before, encoder = self._place(), self.opened
        with torch.no_grad():
            self.ladder.settle(encoder, [of_key[key] for key in missing], len(of_key))
            encoder = self.ladder.running(encoder)
            if self._place() != before:
                found, missing = self._known(self._place(), kinds, keys)
            for done, part in enumerate(_parts(missing, IMAGES_A_CHUNK)):
                if done:
                    self._watched(done * IMAGES_A_CHUNK, len(missing))
                pictures_here = [of_key[key] for key in part]
                whole, maps = encoder.both(pictures_here) if "map-0" in kinds else (encoder.wholes(pictures_here), ())
                made = {"whole": self._halves(whole)} | {f"map-{number}": self._halves(scale) for number, scale in enumerate(maps)}
                self._keep(self._place(), found, keys, part, made)
        if missing:
            self._watched(len(missing), len(missing))
        return found

    def _watched(self, done: int, of: int) -> None:
        if self.watch is not None:
            self.watch(done, of)

    def _place(self) -> str:
        """The identity under which rows of images are kept: the plain tower's are the encoder's own."""
        engine = self.ladder.verdict.engine
        return self.image_identity if engine == PLAIN else f"{self.image_identity};engine={engine}"

    def _known(self, identity: str, kinds: Mapping[str, tuple[int, ...]], keys: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
        """Rows (N, ...) of each kind, filled where they are known, and the keys of which some kind is not."""
        found = {kind: torch.empty(len(keys), *shape) for kind, shape in kinds.items()}
        known = np.ones(len(keys), dtype=bool)
        for kind, shape in kinds.items():
            size = max(1, BYTES_A_READ // (2 * math.prod(shape)))
            for start in range(0, len(keys), size):
                part = slice(start, start + size)
                known[part] &= self._read(identity, kind, found[kind][part], keys[part])
        return found, list(dict.fromkeys(key for key, there in zip(keys, known, strict=True) if not there))

    def _read(self, identity: str, kind: str, found: Tensor, keys: Sequence[str]) -> Array:
        """Fill `found` from memory, else from the store, and say where (n,); a row of another shape than the card's counts as absent."""
        known = np.zeros(len(keys), dtype=bool)
        for number, key in enumerate(keys):
            row = self.rows.get(f"{identity} {kind} {key}")
            if row is not None:
                found[number] = row
                known[number] = True
        unread = np.flatnonzero(~known)
        if self.store is not None and len(unread):
            wanted = [key for key, there in zip(keys, known, strict=True) if not there]
            for places, rows in self.store.parts(identity, kind, wanted):
                if rows.shape[1:] == found.shape[1:]:
                    found[torch.from_numpy(unread[places])] = torch.from_numpy(rows).float()
                    known[unread[places]] = True
                    for place, row in zip(places, rows, strict=True):
                        self.rows.put(f"{identity} {kind} {wanted[place]}", torch.from_numpy(row.copy()))
        return known

    def _keep(self, identity: str, found: dict[str, Tensor], keys: Sequence[str], part: Sequence[str], made: Mapping[str, Tensor]) -> None:
        """Keep new rows in memory and in the store, and fill them in wherever their key stands."""
        row_of = {key: row for row, key in enumerate(part)}
        places = [(number, row_of[key]) for number, key in enumerate(keys) if key in row_of]
        to, source = torch.tensor([number for number, _ in places]), torch.tensor([row for _, row in places])
        kept = True
        for kind, rows in made.items():
            for key, row in row_of.items():
                self.rows.put(f"{identity} {kind} {key}", rows[row].clone())
            if self.store is not None:
                kept = self.store.write(identity, kind, _by_key(part, rows)) and kept
            if kind in found:
                found[kind][to] = rows[source].float()
        if not kept and self.store is not None and not self.store.refused:
            self.store.refused = True
            warnings.warn(
                f"features are not kept on disk: {self.store.folder} is full or may not be written; this run goes on from memory, "
                "the next one will encode again: make room, or set MEDTAME_CACHE to another folder",
                stacklevel=4,
            )

    def _halves(self, values: Tensor) -> Tensor:
        """In 16 bits. Raises EncoderError where they cannot hold a value."""
        halves = values.half()
        if not halves.isfinite().all():
            raise EncoderError(f"the encoder {self.spec} gives features that are no numbers or beyond 65504: check its weights")
        return halves


@dataclass(frozen=True, eq=False)
class HalfCached:
    """An encoder with a changed tower: the unchanged side is answered by the cache. Satisfies `Encoder`."""

    inner: TowerEncoder
    images: Encoder
    words: Encoder

    @property
    def spec(self) -> str:
        return self.inner.spec

    @property
    def image_identity(self) -> str:
        return self.inner.image_identity

    @property
    def text_identity(self) -> str:
        return self.inner.text_identity

    @property
    def scale(self) -> float:
        return self.inner.scale

    @property
    def bias(self) -> float:
        return self.inner.bias

    @property
    def image_tower(self) -> nn.Module:
        return self.inner.image_tower

    @property
    def text_tower(self) -> Any:
        return self.inner.text_tower

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        """(N, D), unit norm; differentiable where the image tower was changed."""
        return self.images.whole(samples, column)

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        """One map (N, F, G, G) a scale; differentiable where the image tower was changed."""
        return self.images.grid(samples, column)

    def texts(self, strings: Sequence[str]) -> Tensor:
        """(N, D), unit norm; differentiable where the text tower was changed."""
        return self.words.texts(strings)

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> HalfCached:
        """Changed once more; a side that is still as it was loaded stays in the cache."""
        inner = self.inner.changed(image=image, text=text, identity=identity)
        return HalfCached(inner, self.images if image is None else inner, self.words if text is None else inner)


def _parts(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _by_key(keys: Sequence[str], rows: Tensor) -> dict[str, Array]:
    return {key: np.asarray(row) for key, row in zip(keys, rows.numpy(), strict=True)}
