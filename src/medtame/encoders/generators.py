"""Generative vision-language models of transformers, from files on this machine: no hub is asked and no code of a folder is run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from medtame.encoders import checkpoint, places
from medtame.encoders.places import Place
from medtame.encoders.tokenizer_files import FAULTS, VOCABULARIES
from medtame.errors import EncoderError
from medtame.types import Array

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
IMAGES = ("processor_config.json", "preprocessor_config.json")
WANTED = (("config.json",), WEIGHTS, IMAGES, VOCABULARIES)
PLAIN = "{image}{prompt}\nAnswer:"  # how a model without a chat template is asked


@dataclass(frozen=True, eq=False)
class Generator:
    """A processor and a model, ready to answer about one image at a time."""

    name: str
    processor: Any
    model: Any

    def begun(self, prompt: str) -> str:
        """The text that an answer follows, in the model's own form of a conversation."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            talk = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        return PLAIN.replace("{image}", str(getattr(self.processor, "image_token", None) or "")).replace("{prompt}", prompt)

    def inputs(self, image: Image.Image, text: str) -> dict[str, Any]:
        """What the processor makes of one image and one text. Raises EncoderError."""
        try:
            made = dict(self.processor(images=[image], text=[text], return_tensors="pt"))
        except FAULTS as error:
            raise self._unfit(error) from None
        kind = self.model.dtype
        return {name: value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value for name, value in made.items()}

    @torch.no_grad()
    def written(self, pixels: Array, prompt: str, most_tokens: int) -> str:
        """The likeliest next token, again and again, until the end or `most_tokens`. Raises EncoderError."""
        given = self.inputs(rgb(pixels), self.begun(prompt))
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        try:
            said = self.model.generate(**given, max_new_tokens=most_tokens, **greedy)[0]
        except FAULTS as error:
            raise self._unfit(error) from None
        return str(self.processor.decode(said[shared(given["input_ids"][0], said) :], skip_special_tokens=True)).strip()

    @torch.no_grad()
    def likelihoods(self, pixels: Array, prompt: str, answers: list[str]) -> list[float]:
        """Mean log-probability of the tokens of each answer after the prompt; a pass of the model an answer. Raises EncoderError."""
        if self.model.config.is_encoder_decoder:
            raise EncoderError(f"{self.name} writes with a decoder of its own, so answers cannot be scored: use scoring=generated")
        image, text = rgb(pixels), self.begun(prompt)
        start = self.inputs(image, text)["input_ids"][0]
        joint = "" if text[-1:].isspace() else " "
        found = []
        for answer in answers:
            given = self.inputs(image, f"{text}{joint}{answer}")
            ids = given["input_ids"][0]
            try:
                logits = self.model(**given).logits
            except FAULTS as error:
                raise self._unfit(error) from None
            if logits.shape[:2] != given["input_ids"].shape:
                raise EncoderError(f"{self.name} gives no probability for each token of its text: use scoring=generated")
            first = min(max(shared(start, ids), 1), len(ids) - 1)
            log_probabilities = logits[0, first - 1 : -1].float().log_softmax(-1)
            found.append(float(log_probabilities.gather(1, ids[first:, None]).mean()))
        return found

    def _unfit(self, error: Exception) -> EncoderError:
        words = " ".join(str(error).split())[:160]
        return EncoderError(
            f"{self.name} cannot be asked about an image ({type(error).__name__}: {words}): it is no model for one image and text"
        )


def rgb(pixels: Array) -> Image.Image:
    """uint8 (H, W) or (H, W, 3) as a picture of three channels."""
    return Image.fromarray(pixels).convert("RGB")


def shared(first: Tensor, second: Tensor) -> int:
    """How many tokens two rows of ids begin with in common."""
    length = min(len(first), len(second))
    different = torch.nonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def place_of(name: str) -> Place:
    """Where a model lies: a folder, MEDTAME_MODELS or the local hub cache. Raises EncoderError; nothing is fetched."""
    folder = Path(name).expanduser()
    place = places.of_folder(folder) if folder.is_dir() else places.local(name, WANTED)
    if place is None:
        raise EncoderError(
            f"the generative model {name!r} is not on this machine: give its folder (config.json, model.safetensors, "
            "processor_config.json, tokenizer.json), or its name where MEDTAME_MODELS or the hub cache holds it"
        )
    lacks = [" or ".join(names[:2]) for names in WANTED if place.file(*names) is None]
    if lacks:
        raise EncoderError(f"{place.folder} has no {' and no '.join(lacks)}: give the folder of a generative model of transformers")
    return place


def identity(place: Place) -> str:
    """A hash of configuration, processor, tokenizer and weights: two models that differ in their weights alone differ here."""
    files = sorted(path for path in place.folder.iterdir() if path.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors"))
    return checkpoint.digest(*files)


@lru_cache(maxsize=1)
def load(folder: Path, name: str, kept: str, precision: str) -> Generator:
    """The model with its own weights, every one of them found; `kept` is its `identity`, so that changed files are read anew."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(str(folder), **safe)
        with torch.random.fork_rng(devices=[]):
            model, told = AutoModelForImageTextToText.from_pretrained(
                str(folder), **safe, use_safetensors=True, dtype=getattr(torch, precision), output_loading_info=True
            )
    except (*FAULTS, SafetensorError) as error:
        words = " ".join(str(error).split())[:160]
        raise EncoderError(
            f"{folder} is not read as a generative model of images and text ({type(error).__name__}: {words}): give another, in safetensors"
        ) from None
    absent = [*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])]
    if absent:
        raise EncoderError(f"{folder} lacks {len(absent)} weights or has them in another shape ({min(absent)}): get the model's own files")
    return Generator(name, processor, model.eval().requires_grad_(False))
