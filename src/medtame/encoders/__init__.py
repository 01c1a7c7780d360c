"""Encoders by name: `bundled`, `open_clip:...`, `hf:...`, a short name such as `biomedclip`, or the folder of a model.

`bundled` (or `bundled:FOLDER`) · `open_clip:MODEL/TAG`, `open_clip:hf-hub:OWNER/NAME`, `open_clip:FOLDER` · `hf:OWNER/NAME`,
`hf:FOLDER` · `pretrained:FOLDER` (of `medtame pretrain`) · a short name of known.csv · a folder alone. `@whole` at the end of `hf` and
`open_clip` stretches the whole image where the checkpoint would cut its border off. `@dense` at the end of a vision transformer gives
finer maps of several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from medtame.encoders import bundled, dense, known, pretrained
from medtame.encoders.dense import DENSE
from medtame.encoders.preparation import WHOLE
from medtame.encoders.towers import EncoderCard, TowerEncoder
from medtame.errors import EncoderError, UnknownNameError

Made = TypeVar("Made")
Opener = Callable[[], TowerEncoder]
Opened = tuple[Callable[[], EncoderCard], Opener]


def _bundled(rest: str) -> Opened:
    folder = Path(rest) if rest else None
    return lambda: bundled.card(folder), lambda: bundled.load(folder)


def _open_clip(rest: str) -> Opened:
    from medtame.encoders import open_clip_models as models  # here, because its libraries take seconds to import

    return partial(models.card, rest.removesuffix(WHOLE), whole=rest.endswith(WHOLE)), partial(
        models.load, rest.removesuffix(WHOLE), whole=rest.endswith(WHOLE)
    )


def _hugging_face(rest: str) -> Opened:
    from medtame.encoders import hugging_face as models

    return partial(models.card, rest.removesuffix(WHOLE), whole=rest.endswith(WHOLE)), partial(
        models.load, rest.removesuffix(WHOLE), whole=rest.endswith(WHOLE)
    )


def _pretrained(rest: str) -> Opened:
    folder = Path(rest).expanduser()
    return partial(pretrained.card, folder, card), partial(pretrained.load, folder, card, load)


FAMILIES: Mapping[str, Callable[[str], Opened]] = {
    "bundled": _bundled,
    "open_clip": _open_clip,
    "hf": _hugging_face,
    "pretrained": _pretrained,
}


def card(spec: str) -> EncoderCard:
    """What is known of an encoder before its weights are read. Raises UnknownNameError, MissingExtraError, EncoderError."""
    if spec.endswith(DENSE):
        return dense.card(card(spec.removesuffix(DENSE)))
    found = _whole(spec, _family(spec)[0])
    return found if _named_in_full(spec) else replace(found, spec=spec)


def load(spec: str) -> TowerEncoder:
    """The encoder, its weights read and checked. Raises UnknownNameError, MissingExtraError, EncoderError."""
    if spec.endswith(DENSE):
        return dense.of(load(spec.removesuffix(DENSE)))
    found = _whole(spec, _family(spec)[1])
    return found if _named_in_full(spec) else replace(found, spec=spec)


def _whole(spec: str, opened: Callable[[], Made]) -> Made:
    """What a family gives; a configuration that holds something else than it should is one line."""
    try:
        return opened()
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise EncoderError(
            f"a configuration file of {spec} holds what cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:120]}): "
            "copy config.json, preprocessor_config.json or open_clip_config.json from the source again"
        ) from None


def resolved(spec: str) -> str:
    """The spec with its family, which a short name or a bare folder stands for. Raises UnknownNameError, EncoderError."""
    if spec.endswith(DENSE):
        return resolved(spec.removesuffix(DENSE)) + DENSE
    if _named_in_full(spec):
        return spec
    name, suffix = spec.removesuffix(WHOLE), WHOLE if spec.endswith(WHOLE) else ""
    row = known.named(name)
    if row is not None:
        return known.opened(row) + suffix
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UnknownNameError("encoder", spec, (*FAMILIES, *known.names()))
    for file, family in ((pretrained.CONFIG, "pretrained"), ("open_clip_config.json", "open_clip"), ("config.json", "hf")):
        if (folder / file).is_file():
            return f"{family}:{spec}"
    kinds = "an open_clip or transformers model, or of medtame pretrain"
    raise EncoderError(f"{folder} has neither open_clip_config.json nor config.json: give the folder of {kinds}")


def _named_in_full(spec: str) -> bool:
    return spec.partition(":")[0] in FAMILIES


def _family(spec: str) -> Opened:
    family, _, rest = resolved(spec).partition(":")
    return FAMILIES[family](rest)
