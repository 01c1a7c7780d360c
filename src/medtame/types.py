"""The nouns that travel. A task asks (Query), a method answers (Answer), the task reads (Predicted)."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TextIO, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from medtame.errors import DataError, MedtameError, PairError
from medtame.regions import cropped, pooled

Kind: TypeAlias = Literal["scores", "grids", "texts", "boxes"]
Scope: TypeAlias = Literal["row", "stream", "set"]
Array: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = Sequence[int] | Array


# ---- images and samples ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the pixels of a source image lie. `spacing_mm` is (row, column); None where the file does not say."""

    height: int
    width: int
    spacing_mm: tuple[float, float] | None = None
    affine: tuple[tuple[float, ...], ...] | None = None


class Picture(Protocol):
    """One image, named but not yet read."""

    @property
    def name(self) -> str:
        """As the manifest spells it: for tables and messages."""
        ...

    def array(self) -> Array:
        """(H, W, C) float32 in 0..1 after the intensity convention; C is 1 or 3."""
        ...

    def read(self) -> Array:
        """(H, W, C) uint8 where the image was stored in 8 bits and `array` is these numbers divided by 255; else `array`."""
        ...

    def frames(self) -> int:
        """How many frames, pages or slices there are to choose from; 1 for a plain image."""
        ...

    def values(self) -> Array:
        """(H, W) the stored numbers: label maps, instance numbers, masks."""
        ...

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of everything that `array` depends on."""
        ...

    def geometry(self) -> Geometry: ...


class Samples(Protocol):
    """Chosen lines of a manifest. Reading a column that `only` dropped is an error: so truth cannot reach a query."""

    @property
    def groups(self) -> Array:
        """(N,) patient or case: the unit of draws, folds and intervals."""
        ...

    def __len__(self) -> int: ...
    def __contains__(self, name: str) -> bool: ...
    def take(self, index: Rows) -> Self: ...
    def only(self, columns: Sequence[str]) -> Self: ...
    def replaced(self, **columns: Any) -> Self: ...
    def noted(self, note: str) -> Self: ...
    def column(self, name: str) -> list[Any]: ...
    def pictures(self, name: str = "image") -> list[Picture]: ...
    def pixels(self, name: str = "image", size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W) float32 in 0..1, resized to `size`; without a size all images must have one."""
        ...


# ---- encoders -------------------------------------------------------------------------------------------------


