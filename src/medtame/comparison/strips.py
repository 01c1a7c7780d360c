"""What one looks at for retrieval: queries with what was found and the right ones marked, ranks, and a map of both sides."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

from medtame.metrics.retrieval import first_ranks
from medtame.types import Array, Picture, Predicted, Samples

QUERIES, FOUND, TILE = 4, 6, 96  # of each direction; items of a strip; pixels of an item
RIGHT, WRONG = (0, 158, 115), (190, 198, 206)
LETTERS = 70  # of a text in a caption
SIDES = (("image", "o"), ("text", "^"))


def strips(said: Predicted, truth: Samples, right: Array, called: Sequence[str]) -> list[dict[str, Any]]:
    """Examples for the report, from scores (N, C) and right (N, C) bool; `called`: a name a row.

    First queries by image, then by text (evenly over the ranks of the right answer, from best to worst), then two figures.
    """
    scores, gallery = said.arrays["scores"], [str(text) for text in said.arrays["gallery"]]
    number = {text: k for k, text in enumerate(gallery)}
    own = np.array([number[str(text)] for text in truth.column("text")])
    to_image, right_images = scores.T[own], right.T[own]
    pictures = truth.pictures()
    ranks = first_ranks(scores, right), first_ranks(to_image, right_images)
    made = [by_image(pictures[row], scores[row], right[row], gallery, called[row]) for row in spread(ranks[0])]
    made += [by_text(gallery[own[row]], to_image[row], right_images[row], pictures, called[row]) for row in spread(ranks[1])]
    return [*made, histogram(ranks, (len(gallery), len(scores))), joint_map(scores, modalities(truth), own)]


def spread(ranks: Array) -> list[int]:
    """Rows evenly over the ranks, best first: no choice of pretty ones."""
    order = np.argsort(ranks, kind="stable")
    return [int(row) for row in order[np.linspace(0, len(order) - 1, min(QUERIES, len(order))).astype(int)]]


def by_image(picture: Picture, scores: Array, right: Array, gallery: Sequence[str], name: str) -> dict[str, Any]:
    first = np.argsort(-scores, kind="stable")[: FOUND // 2]
    told = "; ".join(f"{place}. {'RIGHT' if right[k] else 'wrong'}: {short(gallery[k])}" for place, k in enumerate(first, start=1))
    rank = int(first_ranks(scores[None], right[None])[0])
    tile = framed(picture, RIGHT if right[first[0]] else WRONG, 2 * TILE)
    return {"image": name, "thumbnail": png(tile), "caption": f"image asks; first right text at {rank} of {len(gallery)}. {told}"}


def by_text(text: str, scores: Array, right: Array, pictures: Sequence[Picture], name: str) -> dict[str, Any]:
    """The first images in two lines of three, the right ones with a green frame."""
    sheet = Image.new("RGB", (3 * TILE, 2 * TILE), (255, 255, 255))
    for place, k in enumerate(np.argsort(-scores, kind="stable")[:FOUND]):
        sheet.paste(framed(pictures[k], RIGHT if right[k] else WRONG, TILE), (place % 3 * TILE, place // 3 * TILE))
    rank = int(first_ranks(scores[None], right[None])[0])
    said = f"text asks (of {name}): {short(text).rstrip('.')}. First right image at {rank} of {len(scores)}; right ones have a green frame"
    return {"image": f"text of {name}", "thumbnail": png(sheet), "caption": said}


def framed(picture: Picture, colour: tuple[int, int, int], side: int) -> Image.Image:
    pixels = (np.clip(picture.array(), 0, 1) * 255).astype(np.uint8)
    image = ImageOps.pad(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB"), (side, side))
    ImageDraw.Draw(image).rectangle((0, 0, side - 1, side - 1), outline=colour, width=max(3, side // 24))
    return image


def histogram(ranks: tuple[Array, Array], sizes: tuple[int, int]) -> dict[str, Any]:
    """How many queries have their first right answer at which place, in both directions."""
    figure = Figure(figsize=(4.2, 4.2), layout="tight")
    axes = figure.subplots(2, 1)
    for one, found, size, name in zip(axes, ranks, sizes, ("image asks for texts", "text asks for images"), strict=True):
        one.hist(found, bins=np.linspace(0.5, size + 0.5, min(size, 30) + 1).tolist(), color="#0072B2")
        one.axvline(np.median(found), color="#D55E00", linewidth=1.5)
        one.set_title(f"{name}: median rank {np.median(found):.0f} of {size}", fontsize=9)
        one.tick_params(labelsize=8)
        one.set_ylabel("queries", fontsize=8)
    axes[1].set_xlabel("rank of the first right answer", fontsize=8)
    caption = "rank of the first right answer, both directions; orange: the median"
    return {"image": "rank histogram", "thumbnail": drawn(figure), "caption": caption}


def joint_map(scores: Array, groups: Sequence[str], own: Array) -> dict[str, Any]:
    """Images and texts in one plane: the first two directions of the scores, centred both ways (a biplot), so that near means scored high.

    Coloured by `groups`, a word a row; a text takes the colour of a row that has it.
    """
    points = plane(scores)
    names = sorted(set(groups))
    of_text = dict(zip(own.tolist(), groups, strict=True))
    words = (list(groups), [of_text.get(k, "other") for k in range(scores.shape[1])])
    figure = Figure(figsize=(4.2, 4.2), layout="tight")
    axes = figure.subplots()
    for place, name in enumerate(names):
        for (kind, marker), side, held in zip(SIDES, points, words, strict=True):
            rows = [k for k, word in enumerate(held) if word == name]
            axes.scatter(
                side[rows, 0],
                side[rows, 1],
                s=12,
                marker=marker,
                color=f"C{place % 10}",
                alpha=0.6,
                label=kind if len(names) == 1 else f"{name}: {kind}",
            )
    axes.legend(fontsize=6, loc="best")
    axes.tick_params(labelsize=7)
    caption = "images (circles) and texts (triangles) as the scores place them, coloured by modality where the manifest has it"
    return {"image": "joint map", "thumbnail": drawn(figure), "caption": caption}


def plane(scores: Array) -> tuple[Array, Array]:
    """(N, 2) and (C, 2) from finite scores (N, C): the two largest singular directions of the doubly centred scores, shared evenly."""
    known = np.nan_to_num(scores)
    centred = known - known.mean(0) - known.mean(1, keepdims=True) + known.mean()
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    root = np.sqrt(np.pad(values, (0, 2))[:2])
    return np.pad(left, ((0, 0), (0, 2)))[:, :2] * root, np.pad(right.T, ((0, 0), (0, 2)))[:, :2] * root


def modalities(samples: Samples) -> list[str]:
    """A word a row to colour by: the column `modality`, else nothing but a row."""
    found = samples.column("modality") if "modality" in samples else [None] * len(samples)
    return [str(word) if word is not None else "all" for word in found]


def short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return b64encode(buffer.getvalue()).decode()


def drawn(figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return b64encode(buffer.getvalue()).decode()
