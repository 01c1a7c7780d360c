"""The short names: what is written of them, and what `medtame encoders` is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import made
import pytest

from medtame import encoders
from medtame.encoders import known, places
from medtame.errors import EncoderError


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MEDTAME_MODELS", raising=False)


def test_every_name_that_the_project_promises_is_there_and_complete():
    promised = {"biomedclip", "medsiglip", "pubmedclip", "plip", "quiltnet", "unimed-clip", "clip-vit-b-16", "siglip2"}
    assert promised <= set(known.names())
    assert len(set(known.names())) == len(known.names())
    for row in known.table():
        assert places.REPOSITORY.fullmatch(row.repository), row.name
        assert "/" in row.repository
        assert row.licence
        assert row.prompt_style == known.UNKNOWN or row.prompt_style.count("{}") == 1, row.name
        assert row.access in ("open", "gated")
        assert row.notes
        assert all(places.REPOSITORY.fullmatch(name) for name in row.also_needs)
        assert not row.spec or row.spec.partition(":")[0] in encoders.FAMILIES
    assert known.named("biomedclip").prompt_style == "this is a photo of {}"
    assert known.named("medsiglip").access == "gated"


def test_no_address_of_a_registry_is_written_down():
    assert "://" not in known.TABLE.read_text(encoding="utf-8")


def test_a_known_tag_is_one_of_the_library_and_names_its_repository():
    import open_clip

    for row in known.table():
        if row.spec.startswith("open_clip:") and "hf-hub:" not in row.spec:
            architecture, _, tag = row.spec.removeprefix("open_clip:").rpartition("/")
            assert open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"] == f"{row.repository}/"
        elif row.spec:
            assert row.spec.endswith(f":{row.repository}")


def test_rows_say_local_reachable_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = {row["name"]: row["state"] for row in known.rows()}
    assert state["biomedclip"] == "absent"  # HF_HUB_OFFLINE is set in tests
    assert state["unimed-clip"] == "not loadable"
    assert known.rows()[0]["name"] == "bundled"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert {row["name"]: row["state"] for row in known.rows()}["biomedclip"] == "reachable"

    models = tmp_path / "models"
    monkeypatch.setenv("MEDTAME_MODELS", str(models))
    name = known.named("biomedclip").repository.rpartition("/")[2]
    made.biomedclip(models / name, tmp_path / "bert")
    assert {row["name"]: row["state"] for row in known.rows()}["biomedclip"] == "reachable"  # its text repository is not here
    shutil.copytree(tmp_path / "bert", models / "BiomedNLP-BiomedBERT-base-uncased-abstract")
    row = {row["name"]: row for row in known.rows()}["biomedclip"]
    assert (row["state"], row["where"]) == ("local", str(models / name))
    assert (row["source"], row["licence"], row["medical_text"]) == (known.named("biomedclip").repository, "MIT", True)


def test_what_is_not_opened_says_why():
    with pytest.raises(EncoderError, match=r"pickle for its authors' own copy of open_clip.*open_clip:FOLDER"):
        encoders.card("unimed-clip")


def test_the_facts_reach_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDTAME_MODELS", str(tmp_path))
    made.open_clip_vit(tmp_path / "wisdomik" / "QuiltNet-B-32")
    card = encoders.card("quiltnet")
    assert (card.spec, card.licence, card.medical_text) == ("quiltnet", "MIT", True)
    assert "Quilt-1M" in card.notes
    assert encoders.card("open_clip:hf-hub:wisdomik/QuiltNet-B-32").licence == "MIT"
    assert encoders.card("open_clip:hf-hub:wisdomik/QuiltNet-B-32").image_identity == card.image_identity