class TextTower(Protocol):
    """A text side open to prompt learning: words become vectors in three steps that can be taken apart."""

    length: int  # the most tokens of a string, special ones included
    causal: bool  # then it has `encode_packed` too: see `learning.prompt_learning`

    def tokens(self, strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, L) and mask (N, L), special tokens included."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (N, L, E), before positions and token types are added."""
        ...

    def encode(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """(N, D) unit norm: positions, layers, pooling and projection of the original."""
        ...


class Encoder(Protocol):
    """A VLM, frozen. The feature cache is an Encoder around an Encoder. Two identities: new prompts keep cached images valid."""

    @property
    def spec(self) -> str: ...
    @property
    def image_identity(self) -> str: ...
    @property
    def text_identity(self) -> str: ...
    @property
    def scale(self) -> float:
        """The checkpoint's own logit scale, after exp."""
        ...

    @property
    def bias(self) -> float: ...
    @property
    def image_tower(self) -> nn.Module:
        """Prepared pixels (N, 3, S, S) -> whole (N, D), scales: maps (N, F, G, G), coarsest first."""
        ...

    @property
    def text_tower(self) -> Any:
        """A TextTower, or None."""
        ...

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        """(N, D), unit norm, in the text's space."""
        ...

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        """One map (N, F, G, G) a scale, coarsest first; the first lies in the text's space (F = D)."""
        ...

    def texts(self, strings: Sequence[str]) -> Tensor:
        """(N, D), unit norm."""
        ...

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> Encoder:
        """The same encoder with another tower; only the changed side leaves the cache."""
        ...


# ---- a question -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """C answers to choose among and their wording; new ones at predict where the method allows it."""

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    exclusive: bool = True  # one of C; else C times yes or no
    negatives: tuple[tuple[str, ...], ...] | None = None  # wording of the absence of each, where it is not exclusive

    def __post_init__(self) -> None:
        if self.negatives is not None and (self.exclusive or len(self.negatives) != len(self.names) or not all(self.negatives)):
            raise DataError("negative prompts are for candidates of which several may hold: give at least one sentence a candidate")
        if len(self.names) != len(self.prompts):
            raise DataError(f"{len(self.names)} candidates but {len(self.prompts)} lists of prompts: give one list a candidate")
        empty = [name for name, prompts in zip(self.names, self.prompts, strict=True) if not prompts]
        if empty:
            raise DataError(f"no prompt for {', '.join(map(repr, empty))}: give at least one sentence a candidate")


@dataclass(frozen=True, kw_only=True)
class Query:
    """N rows. A row is a sample, a region of it, and words. Held as a recipe: vectors are made when asked for, by any encoder."""

    wants: Kind
    samples: Samples
    encoder: Encoder
    source: Array  # (N,) the sample of each row
    regions: Tensor | None = None  # (N, 4) x0 y0 x1 y1 in 0..1; None: the whole image
    words: tuple[str, ...] | None = None  # (N,) a prompt or a question a row
    candidates: Candidates | None = None  # where it wants scores or boxes
    allowed: Array | None = None  # (N, C) the candidates that a row may take
    size: tuple[int, int] | None = None  # grids: height and width at which the answer is wanted

    def __len__(self) -> int:
        return len(self.source)

    @property
    def wanted(self) -> Candidates:
        if self.candidates is None:
            raise PairError(f"this query wants {self.wants} and has no candidates to score")
        return self.candidates

    def vectors(self, encoder: Encoder | None = None) -> Tensor:
        """(N, D) in the text's space, unit norm; differentiable where the encoder is."""
        encoder = encoder or self.encoder
        if self.regions is None:
            return encoder.whole(self.samples)[torch.as_tensor(self.source)]
        return pooled(encoder.grid(self.samples)[0], self.source, self.regions)

    def features(self, encoder: Encoder | None = None) -> Tensor:
        """(N, F) all that is known of a row, its words too, not in the text's space: for probes and caches."""
        encoder = encoder or self.encoder
        if self.regions is None:
            image = self.vectors(encoder)
        else:
            image = torch.cat([pooled(scale, self.source, self.regions) for scale in encoder.grid(self.samples)], 1)
        if self.words is None:
            return image
        return torch.cat([image, encoder.texts(self.words)], 1)

    def texts(self, encoder: Encoder | None = None) -> Tensor:
        """(C, D), or (N, C, D) where words change them: the unit vectors of words and candidate are added.

        Where a candidate has negative prompts, its vector is the direction from their mean to that of the positive ones, so
        that it ranks images as the softmax over such a pair does (Tiu et al. 2022).
        """
        encoder, wanted = encoder or self.encoder, self.wanted
        candidates = sentence_means(encoder, wanted.prompts)
        if wanted.negatives is not None:
            candidates = nn.functional.normalize(candidates - sentence_means(encoder, wanted.negatives), dim=-1)
        if self.words is None:
            return candidates
        return nn.functional.normalize(encoder.texts(self.words)[:, None] + candidates[None], dim=-1)

    def maps(self, side: int, encoder: Encoder | None = None) -> Tensor:
        """(N, F, side, side) every scale of the grid at one resolution, each cell's vector of unit norm, joined."""
        scales = (nn.functional.normalize(scale, dim=1) for scale in (encoder or self.encoder).grid(self.samples))
        joined = torch.cat([nn.functional.interpolate(scale, (side, side), mode="bilinear") for scale in scales], 1)
        return joined[torch.as_tensor(self.source)]

    def pixels(self, column: str = "image", size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, H, W), cropped to the region where a row has one."""
        pixels, size = self.samples.pixels(column, size or self.size), size or self.size
        if self.regions is None:
            return pixels[torch.as_tensor(self.source)]
        return cropped(pixels, self.source, self.regions, size or (pixels.shape[2], pixels.shape[3]))

    def take(self, rows: Rows) -> Query:
        """Some rows, with the samples that they need and no others."""
        rows = np.asarray(rows, dtype=int)
        used, source = np.unique(self.source[rows], return_inverse=True)
        return replace(
            self,
            samples=self.samples.take(used),
            source=source,
            regions=None if self.regions is None else self.regions[torch.as_tensor(rows)],
            words=None if self.words is None else tuple(self.words[i] for i in rows),
            allowed=None if self.allowed is None else self.allowed[rows],
        )

    def batches(self, samples: int) -> Iterator[Query]:
        """The same rows in the same order, rows of at most `samples` samples at a time."""
        ends = np.flatnonzero(np.diff(self.source // samples)) + 1
        for rows in np.split(np.arange(len(self)), ends):
            if len(rows):
                yield self.take(rows)


def sentence_means(encoder: Encoder, prompts: Sequence[Sequence[str]]) -> Tensor:
    """(C, D), unit norm: the mean of the unit vectors of each candidate's sentences."""
    flat = encoder.texts([sentence for sentences in prompts for sentence in sentences])
    owner = torch.as_tensor([k for k, sentences in enumerate(prompts) for _ in sentences])
    means = torch.zeros(len(prompts), flat.shape[1], dtype=flat.dtype).index_add(0, owner, flat)
    return nn.functional.normalize(means, dim=-1)


# ---- what fit may see -----------------------------------------------------------------------------------------


class Fitted(Protocol):
    """Another run, as a method sees it: teacher, segmenter, expert. Saved inside the run that uses it."""

    def predict(self, samples: Samples, words: Sequence[str] | None = None) -> Predicted: ...
    def answer(self, query: Query) -> Answer: ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All that fit may see. No test row is in it, labelled or not."""

    query: Query
    targets: Any  # scores (N, C) in 0..1, NaN unknown; grids (N, K, H, W); texts: a list of N
    loss: Callable[[Tensor, Tensor], Tensor] | None = None  # grids: how the task compares
    unlabelled: Query | None = None  # training rows without labels
    reports: Sequence[str | None] | None = None  # (N,) what was written about each row, where the manifest has it
    helpers: Mapping[str, Fitted] = field(default_factory=dict)
    seed: int = 0

    def take(self, rows: Rows) -> Problem:
        rows = np.asarray(rows, dtype=int)
        listed = isinstance(self.targets, list)
        targets = [self.targets[i] for i in rows] if listed else self.targets[torch.as_tensor(rows)]
        reports = None if self.reports is None else [self.reports[i] for i in rows]
        return replace(self, query=self.query.take(rows), targets=targets, reports=reports)

    def folds(self, k: int) -> Iterator[tuple[Problem, Problem]]:
        """K pairs (fit, held out) by group, never by row: what is alike in its labels is dealt out evenly."""
        fold = dealt(self.query.samples.groups, row_labels(self), self.query.source, k, self.seed)
        for held in range(k):
            inside, outside = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
            if len(inside) and len(outside):
                yield self.take(inside), self.take(outside)


def row_labels(problem: Problem) -> Array:
    """(N,) a coarse label a row, to deal folds evenly: the largest target of a score row, else nothing."""
    if isinstance(problem.targets, Tensor) and problem.targets.ndim == 2:
        return np.asarray(problem.targets.nan_to_num(0).argmax(1))
    return np.zeros(len(problem.query), dtype=int)


def dealt(groups: Array, labels: Array, source: Array, k: int, seed: int) -> Array:
    """(N,) the fold of each row: groups are shuffled, ordered by their commonest label, and dealt in turn."""
    names, of_sample = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    of_row = of_sample[source]
    common = np.array([np.bincount(labels[of_row == g], minlength=1).argmax() if (of_row == g).any() else 0 for g in range(len(names))])
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(common[order], kind="stable")]
    fold_of_group = np.empty(len(names), dtype=int)
    fold_of_group[order] = np.arange(len(names)) % k
    return np.asarray(fold_of_group[of_row])


# ---- an answer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """(N, C) logits; a row of NaN is a refusal."""

    values: Tensor

    def __post_init__(self) -> None:
        _check(self.values, 2, "scores (rows, candidates)")


@dataclass(frozen=True)
class Grids:
    """(N, K, H, W): mask logits, centre maps, an image, or a displacement (x, y) in fractions of width and height."""

    values: Tensor

    def __post_init__(self) -> None:
        _check(self.values, 4, "grids (rows, maps, height, width)")


@dataclass(frozen=True)
class Texts:
    """A text a row."""

    values: list[str]


@dataclass(frozen=True)
class Boxes:
    """A tensor (n, 6) a row: x0 y0 x1 y1 in 0..1, score, candidate."""

    values: list[Tensor]


Answer: TypeAlias = Scores | Grids | Texts | Boxes


def _check(values: Tensor, dimensions: int, wanted: str) -> None:
    if values.ndim != dimensions:
        raise MedtameError(f"an answer of shape {tuple(values.shape)} where {wanted} is wanted")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What every writer, metric, page and audit reads: a table row a sample, and arrays in the source's geometry."""

    table: list[dict[str, Any]]
    arrays: dict[str, Array] = field(default_factory=dict)

    def to_csv(self, path: str | Path | TextIO) -> None:
        """Write the table as UTF-8 CSV to a path or an open text file."""
        if isinstance(path, (str, Path)):
            with Path(path).open("w", newline="", encoding="utf-8") as file:
                return self.to_csv(file)
        writer = csv.DictWriter(path, list(dict.fromkeys(key for row in self.table for key in row)))
        writer.writeheader()
        writer.writerows(self.table)
        return None


@dataclass(frozen=True)
class Adapted(ABC):
    """A fitted method. Fields: tensors, plain values, other Adapted, encoders; so one function saves them all."""

    @abstractmethod
    def answer(self, query: Query) -> Answer: ...
