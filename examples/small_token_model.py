"""A small vision-language model with tokens on both sides, made from nothing in a few minutes: for methods that need a transformer.

    python examples/small_token_model.py --pairs medpix/cases.csv --columns text=caption,patient=case --out small_tokens
    medtame compare labels.csv --encoder hf:small_tokens --methods coop,visual_prompt,lora

`bundled` has no vision transformer, so visual prompts, MaPLe and the like cannot be tried with it. This recipe trains transformers'
CLIPModel with 5.5 million parameters on the training rows of a manifest of image-text pairs (rows with another `split` are not
read) and on simulated images (`medtame.data.phantom`, with a seed that no comparison uses). Pairs with the same text are not counted
as wrong answers for each other. It is no good encoder and is not meant to be: it has seen a few thousand images, and its use is
to run every method on a real tower. The folder holds the licence terms of nothing: do not pass on weights made of images that you
may not pass on.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import medtame
from medtame import encoders
from medtame.data import manifest, phantom
from medtame.encoders.transformers_towers import ClipImage, ClipText

SIDE, PATCH, WIDTH, WORDS, TOKENS = 128, 16, 192, 4000, 64
LAYERS = {"text_config": 4, "vision_config": 6}
PHANTOM_SEED = 20_000
BATCH, CHOSEN_SENTENCES = 64, 2
METADATA = ("modality", "plane", "region", "location")


def sentences_of(row: dict[str, str]) -> list[str]:
    """What can be said of an image: each sentence of its text, and what the columns of metadata say."""
    said = [part.strip() for part in re.split(r"(?<=[.;])\s+", row.get("text") or "") if len(part.strip()) > 8]
    known = [str(row[name]) for name in METADATA if row.get(name)]
    return [*said, *([f"a {', '.join(known)} image", f"{known[0]} image"] if known else [])]


def pairs(path: Path, columns: dict[str, str]) -> tuple[list[medtame.types.Picture], list[list[str]]]:
    """Pictures and sentences of the training rows of a manifest."""
    samples = manifest.read(path, columns=columns)
    if "split" in samples:
        samples = samples.take([i for i, part in enumerate(samples.column("split")) if part == "train"])
    given = {name: samples.column(name) for name in ("text", *METADATA) if name in samples}
    said = [sentences_of({name: values[i] for name, values in given.items()}) for i in range(len(samples))]
    kept = [i for i, one in enumerate(said) if one]
    return [samples.pictures()[i] for i in kept], [said[i] for i in kept]


def save_tokenizer(folder: Path, texts: list[str]) -> int:
    """A byte-pair vocabulary of the texts, in CLIP's files; returns its size."""
    words = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=WORDS - 2, end_of_word_suffix="</w>", show_progress=False)
    words.train_from_iterator([text.lower() for text in texts], trainer)
    made = json.loads(words.to_str())["model"]
    vocabulary = made["vocab"] | {"<|startoftext|>": len(made["vocab"]), "<|endoftext|>": len(made["vocab"]) + 1}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in made["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocabulary)


def untrained(folder: Path, words: int, seed: int) -> CLIPModel:
    """The model with first weights, saved so that medtame opens it."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 3}
    ids = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = sizes | ids | {"num_hidden_layers": LAYERS["text_config"], "max_position_embeddings": TOKENS}
    vision = sizes | {"num_hidden_layers": LAYERS["vision_config"], "image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=math.log(14)))
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False).save_pretrained(folder)
    return model


def moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Images turned by up to 8 degrees, shifted by up to a twelfth and scaled by .9 to 1.1, with another contrast; never flipped."""
    n = len(images)
    angle, scale, x, y = (torch.rand(4, n, generator=random) * 2 - 1) * torch.tensor([[0.14], [0.1], [0.16], [0.16]])
    cosine, sine, zoom = angle.cos(), angle.sin(), 1 + scale
    turns = torch.stack([torch.stack([zoom * cosine, -zoom * sine, x], 1), torch.stack([zoom * sine, zoom * cosine, y], 1)], 1)
    found = grid_sample(images, affine_grid(turns, list(images.shape), align_corners=False), padding_mode="border", align_corners=False)
    contrast, offset = ((torch.rand(2, n, 1, 1, 1, generator=random) - 0.5) * torch.tensor([0.4, 0.3]).reshape(2, 1, 1, 1, 1)).unbind()
    return found * (1 + contrast) + offset


def steps(model: CLIPModel, text: ClipText, pixels: Tensor, said: list[list[str]], count: int, seed: int) -> Iterator[tuple[int, float]]:
    """Contrastive steps (AdamW, cosine); a text that occurs twice in a batch is right for all its images."""
    image, random = ClipImage(model), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=count, pct_start=0.1)
    for number in range(1, count + 1):
        rows = torch.randperm(len(pixels), generator=random)[:BATCH]
        picks = [torch.randperm(len(said[row]), generator=random)[:CHOSEN_SENTENCES].tolist() for row in rows]
        strings = [" ".join(said[row][i] for i in sorted(chosen)) for row, chosen in zip(rows.tolist(), picks, strict=True)]
        ids, mask = text.tokens(strings)
        same = torch.tensor([[one == other for other in strings] for one in strings]).float()
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast and more where the processor multiplies 16-bit floats
            vectors, texts = image(moved(pixels[rows], random))[0], text.encode(text.embed(ids), mask)
        logits = model.logit_scale.exp() * vectors.float() @ texts.float().T
        loss = (cross_entropy(logits, same / same.sum(1, keepdim=True)) + cross_entropy(logits.T, same / same.sum(1, keepdim=True))) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        yield number, float(loss.detach())


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="A small vision-language model with tokens on both sides, from image-text pairs.")
    parser.add_argument("--pairs", type=Path, help="a manifest with images and texts; without it, simulated images alone")
    parser.add_argument("--columns", default="", help="your column names: standard=yours, by commas")
    parser.add_argument("--patients", type=int, default=1600, help="simulated patients")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        simulated = phantom.make(Path(scratch) / "phantom", patients=asked.patients, seed=PHANTOM_SEED, size=SIDE, test_share=0.01)
        pictures, said = pairs(simulated.images, {})
        if asked.pairs:
            more = pairs(asked.pairs, dict(part.split("=") for part in asked.columns.split(",") if part))
            pictures, said = pictures + more[0], said + more[1]
        words = save_tokenizer(asked.out, [sentence for sentences in said for sentence in sentences])
        model = untrained(asked.out, words, asked.seed)
        first = encoders.load(f"hf:{asked.out}")
        pixels = torch.cat([first.prepare(torch.from_numpy(each.read().transpose(2, 0, 1).copy())[None]) for each in pictures])
    say(f"{len(pixels)} pairs, {words} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    text = ClipText(model, first.text_tower.tokenizer, TOKENS)
    for number, loss in steps(model, text, pixels, said, asked.steps, asked.seed):
        if number % 25 == 0:
            spent = time.perf_counter() - begun
            say(f"step {number} of {asked.steps}, loss {loss:.3f}, {spent:.0f} s")
    model.save_pretrained(asked.out)
    say(f"{asked.out}: open it with --encoder hf:{asked.out}")


if __name__ == "__main__":
    main()
