"""Controls of a findings file against planted truth: an encoder that knows the findings, and one for which they are only words."""

from __future__ import annotations

import json

import pytest
import torch

from doubles import tiny_encoder
from medtame.metrics.intervals import Interval
from medtame.strategies.knowledge.descriptors import SHIPPED, Descriptors
from medtame.trust.controls import ARMS, applicable, verdict
from medtame.trust.findings import OtherWords, other_findings

OWN = {"classes": {"bright": ["white spot", "shining"], "dark": ["black spot"], "nothing": ["plain grey"]}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN), encoding="utf-8")
    return str(path)


def test_each_finding_becomes_one_of_the_next_class(file):
    table = other_findings("shuffled_findings", ("bright", "dark", "nothing"), file, SHIPPED)
    assert table == {"white spot": "black spot", "shining": "black spot", "black spot": "plain grey", "plain grey": "white spot"}


def test_random_codes_are_distinct_and_say_nothing(file):
    table = other_findings("random_findings", ("bright", "dark", "nothing"), file, SHIPPED)
    assert list(table) == ["white spot", "shining", "black spot", "plain grey"]
    assert len(set(table.values())) == 4
    assert not any(word in code for code in table.values() for word in ("spot", "grey", "white"))
    every = other_findings("random_findings", ("no such class", "nor this"), "", SHIPPED)  # no file speaks of them: all findings
    assert len(every) > 200
    assert other_findings("shuffled_findings", ("no such class", "nor this"), "", SHIPPED) == {}


def test_an_encoder_reads_other_words_and_the_same_images(file):
    inner = tiny_encoder()
    table = other_findings("shuffled_findings", ("bright", "dark", "nothing"), file, SHIPPED)
    other = OtherWords(inner, table)
    assert torch.equal(other.texts(["dark, which shows black spot", "dark"]), inner.texts(["dark, which shows plain grey", "dark"]))
    assert (other.scale, other.bias, other.image_tower) == (inner.scale, inner.bias, inner.image_tower)


def test_which_arms_apply_to_which_methods():
    arms = [arm for arm in ARMS if arm.changes == "findings"]
    said = {
        name: [arm.name for arm in arms if applicable(arm, None, reads)]
        for name, reads in {  # type: ignore[arg-type]
            "descriptors": Descriptors.reads,
            "bottleneck": frozenset({"findings"}),
            "probe": frozenset(),
        }.items()
    }
    assert said == {"descriptors": ["random_findings", "shuffled_findings"], "bottleneck": ["random_findings"], "probe": []}


def test_verdicts_name_the_findings():
    arm = next(arm for arm in ARMS if arm.name == "random_findings")
    assert verdict(arm, Interval(0.1, 0.05, 0.2, 9)) == "what the findings say helps"
    assert verdict(arm, Interval(0.0, -0.05, 0.2, 9)) == "no measurable benefit of what the findings say"
