"""Encoders of transformers: CLIP, SigLIP and SigLIP 2, from the hub or a folder with config.json and model.safetensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from medtame.encoders import checkpoint, known, places, preparation, tokenizer_files
from medtame.encoders.places import Place, Wanted
from medtame.encoders.preparation import WHOLE, Preparation
from medtame.encoders.tokenizer_files import EXTRA, VOCABULARIES
from medtame.encoders.towers import EncoderCard, TowerEncoder, frozen
from medtame.errors import EncoderError

VERSION = "1"  # of what this file makes of a checkpoint
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
IMAGES = ("preprocessor_config.json", "processor_config.json")
WANTED: Wanted = (("config.json",), WEIGHTS, IMAGES, VOCABULARIES)
KINDS = ("clip", "siglip", "siglip2")
UNBUILT = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, AssertionError, ZeroDivisionError)


@dataclass(frozen=True)
class Source:
    """The files of one encoder, and what its configuration says."""

    spec: str
    place: Place
    config: dict[str, Any]
    weights: Path
    row: known.Known | None

    @property
    def kind(self) -> str:
        return str(self.config.get("model_type"))

    def part(self, name: str) -> dict[str, Any]:
        """`vision_config` or `text_config`, as written: what is left out has transformers' default."""
        return dict(self.config.get(name) or {})


def source(rest: str, spec: str) -> Source:
    """`OWNER/NAME` or a folder. Raises EncoderError, one for all that is absent."""
    folder = Path(rest).expanduser()
    place = places.of_folder(folder) if rest and folder.is_dir() else places.found(rest, WANTED, EXTRA)
    if place is None:
        if not places.REPOSITORY.fullmatch(rest):
            raise EncoderError(f"hf:{rest} is no folder and no OWNER/NAME: give the folder of a transformers model")
        raise places.absent(spec, [(rest, "config.json, model.safetensors, preprocessor_config.json, tokenizer.json")], "hf")
    lacks = [names[0] for names in WANTED[:3] if place.file(*names) is None]
    if lacks:
        other = place.file("open_clip_config.json") and "config.json" in lacks
        shards = place.file("model.safetensors.index.json", "pytorch_model.bin.index.json") and WEIGHTS[0] in lacks
        hint = "it is an open_clip model: give open_clip:FOLDER" if other else "give a folder of transformers' CLIPModel or SiglipModel"
        hint = "its weights are in several files: save them as one" if shards and not other else hint
        raise EncoderError(f"{place.folder} has no {' and no '.join(lacks)}: {hint}")
    config = checkpoint.read_json(place.folder / "config.json")
    if config.get("model_type") not in KINDS:
        raise EncoderError(f"{place.folder} is a {config.get('model_type')}; known with images and texts are {', '.join(KINDS)}")
    return Source(spec, place, _plain(config), place.file(*WEIGHTS) or place.folder, known.of(place.name))


def card(rest: str, *, whole: bool = False) -> EncoderCard:
    """What `load` would give, without a model; the weight file is hashed. Raises EncoderError."""
    spec = f"hf:{rest}{WHOLE if whole else ''}"
    found = source(rest, spec)
    scale, bias = _scale(checkpoint.number(found.weights, "logit_scale"), checkpoint.number(found.weights, "logit_bias"), found)
    image, text = _identities(found, _preparation(found, whole))
    scales = _scales(found)
    return EncoderCard(
        spec=spec,
        image_identity=image,
        text_identity=text,
        scale=scale,
        bias=bias,
        dimension=scales[0][0],
        scales=scales,
        has_text=True,
        notes=found.row.notes if found.row else f"transformers {found.kind} {found.place.name}",
        medical_text=found.row.medical_text if found.row else None,
        licence=found.row.licence if found.row else "unknown",
        text_length=int(found.part("text_config").get("max_position_embeddings", 77 if found.kind == "clip" else 64)),
    )


