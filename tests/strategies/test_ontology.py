"""The least expected distance in a tree, on top of another method's probabilities."""

from __future__ import annotations

import json
from collections import deque

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit

from medtame import catalogue
from medtame.data.class_findings import chosen, read
from medtame.errors import SettingsError
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.knowledge.ontology import SHIPPED, distances_of, utility

TREE = {"cat": "pet", "dog": "pet", "pet": "animal", "shark": "animal", "animal": "thing", "car": "thing"}
NAMES = ("cat", "dog", "shark", "car")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"parents": TREE}), encoding="utf-8")
    return path


def walked(tree, start, end):
    """Edges by breadth-first search."""
    beside = {}
    for child, parent in tree.items():
        beside.setdefault(child, []).append(parent)
        beside.setdefault(parent, []).append(child)
    reached, todo = {start: 0}, deque([start])
    while todo:
        node = todo.popleft()
        for other in beside[node]:
            if other not in reached:
                reached[other] = reached[node] + 1
                todo.append(other)
    return reached[end]


def ontology(**settings):
    return catalogue.build(catalogue.METHODS, "ontology", settings)


def asked(names=NAMES, n=12):
    return query(PlantedEncoder(unit(noise(n, 6)), scale=3.0), names, samples(n))


def test_distances_are_edges_of_the_tree(file):
    found = distances_of(NAMES, read(file))
    assert found.tolist() == [[walked(TREE, a, b) for b in NAMES] for a in NAMES]


def test_the_distances_of_a_shipped_tree_are_edges_too():
    tree, _ = chosen(("covid-19", "pneumonia", "no finding"), "", SHIPPED, "parents")
    names = ("covid-19", "pneumonia", "no finding")
    assert distances_of(names, tree).tolist() == [[walked(tree.parents, a, b) for b in names] for a in names]
    assert walked(tree.parents, "covid-19", "pneumonia") < walked(tree.parents, "covid-19", "no finding")


def test_the_answer_has_the_least_expected_distance(file):
    rows = asked(n=200)
    said = ontology(over="zero_shot", file=str(file)).fit(problem(rows, [i % 4 for i in range(200)])).answer(rows).values
    probability = zero_shot_logits(rows).softmax(1)
    for row in range(200):
        cost = [sum(float(probability[row, k]) * walked(TREE, name, other) for k, other in enumerate(NAMES)) for name in NAMES]
        assert int(said[row].argmax()) == int(np.argmin(cost))
        assert said[row].exp().tolist() == pytest.approx([1 - each / 4 for each in cost], abs=1e-5)
    assert (said.argmax(1) != probability.argmax(1)).any(), "the tree changes no answer here, so nothing was shown"


def test_two_near_classes_together_beat_one_far_class():
    tree = torch.tensor([[0.0, 2, 4], [2, 0, 4], [4, 4, 0]])
    probability = torch.tensor([[0.31, 0.29, 0.40]])
    assert int(utility(probability.log(), tree).argmax()) == 0
    assert int(utility(probability.log(), 2 - 2 * torch.eye(3)).argmax()) == 2


def test_without_a_tree_it_is_the_method_that_it_stands_on():
    rows = asked(("left", "right", "up", "down"))
    adapted = ontology(over="zero_shot").fit(problem(rows, [i % 4 for i in range(12)]))
    assert "equally far apart" in adapted.note
    assert torch.allclose(adapted.answer(rows).values.softmax(1), zero_shot_logits(rows).softmax(1), atol=1e-5)


def test_it_stands_on_a_probe_unless_told(file):
    rows = asked()
    fitted = problem(rows, [i % 4 for i in range(12)])
    probe = catalogue.build(catalogue.METHODS, "linear_probe").fit(fitted).answer(rows).values
    said = ontology(file=str(file)).fit(fitted).answer(rows).values
    assert torch.allclose(said, utility(probe, distances_of(NAMES, read(file))).log(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"over": "transductive"}, "cannot stand on Transductive"),
        ({"over": "demons"}, "cannot stand on Demons"),
        ({"over": "question_only"}, "QuestionOnly"),
    ],
)
def test_a_method_that_cannot_be_stood_on_is_refused(settings, words):
    rows = asked()
    with pytest.raises(SettingsError, match=words):
        ontology(**settings).fit(problem(rows, [i % 4 for i in range(12)]))


def test_a_tree_that_lacks_a_class_or_falls_apart_is_refused(file, tmp_path):
    rows = asked(("cat", "dog", "shark", "whale"))
    with pytest.raises(SettingsError, match=r"tree.json says nothing of the class 'whale'"):
        ontology(file=str(file)).fit(problem(rows, [i % 4 for i in range(12)]))
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"parents": {"cat": "pet", "dog": "pet", "shark": "fish", "car": "thing"}}), encoding="utf-8")
    with pytest.raises(SettingsError, match="no common ancestor of 'cat' and 'shark'"):
        distances_of(NAMES, read(path))
    path.write_text(json.dumps({"parents": {"cat": "pet", "dog": "pet"}, "synonyms": {"kitten": "cat"}}), encoding="utf-8")
    with pytest.raises(SettingsError, match="one class"):
        distances_of(("cat", "kitten"), read(path))
