"""transformers' CLIP, SigLIP and SigLIP 2 through the real path, against transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
from prompts import (
    deep_contexts_are_the_slow_ways,
    deep_prompts_are_the_slow_ways,
    long_names_are_refused,
    places_are_the_slow_ways,
    prompts_are_the_towers_own,
)
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

from medtame import encoders
from medtame.errors import EncoderError
from medtame.learning.fine_tuning import adaptable
from medtame.learning.low_rank import LowRank

KINDS = ("clip", "siglip", "siglip2")


class Case:
    """A model on disk and the library's own model."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.spec = kind, folder, f"hf:{folder}"
        self.model: Any = made.hf_clip(folder) if kind == "clip" else made.hf_siglip(folder, kind.capitalize())
        self.words = AutoTokenizer.from_pretrained(folder)

    def texts(self, strings: list[str]) -> dict[str, Tensor]:
        length = 20 if self.kind == "clip" else 16
        settings = {"truncation": True, "max_length": length, "return_tensors": "pt"}
        found = self.words(strings, padding=True if self.kind == "clip" else "max_length", **settings)
        return dict(found) if self.kind == "clip" else {"input_ids": found["input_ids"]}

    def images(self, prepared: Tensor) -> dict[str, Tensor]:
        if self.kind != "siglip2":
            return {"pixel_values": prepared}
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        patches = torch.stack([convert_image_to_patches(image, 16) for image in prepared])
        shapes = torch.full((len(prepared), 2), 3)
        return {"pixel_values": patches, "pixel_attention_mask": torch.ones(patches.shape[:2]).long(), "spatial_shapes": shapes}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {kind: Case(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_embeddings_and_logits_are_the_librarys(case: Case):
    encoder = encoders.load(case.spec)
    prepared = torch.cat([encoder.prepare(made.tensor(image)) for image in made.pictures()])
    with torch.no_grad():
        wanted = case.model(**case.texts(made.WORDS), **case.images(prepared))
    whole, words = encoder.whole(made.samples(made.pictures())), encoder.texts(made.WORDS)
    assert torch.allclose(whole, wanted.image_embeds, atol=1e-5)
    assert torch.allclose(words, wanted.text_embeds, atol=1e-5)
    assert torch.allclose(encoder.scale * whole @ words.T + encoder.bias, wanted.logits_per_image, atol=1e-5)
    assert len({round(float(value), 4) for value in wanted.logits_per_image.flatten()}) > 10
    assert encoder.bias == (0.0 if case.kind == "clip" else -4.5)


def test_pixels_are_those_of_the_librarys_processor(cases: dict[str, Case]):
    """Against its PIL backend; SigLIP 2's own keeps an image's shape, so only squares are compared."""
    for kind, made_by, shapes in (
        ("clip", CLIPImageProcessorPil, ({}, {"grey": True}, {"wide": 300, "high": 211}, {"wide": 40, "high": 333})),
        ("siglip", SiglipImageProcessorPil, ({}, {"grey": True}, {"wide": 300, "high": 211})),
        ("siglip2", Siglip2ImageProcessor, ({"wide": 70, "high": 70}, {"wide": 210, "high": 210})),
    ):
        processor, encoder = made_by.from_pretrained(cases[kind].folder), encoders.load(cases[kind].spec)
        deviation = torch.tensor(processor.image_std)[:, None, None]
        for shape in shapes:
            for image in made.pictures(2, **shape):
                theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
                if kind == "siglip2":
                    theirs = theirs.reshape(3, 3, 16, 16, 3).permute(4, 0, 2, 1, 3).reshape(3, 48, 48)
                apart = (encoder.prepare(made.tensor(image))[0] - theirs).abs() * deviation * 255
                assert apart.mean() <= 0.5, (kind, shape)


def test_the_card_says_what_loading_gives(case: Case):
    encoder, card = encoders.load(case.spec), encoders.card(case.spec)
    whole, maps = encoder.both(made.samples(made.pictures(2)).pictures("image"))
    assert card.dimension == whole.shape[1] == maps[0].shape[1]
    assert card.scales == tuple((scale.shape[1], scale.shape[2]) for scale in maps)
    assert (card.spec, card.scale, card.bias) == (encoder.spec, encoder.scale, encoder.bias)
    assert (card.image_identity, card.text_identity) == (encoder.image_identity, encoder.text_identity)
    assert card.text_length == encoder.text_tower.length


def test_texts_of_which_the_end_is_not_read_are_found(case: Case):
    made.unread_ends_are_found(encoders.load(case.spec))


def test_the_first_map_lies_in_the_texts_space(case: Case):
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    whole, maps = encoders.load(case.spec).image_tower(images)
    with torch.no_grad():
        tokens = case.model.vision_model(**case.images(images)).last_hidden_state
        if case.kind == "clip":
            aligned = case.model.visual_projection(case.model.vision_model.post_layernorm(tokens))
            assert torch.allclose(nn.functional.normalize(aligned[:, 0], dim=-1), whole, atol=1e-5)
            aligned = aligned[:, 1:]
        else:  # the pool over the same position nine times is that position
            aligned = torch.stack([case.model.vision_model.head(tokens[:, [i] * 9]) for i in range(9)], 1)
    assert torch.allclose(maps[0].flatten(2).transpose(1, 2), aligned, atol=1e-5)


def test_rows_and_columns_of_a_map_are_those_of_the_image(case: Case):
    encoder = encoders.load(case.spec)
    plain = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    changed = plain.clone()
    changed[:, :, :16, 32:] += 3.0
    moved = (encoder.image_tower(plain)[1][1] - encoder.image_tower(changed)[1][1]).norm(dim=1)[0]
    assert np.unravel_index(int(moved.argmax()), moved.shape) == (0, 2)


def test_words_can_be_taken_apart(case: Case):
    encoder = encoders.load(case.spec)
    prompts = ["a photo of a cat", "a photo of pneumonia"]
    ids, mask = encoder.text_tower.tokens(prompts)
    assert torch.allclose(encoder.text_tower.encode(encoder.text_tower.embed(ids), mask), encoder.texts(prompts), atol=1e-6)
    prompts_are_the_towers_own(encoder)
    alone = torch.cat([encoder.texts([text]) for text in made.WORDS])
    assert torch.allclose(alone, encoder.texts(made.WORDS), atol=1e-5)
    with torch.no_grad():
        long = case.model.get_text_features(**case.texts(["pneumonia " * 60])).pooler_output
    assert torch.allclose(encoder.texts(["pneumonia " * 60]), nn.functional.normalize(long, dim=-1), atol=1e-5)


@pytest.mark.parametrize("place", ["end", "middle", "front"])
def test_a_context_stands_where_it_is_said(case: Case, place: str):
    places_are_the_slow_ways(encoders.load(case.spec), place)


def test_deep_prompts_enter_every_block(case: Case):
    encoder = encoders.load(case.spec)
    deep_contexts_are_the_slow_ways(encoder)
    side = 48
    deep_prompts_are_the_slow_ways(encoder, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(6)))


def test_long_names_are_refused(case: Case):
    long_names_are_refused(encoders.load(case.spec))


def test_lora_reaches_attention_and_projection(case: Case):
    tower = encoders.load(case.spec).image_tower
    names = adaptable(tower)
    assert any("q_proj" in name for name in names)
    pooled = {name for name in names if "head.attention" in name}  # torch's own attention, in SigLIP's pool, taken apart
    assert pooled == (set() if case.kind == "clip" else {"vision.head.attention.qkv", "vision.head.attention.out_proj"})
    changed, parameters = LowRank(2, 4.0, False).around(tower, names, 0)
    whole, _ = changed(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(6)))
    whole[:, 0].sum().backward()
    ups = [parameter for name, parameter in parameters.items() if "lora_B" in name]
    assert len(ups) == len(names)
    assert all(parameter.grad is not None and float(parameter.grad.abs().sum()) > 0 for parameter in ups)


