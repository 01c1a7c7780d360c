"""Concept scores, a sparse readout, and what happens when a concept is set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit
from sklearn.linear_model import LogisticRegression

import medtame
from medtame import encoders
from medtame.data import phantom
from medtame.errors import SettingsError, UnknownNameError
from medtame.strategies.knowledge.concept_bottleneck import ConceptBottleneck

NAMES = ("tumour", "infarct", "normal")
PLANTED = {"tumour": "a bright rim", "infarct": "a dark wedge", "normal": "even tissue"}
OTHERS = ("a wide sulcus", "a thick skull", "a blurred edge")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.json"
    classes = {name: [finding, other] for (name, finding), other in zip(PLANTED.items(), OTHERS, strict=True)}
    classes["tumour"].append("a mass like a TUMOUR")
    classes["normal"].append("no sign of a neoplasm")
    path.write_text(json.dumps({"classes": classes, "synonyms": {"neoplasm": "tumour"}}), encoding="utf-8")
    return str(path)


def planted(n=60):
    """Each class's images lean towards its own concept and to no other."""
    concepts = [*PLANTED.values(), *OTHERS]
    axes = torch.eye(len(concepts), 12)
    labels = [i % 3 for i in range(n)]
    images = unit(axes[labels] + 0.35 * noise(n, 12))
    sentences = {f"an image that shows {concept}": axis for concept, axis in zip(concepts, axes, strict=True)}
    rows = query(PlantedEncoder(images, sentences), NAMES, samples(n))
    return rows, problem(rows, labels)


def test_setting_the_planted_concept_moves_the_right_class_more_than_any_other(file):
    rows, fitted = planted()
    adapted = ConceptBottleneck(file=file).fit(fitted)
    before = adapted.answer(rows).values
    for k, concept in enumerate(PLANTED.values()):
        moved = (adapted.intervene(rows, concept, 4.0).values - adapted.intervene(rows, concept, -4.0).values).mean(0)
        assert int(moved.argmax()) == k, f"{concept} moves {moved.tolist()}"
        others = torch.cat([moved[:k], moved[k + 1 :]])
        assert float(moved[k]) > max(5, float(others.abs().max()))
        assert float(others.max()) <= 0
    assert torch.equal(adapted.answer(rows).values, before), "an intervention is no change of the method"
    for concept in OTHERS:
        moved = adapted.intervene(rows, concept, 4.0).values - adapted.intervene(rows, concept, -4.0).values
        assert float(moved.abs().max()) < 4, f"{concept} was not planted and moves a class"


@pytest.fixture(scope="module")
def phantom_vectors(tmp_path_factory):
    """Vectors of real phantom images by `bundled`, and their labels."""
    folder = tmp_path_factory.mktemp("phantom") / "images"
    made = phantom.make(folder, patients=100, seed=1, difficulty="easy", size=64)
    data = medtame.load(made.images)
    return encoders.load("bundled").whole(data.samples), np.array([str(label) for label in data.samples.column("label")])


FOUND = {
    "tumour": "a bright rim around a dark centre",
    "haemorrhage": "a patch of blood inside the brain",
    "infarct": "a wedge without contrast to its surroundings",
    "white matter lesions": "many small bright spots",
    "normal": "two halves that are alike",
}


@pytest.fixture(scope="module")
def seen(phantom_vectors, tmp_path_factory):
    """The phantom's images and a bottleneck fitted on half of them. The encoder knows the sentences by the other half: a sentence is
    the direction from all images to those of its class, with as much noise; what the phantom has nothing of is noise alone."""
    vectors, labels = phantom_vectors
    names, half = tuple(FOUND), np.arange(len(labels)) % 2 == 0
    middle = vectors[half].mean(0)
    sentences = {}
    for number, (name, finding) in enumerate(FOUND.items()):
        direction = unit(vectors[half & (labels == name)].mean(0) - middle)
        sentences[f"an image that shows {finding}"] = unit(direction + unit(noise(vectors.shape[1], seed=number)))
    for number, finding in enumerate(OTHERS):
        sentences[f"an image that shows {finding}"] = unit(noise(vectors.shape[1], seed=100 + number))
    path = tmp_path_factory.mktemp("findings") / "own.json"
    listed = {name: [finding] for name, finding in FOUND.items()}
    listed["normal"] += OTHERS
    path.write_text(json.dumps({"classes": listed}), encoding="utf-8")
    rows = vectors[~half]
    asked = query(PlantedEncoder(rows, sentences), names, samples(len(rows)))
    targets = [names.index(label) for label in labels[~half]]
    return asked, ConceptBottleneck(file=str(path)).fit(problem(asked, targets)), ConceptBottleneck(file=str(path)), targets


