"""Encoders of open_clip: CLIP, SigLIP, and timm or BERT towers (BiomedCLIP), from a tag, the hub, or a folder.

open_clip builds the model, medtame reads and checks the weights; nothing in a file is run.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from medtame.encoders import checkpoint, image_towers, preparation, text_towers, tokenizer_files
from medtame.encoders.open_clip_source import Source, source
from medtame.encoders.preparation import WHOLE, Preparation
from medtame.encoders.towers import EncoderCard, TowerEncoder, frozen
from medtame.errors import EncoderError

VERSION = "1"  # of what this file makes of a checkpoint
TEXT_OF_OLD = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
UNBUILT = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, AssertionError, OSError, ImportError, ZeroDivisionError)


def card(rest: str, *, whole: bool = False) -> EncoderCard:
    """What `load` would give, without a model; the weight file is hashed. Raises EncoderError."""
    spec = f"open_clip:{rest}{WHOLE if whole else ''}"
    found = source(rest, spec)
    scale, bias = _scale(checkpoint.number(found.weights, "logit_scale"), checkpoint.number(found.weights, "logit_bias"), found)
    image, text = _identities(found, _preparation(found, whole))
    return EncoderCard(
        spec=spec,
        image_identity=image,
        text_identity=text,
        scale=scale,
        bias=bias,
        dimension=int(found.model["embed_dim"]),
        scales=_scales(found),
        has_text=True,
        notes=found.row.notes if found.row else f"open_clip {found.name}",
        medical_text=found.row.medical_text if found.row else None,
        licence=found.row.licence if found.row else "unknown",
        text_length=_length(found),
    )


def load(rest: str, *, whole: bool = False) -> TowerEncoder:
    """The encoder, its weights read and checked. Raises EncoderError."""
    spec = f"open_clip:{rest}{WHOLE if whole else ''}"
    found = source(rest, spec)
    stored = _renamed(checkpoint.tensors(found.weights))
    scale, bias = (checkpoint.value_of(stored, name, found.weights) for name in ("logit_scale", "logit_bias"))
    logits = _scale(scale, bias, found)
    model = built(found)
    tokenizer = _tokenizer(found)
    checkpoint.fill(model, {name: each for name, each in stored.items() if name not in ("logit_scale", "logit_bias")}, found.weights)
    prepare, prepare_grid = preparation.first(_preparation(found, whole), whole)
    image, text = _identities(found, _preparation(found, whole))
    return TowerEncoder(
        spec=spec,
        image_identity=image,
        text_identity=text,
        scale=logits[0],
        bias=logits[1],
        image_tower=frozen(image_towers.tower_of(model["visual"])),
        text_tower=frozen(text_towers.tower_of(model["text"], tokenizer)),
        prepare=prepare,
        prepare_grid=prepare_grid,
    )


def built(found: Source) -> nn.ModuleDict:
    """open_clip's two towers with weights that are still to be filled in. Raises EncoderError."""
    from open_clip.model import CustomTextCLIP

    config = _safe(found)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced: leave the caller's generator alone
            model = CustomTextCLIP(**config)
    except UNBUILT as error:
        raise EncoderError(f"open_clip cannot build {found.name} from its configuration ({type(error).__name__}): {_line(error)}") from None
    return nn.ModuleDict({"visual": model.visual, "text": model.text}).float()


def _safe(found: Source) -> dict[str, Any]:
    """The configuration for open_clip, without what would fetch or run something."""
    config = copy.deepcopy(found.model)
    if "multimodal_cfg" in config:
        raise EncoderError(f"{found.name} is a CoCa, which also writes texts; give an encoder of the CLIP or SigLIP kind")
    vision, text = config["vision_cfg"], config["text_cfg"]
    if any(sign in str(vision.get("timm_model_name") or "") for sign in ":/\\"):
        raise EncoderError(f"{found.name} names a timm model elsewhere ({vision['timm_model_name']}): only timm's own names are taken")
    for key in ("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"):
        config.pop(key, None)
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if found.text is not None:
        kind = checkpoint.read_json(found.text.folder / "config.json").get("model_type")
        if kind not in text_towers.BERTS:
            raise EncoderError(f"{found.text.name} is a {kind}; known text towers are {', '.join(text_towers.BERTS)}")
        pooler = text.get("hf_pooler_type", "mean_pooler")
        if pooler not in text_towers.POOLERS:
            raise EncoderError(f"{found.name} pools its text by {pooler}; known are {', '.join(text_towers.POOLERS)}")
        text["hf_model_name"] = str(found.text.folder)
    return config


