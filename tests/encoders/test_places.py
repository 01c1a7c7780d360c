"""Fetching from a hub, played by a small server on this machine: only what is needed, and clear words where it says no."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import made
import pytest
import torch

from medtame import encoders
from medtame.encoders import places
from medtame.errors import EncoderError

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers OWNER/NAME/resolve/main/FILE from folders, as the hub does."""

    folders: ClassVar[dict[str, Path]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name, _, rest = self.path.strip("/").partition("/resolve/")
        file = self.folders.get(name, Path("/nothing")) / rest.partition("/")[2]
        if name == "someone/gated":
            return self.refuse(403, "GatedRepo")
        if name not in self.folders:
            return self.refuse(401, "RepoNotFound")
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        content = file.read_bytes()
        self.send_response(200)
        for key, value in {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def refuse(self, code: int, word: str) -> None:
        self.send_response(code)
        for key, value in {"X-Error-Code": word, "X-Error-Message": word, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "folders", {})
    monkeypatch.setattr(Hub, "asked", [])
    yield Hub
    server.shutdown()
    server.server_close()


def test_only_the_files_needed_are_fetched_and_only_once(hub: type[Hub], tmp_path: Path):
    model = made.biomedclip(tmp_path / "model", tmp_path / "bert")
    (tmp_path / "model" / "README.md").write_text("long")
    (tmp_path / "model" / "open_clip_pytorch_model.bin").write_bytes(b"not needed")
    (tmp_path / "bert" / "pytorch_model.bin").write_bytes(b"not needed")
    hub.folders |= {"someone/image-model": tmp_path / "model", "someone/bert": tmp_path / "bert"}
    encoder = encoders.load("open_clip:hf-hub:someone/image-model")
    with torch.no_grad():
        ids = encoder.text_tower.tokens(made.WORDS)[0]
        wanted = model.encode_text(torch.nn.functional.pad(ids, (0, 32 - ids.shape[1])), normalize=True)
    assert torch.allclose(encoder.texts(made.WORDS), wanted, atol=1e-5)
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"open_clip_config.json", "open_clip_model.safetensors", "config.json", "vocab.txt"}
    assert f"@{COMMIT[:12]};" in encoder.image_identity
    asked = len(hub.asked)
    assert encoders.card("open_clip:hf-hub:someone/image-model").image_identity == encoder.image_identity
    assert len(hub.asked) == asked


def test_a_hub_that_says_no(hub: type[Hub], tmp_path: Path):
    with pytest.raises(EncoderError, match="someone/gated asks you to accept its terms first"):
        encoders.load("hf:someone/gated")
    with pytest.raises(EncoderError, match="the hub has no model someone/nothing"):
        encoders.load("hf:someone/nothing")
    made.hf_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    hub.folders["someone/clip"] = tmp_path / "clip"
    with pytest.raises(EncoderError, match=r"someone/clip has no model.safetensors or pytorch_model.bin"):
        encoders.load("hf:someone/clip")


def test_no_connection_is_told_at_once_and_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(places, "getproxies", dict)
    with pytest.raises(EncoderError, match=r"microsoft/BiomedCLIP.*microsoft/BiomedNLP-BiomedBERT.*MEDTAME_MODELS"):
        encoders.load("biomedclip")


def test_a_name_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDTAME_MODELS", str(tmp_path / "models"))
    made.hf_clip(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    assert places.local("../secret", (("config.json",),)) is None
    assert places.local("a/../../secret", (("config.json",),)) is None
    with pytest.raises(EncoderError, match="no folder and no OWNER/NAME"):
        encoders.load("hf:a/../../secret")
