"""Images of a manifest by words, by an image, or by both: `medtame search`. Research use only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medtame.data.given_images import opened_images
from medtame.data.packed import place_of
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, ImageError, PairError
from medtame.features import index_folder
from medtame.features.index import EXACT_UP_TO, QUERIES, Index
from medtame.learning.paired import mapped
from medtame.run import RESEARCH_USE, Run, encoder, open
from medtame.strategies.base import Tuned
from medtame.strategies.direct_use.zero_shot import ZeroShotAdapted
from medtame.strategies.tuning.linear_maps import LinearMapsAdapted
from medtame.strategies.tuning.soft_target_maps import SoftTargetMapsAdapted
from medtame.types import Encoder, Samples

PATH = "path"  # the column of an index that says where a file lies


@dataclass(frozen=True)
class Space:
    """Where images and texts are vectors of unit norm: an encoder, or one that a run changed. The identities say which."""

    spec: str
    image_identity: str
    text_identity: str
    images: Callable[[Samples], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    encoder: Encoder  # for pairs that are judged by maps of their own

    @property
    def identity(self) -> dict[str, str]:
        return {"spec": self.spec, "image_identity": self.image_identity, "text_identity": self.text_identity}


@dataclass(frozen=True)
class Hit:
    """A place in the list: the image as the manifest spells it, its cosine, its other cells, and where its file lies."""

    rank: int
    image: str
    score: float
    cells: dict[str, str]
    path: str


@dataclass(frozen=True)
class SearchResult:
    encoder: str
    index: str  # its folder, or nothing
    images: int
    searched: int  # images that the filters left
    asked: dict[str, Any]
    how: str
    hits: list[Hit]
    notes: list[str]

    def json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self), "use": RESEARCH_USE}


# ---- encoder or run -------------------------------------------------------------------------------------------


def space(name: str, *, watch: Callable[[int, int], None] | None = None) -> Space:
    """An encoder by its name, or the folder of a run. Raises PairError for a run whose method makes no vectors."""
    folder = Path(name)
    if not ((folder / "config.json").is_file() and (folder / "weights.safetensors").is_file() and is_run(folder)):
        return of_encoder(encoder(name, watch=watch))
    run = open(folder)
    if isinstance(run.adapted, ZeroShotAdapted):
        return of_encoder(run.encoder)
    if isinstance(run.adapted, Tuned):
        return marked(of_encoder(run.adapted.built(run.encoder)), run, folder)
    if isinstance(run.adapted, (LinearMapsAdapted, SoftTargetMapsAdapted)):
        base, maps = of_encoder(run.encoder), run.adapted.maps
        changed = replace(
            base,
            images=lambda samples: mapped(base.images(samples), maps[0], maps[1]).float(),
            texts=lambda strings: mapped(base.texts(strings), maps[2], maps[3]).float(),
        )
        return marked(changed, run, folder)
    raise PairError(
        f"{run.about['method']['name']} of {name} scores candidates and makes no vectors of images and of any words: "
        f"search with the encoder {run.encoder.spec}, or with a run of zero_shot, linear_maps, lora or another that changes the encoder"
    )


def is_run(folder: Path) -> bool:
    """An encoder's folder has a config.json, too; that of a run begins with its format."""
    return '"about"' in (folder / "config.json").read_text(encoding="utf-8", errors="replace")


def of_encoder(found: Encoder) -> Space:
    return Space(found.spec, found.image_identity, found.text_identity, found.whole, found.texts, found)


def marked(base: Space, run: Run, folder: Path) -> Space:
    """With identities that say what was learnt: of the encoder, the method, and its weights."""
    mark = f"{run.about['method']['name']} {hashlib.sha256((folder / 'weights.safetensors').read_bytes()).hexdigest()[:16]}"
    text = f"{run.encoder.text_identity}+{mark}" if run.encoder.text_identity else ""
    return replace(base, spec=str(folder), image_identity=f"{run.encoder.image_identity}+{mark}", text_identity=text)


# ---- the index ------------------------------------------------------------------------------------------------


def indexed(
    where: Space, data: Path, folder: Path | None, *, columns: Mapping[str, str], root: Path | None, window: str
) -> tuple[Index, list[str]]:
    """An index of DATA (a manifest, a folder of images, or an index), and what is to be said of it.

    With `folder` it is kept there, and images that it holds already, by digest, are not looked at again.
    """
    if index_folder.is_index(data):
        if folder is not None and folder.absolute() != data.absolute():
            raise DataError(f"{data} is an index already: leave --index out, or give the images")
        return index_folder.read(data, where.identity), []
    kept = folder is not None and index_folder.is_index(folder)
    if folder is not None and not kept and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is no index and is not empty: give a new folder with --index")
    index = index_folder.read(folder, where.identity) if folder is not None and kept else Index(where.identity)
    index, notes = grown(index, where, read(data, columns, root).windowed(window))
    if not len(index):
        raise DataError(f"no image of {data} can be read: give others")
    return (index if folder is None else index_folder.write(index, folder)), notes


def read(data: Path, columns: Mapping[str, str], root: Path | None) -> ManifestSamples:
    from medtame.data import manifest

    if manifest.is_manifest(data):
        return manifest.read(data, columns=columns, root=root)
    return opened_images(data)


