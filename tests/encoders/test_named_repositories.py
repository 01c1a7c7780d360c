"""BiomedCLIP's shape: the configuration names another repository, which lies beside it, under MEDTAME_MODELS or in the hub cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import made
import pytest
import torch

from medtame import encoders
from medtame.errors import EncoderError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` and, beside it, `bert`."""
    folder = tmp_path_factory.mktemp("biomedclip")
    made.biomedclip(folder / "model", folder / "bert")
    return folder


def spots(top: Path) -> dict[str, Path]:
    """Where the folder named `someone/bert` may lie beside a model in root/models/model."""
    models = top / "models"
    return {
        "beside": models / "bert",
        "owner beside": models / "someone" / "bert",
        "inside": models / "model" / "bert",
        "above": top / "someone" / "bert",
    }


@pytest.mark.parametrize("where", ["beside", "owner beside", "inside", "above"])
def test_a_named_repository_is_found_beside_the_folder(root: Path, tmp_path: Path, where: str):
    shutil.copytree(root / "model", tmp_path / "models" / "model")
    shutil.copytree(root / "bert", spots(tmp_path)[where])
    encoder = encoders.load(f"open_clip:{tmp_path / 'models' / 'model'}")
    assert torch.allclose(encoder.texts(made.WORDS), encoders.load(f"open_clip:{root / 'model'}").texts(made.WORDS), atol=1e-6)


def in_hub_cache(cache: Path, repository: str, folder: Path, commit: str) -> None:
    """As the hub's own cache lies: snapshots of links to blobs."""
    stored = cache / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (stored / part).mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, stored / "blobs" / str(number))
        (stored / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / str(number))


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_biomedclips_shape_from_the_local_hub_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    cache = tmp_path / "hub" if variable == "HF_HOME" else tmp_path
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "MEDTAME_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    in_hub_cache(cache, "someone/image-model", root / "model", "a" * 40)
    in_hub_cache(cache, "someone/bert", root / "bert", "b" * 40)
    encoder = encoders.load("open_clip:hf-hub:someone/image-model")
    assert torch.allclose(encoder.texts(made.WORDS), encoders.load(f"open_clip:{root / 'model'}").texts(made.WORDS), atol=1e-6)
    assert "someone/image-model@" + "a" * 12 in encoder.image_identity


def test_medtame_models_names_a_folder_of_models(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(root / "model", tmp_path / "someone--image-model")
    shutil.copytree(root / "bert", tmp_path / "someone" / "bert")
    monkeypatch.setenv("MEDTAME_MODELS", str(tmp_path))
    assert encoders.load("open_clip:hf-hub:someone/image-model").texts(["normal"]).shape == (1, 24)


def test_what_is_absent_is_named_in_one_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("MEDTAME_MODELS", raising=False)
    shutil.copytree(root / "model", tmp_path / "alone" / "model")
    with pytest.raises(EncoderError, match=r"someone/bert \(config.json, tokenizer.json or vocab.txt\).*MEDTAME_MODELS") as error:
        encoders.load(f"open_clip:{tmp_path / 'alone' / 'model'}")
    assert "\n" not in str(error.value)
    with pytest.raises(EncoderError) as error:
        encoders.load("biomedclip")
    for part in (
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 (open_clip_config.json, open_clip_model.safetensors",
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract (config.json, tokenizer.json or vocab.txt)",
        "MEDTAME_MODELS",
        "open_clip:FOLDER",
        "HF_HUB_OFFLINE",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(EncoderError, match=r"timm/vit_base_patch32_clip_224.openai \(open_clip_model.safetensors"):
        encoders.load("open_clip:ViT-B-32/openai")
    with pytest.raises(EncoderError, match=r"laion/CLIP-ViT-B-32-roberta.* and roberta-base"):
        encoders.card("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k")