def test_half_precision_in_the_configuration_and_code_to_run_are_ignored(cases: dict[str, Case], tmp_path: Path):
    folder = tmp_path / "clip"
    shutil.copytree(cases["clip"].folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"torch_dtype": "float16", "dtype": "float16", "auto_map": {"AutoModel": "evil.Model"}}
    config["vision_config"] |= {"torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    encoder, plain = encoders.load(f"hf:{folder}"), encoders.load(cases["clip"].spec)
    assert all(tensor.dtype == torch.float32 for tensor in encoder.image_tower.parameters())
    assert torch.allclose(encoder.texts(made.WORDS), plain.texts(made.WORDS), atol=1e-6)


def test_a_pickle_of_plain_tensors_and_old_buffers_are_read(cases: dict[str, Case], tmp_path: Path):
    """As PubMedCLIP and PLIP are published: pytorch_model.bin with the position numbers of older versions."""
    folder = tmp_path / "clip"
    shutil.copytree(cases["clip"].folder, folder)
    (folder / "model.safetensors").unlink()
    stored = cases["clip"].model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    torch.save(stored, folder / "pytorch_model.bin")
    encoder = encoders.load(f"hf:{folder}")
    assert torch.allclose(encoder.texts(made.WORDS), encoders.load(cases["clip"].spec).texts(made.WORDS), atol=1e-6)
    assert encoders.card(f"hf:{folder}").scale == pytest.approx(np.exp(3.1), rel=1e-6)


def test_medtame_models_and_one_error_for_what_is_absent(cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("MEDTAME_MODELS", str(tmp_path))
    with pytest.raises(EncoderError, match=r"google/medsiglip-448 \(config.json, model.safetensors.*MEDTAME_MODELS.*hf:FOLDER"):
        encoders.load("medsiglip")
    shutil.copytree(cases["siglip"].folder, tmp_path / "google" / "medsiglip-448")
    encoder, card = encoders.load("medsiglip"), encoders.card("medsiglip")
    assert (encoder.spec, card.spec) == ("medsiglip", "medsiglip")
    assert (card.licence, card.medical_text) == ("Health AI Developer Foundations terms", True)
    assert encoder.image_identity == card.image_identity
    assert torch.allclose(encoder.texts(made.WORDS), encoders.load(cases["siglip"].spec).texts(made.WORDS), atol=1e-6)
    assert encoders.load("medsiglip@whole").spec == "medsiglip@whole"


def test_names_that_do_not_exist(cases: dict[str, Case], tmp_path: Path):
    with pytest.raises(EncoderError, match="no folder and no OWNER/NAME"):
        encoders.load(f"hf:{tmp_path / 'nothing'}")
    shutil.copytree(cases["clip"].folder, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(EncoderError, match="is a bert; known with images and texts are clip, siglip, siglip2"):
        encoders.load(f"hf:{tmp_path / 'other'}")
