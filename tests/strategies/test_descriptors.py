"""Scores are mean cosines to findings; files that lack a class; classes that no file knows."""

from __future__ import annotations

import json

import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit

from medtame.errors import SettingsError
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.knowledge.descriptors import Descriptors

NAMES = ("tumour", "normal")


@pytest.fixture
def own(tmp_path):
    def write(classes, **more):
        path = tmp_path / "own.json"
        path.write_text(json.dumps({"classes": classes, **more}), encoding="utf-8")
        return str(path)

    return write


def asked(names=NAMES, n=9, **more):
    return query(PlantedEncoder(unit(noise(n, 7))), names, samples(n), **more)


def fitted(rows, **settings):
    return Descriptors(**settings).fit(problem(rows, [i % 2 for i in range(len(rows))]))


def test_a_score_is_the_mean_over_findings_of_any_number(own):
    file = own({"tumour": ["a mass", {"finding": "a shadow", "source": "a book"}, "a rim"], "normal": ["even tissue"]})
    rows = asked()
    said = fitted(rows, file=file).answer(rows).values
    encoder, images = rows.encoder, rows.encoder.images
    for k, (name, findings) in enumerate((("tumour", ["a mass", "a shadow", "a rim"]), ("normal", ["even tissue"]))):
        vectors = [encoder.texts([f"{name}, which shows {finding}"])[0] for finding in findings]
        slow = torch.stack([sum(20.0 * image @ vector for vector in vectors) / len(vectors) - 0.5 for image in images])
        assert torch.allclose(said[:, k], slow, atol=1e-5)


def test_an_empty_list_is_the_name_alone_and_a_template_may_leave_the_name_out(own):
    file = own({"tumour": [], "normal": ["even tissue"]})
    rows = asked()
    assert fitted(rows, file=file).sentences == (("tumour",), ("normal, which shows even tissue",))
    assert fitted(rows, file=file, template="{finding}").sentences == (("tumour",), ("even tissue",))
    with pytest.raises(SettingsError, match="no place for the finding"):
        fitted(rows, file=file, template="{class}")


def test_a_file_with_a_missing_or_an_unknown_class_is_refused(own):
    with pytest.raises(SettingsError, match=r"own.json says nothing of the class 'normal'"):
        fitted(asked(), file=own({"tumour": ["a mass"]}))
    with pytest.raises(SettingsError, match=r"own.json speaks of 'cyst'"):
        fitted(asked(), file=own({"tumour": [], "normal": [], "cyst": []}))


def test_classes_that_no_file_knows_are_answered_as_zero_shot_does_and_it_says_so():
    rows = asked(("left", "right"))
    adapted = fitted(rows)
    assert "no findings in use" in adapted.note
    assert torch.equal(adapted.answer(rows).values, zero_shot_logits(rows))


def test_the_shipped_file_is_found_by_synonyms_too():
    rows = asked(("COVID19", "Pneumonia", "normal"))
    adapted = fitted(rows)
    assert adapted.note == "findings from chest_x_ray.json"
    assert all(
        sentence.startswith(f"{name}, which shows ")
        for name, said in zip(adapted.names, adapted.sentences, strict=True)
        for sentence in said
    )


def test_words_of_a_row_and_negative_prompts_count(own):
    file = own({"tumour": ["a mass"], "normal": ["even tissue"]})
    words = tuple(f"question {i % 2}" for i in range(9))
    rows = asked(words=words)
    said = fitted(rows, file=file).answer(rows).values
    for i, word in enumerate(words):
        pair = unit(unit(rows.encoder.texts([word])[0]) + rows.encoder.texts(["tumour, which shows a mass"])[0])
        assert float(said[i, 0]) == pytest.approx(float(20.0 * rows.encoder.images[i] @ pair - 0.5), abs=1e-4)
    several = asked(exclusive=False, negatives=(("no tumour",), ("not normal",)))
    said = fitted(several, file=file).answer(several).values
    yes, no = several.encoder.texts(["tumour, which shows a mass", "no tumour"])
    assert torch.allclose(said[:, 0], 20.0 * several.encoder.images @ (yes - no), atol=1e-5)
