"""Titles alike: the NumPy layers equal the tower of `bundled`, kept vectors are used and renewed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtame.errors import MissingExtraError
from medtame.literature import sentences, tables

TEXTS = ["Few-shot anomaly detection", "reports", "Ariadne’s Thread: Using Text Prompts, twice", "naïve ünïcode ☃ 3D-CT", "a " * 300]


@pytest.fixture(scope="module")
def files():
    from medtame.encoders import bundled

    try:
        return sentences.Files(bundled.found(bundled.TEXT_WEIGHTS), bundled.found(bundled.TOKENIZER))
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_numpy_equals_the_tower(files):
    from medtame.encoders import bundled, minilm

    tower = minilm.load(files.weights, bundled.found(bundled.TEXT_CONFIG), files.tokenizer)
    ids, mask = tower.tokens(TEXTS)
    with torch.no_grad():
        theirs = tower.encode(tower.embed(ids), mask).numpy()
    ours = sentences.embedded(TEXTS, files)
    assert ours.shape == (5, 384)
    assert np.abs(ours - theirs).max() < 2e-6


def test_gelu_is_the_exact_one():
    values = np.linspace(-6, 6, 2001, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(values).double()).numpy()
    assert np.abs(sentences.gelu(values) - exact).max() < 1e-6


def test_a_question_finds_its_papers(files, tmp_path):
    titles = [paper.title for paper in tables.papers() if "nomaly" in paper.title or "egistration" in paper.title]
    near = sentences.alike("aligning images of two patients: registration", titles, tmp_path, lambda: files)
    assert all("egistration" in titles[i] for i in np.argsort(-near)[:2])


def test_vectors_are_kept_and_made_again_only_for_other_titles_or_files(files, tmp_path):
    asked = []

    def find():
        asked.append(1)
        return files

    titles = ["chest X-ray reports", "surgical video"]
    first = sentences.alike("a report", titles, tmp_path, find)
    second = sentences.alike("a report", titles, tmp_path, find)
    assert len(asked) == 1
    np.testing.assert_allclose(first, second, atol=1e-6)
    other = sentences.alike("a report", [*titles, "one more"], tmp_path, find)
    assert len(asked) == 2
    assert other.shape == (3,)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_allclose(sentences.alike("a report", titles, tmp_path, find), first, atol=1e-6)
    assert len(asked) == 3


def test_a_folder_that_may_not_be_written_still_gives_an_answer(files, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert sentences.alike("a", ["a", "b"], tmp_path / "file", lambda: files)[0] == pytest.approx(1, abs=1e-5)
