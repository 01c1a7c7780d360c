"""Tokenizers from files on this machine, and whether they are those of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from medtame.encoders.checkpoint import digest, read_json
from medtame.encoders.places import Place
from medtame.errors import EncoderError

FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, StrictDataclassError)
# A tokenizer is there where one of these is.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
EXTRA = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt", "added_tokens.json")
PADDINGS = (1, 8, 64, 128)  # an embedding may be padded with unused rows to a multiple of these


def auto(place: Place) -> Any:
    """The tokenizer of a folder, as transformers reads it; no code of the folder is run and no hub asked. Raises EncoderError."""
    from transformers import AutoTokenizer

    checked(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(place.folder), local_files_only=True, trust_remote_code=False)
    except FAULTS as error:
        raise unreadable(place, error) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def for_open_clip(place: Place | None, context: int, mode: str | None, settings: dict[str, Any]) -> Any:
    """open_clip's tokenizer: CLIP's own vocabulary, or a folder's. Raises EncoderError."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    allowed = {"clean", "strip_sep_token", "language"} if place else {"clean"}
    if set(settings) - allowed:
        raise EncoderError(f"the configuration's tokenizer_kwargs holds {sorted(set(settings) - allowed)}; known are {sorted(allowed)}")
    if place is None:
        return SimpleTokenizer(context_length=context, **settings)
    checked(place)
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        return HFTokenizer(str(place.folder), context_length=context, tokenizer_mode=mode, **settings, **safe)
    except FAULTS as error:
        raise unreadable(place, error) from None


def match(words: int, rows: int, where: Path | str) -> None:
    """Whether a tokenizer of so many words can be the one of an embedding of so many rows. Raises EncoderError."""
    if not any(rows == -(-words // step) * step for step in PADDINGS):
        raise EncoderError(
            f"{where} holds another tokenizer: {words:,} words for a text embedding of {rows:,} rows; put the model's own tokenizer there"
        )


def identity(place: Place | None) -> str:
    """The hash of the files that make the tokenizer; `clip-bpe` for open_clip's own vocabulary."""
    if place is None:
        return "clip-bpe"
    names = (*VOCABULARIES, *EXTRA)
    return digest(*(place.folder / name for name in names if (place.folder / name).is_file()))


def checked(place: Place) -> None:
    """That a tokenizer is there and readable as JSON where it is JSON. Raises EncoderError."""
    found = place.file(*VOCABULARIES)
    if found is None:
        raise EncoderError(f"{place.folder} has no tokenizer: put the model's tokenizer.json (or vocab.txt) there")
    if found.name == "tokenizer.json" and not isinstance(read_json(found).get("model"), dict):
        raise EncoderError(f"{found} is no tokenizer: it names no model; get the model's own file")


def unreadable(place: Place, error: Exception) -> EncoderError:
    return EncoderError(f"no tokenizer can be read from {place.folder} ({type(error).__name__}): put the model's own tokenizer.json there")
