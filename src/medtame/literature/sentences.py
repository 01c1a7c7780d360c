"""Which titles mean something like a text: MiniLM's sentence embeddings in NumPy, so that an answer needs no torch.

The sentence tower of `bundled` (Wang et al. 2020, MiniLM) takes five seconds to import and a millisecond to run. The same six
layers in NumPy, with the vectors of all titles kept on disk, answer in under a second. A test holds both equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medtame.errors import EncoderError

Array: TypeAlias = NDArray[np.float32]
HEADS, LAYERS, EPSILON, MOST_TOKENS = 12, 6, 1e-12, 256
FORMAT = 1


@dataclass(frozen=True)
class Files:
    """Where the weights and the tokenizer of the sentence tower lie."""

    weights: Path
    tokenizer: Path

    def stamp(self) -> list[list[str | int]]:
        """Path, size and time of both, so that changed files are noticed."""
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in (self.weights, self.tokenizer)]


def embedded(texts: Sequence[str], files: Files) -> Array:
    """(N, 384) sentence embeddings, unit norm. Raises EncoderError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    try:
        weights = load_file(files.weights)
        tokenizer = Tokenizer.from_file(str(files.tokenizer))
    except (OSError, SafetensorError, ValueError) as error:
        raise EncoderError(f"{files.weights} cannot be read ({type(error).__name__}): install or copy it again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    return np.stack([one(weights, np.asarray(encoding.ids)) for encoding in tokenizer.encode_batch(list(texts))])


def one(weights: dict[str, Any], ids: NDArray[np.int_]) -> Array:
    """(384,) the embedding of one sentence from its token ids (L,)."""
    states = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    states = normalised(states + weights["embeddings.token_type_embeddings.weight"][0], weights, "embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        attended = linear(attention(states, weights, f"{layer}.attention.self"), weights, f"{layer}.attention.output.dense")
        states = normalised(states + attended, weights, f"{layer}.attention.output.LayerNorm")
        inner = gelu(linear(states, weights, f"{layer}.intermediate.dense"))
        states = normalised(states + linear(inner, weights, f"{layer}.output.dense"), weights, f"{layer}.output.LayerNorm")
    mean = states.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def attention(states: Array, weights: dict[str, Any], name: str) -> Array:
    """(L, 384) softmax attention of all tokens to all, twelve heads."""
    length, width = states.shape
    query, key, value = (
        linear(states, weights, f"{name}.{part}").reshape(length, HEADS, width // HEADS).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(np.float32(width // HEADS))
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.asarray((shares @ value).transpose(1, 0, 2).reshape(length, width))


def linear(states: Array, weights: dict[str, Any], name: str) -> Array:
    return np.asarray(states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def normalised(states: Array, weights: dict[str, Any], name: str) -> Array:
    centred = states - states.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(EPSILON))
    return np.asarray(centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def gelu(values: Array) -> Array:
    """Each value times the normal distribution's integral up to it; erf by Abramowitz and Stegun 1964, 7.1.26, to 1.5e-7."""
    size = np.abs(values) / np.sqrt(np.float32(2))
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    erf = np.sign(values) * (1 - series * np.exp(-(size**2)))
    return np.asarray(0.5 * values * (1 + erf), dtype=np.float32)


# ---- kept vectors --------------------------------------------------------------------------------------------


def alike(text: str, titles: Sequence[str], cache: Path, find: Callable[[], Files]) -> Array:
    """(N,) the cosine of each title with the text. Vectors of titles are kept in the folder `cache`, and made where absent.

    `find` says where the weight files lie, checked; it is asked only where nothing is kept, or the files or titles changed.
    """
    digest = hashlib.sha256("\n".join(titles).encode()).hexdigest()
    place = cache / "literature-titles.npz"
    kept = opened(place, digest)
    if kept is None:
        files = find()
        vectors = embedded([*titles, text], files)
        keep(place, digest, files, vectors[:-1])
        return np.asarray(vectors[:-1] @ vectors[-1])
    files, vectors = kept
    return np.asarray(vectors @ embedded([text], files)[0])


def opened(place: Path, digest: str) -> tuple[Files, Array] | None:
    """The kept vectors where they are of these titles and the weight files are as they were."""
    try:
        with np.load(place, allow_pickle=False) as file:
            about, vectors = json.loads(str(file["about"])), file["vectors"]
        files = Files(*(Path(path) for path, _, _ in about["files"]))
        fits = about["format"] == FORMAT and about["titles"] == digest and about["files"] == files.stamp()
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
    return (files, vectors) if fits else None


def keep(place: Path, digest: str, files: Files, vectors: Array) -> None:
    """Write beside and rename; a folder that may not be written costs time, not the answer."""
    about = json.dumps({"format": FORMAT, "titles": digest, "files": files.stamp()})
    beside = place.with_suffix(f".{hashlib.sha256(about.encode()).hexdigest()[:8]}.npz")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, about=np.array(about), vectors=vectors)
        beside.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