def _tokenizer(found: Source) -> Any:
    text = found.model["text_cfg"]
    settings = dict(text.get("tokenizer_kwargs") or {})
    tokenizer = tokenizer_files.for_open_clip(found.tokenizer, _length(found), text.get("tokenizer_mode"), settings)
    if found.tokenizer is None:
        tokenizer_files.match(tokenizer.vocab_size, _rows(found), "open_clip's own vocabulary")
    else:
        tokenizer_files.match(len(tokenizer.tokenizer), _rows(found), found.tokenizer.folder)
    return tokenizer


def _rows(found: Source) -> int:
    """Rows of the text embedding, as configured."""
    if found.text is None:
        return int(found.model["text_cfg"].get("vocab_size", 49408))
    return int(checkpoint.read_json(found.text.folder / "config.json").get("vocab_size", 30522))


def _renamed(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old checkpoints keep the text transformer without its prefix."""
    if any(name.startswith("text.") for name in stored):
        return stored
    return {f"text.{name}" if name.startswith(TEXT_OF_OLD) else name: tensor for name, tensor in stored.items()}


def _scale(scale: float | None, bias: float | None, found: Source) -> tuple[float, float]:
    if scale is None:
        raise EncoderError(f"{found.weights} does not fit its configuration: 1 missing (logit_scale): get the model's own weights")
    return math.exp(scale), bias or 0.0


def _side(found: Source) -> int:
    return preparation.image_side(found.model["vision_cfg"].get("image_size", 224), found.name)


def _preparation(found: Source, whole: bool) -> Preparation:
    made = preparation.of_open_clip(found.images, _side(found), found.name)
    return made.whole if whole else made


def _identities(found: Source, prepare: Preparation) -> tuple[str, str]:
    """Image and text: name and commit, weights, configuration, then what each side adds."""
    name = f"open_clip:{found.name}" + (f"@{found.revision[:12]}" if found.revision else "")
    weights, config = checkpoint.digest(found.weights), {key: value for key, value in found.model.items() if key != "vision_cfg"}
    if found.text is not None:
        config["text config"] = checkpoint.read_json(found.text.folder / "config.json")
    image = (
        f"{name};{weights};{checkpoint.digest_of([found.model['vision_cfg'], found.model.get('quick_gelu')])};{prepare.identity};{VERSION}"
    )
    words = tokenizer_files.identity(found.tokenizer)
    return image, f"{name};{weights};{checkpoint.digest_of(config)};{words};{VERSION}"


def _length(found: Source) -> int:
    return int(found.model["text_cfg"].get("context_length", 77))


def _scales(found: Source) -> tuple[tuple[int, int], ...]:
    """(F, G) of each map, from the configuration; for a timm trunk from a pass without numbers."""
    vision, dimension, side = found.model["vision_cfg"], int(found.model["embed_dim"]), _side(found)
    layers, width = vision.get("layers", 12), int(vision.get("width", 768))
    if not vision.get("timm_model_name"):
        resnet = isinstance(layers, list)
        grid = side // 32 if resnet else side // preparation.image_side(vision.get("patch_size", 16), found.name)
        return (dimension, grid), (width * 32 if resnet else width, grid)
    with torch.device("meta"):
        maps = image_towers.tower_of(built(found)["visual"]).eval()(torch.zeros(1, 3, side, side))[1]
    return tuple((each.shape[1], each.shape[2]) for each in maps)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or "no further words"