def moves(adapted, asked, concept):
    """(C,) how far the logit of each class goes, from two deviations below the mean of a concept to two above."""
    return (adapted.intervene(asked, concept, 2.0).values - adapted.intervene(asked, concept, -2.0).values).mean(0)


@pytest.mark.parametrize("name", ["tumour", "white matter lesions"])
def test_a_concept_that_the_phantom_planted_moves_its_class_more_than_any_other(seen, name):
    asked, adapted, _, _ = seen
    moved, k = moves(adapted, asked, FOUND[name]), asked.wanted.names.index(name)
    others = torch.cat([moved[:k], moved[k + 1 :]])
    assert float(moved[k]) > 1.5 * float(others.abs().max()), dict(zip(asked.wanted.names, moved.tolist(), strict=True))


def test_no_other_concept_moves_the_tumours_so_far(seen):
    asked, adapted, _, _ = seen
    far = {concept: float(moves(adapted, asked, concept)[asked.wanted.names.index("tumour")]) for concept in adapted.concepts}
    assert max(far, key=far.__getitem__) == FOUND["tumour"], far


def test_from_shuffled_labels_the_planted_concept_moves_no_class_so_far(seen):
    asked, adapted, method, targets = seen
    k = asked.wanted.names.index("tumour")
    shuffled = method.fit(problem(asked, np.random.default_rng(0).permutation(targets).tolist()))
    assert float(moves(shuffled, asked, FOUND["tumour"])[k]) < float(moves(adapted, asked, FOUND["tumour"])[k]) / 2


def test_findings_that_name_a_class_are_no_concepts(file):
    _, fitted = planted()
    concepts = ConceptBottleneck(file=file).fit(fitted).concepts
    assert set(concepts) == {*PLANTED.values(), *OTHERS}


def test_a_file_of_nothing_but_names_is_refused(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"classes": {name: [f"a picture of {name}"] for name in NAMES}}), encoding="utf-8")
    _, fitted = planted()
    with pytest.raises(SettingsError, match="every finding names a class"):
        ConceptBottleneck(file=str(path)).fit(fitted)


def test_the_readout_is_scikit_learns_on_standardised_cosines(file):
    rows, fitted = planted()
    adapted = ConceptBottleneck(file=file, inverse_penalty=0.3).fit(fitted)
    cosine = np.array(
        [[float(image @ rows.encoder.texts([f"an image that shows {c}"])[0]) for c in adapted.concepts] for image in rows.encoder.images]
    )
    scores = (cosine - cosine.mean(0)) / cosine.std(0)
    for k in range(3):
        model = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", intercept_scaling=10.0, max_iter=200, random_state=0)
        model.fit(scores, np.arange(60) % 3 == k)
        assert np.allclose(adapted.weight[k].numpy(), model.coef_[0], atol=1e-3)
        assert np.allclose(adapted.answer(rows).values[:, k].numpy(), model.decision_function(scores), atol=1e-3)
    assert float((adapted.weight == 0).float().mean()) > 0.3, "the readout is not sparse"


def test_an_unknown_concept_is_refused_with_the_nearest(file):
    rows, fitted = planted()
    with pytest.raises(UnknownNameError, match="Did you mean 'a bright rim'"):
        ConceptBottleneck(file=file).fit(fitted).intervene(rows, "a bright rin", 1.0)


def test_without_a_file_that_knows_the_classes_every_shipped_finding_is_a_concept():
    rows = query(PlantedEncoder(unit(noise(12, 9))), ("left", "right"), samples(12))
    adapted = ConceptBottleneck().fit(problem(rows, [0, 1] * 6))
    assert len(adapted.concepts) > 200
    assert "no findings in use" in adapted.note


def test_a_penalty_that_leaves_nothing_is_told(file):
    _, fitted = planted()
    adapted = ConceptBottleneck(file=file, inverse_penalty=1e-4).fit(fitted)
    assert "leaves no concept" in adapted.note
    assert not adapted.weight.any()