def grown(index: Index, where: Space, samples: ManifestSamples) -> tuple[Index, list[str]]:
    """With the images of `samples` that it lacks; of rows with the same image the first. An unreadable image is left out and counted."""
    if "image" not in samples:
        raise DataError("there is no column 'image': name yours with --columns image=YOURS")
    samples = samples.take([row for row, cell in enumerate(samples.column("image")) if cell is not None])
    digests, broken = digested(samples)
    first: dict[str, int] = {}
    known = index.known()
    for row, digest in enumerate(digests):
        if digest and digest not in known:
            first.setdefault(digest, row)
    new, vectors, more = encoded(where, samples.take(list(first.values())))
    broken += more
    texts = None
    if where.text_identity and "text" in new:
        words = list(dict.fromkeys(str(text) for text in new.column("text") if text is not None and str(text).strip()))
        texts = where.texts(words[:: max(1, len(words) // QUERIES)]) if words and len(index) + len(new) > EXACT_UP_TO else None
    found = index.added(vectors, [picture.digest() for picture in new.pictures()], cells(new), texts) if len(new) else index
    notes = [f"{len(broken)} images cannot be read and were left out, the first: {broken[0]}"] if broken else []
    return found, notes


def digested(samples: ManifestSamples) -> tuple[list[str], list[str]]:
    """The SHA-256 of each image, empty where the file cannot be read, and why."""
    digests, broken = [], []
    for picture in samples.pictures():
        try:
            digests.append(picture.digest())
        except ImageError as error:
            digests.append("")
            broken.append(str(error))
    return digests, broken


def encoded(where: Space, samples: ManifestSamples) -> tuple[ManifestSamples, Tensor, list[str]]:
    """Samples whose images can be read, their vectors (n, D) of unit norm, and why others cannot."""
    if not len(samples):
        return samples, torch.zeros(0, 0), []
    broken: dict[int, str] = {}
    try:
        with torch.no_grad():
            found = where.images(samples)
    except ImageError:
        for row, picture in enumerate(samples.pictures()):
            try:
                picture.array()
            except ImageError as error:
                broken[row] = str(error)
        samples = samples.take([row for row in range(len(samples)) if row not in broken])
        if not broken:
            raise
        if not len(samples):
            return samples, torch.zeros(0, 0), list(broken.values())
        with torch.no_grad():
            found = where.images(samples)
    return samples, nn.functional.normalize(found.float(), dim=1), list(broken.values())


def cells(samples: ManifestSamples) -> dict[str, list[str | None]]:
    """The columns of an index: names of images as the manifest spells them, where their files lie, and all that is text or number."""
    found: dict[str, list[str | None]] = {"image": [picture.name for picture in samples.pictures()]}
    found[PATH] = [place_of(cell, samples.root) for cell in samples.column("image")]
    for name, values in samples.columns.items():
        if name not in found and all(value is None or isinstance(value, (str, int, float)) for value in values):
            found[name] = [None if value is None else str(value) for value in values]
    return found


# ---- asking ---------------------------------------------------------------------------------------------------


def query(where: Space, text: str, image: Path | None, window: str) -> tuple[Tensor, str]:
    """(1, D) of words, of an image, or of both: the sum of their unit vectors, of unit norm. And a sentence that says which."""
    parts = []
    if text.strip():
        if not where.text_identity:
            raise PairError(f"the encoder {where.spec} has no text side: ask with --image")
        parts.append(where.texts([text]))
    if image is not None:
        if not image.is_file():
            raise DataError(f"there is no file {image}: correct the path after --image")
        parts.append(where.images(opened_images([image]).windowed(window)))
    if not parts:
        raise DataError('nothing is asked: give words with --text "…", an image with --image, or both')
    units = [nn.functional.normalize(part.detach().float(), dim=1) for part in parts]
    told = "the sum of both unit vectors, text and image, of unit norm" if len(units) > 1 else "the text" if text.strip() else "the image"
    return nn.functional.normalize(sum(units, torch.zeros_like(units[0])), dim=1), told


def search(
    where: Space,
    data: Path,
    *,
    text: str = "",
    image: Path | None = None,
    filters: Mapping[str, str] | None = None,
    count: int = 10,
    folder: Path | None = None,
    exactly: bool = False,
    columns: Mapping[str, str] | None = None,
    root: Path | None = None,
    window: str = "",
) -> SearchResult:
    """The `count` images nearest to words, to an image, or to both, among those whose columns have the values of `filters`."""
    asked, told = query(where, text, image, window)
    index, notes = indexed(where, data, folder, columns=columns or {}, root=root, window=window)
    chosen = index.where(filters or {})
    found = index.nearest(asked, count, chosen, exactly=exactly)
    size = len(index) if chosen is None else len(chosen)
    hits = [
        hit(index, rank, int(row), float(score)) for rank, (row, score) in enumerate(zip(found.rows[0], found.cosines[0], strict=True), 1)
    ]
    return SearchResult(
        encoder=where.spec,
        index=str(folder or (data if index_folder.is_index(data) else "")),
        images=len(index),
        searched=size,
        asked={"text": text, "image": "" if image is None else str(image), "where": dict(filters or {}), "vector": told},
        how=index.how(size, exactly=exactly),
        hits=hits,
        notes=notes,
    )


def hit(index: Index, rank: int, row: int, score: float) -> Hit:
    line = {name: value for name, value in index.line(row).items() if value is not None}
    return Hit(rank, line.pop("image", ""), score, {name: value for name, value in line.items() if name != PATH}, line.get(PATH, ""))
