"""Tiny random models of every kind, written to a folder as their libraries write them, with tokenizers built here.

Each function gives the library's own model, in eval mode, so that a test can compare. Nothing is fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import text_lengths

WORDS = [
    "a chest x-ray of pneumonia",
    "a photo of a cat",
    "an H&E image of carcinoma, grade 2",
    "normal",
    "brain MRI with a large tumour in the left frontal lobe",
]
CLIP_VIT = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLIP_RESNET = CLIP_VIT | {
    "quick_gelu": False,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
}


@register_model
def medtame_siglip_vit(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """SigLIP's trunk, shrunk: no class token, attention pool, no registers."""
    settings.pop("pretrained_cfg", None), settings.pop("pretrained_cfg_overlay", None), settings.pop("cache_dir", None)
    sizes = {"img_size": 48, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return VisionTransformer(**(sizes | {"class_token": False, "global_pool": "map"} | settings))


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter and running statistic a little random, so that nothing is left at zero or one."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name not in ("logit_scale", "logit_bias"):
                noise = torch.randn(tensor.shape, generator=drawn) * 0.05
                tensor.add_(noise.abs() if "running_var" in name else noise)
    return model.eval()


def open_clip_folder(folder: Path, model_cfg: dict[str, Any], preprocess_cfg: Any = None, text: Path | None = None, **logits: float) -> Any:
    """An open_clip model and its two files. `text`: where the text configuration lies that the configuration names."""
    from open_clip.model import CLIP, CustomTextCLIP

    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_cfg": model_cfg} | ({"preprocess_cfg": preprocess_cfg} if preprocess_cfg else {})
    (folder / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    settings = json.loads(json.dumps(model_cfg))
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    settings["text_cfg"]["hf_model_pretrained"] = False
    if text is not None:
        settings["text_cfg"]["hf_model_name"] = str(text)
    model = shaken((CustomTextCLIP if custom else CLIP)(**settings))
    with torch.no_grad():
        model.logit_scale.fill_(logits.get("scale", 3.2))
        if model.logit_bias is not None:
            model.logit_bias.fill_(logits.get("bias", -7.5))
    stored = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(stored, folder / "open_clip_model.safetensors")
    return model


def open_clip_vit(folder: Path) -> Any:
    return open_clip_folder(folder, CLIP_VIT)


def open_clip_resnet(folder: Path) -> Any:
    return open_clip_folder(folder, CLIP_RESNET, scale=2.0)


def open_clip_siglip(folder: Path, trunk: str = "medtame_siglip_vit", dimension: int = 24, size: int = 48) -> Any:
    """A SigLIP of open_clip; its SentencePiece (unigram) tokenizer lies in the same folder."""
    rows = unigram(folder)
    text = {
        "context_length": 16,
        "vocab_size": rows,
        "hf_tokenizer_name": "someone/words",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": dimension,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    vision = {"image_size": size, "timm_model_name": trunk, "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
    model = {"embed_dim": dimension, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    images = {"size": size, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return open_clip_folder(folder, model, images)


def biomedclip(folder: Path, text: Path, *, pooler: str = "cls_last_hidden_state_pooler", trunk: str = "test_vit", size: int = 160) -> Any:
    """BiomedCLIP's shape: the configuration names another repository for text configuration and tokenizer."""
    bert(text)
    name = f"someone/{text.name}"
    model = {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": trunk,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": size,
        },
        "text_cfg": {
            "hf_model_name": name,
            "hf_tokenizer_name": name,
            "hf_proj_type": "mlp",
            "hf_pooler_type": pooler,
            "context_length": 32,
        },
    }
    images = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    return open_clip_folder(folder, model, images, text)


def bert(folder: Path) -> int:
    """A BERT's configuration and WordPiece tokenizer, no weights. Its number of words."""
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(
        WORDS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    )
    vocabulary = sorted(words.get_vocab(), key=words.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40}
    BertConfig(vocab_size=len(vocabulary), **sizes).save_pretrained(folder)
    return len(vocabulary)


def unigram(folder: Path) -> int:
    """A SentencePiece model of the unigram kind as tokenizer.json, lower case, `</s>` at the end. Its number of words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.Unigram())
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
    words.train_from_iterator(
        WORDS * 4, trainers.UnigramTrainer(vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    )
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words.token_to_id("</s>"))])
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return int(words.get_vocab_size())


def gemma_words(folder: Path) -> int:
    """SigLIP 2's tokenizer: a BPE over words marked by `▁`, of Gemma's kind. Its number of words."""
    from transformers import Siglip2Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    words.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]))
    words.save(str(folder / "raw.json"))
    model = json.loads((folder / "raw.json").read_text(encoding="utf-8"))["model"]
    (folder / "raw.json").unlink()
    Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]).save_pretrained(folder)
    return len(model["vocab"])


def clip_words(folder: Path) -> dict[str, int]:
    """A byte-level BPE of CLIP's kind as vocab.json and merges.txt. Its ids: words, beginning, end."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = pre_tokenizers.ByteLevel.alphabet()
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = sorted(letters) + [f"{letter}</w>" for letter in sorted(letters)]
    words.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=special[:256], end_of_word_suffix="</w>"))
    words.save(str(folder / "raw.json"))
    model = json.loads((folder / "raw.json").read_text(encoding="utf-8"))["model"]
    (folder / "raw.json").unlink()
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *model["vocab"]]))}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 20}), encoding="utf-8"
    )
    return {"words": len(vocabulary), "begin": len(vocabulary) - 2, "end": len(vocabulary) - 1}


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def hf_clip(folder: Path) -> Any:
    """Of transformers: CLIPModel."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    ids = clip_words(folder)
    special = {"vocab_size": ids["words"], "bos_token_id": ids["begin"], "eos_token_id": ids["end"], "pad_token_id": ids["end"]}
    text = SIZES | special | {"max_position_embeddings": 20}
    vision = SIZES | {"image_size": 48, "patch_size": 16}
    model = shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=3.1)))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    return model


def hf_siglip(folder: Path, kind: str = "Siglip") -> Any:
    """Of transformers: SiglipModel or Siglip2Model."""
    import transformers

    rows = unigram(folder) if kind == "Siglip" else gemma_words(folder)
    text = SIZES | {"vocab_size": rows, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    vision = SIZES | ({"image_size": 48, "patch_size": 16} if kind == "Siglip" else {"num_patches": 9, "patch_size": 16})
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    torch.manual_seed(1)
    model = shaken(getattr(transformers, f"{kind}Model")(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-4.5)
    model.save_pretrained(folder)
    processor = getattr(transformers, f"{kind}ImageProcessor")
    sizes = {"size": {"height": 48, "width": 48}} if kind == "Siglip" else {"patch_size": 16, "max_num_patches": 9}
    processor(**sizes).save_pretrained(folder)
    return model


def pictures(count: int = 5, *, grey: bool = False, wide: int = 61, high: int = 53) -> list[Image.Image]:
    """Smooth random images, 8 bits, no squares."""
    drawn = np.random.default_rng(3)
    made = []
    for _ in range(count):
        coarse = Image.fromarray(drawn.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((wide, high), Image.Resampling.BICUBIC)
        made.append(coarse.convert("L") if grey else coarse)
    return made


def samples(images: list[Image.Image]) -> ManifestSamples:
    """The same images as samples of medtame, stored in 8 bits."""
    return ManifestSamples({"image": [ArrayPicture(np.asarray(image), "made") for image in images]}, np.arange(len(images)))


def tensor(image: Image.Image) -> torch.Tensor:
    """(1, C, H, W) uint8."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)[None]


def unread_ends_are_found(encoder: Any) -> None:
    """A text is told of where its vector stays the same with another last word, for lengths on both sides of what is read."""
    longest, kinds = encoder.text_tower.length, set()
    for count in {1, *range(max(1, longest - 4), longest + 3)}:
        text = " ".join(["a"] * count)
        one, other = encoder.texts([text, text[:-1] + "of"])
        unread = bool(torch.allclose(one, other, atol=1e-6))
        assert text_lengths.cut(encoder, [text, "a"]) == ([text] if unread else []), count
        kinds.add(unread)
    assert kinds == {True, False}