def load(rest: str, *, whole: bool = False) -> TowerEncoder:
    """The encoder, its weights read and checked. Raises EncoderError."""
    from medtame.encoders import transformers_towers as towers

    spec = f"hf:{rest}{WHOLE if whole else ''}"
    found = source(rest, spec)
    model = built(found)
    tokenizer = tokenizer_files.auto(found.place)
    stored = checkpoint.tensors(found.weights)
    logits = _scale(
        checkpoint.value_of(stored, "logit_scale", found.weights), checkpoint.value_of(stored, "logit_bias", found.weights), found
    )
    stored = {name: value.reshape(_shape(model, name, value)) for name, value in stored.items()}
    checkpoint.fill(model, stored, found.weights)
    text: Any = model.text_model
    tokenizer_files.match(len(tokenizer), text.embeddings.token_embedding.num_embeddings, found.place.folder)
    length = text.embeddings.position_embedding.num_embeddings
    clip = found.kind == "clip"
    prepare, prepare_grid = preparation.first(_preparation(found, whole), whole)
    image, words = _identities(found, _preparation(found, whole))
    return TowerEncoder(
        spec=spec,
        image_identity=image,
        text_identity=words,
        scale=logits[0],
        bias=logits[1],
        image_tower=frozen(towers.ClipImage(model) if clip else towers.SiglipImage(model)),
        text_tower=frozen(towers.ClipText(model, tokenizer, length) if clip else towers.SiglipText(model, tokenizer, length)),
        prepare=prepare,
        prepare_grid=prepare_grid,
    )


def built(found: Source) -> nn.Module:
    """The model of transformers with weights that are still to be filled in. Raises EncoderError."""
    import transformers

    kind = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[found.kind]
    try:
        config = getattr(transformers, f"{kind}Config").from_dict(found.config)
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced: leave the caller's generator alone
            model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    except (*UNBUILT, StrictDataclassError) as error:
        words = " ".join(str(error).split())[:160]
        raise EncoderError(f"transformers cannot build {found.place.name} from its config.json ({type(error).__name__}): {words}") from None
    return model.float()


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Without the stored precision, code to run, and a choice of kernels: single precision, transformers' own code."""
    drop = ("dtype", "torch_dtype", "auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
    return {key: _plain(value) if isinstance(value, dict) else value for key, value in config.items() if key not in drop}


def _shape(model: nn.Module, name: str, value: torch.Tensor) -> torch.Size:
    """A scale or bias may be stored with or without an axis."""
    wanted = getattr(model, name, None) if name in ("logit_scale", "logit_bias") else None
    return value.shape if wanted is None or wanted.numel() != value.numel() else wanted.shape


def _scale(scale: float | None, bias: float | None, found: Source) -> tuple[float, float]:
    absent = [
        name for name, value in (("logit_scale", scale), ("logit_bias", bias)) if value is None and (name[6] == "s" or found.kind != "clip")
    ]
    if scale is None or absent:
        raise EncoderError(
            f"{found.weights} does not fit its configuration: {len(absent)} missing ({', '.join(absent)}): get its own weights"
        )
    return math.exp(scale), bias or 0.0


def _side(found: Source) -> int:
    vision = found.part("vision_config")
    if found.kind == "siglip2":
        return math.isqrt(int(vision.get("num_patches", 256))) * _patch(found)
    return preparation.image_side(vision.get("image_size", 224), found.place.name)


def _patch(found: Source) -> int:
    return preparation.image_side(found.part("vision_config").get("patch_size", 32 if found.kind == "clip" else 16), found.place.name)


def _preparation(found: Source, whole: bool) -> Preparation:
    """SigLIP 2's variable resolution is used at one: the whole image is stretched to its square of patches."""
    path = found.place.file(*IMAGES) or found.place.folder
    read = checkpoint.read_json(path)
    if path.name == IMAGES[1]:
        nested = read.get("image_processor")
        read = nested if isinstance(nested, dict) else {}
    side = _side(found)
    if found.kind == "siglip2":
        read = read | {"size": {"height": side, "width": side}, "resample": read.get("resample", 2)}
    made = preparation.of_transformers(read, side, str(path))
    return made.whole if whole else made


def _identities(found: Source, prepare: Preparation) -> tuple[str, str]:
    """Image and text: name and commit, weights, configuration, then what each side adds."""
    name = f"hf:{found.place.name}" + (f"@{found.place.revision[:12]}" if found.place.revision else "")
    start = f"{name};{checkpoint.digest(found.weights)}"
    image, text = (checkpoint.digest_of([found.kind, found.part(part)]) for part in ("vision_config", "text_config"))
    return f"{start};{image};{prepare.identity};{VERSION}", f"{start};{text};{tokenizer_files.identity(found.place)};{VERSION}"


def _scales(found: Source) -> tuple[tuple[int, int], ...]:
    width, grid = int(found.part("vision_config").get("hidden_size", 768)), _side(found) // _patch(found)
    dimension = int(found.config.get("projection_dim", 512)) if found.kind == "clip" else width
    return (dimension, grid), (width, grid)
