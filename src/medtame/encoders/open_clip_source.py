"""Which files an open_clip encoder is made of: by tag, by repository on the hub, or in a folder; all that is absent in one error."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtame.encoders import checkpoint, known, places
from medtame.encoders.places import Place, Wanted
from medtame.encoders.tokenizer_files import EXTRA, VOCABULARIES
from medtame.errors import EncoderError

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
    "open_clip_model.bin",
    "open_clip_model.pt",
)
MODEL_FILES: Wanted = ((CONFIG,), WEIGHTS)
TEXT_CONFIG: Wanted = (("config.json",),)
TOKENIZER: Wanted = (VOCABULARIES,)
TEXT_FILES: Wanted = (*TEXT_CONFIG, *TOKENIZER)
HUB = "hf-hub:"


@dataclass(frozen=True)
class Source:
    """The files of one encoder, and what its configuration says."""

    spec: str
    name: str  # MODEL/TAG, OWNER/NAME, or a folder's name
    model: dict[str, Any]  # open_clip's model_cfg
    images: dict[str, Any]  # open_clip's preprocess_cfg
    weights: Path
    revision: str
    text: Place | None  # the folder with the text configuration; None where open_clip's own text transformer is used
    tokenizer: Place | None  # None: CLIP's own vocabulary
    row: known.Known | None


def source(rest: str, spec: str) -> Source:
    """`MODEL/TAG`, `hf-hub:OWNER/NAME` or a folder. Raises EncoderError, one for all that is absent."""
    folder = Path(rest).expanduser()
    if rest.startswith(HUB):
        name = rest.removeprefix(HUB)
        place = places.found(name, MODEL_FILES, ("vocab.txt", *EXTRA))
        return _of_place(place, spec, name) if place is not None else _nowhere(spec, name)
    if rest and folder.is_dir():
        return _of_place(places.of_folder(folder), spec, "")
    return _of_tag(rest, spec)


def wanted(spec: str) -> Wanted:
    """The files that a known spec needs: a tag brings its configuration in the package."""
    return MODEL_FILES if HUB in spec else (WEIGHTS,)


def _of_place(place: Place, spec: str, name: str) -> Source:
    config, weights = place.file(CONFIG), place.file(*WEIGHTS)
    if config is None or weights is None:
        have = "has no " + " and no ".join(n for n, path in ((CONFIG, config), (WEIGHTS[0], weights)) if path is None)
        other = "; it looks like a transformers model: give hf:FOLDER" if config is None and place.file("config.json") else ""
        raise EncoderError(f"{place.folder} {have}{other or ': give the folder of an open_clip model with both files'}")
    read = checkpoint.read_json(config)
    model, images = read.get("model_cfg"), read.get("preprocess_cfg", {})
    if not isinstance(model, dict) or not isinstance(images, dict):
        raise EncoderError(f"{config} has no model_cfg: give the configuration of an open_clip model")
    return _with_text(spec, place, model, images, weights)


def _of_tag(rest: str, spec: str) -> Source:
    """open_clip's own models: the configuration is in the package, the weights on the hub."""
    import open_clip

    architecture, _, tag = rest.rpartition("/")
    settings = open_clip.get_pretrained_cfg(architecture, tag)
    model = open_clip.get_model_config(architecture) if settings else None
    if model is None:
        architecture = rest if rest in open_clip.list_models() else architecture or rest
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        near = difflib.get_close_matches(architecture, open_clip.list_models(), 1)
        hint = f"{architecture} has the tags {', '.join(tags)}" if tags else f"did you mean {near[0]}" if near else "no such model is known"
        raise EncoderError(f"open_clip:{rest} is no folder and no MODEL/TAG of open_clip: {hint}; or give open_clip:hf-hub:OWNER/NAME")
    if settings.get("quick_gelu"):
        model["quick_gelu"] = True  # the checkpoint's activation, whatever the architecture's file says
    repository, _, file = settings.get("hf_hub", "").rpartition("/")
    files: Wanted = ((file,),) if file else (WEIGHTS,)
    place = places.found(repository, files)
    if place is None:
        named = [
            (name, " or ".join(VOCABULARIES[:2])) for name in dict.fromkeys(_text_names(model)) if places.local(name, TOKENIZER) is None
        ]
        raise places.absent(spec, [(repository, " or ".join(files[0][:3:2])), *named], "open_clip")
    weights = place.file(*files[0])
    return _with_text(spec, Place(rest, place.folder, place.revision), model, settings, weights or place.folder)


def _with_text(spec: str, place: Place, model: dict[str, Any], images: dict[str, Any], weights: Path) -> Source:
    """Add where the text configuration and the tokenizer lie, which may be another repository."""
    text = model.get("text_cfg")
    if not isinstance(text, dict) or not isinstance(model.get("vision_cfg"), dict):
        raise EncoderError(f"{place.folder / CONFIG} has no vision_cfg or no text_cfg: give the configuration of an open_clip model")
    bert, words = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    missing: list[tuple[str, str]] = []
    bert_place = _named(bert, TEXT_CONFIG, place) if bert else None
    word_place = (place if place.has(TOKENIZER) else _named(words, TOKENIZER, place)) if words else None
    if bert and bert_place is None:
        missing.append((bert, "config.json, tokenizer.json or vocab.txt" if bert == words and word_place is None else "config.json"))
    if words and word_place is None and (words != bert or not missing):
        missing.append((words, "tokenizer.json or vocab.txt"))
    if missing:
        raise places.absent(spec, missing, "open_clip")
    return Source(
        spec, place.name, model, images, weights, place.revision, bert_place, word_place, known.of(place.name) or _by_tag(place.name)
    )


def _named(name: str, files: Wanted, place: Place) -> Place | None:
    folder = Path(name).expanduser()
    if folder.is_dir() and Place(name, folder).has(files):
        return places.of_folder(folder)
    complete = places.local(name, TEXT_FILES, [place.folder])  # one folder for both where there is one
    return complete or places.local(name, files, [place.folder]) or places.found(name, files, EXTRA)


def _nowhere(spec: str, name: str) -> Source:
    row = known.of(name)
    also = [] if row is None else [each for each in row.also_needs if places.local(each, TEXT_FILES) is None]
    needs = [(name, f"{CONFIG}, {WEIGHTS[0]} or {WEIGHTS[2]}"), *((each, "config.json, tokenizer.json or vocab.txt") for each in also)]
    raise places.absent(spec, needs, "open_clip")


def _text_names(model: dict[str, Any]) -> list[str]:
    text = model.get("text_cfg", {})
    return [text[key] for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]


def _by_tag(name: str) -> known.Known | None:
    return next((row for row in known.table() if row.spec == f"open_clip:{name}"), None)
