"""A text side that knows the classes: every scoring method beside it, at three levels of noise in what the words mean.

    python examples/known_words.py --out known_words

No encoder at hand knows the words of medical images, so on real images zero-shot is near chance and no method can gain by the
text. Here such an encoder is made of simulated images (`medtame.data.phantom`), some of which are set aside for it and are in no
support and not in the test. Its image side is `bundled` and a linear map that brings images to their captions, as the training of
a vision-language model does (`--image-side bundled` leaves the map out). Its class sentences are means of their class's images,
with noise. Writes a comparison with its report for each level of noise, and tables.md for all that are finished, into the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import medtame
from medtame.data import phantom
from medtame.errors import EncoderError
from medtame.types import Encoder, Samples

NOISES = {"strong": 0.2, "medium": 1.0, "weak": 2.0}
SHOTS = (1, 2, 4, 16, "all")
METHODS = (
    "zero_shot",
    "prompt_ensemble",
    "dynamic_cache",
    "optimal_transport",
    "transductive",
    "nearest_prototype",
    "linear_probe",
    "text_initialised_probe",
    "cross_modal_probe",
    "task_residual",
    "clap",
    "clip_adapter",
    "tip_adapter",
    "tip_adapter_f",
    "gda",
    "lp_plus_plus",
    "ss_text",
    "ss_text_unlabelled",
)
SCALES = torch.arange(2.5, 101, 2.5)
WIDTH, RIDGE = 64, 30.0


@dataclass(frozen=True)
class ImageSide:
    """A linear map of image vectors (N, F) to vectors (N, D) of unit norm; `words` (F, D) brings other sentences there."""

    centre: Tensor  # (F,)
    weight: Tensor  # (F, D)
    start: Tensor  # (D,)
    words: Tensor  # (F, D)

    def __call__(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize((vectors - self.centre) @ self.weight + self.start, dim=-1)

    @property
    def identity(self) -> str:
        parts = (self.centre, self.weight, self.start, self.words)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def as_it_is(width: int) -> ImageSide:
    return ImageSide(torch.zeros(width), torch.eye(width), torch.zeros(width), torch.eye(width))


def aligned(images: Tensor, captions: Tensor) -> tuple[ImageSide, Tensor]:
    """Ridge regression of images (n, F) on their captions (n, F), and the vectors (n, D) of these images, each left out in its turn.

    The ridge shrinks what it predicts; the map is stretched until images spread as captions do, which a contrastive loss would see
    to. RIDGE is high for a reason: it leaves much in the image vectors that the words do not name, so that one image a class is a
    poor example of it, as published few-shot tables have it.
    """
    images, captions = images.double(), captions.double()
    centre, start = images.mean(0), captions.mean(0)
    x, t = images - centre, captions - start
    gram = x @ x.T
    solved = torch.linalg.inv(gram + RIDGE * torch.eye(len(x), dtype=x.dtype))
    weight = x.T @ solved @ t
    stretch = (t.square().sum() / (x @ weight).square().sum()).sqrt()
    axes = torch.linalg.svd(x @ weight, full_matrices=False)[2][: WIDTH - 1]
    basis = torch.linalg.qr(torch.cat([start[None], axes]).T)[0]
    hat = gram @ solved
    left_out = t - (t - hat @ t) / (1 - hat.diag())[:, None]
    side = ImageSide(*(part.float() for part in (centre, stretch * weight @ basis, start @ basis, basis)))
    return side, nn.functional.normalize((start + stretch * left_out) @ basis, dim=-1).float()


@dataclass(frozen=True)
class KnownWords:
    """An encoder whose images are those of `inner`, mapped, and whose sentences that name one class are its mean, with noise.

    `noise` is the length of a random vector that is added to the mean of norm 1: half of its square is the class's own, in all of
    its sentences, half is each sentence's. Every other sentence is given to the text side of `inner`.
    """

    inner: Encoder
    image_side: ImageSide
    names: tuple[str, ...]
    means: Tensor  # (C, D) unit norm
    scale: float
    noise: float
    seed: int = 0
    bias: float = 0.0
    text_tower: None = None

    @property
    def spec(self) -> str:
        return f"{self.inner.spec}, mapped, words known but for noise {self.noise:g}"

    @property
    def image_identity(self) -> str:
        return f"{self.inner.image_identity};mapped@{self.image_side.identity}"

    @property
    def text_identity(self) -> str:
        means = hashlib.sha256(self.means.numpy().tobytes()).hexdigest()[:16]
        return f"class means@{means};{'|'.join(self.names)};noise={self.noise!r};seed={self.seed};else {self.other_words}"

    @property
    def other_words(self) -> str:
        return f"{self.inner.text_identity};mapped@{self.image_side.identity}"

    @property
    def image_tower(self) -> nn.Module:
        raise EncoderError("the image side of this encoder is frozen: take a method on frozen features")

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        return self.image_side(self.inner.whole(samples, column))

    def grid(self, samples: Samples, column: str = "image") -> tuple[Tensor, ...]:
        cells = self.inner.grid(samples, column)[0].permute(0, 2, 3, 1)
        return (self.image_side(cells).permute(0, 3, 1, 2),)

    def texts(self, strings: Sequence[str]) -> Tensor:
        named = [self.named(string) for string in strings]
        others = [string for string, name in zip(strings, named, strict=True) if name is None]
        rest = iter(nn.functional.normalize(self.inner.texts(others) @ self.image_side.words, dim=-1) if others else ())
        return torch.stack([next(rest) if name is None else self.known(string, name) for string, name in zip(strings, named, strict=True)])

    def named(self, string: str) -> str | None:
        """The one class that a sentence names; None where it names none or several."""
        found = [name for name in self.names if re.search(rf"\b{re.escape(name)}\b", string, re.IGNORECASE)]
        return found[0] if len(found) == 1 else None

    def known(self, string: str, name: str) -> Tensor:
        width = self.means.shape[1]
        added = (drawn(f"{self.seed} class {name}", width) + drawn(f"{self.seed} sentence {string}", width)) / 2**0.5
        return nn.functional.normalize(self.means[self.names.index(name)] + self.noise * added, dim=0)

    def changed(self, *, image: nn.Module | None = None, text: Any = None, identity: str) -> Encoder:
        raise EncoderError("the words of this encoder are a table, so no side of it can be changed: take a method on frozen features")


def drawn(what: str, width: int) -> Tensor:
    """(D,) a random direction of norm about 1, always the same for the same words."""
    number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7])
    return torch.randn(width, generator=torch.Generator().manual_seed(number)) / width**0.5


def class_means(vectors: Tensor, labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """(C, D) unit norm"""
    of_class = [torch.tensor([label == name for label in labels]) for name in names]
    return nn.functional.normalize(torch.stack([vectors[rows].mean(0) for rows in of_class]), dim=1)


def learnt_scale(vectors: Tensor, labels: Sequence[str], names: Sequence[str]) -> float:
    """The logit scale of least cross-entropy, at most 100, of each image and the class means without it.

    What training on these images would have found. One for all levels of noise: a checkpoint has one scale, whatever it knows.
    """
    truth = torch.tensor([names.index(label) for label in labels])
    of_class = nn.functional.one_hot(truth, len(names)).float()
    left_out = (of_class.T @ vectors)[None] - of_class[:, :, None] * vectors[:, None]  # (n, C, D)
    cosine = torch.einsum("nd,ncd->nc", vectors, nn.functional.normalize(left_out, dim=-1))
    return float(SCALES[torch.stack([nn.functional.cross_entropy(scale * cosine, truth) for scale in SCALES]).argmin()])


def set_aside(manifest: Path, each: int, seed: int) -> tuple[Path, Path]:
    """Two manifests beside the given one: `each` training rows a class, for the words, and all other rows."""
    rows = pd.read_csv(manifest)
    training = rows[rows.split == "train"].sample(frac=1, random_state=seed)
    chosen = training.groupby("label").head(each).index
    paths = manifest.with_name("for_the_words.csv"), manifest.with_name("for_the_methods.csv")
    for path, part in zip(paths, (rows.loc[chosen].sort_index(), rows.drop(chosen)), strict=True):
        part.to_csv(path, index=False)
    return paths


def encoder_of(words: Path, noise: float, inner: Encoder, image_side: str, seed: int) -> KnownWords:
    """The encoder of a level of noise, from the images and captions of the manifest."""
    samples = medtame.load(words).samples
    labels, vectors = [str(label) for label in samples.column("label")], inner.whole(samples)
    side = as_it_is(vectors.shape[1])
    if image_side == "aligned":
        side, vectors = aligned(vectors, inner.texts([str(text) for text in samples.column("text")]))
    names = tuple(sorted(set(labels)))
    return KnownWords(inner, side, names, class_means(vectors, labels, names), learnt_scale(vectors, labels, names), noise, seed)


# ---- tables -----------------------------------------------------------------------------------------------------


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: balanced accuracy of each level, then gains and harm rates of all."""
    at = {(level, row["method"], row["shots"]): row for level, rows in found.items() for row in rows}
    methods = list(dict.fromkeys(method for _, method, _ in at))
    shots = [k for k in SHOTS if any(shot == k for _, _, shot in at)]
    heads = ["all rows" if k == "all" else f"K = {k}" for k in shots]
    parts = []
    for level in found:
        lines = [[method, *(interval(at[level, method, k], "mean", "low", "high") for k in shots)] for method in methods]
        parts.append(f"### Balanced accuracy, {level} text (noise {NOISES[level]:g})\n{table(['method', *heads], lines)}")
    few = [k for k in shots if k != "all"]
    heads = [f"{level}, K = {k}" for level in found for k in few if k in (1, 4)]
    lines = [
        [method, *(interval(at[level, method, k], "gain", "gain_low", "gain_high") for level in found for k in few if k in (1, 4))]
        for method in methods
    ]
    parts.append(f"### Gain over zero-shot\n{table(['method', *heads], lines)}")
    heads = [f"{level}, K = {' / '.join(map(str, few))}" for level in found]
    lines = [[method, *(" / ".join(f"{at[level, method, k]['harm_rate']:.0%}" for k in few) for level in found)] for method in methods]
    parts.append(f"### Share of draws below zero-shot (harm rate)\n{table(['method', *heads], lines)}")
    return "\n\n".join(parts) + "\n"


