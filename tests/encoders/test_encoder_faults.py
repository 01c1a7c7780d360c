"""Encoder folders that are damaged or mixed up: one line each that says what, where and how to mend it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import made
import pytest
import torch
from safetensors.torch import load_file, save_file

from medtame import encoders
from medtame.encoders import checkpoint
from medtame.errors import EncoderError

WEIGHTS = {"open_clip": "open_clip_model.safetensors", "bert": "open_clip_model.safetensors", "hf": "model.safetensors"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    made.open_clip_vit(root / "open_clip")
    made.biomedclip(root / "bert", root / "words")
    made.hf_clip(root / "hf")
    return root


@pytest.fixture(params=["open_clip", "bert", "hf"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(sound: Path, kind: str, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "root")
    return tmp_path / "root" / kind


def refused(folder: Path, *verbs: Callable[[str], object]) -> str:
    """The one line with which loading (and, where given, the card) is refused."""
    family = "hf" if folder.name == "hf" else "open_clip"
    message = ""
    for verb in verbs or (encoders.load,):
        with pytest.raises(EncoderError) as error:
            verb(f"{family}:{folder}")
        message = str(error.value)
        assert "\n" not in message
        assert ":" in message or ";" in message
    return message


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / WEIGHTS[folder.name]
    stored = load_file(path)
    change(stored)
    save_file(stored, path)


def first(folder: Path) -> str:
    """A weight of the image side."""
    return sorted(name for name in load_file(folder / WEIGHTS[folder.name]) if name.startswith("vis") and name.endswith("weight"))[0]


def test_missing_tensors(folder: Path):
    names = [name for name in load_file(folder / WEIGHTS[folder.name]) if "bias" in name and name != "logit_bias"]
    changed(folder, lambda stored: [stored.pop(name) for name in names])
    assert f"{len(names)} missing (" in (message := refused(folder))
    assert sum(name.removeprefix("text.") in message for name in names) >= 3
    assert message.endswith("get both from one source")


def test_a_missing_scale(folder: Path):
    changed(folder, lambda stored: stored.pop("logit_scale"))
    assert "1 missing (logit_scale)" in refused(folder, encoders.load, encoders.card)


def test_extra_tensors(folder: Path):
    changed(folder, lambda stored: stored.update({"visual.more": torch.zeros(2), "text_model.more": torch.zeros(3)}))
    assert "2 unexpected (" in (message := refused(folder))
    assert "visual.more" in message


def test_buffers_of_older_versions_are_no_fault(folder: Path):
    name = {"hf": "vision_model.embeddings.position_ids", "open_clip": "attn_mask"}.get(
        folder.name, "text.transformer.embeddings.position_ids"
    )
    changed(folder, lambda stored: stored.update({name: torch.arange(10)}))
    assert encoders.load(f"{'hf' if folder.name == 'hf' else 'open_clip'}:{folder}").texts(["normal"]).shape[0] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(folder: Path, value: float):
    name = first(folder)
    changed(folder, lambda stored: stored[name].flatten()[0].fill_(value))
    assert f"1 with NaN or infinite numbers ({name})" in refused(folder)


def test_a_scale_that_is_not_finite(folder: Path):
    changed(folder, lambda stored: stored["logit_scale"].fill_(float("nan")))
    assert "logit_scale is no finite number" in refused(folder, encoders.load, encoders.card)


def test_a_wrong_shape(folder: Path):
    name = first(folder)
    changed(folder, lambda stored: stored.update({name: stored[name][:1].clone()}))
    assert f"1 of a wrong shape ({name} (1, " in refused(folder)


def test_weights_of_another_configuration(folder: Path):
    """The folder of a wider model: many tensors of a wrong shape, the first ones named."""
    file = folder / ("config.json" if folder.name == "hf" else "open_clip_config.json")
    config = json.loads(file.read_text())
    if folder.name == "hf":
        config["vision_config"]["intermediate_size"] = 64
    else:
        config["model_cfg"]["embed_dim"] = 40
    file.write_text(json.dumps(config))
    assert "of a wrong shape (" in refused(folder)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return exec, ("import pathlib; pathlib.Path('evil_was_run').touch()",)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_named_safetensors(folder: Path, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = folder / WEIGHTS[folder.name]
    if protocol == "torch":
        torch.save({"a": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil()))
    assert "is a pickle named safetensors, which is not opened" in refused(folder, encoders.load, encoders.card)
    assert not (tmp_path / "evil_was_run").exists()


def test_a_pickle_that_would_run_something(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS[folder.name]).unlink()
    other = folder / ("pytorch_model.bin" if folder.name == "hf" else "open_clip_pytorch_model.bin")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Evil()}, other)
    assert "runs no code from one" in refused(folder, encoders.load, encoders.card)
    other.write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "runs no code from one" in refused(folder)
    assert not (tmp_path / "evil_was_run").exists()


def test_a_pickle_of_plain_tensors_in_training_state_is_read(sound: Path, tmp_path: Path):
    shutil.copytree(sound, tmp_path / "root")
    folder = tmp_path / "root" / "open_clip"
    stored = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in stored.items()}}, folder / "open_clip_pytorch_model.pt"
    )
    ours = encoders.load(f"open_clip:{folder}").texts(made.WORDS)
    assert torch.allclose(ours, encoders.load(f"open_clip:{sound / 'open_clip'}").texts(made.WORDS))


def test_what_is_no_state_at_all(tmp_path: Path):
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(EncoderError, match="holds a list and no tensors by name"):
        checkpoint.tensors(tmp_path / "a.pt")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(EncoderError, match=r"no tensor \(epoch\)"):
        checkpoint.tensors(tmp_path / "b.pt")


@pytest.mark.parametrize("cut", [0, 7, 100])
def test_a_truncated_file(folder: Path, cut: int):
    path = folder / WEIGHTS[folder.name]
    path.write_bytes(path.read_bytes()[:cut])
    assert "no safetensors file, or a damaged one" in refused(folder, encoders.load, encoders.card)


def test_a_configuration_that_is_no_json_or_no_configuration(folder: Path):
    file = folder / ("config.json" if folder.name == "hf" else "open_clip_config.json")
    for content, said in (("{", "no readable JSON"), ("[1]", "holds a list"), ('"a"', "holds a str")):
        file.write_text(content)
        assert said in refused(folder, encoders.load, encoders.card)
    file.write_text("{}")
    assert "is a None" in (message := refused(folder)) or "no model_cfg" in message


def test_a_configuration_that_cannot_be_built(folder: Path):
    file = folder / ("config.json" if folder.name == "hf" else "open_clip_config.json")
    config = json.loads(file.read_text())
    if folder.name == "hf":
        config["text_config"]["num_attention_heads"] = 5
    else:
        config["model_cfg"]["vision_cfg"]["nonsense"] = 1
    file.write_text(json.dumps(config))
    assert "cannot build" in refused(folder)


def test_a_model_of_another_kind_inside_the_configuration(sound: Path, tmp_path: Path):
    shutil.copytree(sound, tmp_path / "root")
    for kind, change, said in (
        ("open_clip", {"multimodal_cfg": {}}, "is a CoCa"),
        ("bert", {"vision_cfg": {"timm_model_name": "hf-hub:someone/else", "image_size": 160}}, "only timm's own names are taken"),
    ):
        file = tmp_path / "root" / kind / "open_clip_config.json"
        config = json.loads(file.read_text())
        config["model_cfg"] |= change
        file.write_text(json.dumps(config))
        assert said in refused(tmp_path / "root" / kind)
    (tmp_path / "root" / "words" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    file = tmp_path / "root" / "bert" / "open_clip_config.json"
    file.write_text((sound / "bert" / "open_clip_config.json").read_text())
    assert "is a gpt2; known text towers are bert" in refused(tmp_path / "root" / "bert")


def test_another_tokenizer(folder: Path):
    if folder.name == "hf":
        made.unigram(folder)
    elif folder.name == "bert":
        words = folder.parent / "words" / "vocab.txt"
        words.write_text("\n".join(words.read_text().split("\n")[:30]) + "\n")
    else:
        file = folder / "open_clip_config.json"
        config = json.loads(file.read_text())
        config["model_cfg"]["text_cfg"]["vocab_size"] = 30522
        file.write_text(json.dumps(config))
    message = refused(folder)
    assert "holds another tokenizer" in message
    assert "rows" in message


def test_no_tokenizer(sound: Path, tmp_path: Path):
    shutil.copytree(sound, tmp_path / "root")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "root" / "hf" / name).unlink()
    assert "has no tokenizer: put the model's tokenizer.json" in refused(tmp_path / "root" / "hf")
    (tmp_path / "root" / "hf" / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "is no tokenizer" in refused(tmp_path / "root" / "hf")
    (tmp_path / "root" / "words" / "vocab.txt").unlink()
    assert "someone/words (" in refused(tmp_path / "root" / "bert")


def test_a_tokenizer_that_would_run_code(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(sound, tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "root" / "hf"
    (folder / "evil.py").write_text("import pathlib; pathlib.Path('evil_was_run').touch()\nclass Words: pass\n")
    settings = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["evil.Words", "evil.Words"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with suppress(EncoderError):  # refused, or read by its other files
        encoders.load(f"hf:{folder}")
    assert not (tmp_path / "evil_was_run").exists()
    file = tmp_path / "root" / "bert" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    file.write_text(json.dumps(config))
    assert "tokenizer_kwargs holds ['trust_remote_code']" in refused(tmp_path / "root" / "bert")


def test_preprocessing_that_does_not_fit(folder: Path):
    if folder.name == "hf":
        file = folder / "preprocessor_config.json"
        config = json.loads(file.read_text()) | {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        file.write_text(json.dumps(config))
        said = "prepares images of 64 pixels for a tower that takes 48"
    else:
        file = folder / "open_clip_config.json"
        config = json.loads(file.read_text()) | {"preprocess_cfg": {"interpolation": "nearest"}}
        file.write_text(json.dumps(config))
        said = "by shortest and nearest"
    assert said in refused(folder, encoders.load, encoders.card)
    if folder.name == "hf":
        file.unlink()
        assert "has no preprocessor_config.json" in refused(folder)


def test_no_weights_and_no_such_folder(folder: Path):
    (folder / WEIGHTS[folder.name]).unlink()
    assert f"has no {WEIGHTS[folder.name]}" in refused(folder)
    shutil.rmtree(folder)
    assert "is no folder" in refused(folder)
