"""A small vision-language model with tokens on both sides, made from nothing by `medtame.pretrain`: for methods that need a transformer.

    python examples/small_token_model.py --pairs medpix/cases.csv --columns text=caption,patient=case --out small_tokens
    medtame compare labels.csv --encoder small_tokens --methods coop,visual_prompt,lora

`bundled` has no vision transformer, so visual prompts, MaPLe and the like cannot be tried with it. This recipe writes a CLIPModel of
transformers with 5.5 million random parameters and a tokenizer of the texts, then pretrains it on the training rows of a manifest of
image-text pairs (rows with another `split` are not read) and on simulated images (`medtame.data.phantom`, with a seed that no comparison
uses). It is no good encoder and is not meant to be: it has seen a few thousand images, and its use is to run every method on a real tower.
The folder holds the licence terms of nothing: do not pass on weights made of images that you may not pass on.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from medtame.data import manifest, phantom
from medtame.data.images import FilePicture
from medtame.pretrain import pretrain

SIDE, PATCH, WIDTH, WORDS, TOKENS = 128, 16, 192, 4000, 64
LAYERS = {"text_config": 4, "vision_config": 6}
PHANTOM_SEED = 20_000
METADATA = ("modality", "plane", "region", "location")


def sentences_of(row: dict[str, str]) -> list[str]:
    """What can be said of an image: each sentence of its text, and what the columns of metadata say."""
    said = [part.strip() for part in re.split(r"(?<=[.;])\s+", row.get("text") or "") if len(part.strip()) > 8]
    known = [str(row[name]) for name in METADATA if row.get(name)]
    return [*said, *([f"a {', '.join(known)} image", f"{known[0]} image"] if known else [])]


def pairs(path: Path, columns: dict[str, str]) -> list[dict[str, str]]:
    """Image file, text and case of the training rows of a manifest; each sentence of a text ends in a full stop."""
    samples = manifest.read(path, columns=columns)
    if "split" in samples:
        samples = samples.take([i for i, part in enumerate(samples.column("split")) if part == "train"])
    given = {name: samples.column(name) for name in ("text", *METADATA) if name in samples}
    rows = []
    for i, (picture, group) in enumerate(zip(samples.pictures(), samples.groups, strict=True)):
        said = sentences_of({name: values[i] for name, values in given.items()})
        if said and isinstance(picture, FilePicture):
            rows.append({"image": str(picture.path), "text": " ".join(f"{one.rstrip('.;')}." for one in said), "case": str(group)})
    return rows


def save_tokenizer(folder: Path, texts: list[str]) -> int:
    """A byte-pair vocabulary of the texts, in CLIP's files; returns its size."""
    words = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    lower = [text.lower() for text in texts]
    ends = [f"{letter}</w>" for letter in sorted(set("".join(lower))) if not letter.isspace()]  # numbered here: else by chance
    trainer = trainers.BpeTrainer(vocab_size=WORDS - 2, end_of_word_suffix="</w>", show_progress=False, special_tokens=ends)
    words.train_from_iterator(lower, trainer)
    made = json.loads(words.to_str())["model"]
    vocabulary = made["vocab"] | {"<|startoftext|>": len(made["vocab"]), "<|endoftext|>": len(made["vocab"]) + 1}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in made["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocabulary)


def untrained(folder: Path, words: int, seed: int) -> float:
    """The model with first weights, saved so that medtame opens it; millions of parameters."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 3}
    ids = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = sizes | ids | {"num_hidden_layers": LAYERS["text_config"], "max_position_embeddings": TOKENS}
    vision = sizes | {"num_hidden_layers": LAYERS["vision_config"], "image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=math.log(14)))
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="A small vision-language model with tokens on both sides, from image-text pairs.")
    parser.add_argument("--pairs", type=Path, help="a manifest with images and texts; without it, simulated images alone")
    parser.add_argument("--columns", default="", help="your column names: standard=yours, by commas")
    parser.add_argument("--patients", type=int, default=1600, help="simulated patients")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    begun = time.perf_counter()
    settings = {
        "train": "all",
        "steps": asked.steps,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "sentences": 2,
        "precision": "bfloat16",  # twice as fast and more where the processor multiplies 16-bit floats
    }

    def watch(what: str, done: int, of: int) -> None:
        if done % 25 == 0 and "loss" in what:
            say(f"step {done} of {of}, {what}, {time.perf_counter() - begun:.0f} s")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = pairs(phantom.make(folder / "phantom", patients=asked.patients, seed=PHANTOM_SEED, size=SIDE, test_share=0.01).images, {})
        if asked.pairs:
            rows += pairs(asked.pairs, dict(part.split("=") for part in asked.columns.split(",") if part))
        with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["image", "text", "case"])
            writer.writeheader()
            writer.writerows(rows)
        (folder / "untrained").mkdir()
        millions = untrained(folder / "untrained", save_tokenizer(folder / "untrained", [row["text"] for row in rows]), asked.seed)
        say(f"{len(rows)} pairs, {millions:.1f} million parameters")
        record = pretrain(
            folder / "pairs.csv", f"hf:{folder / 'untrained'}", out=asked.out, settings={"": settings}, seed=asked.seed, watch=watch
        )
    say(f"{record['verdict']} {time.perf_counter() - begun:.0f} s; open it with --encoder {asked.out}")


if __name__ == "__main__":
    main()