def interval(row: dict[str, Any], *names: str) -> str:
    value, low, high = (f"{row[name]:.3f}".replace("0.", ".").replace("-.000", ".000") for name in names)
    return f"{value} [{low}, {high}]"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or one of the same call to go on with")
    parser.add_argument("--levels", default=",".join(NOISES), help=f"by commas, of {', '.join(NOISES)} (default all)")
    parser.add_argument("--image-side", choices=("aligned", "bundled"), default="aligned", help="with or without the map")
    parser.add_argument("--patients", type=int, default=600, help="simulated patients, an image each (default 600)")
    parser.add_argument("--words", type=int, default=40, help="training images a class that are set aside for the encoder (default 40)")
    parser.add_argument("--draws", type=int, default=20, help="supports a number of shots (default 20)")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, by commas")
    parser.add_argument("--seed", type=int, default=3, help="of the phantom, the noise and the draws (default 3)")
    given = parser.parse_args()
    unknown = [level for level in given.levels.split(",") if level not in NOISES]
    if unknown:
        parser.error(f"--levels has {', '.join(unknown)}: give some of {', '.join(NOISES)}")
    return given


def main() -> None:
    given = asked()
    images = given.out / "images"
    if not images.exists():
        phantom.make(images, patients=given.patients, seed=given.seed, difficulty="easy", size=96)
    words, methods = set_aside(images / "images.csv", given.words, given.seed)
    for level in given.levels.split(","):
        encoder = encoder_of(words, NOISES[level], medtame.encoder("bundled"), given.image_side, given.seed)
        medtame.compare(
            medtame.load(methods),
            encoder,
            methods=given.methods.split(","),
            shots=SHOTS,
            draws=given.draws,
            seed=given.seed,
            out=given.out / level,
            resume=True,
            command=f"python examples/known_words.py --image-side {given.image_side} --levels {level}",
        )
    found = {level: given.out / level / "result.json" for level in NOISES if (given.out / level / "result.json").is_file()}
    rows = {level: json.loads(path.read_text(encoding="utf-8"))["rows"] for level, path in found.items()}
    (given.out / "tables.md").write_text(tables(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
