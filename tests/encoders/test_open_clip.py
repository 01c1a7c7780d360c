"""open_clip's models through the real path, against open_clip itself: CLIP, its ResNet, SigLIP, and BiomedCLIP's shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from prompts import (
    deep_contexts_are_the_slow_ways,
    deep_prompts_are_the_slow_ways,
    long_names_are_refused,
    places_are_the_slow_ways,
    prompts_are_the_towers_own,
)
from torch import Tensor, nn

from medtame import encoders
from medtame.encoders.towers import TowerEncoder
from medtame.errors import EncoderError, UnknownNameError
from medtame.learning.block_prompts import attention_blocks
from medtame.learning.fine_tuning import adaptable
from medtame.learning.low_rank import LowRank

KINDS = ("vit", "resnet", "siglip", "registers", "biomedclip", "convnext")


class Case:
    """A model on disk, the library's own model, its tokenizer and its image transform."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.folder = kind, root / "model"
        size, mode, mean = 48, "shortest", PreprocessCfg().mean
        tokenizer: Any = SimpleTokenizer(context_length=20)
        if kind == "vit":
            self.model = made.open_clip_vit(self.folder)
        elif kind == "resnet":
            self.model, size = made.open_clip_resnet(self.folder), 64
        elif kind in ("siglip", "registers"):
            trunk, dimension, size = ("medtame_siglip_vit", 24, 48) if kind == "siglip" else ("test_vit3", 96, 160)
            self.model, mode, mean = made.open_clip_siglip(self.folder, trunk, dimension, size), "squash", (0.5,) * 3
            tokenizer = HFTokenizer(str(self.folder), context_length=16, clean="canonicalize")
        else:
            trunk, pooler = ("test_vit", "cls_last_hidden_state_pooler") if kind == "biomedclip" else ("test_convnext", "mean_pooler")
            self.model, size = made.biomedclip(self.folder, root / "bert", pooler=pooler, trunk=trunk), 160
            tokenizer = HFTokenizer(str(root / "bert"), context_length=32)
        self.tokenizer = tokenizer
        deviation = (0.5,) * 3 if mode == "squash" else PreprocessCfg().std
        self.transform = image_transform_v2(PreprocessCfg(size=size, resize_mode=mode, mean=mean, std=deviation), is_train=False)

    @property
    def spec(self) -> str:
        return f"open_clip:{self.folder}"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {kind: Case(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def logits(encoder: TowerEncoder, whole: Tensor, texts: Tensor) -> Tensor:
    return encoder.scale * whole @ texts.T + encoder.bias


def test_embeddings_and_logits_are_the_librarys(case: Case):
    encoder = encoders.load(case.spec)
    prepared = torch.cat([encoder.prepare(made.tensor(image)) for image in made.pictures()])
    with torch.no_grad():
        images = case.model.encode_image(prepared, normalize=True)
        texts = case.model.encode_text(case.tokenizer(made.WORDS), normalize=True)
        wanted, _ = case.model.get_logits(prepared, case.tokenizer(made.WORDS))
    whole, words = encoder.whole(made.samples(made.pictures())), encoder.texts(made.WORDS)
    assert torch.allclose(whole, images, atol=1e-5)
    assert torch.allclose(words, texts, atol=1e-5)
    assert torch.allclose(logits(encoder, whole, words), wanted, atol=1e-5)
    assert len({round(float(value), 4) for value in wanted.flatten()}) > 10  # the model tells these images and texts apart


def test_softmax_has_no_bias_and_sigmoid_has_it_once(cases: dict[str, Case]):
    clip, siglip = encoders.load(cases["vit"].spec), encoders.load(cases["siglip"].spec)
    assert (clip.scale, clip.bias) == (pytest.approx(np.exp(3.2)), 0.0)
    assert (siglip.scale, siglip.bias) == (pytest.approx(np.exp(3.2)), -7.5)


def test_pixels_are_those_of_the_librarys_transform(case: Case):
    encoder = encoders.load(case.spec)
    deviation = torch.tensor(case.transform.transforms[-1].std)[:, None, None]
    for shape in ({}, {"grey": True}, {"wide": 300, "high": 211}, {"wide": 40, "high": 333}):
        for image in made.pictures(2, **shape):
            ours = encoder.prepare(made.tensor(image))[0]
            apart = (ours - case.transform(image)).abs() * deviation * 255
            assert apart.mean() <= 0.5, shape
            assert ours.shape == case.transform(image).shape


def test_sixteen_bits_are_not_rounded_to_eight(cases: dict[str, Case]):
    encoder = encoders.load(cases["vit"].spec)
    smooth = torch.linspace(0.5, 0.502, 60 * 60).reshape(1, 1, 60, 60)  # less than one step of 8 bits
    assert len(encoder.prepare(smooth).unique()) > 1000
    assert len(encoder.prepare((smooth * 255).round().to(torch.uint8)).unique()) <= 6
    spike = torch.zeros(1, 1, 60, 60)
    spike[..., 30:, :] = 1.0
    assert encoder.prepare(spike).amax() <= (1 - PreprocessCfg().mean[2]) / PreprocessCfg().std[2] + 1e-5  # bicubic overshoot is cut


def test_the_card_says_what_loading_gives(case: Case, monkeypatch: pytest.MonkeyPatch):
    encoder, card = encoders.load(case.spec), encoders.card(case.spec)
    whole, maps = encoder.both(made.samples(made.pictures(2)).pictures("image"))
    assert card.dimension == whole.shape[1]
    assert card.scales == tuple((scale.shape[1], scale.shape[2]) for scale in maps)
    assert maps[0].shape[1] == whole.shape[1]
    assert (card.spec, card.scale, card.bias) == (encoder.spec, encoder.scale, encoder.bias)
    assert (card.image_identity, card.text_identity) == (encoder.image_identity, encoder.text_identity)
    assert card.has_text
    assert card.text_length == encoder.text_tower.length
    assert (card.licence, card.medical_text) == ("unknown", None)
    assert str(case.folder) not in card.image_identity + card.text_identity


def test_texts_of_which_the_end_is_not_read_are_found(case: Case):
    made.unread_ends_are_found(encoders.load(case.spec))


def test_the_first_map_lies_in_the_texts_space(cases: dict[str, Case]):
    """Where the model pools by a mean, the mean of the map is its embedding; under attention pooling one position alone is the pool."""
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    whole, maps = encoders.load(cases["convnext"].spec).image_tower(images)
    visual = cases["convnext"].model.visual
    with torch.no_grad():
        by_hand = visual.head(visual.trunk.forward_head(visual.trunk.forward_features(images)[:, :, 1:2, 2:3]))
    assert torch.allclose(maps[0][:, :, 1, 2], by_hand, atol=1e-5)

    for kind in ("vit", "biomedclip"):  # the class token goes the same way as every patch
        case = cases[kind]
        images = torch.randn(2, 3, *[case.model.visual.image_size[0]] * 2, generator=torch.Generator().manual_seed(2))
        whole, maps = encoders.load(case.spec).image_tower(images)
        with torch.no_grad():
            if kind == "vit":
                tokens = case.model.visual.transformer(case.model.visual._embeds(images))
                aligned = case.model.visual.ln_post(tokens) @ case.model.visual.proj
            else:
                tokens = case.model.visual.trunk.forward_features(images)
                aligned = case.model.visual.head(tokens)
        assert torch.allclose(nn.functional.normalize(aligned[:, 0], dim=-1), whole, atol=1e-5)
        assert torch.allclose(maps[0].flatten(2).transpose(1, 2), aligned[:, 1:], atol=1e-5)

    for kind in ("siglip", "registers"):
        case = cases[kind]
        images = torch.randn(1, 3, *[case.model.visual.image_size[0]] * 2, generator=torch.Generator().manual_seed(3))
        whole, maps = encoders.load(case.spec).image_tower(images)
        trunk = case.model.visual.trunk
        with torch.no_grad():
            tokens = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
            alone = trunk.attn_pool(tokens[:, 4:5])
            same = trunk.attn_pool(tokens[:, 4:5].expand(-1, 7, -1))  # seven times the same position is that position
        assert torch.allclose(maps[0].flatten(2)[:, :, 4], alone, atol=1e-5)
        assert torch.allclose(alone, same, atol=1e-5)

    case = cases["resnet"]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    whole, maps = encoders.load(case.spec).image_tower(images)
    pool = case.model.visual.attnpool
    with torch.no_grad():
        placed = maps[1].flatten(2)[:, :, 3] + pool.positional_embedding[4]
        assert torch.allclose(maps[0].flatten(2)[:, :, 3], pool.c_proj(pool.v_proj(placed)), atol=1e-5)


def test_rows_and_columns_of_a_map_are_those_of_the_image(case: Case):
    """A change in the upper right corner of the image moves the upper right of the map most."""
    encoder = encoders.load(case.spec)
    side = encoder.prepare(torch.zeros(1, 1, 8, 8)).shape[-1]
    plain = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    changed = plain.clone()
    changed[:, :, : side // 3, -side // 3 :] += 3.0
    moved = (encoder.image_tower(plain)[1][1] - encoder.image_tower(changed)[1][1]).norm(dim=1)[0]
    rows, columns = np.unravel_index(int(moved.argmax()), moved.shape)
    assert (rows + 0.5) / moved.shape[0] < 0.5 < (columns + 0.5) / moved.shape[1]


def test_a_map_covers_the_whole_image_where_the_checkpoint_cuts(cases: dict[str, Case]):
    encoder = encoders.load(cases["vit"].spec)
    wide = torch.zeros(1, 1, 48, 200)
    wide[..., :40] = 1.0  # outside the middle square
    assert encoder.prepare(wide).std(dim=(2, 3)).amax() < 1e-4
    assert encoder.prepare_grid is not None
    assert encoder.prepare_grid(wide).std(dim=(2, 3)).amin() > 0.5
    whole = encoders.load(cases["vit"].spec + "@whole")
    assert whole.prepare_grid is None
    assert torch.equal(whole.prepare(wide), encoder.prepare_grid(wide))
    assert whole.image_identity != encoder.image_identity
    assert whole.text_identity == encoder.text_identity
    assert encoders.card(cases["vit"].spec + "@whole").image_identity == whole.image_identity
    assert encoders.card(cases["vit"].spec + "@whole").spec == whole.spec == cases["vit"].spec + "@whole"
    assert encoders.load(cases["siglip"].spec).prepare_grid is None


def test_words_can_be_taken_apart(case: Case):
    """CoOp's way: tokens, embeddings, a vector; unchanged embeddings give `texts`, changed ones get a gradient."""
    encoder = encoders.load(case.spec)
    prompts = ["a photo of a cat", "a photo of pneumonia and much more besides"]
    ids, mask = encoder.text_tower.tokens(prompts)
    assert torch.allclose(encoder.text_tower.encode(encoder.text_tower.embed(ids), mask), encoder.texts(prompts), atol=1e-6)
    prompts_are_the_towers_own(encoder)


def test_texts_do_not_depend_on_their_batch_and_are_cut_at_the_models_length(case: Case):
    encoder = encoders.load(case.spec)
    alone = torch.cat([encoder.texts([text]) for text in made.WORDS])
    assert torch.allclose(alone, encoder.texts(made.WORDS), atol=1e-5)
    long = "pneumonia " * 60
    with torch.no_grad():
        wanted = case.model.encode_text(case.tokenizer([long]), normalize=True)
    assert torch.allclose(encoder.texts([long]), wanted, atol=1e-5)


@pytest.mark.parametrize("place", ["end", "middle", "front"])
def test_a_context_stands_where_it_is_said(case: Case, place: str):
    places_are_the_slow_ways(encoders.load(case.spec), place)


def test_deep_prompts_enter_every_block(case: Case):
    encoder = encoders.load(case.spec)
    deep_contexts_are_the_slow_ways(encoder)
    if case.kind in ("resnet", "convnext"):
        assert attention_blocks(encoder.image_tower) == []
        return
    side = case.model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    deep_prompts_are_the_slow_ways(encoder, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(6)))


def test_long_names_are_refused(case: Case):
    long_names_are_refused(encoders.load(case.spec))


def test_lora_reaches_layers_that_are_called(case: Case):
    """Every chosen layer gets a gradient from `whole`, so none is passed by in silence."""
    tower = encoders.load(case.spec).image_tower
    names = adaptable(tower)
    if case.kind in ("siglip", "registers", "biomedclip"):
        assert any("attn.qkv" in name for name in names)
    if case.kind == "vit":  # torch's attention, taken apart
        assert {name.split(".", 4)[4] for name in names} == {"attn.qkv", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"}
    changed, parameters = LowRank(2, 4.0, False).around(tower, names, 0)
    side = case.model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    whole, _ = changed(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(6)))
    whole[:, 0].sum().backward()
    ups = [parameter for name, parameter in parameters.items() if "lora_B" in name]
    assert len(ups) == len(names)
    assert all(parameter.grad is not None and float(parameter.grad.abs().sum()) > 0 for parameter in ups)


def test_frozen_in_eval_mode_and_the_callers_randomness_is_left_alone(case: Case):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    encoder = encoders.load(case.spec)
    assert torch.equal(before, torch.random.get_rng_state())
    for tower in (encoder.image_tower, encoder.text_tower):
        assert not any(part.training for part in tower.modules())
        assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_identities_follow_weights_configuration_pixels_and_tokenizer(cases: dict[str, Case], tmp_path: Path):
    def identities(change: Any = None, root: Path = cases["biomedclip"].folder.parent) -> tuple[str, str]:
        copied = tmp_path / "again"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(root, copied)
        if change is not None:
            change(copied)
        card = encoders.card(f"open_clip:{copied / 'model'}")
        return card.image_identity, card.text_identity

    def configured(key: str, value: Any) -> Any:
        def change(root: Path) -> None:
            file = root / "model" / "open_clip_config.json"
            config = json.loads(file.read_text())
            part, _, name = key.partition(".")
            config[part][name] = value
            file.write_text(json.dumps(config))

        return change

    def weights(root: Path) -> None:
        file = root / "model" / "open_clip_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    def vocabulary(root: Path) -> None:
        lines = (root / "bert" / "vocab.txt").read_text().splitlines()
        (root / "bert" / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")

    image, text = identities()
    assert identities() == (image, text)
    assert all(new != old for new, old in zip(identities(weights), (image, text), strict=True))
    assert identities(configured("preprocess_cfg.mean", [0.4] * 3))[0] != image
    assert identities(configured("preprocess_cfg.mean", [0.4] * 3))[1] == text
    assert identities(vocabulary) == (image, identities(vocabulary)[1])
    assert identities(vocabulary)[1] != text


def test_a_tag_brings_configuration_preprocessing_and_activation(cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`MODEL/TAG` reads open_clip's own tables: a small architecture is put into them for the test."""
    import open_clip.factory
    import open_clip.pretrained

    config = json.loads(json.dumps(made.CLIP_VIT)) | {"quick_gelu": False}  # the tag alone says so, as for ViT-B-32/openai
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    tag = {
        "hf_hub": "someone/tiny/",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"first": tag})
    shutil.copytree(cases["vit"].folder, tmp_path / "someone" / "tiny")
    monkeypatch.setenv("MEDTAME_MODELS", str(tmp_path))
    encoder = encoders.load("open_clip:tiny/first")
    assert encoder.prepare_grid is None
    assert (encoder.prepare.kernel, encoder.prepare.deviation) == ("bilinear", (0.25,) * 3)
    assert torch.allclose(encoder.texts(made.WORDS), encoders.load(cases["vit"].spec).texts(made.WORDS), atol=1e-6)
    assert encoders.card("open_clip:tiny/first").image_identity == encoder.image_identity
    with pytest.raises(EncoderError, match="tiny has the tags first"):
        encoders.load("open_clip:tiny/second")


def test_names_that_do_not_exist():
    with pytest.raises(EncoderError, match="did you mean ViT-B-32"):
        encoders.card("open_clip:ViT-B-3/openai")
    with pytest.raises(EncoderError, match="ViT-B-32 has the tags openai, laion400m_e31"):
        encoders.card("open_clip:ViT-B-32")
    with pytest.raises(UnknownNameError, match="Did you mean 'biomedclip'"):
        encoders.card("biomedklip")


def test_a_folder_alone_and_another_kind_of_folder(cases: dict[str, Case], tmp_path: Path):
    assert encoders.card(str(cases["vit"].folder)).spec == str(cases["vit"].folder)
    assert encoders.load(str(cases["vit"].folder)).spec == str(cases["vit"].folder)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match="give hf:FOLDER"):
        encoders.load(f"open_clip:{tmp_path}")
