"""An encoder that was continued on pairs: a folder with what it was, the weights that moved, and what it has seen.

    medtame_encoder.json   the base, the names of both, logit scale and bias, a fingerprint of the tokenizer
    weights.safetensors    the weights that moved: image.NAME, text.NAME
    tokenizer/             the base's tokenizer, where it can be written
    base/NAME/             the base, where that was a folder; else it is opened by its name
    seen.txt               of each image that was learnt from, SHA-256 of file and pixels and the signs of its looks: none is a test image
    README.md              the card

No code: nothing in the folder is run, and no pickle is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medtame.encoders.opened import opened, with_values
from medtame.encoders.towers import EncoderCard, TowerEncoder
from medtame.errors import EncoderError

FORMAT = 1
CONFIG, WEIGHTS, SEEN, BASE, TOKENIZER = "medtame_encoder.json", "weights.safetensors", "seen.txt", "base", "tokenizer"
ASKED = ("a chest X-ray", "No acute cardiopulmonary abnormality.", "T2-weighted MRI, axial", "Ödem 3,5 cm", "hepatocellular carcinoma")


@dataclass(frozen=True, kw_only=True)
class Continued:
    """What pretraining made of an encoder."""

    base: str  # its spec
    how: str  # objectives and what moved, in one line
    image: Mapping[str, Tensor]  # weights by their name in the opened tower
    text: Mapping[str, Tensor]
    scale: float
    bias: float
    seen: Iterable[str]  # what finds its images again (`trust.seen_images.marks`)
    medical_text: bool | None = True
    licence: str = "unknown"


def save(made: Continued, base: TowerEncoder, folder: Path) -> None:
    """Write the folder, whole or not at all; it must not be there yet but for files that are not of an encoder. Raises EncoderError."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{side}.{name}": one.detach().contiguous().clone() for side in ("image", "text") for name, one in getattr(made, side).items()
    }
    held = folder_of(made.base)
    for left in folder.glob(".encoder.*"):  # of a process that was killed while it wrote
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".encoder.") as scratch:
        place = Path(scratch)
        save_file(tensors, place / WEIGHTS)
        if held is not None:
            shutil.copytree(held, place / BASE / held.name, ignore=needless)  # identities hold its name
        write_tokenizer(base.text_tower, place / TOKENIZER)
        (place / SEEN).write_text("".join(f"{digest}\n" for digest in sorted(set(made.seen))), encoding="utf-8")
        config = {
            "format": FORMAT,
            "base": made.base if held is None else "",
            "base_family": made.base.partition(":")[0],
            "base_name": "" if held is None else held.name,
            "base_suffix": "".join(made.base.partition("@")[1:]),
            "base_image_identity": base.image_identity,
            "base_text_identity": base.text_identity,
            "how": made.how,
            "sides": [side for side in ("image", "text") if getattr(made, side)],
            "weights_sha256": sha256(place / WEIGHTS),
            "tokenizer": fingerprint(base.text_tower),
            "logit_scale": made.scale,
            "logit_bias": made.bias,
            "medical_text": made.medical_text,
            "licence": made.licence,
        }
        (place / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        for part in sorted(place.iterdir(), key=lambda one: one.name == CONFIG):  # the file that makes it an encoder comes last
            target = folder / part.name
            if target.is_dir():
                shutil.rmtree(target)
            part.chmod(0o755 if part.is_dir() else 0o644)
            part.replace(target)


def needless(folder: str, names: list[str]) -> set[str]:
    """What an encoder is not made of: hidden files, code, states of optimisers, and pickles where the weights are there without."""
    plain = any(name.endswith(".safetensors") for name in names)
    endings = (".py", ".pyc", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", *((".bin",) if plain else ()))
    bundled = any(name.startswith("efficientnet") for name in names)  # whose own weights are a .pth, read without code
    return {name for name in names if name.startswith((".", "checkpoint-")) or (name.endswith(endings) and not bundled)}


def folder_of(spec: str) -> Path | None:
    """The folder that a spec with its family names, where it is one."""
    _, _, rest = spec.partition(":")
    path = Path(rest.partition("@")[0]).expanduser()
    return path.absolute() if rest and path.is_dir() else None


def card(folder: Path, base_card: Callable[[str], EncoderCard]) -> EncoderCard:
    """What is known of it before its weights are read. Raises EncoderError."""
    config = configuration(folder)
    base = base_card(based(config, folder))
    mark = f"{config['how']} {config['weights_sha256'][:16]}"
    return replace(
        base,
        spec=f"pretrained:{folder}",
        image_identity=f"{base.image_identity}+{mark}" if "image" in config["sides"] else base.image_identity,
        text_identity=f"{base.text_identity}+{mark}" if "text" in config["sides"] else base.text_identity,
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        notes=f"continued by medtame ({config['how']}) from {config['base'] or 'a copy of its base'}: {base.notes}",
        medical_text=config["medical_text"],
        licence=config["licence"],
        seen=frozenset(digests(folder)),
    )


def load(folder: Path, base_card: Callable[[str], EncoderCard], base_load: Callable[[str], TowerEncoder]) -> TowerEncoder:
    """The encoder, its weights checked. Raises EncoderError: damaged, of another shape, another base or tokenizer than it was made with."""
    known, config = card(folder, base_card), configuration(folder)
    base = base_load(based(config, folder))
    for side, stated in (("image", config["base_image_identity"]), ("text", config["base_text_identity"])):
        found = getattr(base, f"{side}_identity")
        if found != stated:
            raise EncoderError(
                f"{folder} was continued from {stated}, and its base is now {found}: give back the {side} side it was made with"
            )
    if fingerprint(base.text_tower) != config["tokenizer"]:
        raise EncoderError(
            f"the tokenizer of {folder} does not belong to it: it splits words otherwise; copy the folder again, with {BASE}/"
        )
    if sha256(folder / WEIGHTS) != config["weights_sha256"]:
        raise EncoderError(f"{folder / WEIGHTS} is damaged or of another encoder: copy the folder again")
    tensors = read(folder)
    towers = {side: with_weights(getattr(base, f"{side}_tower"), of_side(tensors, side), folder) for side in ("image", "text")}
    return replace(
        base,
        spec=known.spec,
        image_identity=known.image_identity,
        text_identity=known.text_identity,
        scale=known.scale,
        bias=known.bias,
        image_tower=towers["image"],
        text_tower=towers["text"],
    )


def with_weights(tower: Any, values: Mapping[str, Tensor], folder: Path) -> Any:
    """The tower with plain attention and these weights; itself where there are none. Raises EncoderError for another shape."""
    if not values:
        return tower
    own = dict(opened(tower).named_parameters())
    wrong = next((name for name, value in values.items() if name not in own or own[name].shape != value.shape), None)
    if wrong is not None:
        there = "no such weight" if wrong not in own else f"one of shape {tuple(own[wrong].shape)}"
        raise EncoderError(
            f"{folder / WEIGHTS} has {wrong} {tuple(values[wrong].shape)} and its base has {there}: they do not belong together"
        )
    return with_values(tower, values)


def configuration(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{folder / CONFIG} cannot be read ({type(error).__name__}): copy the encoder's folder again") from None
    if config.get("format") != FORMAT:
        raise EncoderError(f"{folder} has format {config.get('format')!r}, this medtame reads {FORMAT}: make it again")
    return config


def based(config: Mapping[str, Any], folder: Path) -> str:
    """The spec of the base: a name, or the copy in the folder."""
    return config["base"] or f"{config['base_family']}:{folder / BASE / config['base_name']}{config['base_suffix']}"


def read(folder: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        return tensors
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{folder / WEIGHTS} cannot be read ({str(error).splitlines()[0]}): copy the encoder's folder again") from None


def of_side(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}."): one for name, one in tensors.items() if name.startswith(f"{side}.")}


def digests(folder: Path) -> list[str]:
    """Of the images that were learnt from."""
    try:
        return (folder / SEEN).read_text(encoding="utf-8").split()
    except OSError:
        raise EncoderError(f"{folder} has no {SEEN}, which says what images it has seen: copy the encoder's folder again") from None


def tokenizer_of(tower: Any) -> Any:
    """The tokenizer that a text tower holds, at any depth; None without one."""
    parts = tower.modules() if isinstance(tower, nn.Module) else (tower,)
    return next((part.tokenizer for part in parts if getattr(part, "tokenizer", None) is not None), None)


def write_tokenizer(tower: Any, folder: Path) -> None:
    """Its files, where it is one of transformers; those of open_clip lie in that package."""
    tokenizer = tokenizer_of(tower)
    found: Any = tokenizer if hasattr(tokenizer, "save_pretrained") else getattr(tokenizer, "tokenizer", None)
    if hasattr(found, "save_pretrained"):
        found.save_pretrained(folder)


def fingerprint(tower: Any) -> str:
    """Of how words are split and numbered, by some sentences: what another tokenizer would do otherwise."""
    if tower is None:
        return ""
    ids, mask = tower.tokens(ASKED)
    rows = [row[kept > 0].tolist() for row, kept in zip(ids, mask, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """Raises EncoderError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read ({error.strerror}): copy the encoder's folder again") from None
