"""Prompt learning: each method's own term in closed form, what it leaves alone, and that it learns what is planted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from contracts.tiny import tiny
from doubles import tiny_encoder, tiny_vit_encoder
from medtame import catalogue
from medtame.errors import EncoderError, MedtameError, PairError, SettingsError
from medtame.learning import prompt_learning
from medtame.learning.block_prompts import attention_blocks, image_prompted
from medtame.learning.loop import Step
from medtame.strategies.knowledge.biomedcoop import ensemble, kept_sentences, sentence_vectors
from medtame.strategies.tuning.prograd import agreeing
from medtame.strategies.tuning.promptsrc import averaged
from medtame.tasks.classification import Classification
from medtame.types import Candidates, Problem

WORD_METHODS = ("coop", "kgcoop", "prograd", "cocoop", "biomedcoop")
BLOCK_METHODS = ("visual_prompt", "maple", "promptsrc")


def problem_of(encoder, part=0) -> Problem:
    """Rows under each other's names: what zero-shot says is wrong, so there is something to learn."""
    task = Classification()
    samples = task.usable(tiny("classification")[part])
    problem = task.settled(samples).frame(samples, "scores").problem(samples, encoder, 0)
    return replace(problem, targets=problem.targets.roll(1, 1))


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def right(adapted, problem) -> float:
    kept = ~problem.targets.isnan().any(1)
    said = adapted.answer(problem.query).values.argmax(1)
    return float((said == problem.targets.argmax(1))[kept].float().mean())


def loss(adapted, problem) -> float:
    kept = ~problem.targets.isnan().any(1)
    return float(torch.nn.functional.cross_entropy(adapted.answer(problem.query).values[kept], problem.targets[kept].argmax(1)))


FREE = {"kgcoop": {"weight": 0.0}, "biomedcoop": {"closeness": 0.0, "teaching": 0.0}, "prograd": {"share": 0.0}}


@pytest.mark.parametrize("name", WORD_METHODS)
def test_words_that_are_wrong_do_less_harm_after_learning(name):
    """One context cannot exchange the names of classes, but it can take the certainty out of them."""
    encoder = tiny_encoder()
    problem, other = problem_of(encoder), problem_of(encoder, 1)
    before, after = (method(name, steps=steps, **FREE.get(name, {})).fit(problem) for steps in (0, 60))
    assert loss(after, problem) < 0.2 * loss(before, problem)
    assert loss(after, other) < 0.2 * loss(before, other)


@pytest.mark.parametrize("name", BLOCK_METHODS)
def test_what_is_planted_is_learnt_and_found_in_other_rows(name):
    encoder = tiny_vit_encoder()
    turned = 0 if name == "promptsrc" else -1  # it starts all but right, so it gets the wrong names, and to tell them apart is too much
    problem, other = (replace(one, targets=one.targets.roll(turned, 1)) for one in (problem_of(encoder), problem_of(encoder, 1)))
    before, after = (method(name, steps=steps).fit(problem) for steps in (0, 60))
    assert loss(after, problem) < 0.5 * loss(before, problem)
    assert loss(after, other) < 0.5 * loss(before, other)
    assert right(after, other) > 0.8 or turned == 0


@pytest.mark.parametrize("name", ["coop", "kgcoop", "prograd", "biomedcoop"])
def test_random_contexts_and_places(name):
    problem = problem_of(tiny_encoder())
    before, after = (method(name, steps=steps, tokens=5, **FREE.get(name, {})).fit(problem) for steps in (0, 60))
    assert after.context.shape == (5, 48)
    assert loss(after, problem) < 0.5 * loss(before, problem)
    for place in ("middle", "front") if name == "coop" else ():
        assert loss(method(name, steps=60, tokens=4, place=place).fit(problem), problem) < 0.5 * loss(before, problem)


def test_a_context_for_each_class_learns_and_refuses_new_words():
    encoder = tiny_encoder()
    problem = problem_of(encoder)
    learnt = method("coop", steps=40, class_specific=True).fit(problem)
    assert learnt.context.shape[0] == 3
    assert right(learnt, problem) > 0.8  # what one context for all cannot
    new = replace(problem.query, candidates=Candidates(names=("a", "b"), prompts=(("an image of a",), ("an image of b",))))
    with pytest.raises(PairError, match="class_specific=false"):
        learnt.answer(new)


def test_kgcoop_held_fast_is_zero_shot_with_the_first_prompt():
    encoder = tiny_encoder()
    problem = problem_of(encoder)
    held = method("kgcoop", weight=1e5, steps=40).fit(problem).answer(problem.query).values
    start = method("coop", steps=0).fit(problem).answer(problem.query).values
    free = method("coop", steps=40).fit(problem).answer(problem.query).values
    assert (held - start).abs().max() < 0.1 * (free - start).abs().max()


def test_prograd_takes_out_what_points_against():
    own, theirs = torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 0.0]])
    torch.testing.assert_close(agreeing(own, theirs, 1.0), torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(agreeing(own, theirs, 0.5), torch.tensor([[0.5, 2.0]]))
    assert agreeing(own, -theirs, 1.0) is own
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(2, 7, generator=random)
        assert (agreeing(a, b, 1.0) * b).sum() >= -1e-5


def test_biomedcoop_ensemble_and_outliers():
    encoder = tiny_encoder()
    sentences, note = ensemble(Candidates(names=("glioma", "no tumour"), prompts=(("MR of glioma", "glioma"), ("a head",))), "brain_mr")
    assert note == "findings from brain_mr.json"
    assert sentences[0][:2] == ["MR of glioma", "glioma"]
    assert sentences[0][2].startswith("MR of glioma, which shows ")
    assert len(sentences[0]) > 4
    sentences, note = ensemble(Candidates(names=("x", "y"), prompts=(("an x", "x"), ("a y",))), "")
    assert note.startswith("no findings in use")
    assert sentences == [["an x", "x"], ["a y"]]
    vectors = sentence_vectors(sentences, encoder)
    assert vectors.shape == (2, 2, 32)
    assert torch.equal(vectors[1, 0], vectors[1, 1])
    problem = problem_of(encoder)
    rows = (~problem.targets.isnan().any(1)).nonzero()[:, 0]
    lesson = prompt_learning.lesson(problem.query.take(rows.numpy()), problem.targets[rows], "an image of {}")
    base = encoder.texts(["an image of a", "an image of b", "an image of c"])
    near = torch.nn.functional.normalize(base[:, None] + 0.01 * torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert len(kept_sentences(near[:, :1].expand(-1, 6, -1), lesson, 1.5)) == 6, "all alike: none stands out"
    odd = near.clone()
    odd[:, 4] = -odd[:, 4]
    assert 4 not in kept_sentences(odd, lesson, 3.0).tolist()


def test_promptsrc_average_is_the_gaussian_one():
    value = torch.zeros(1)

    def steps():
        for number in range(1, 6):
            value.fill_(float(number))
            yield Step(number, 5, 0.0, dict)
        return {"x": value}

    sums = {"sum": torch.zeros(()), "sum.x": torch.zeros(1)}
    found = averaged(steps(), {"x": value}, sums, 0.6, 0.2)
    try:
        while True:
            next(found)
    except StopIteration as done:
        result = done.value["x"]
    weights = [math.exp(-0.5 * ((n / 5 - 0.6) / 0.2) ** 2) for n in range(1, 6)]
    assert float(result) == pytest.approx(sum(n * w for n, w in zip(range(1, 6), weights, strict=True)) / sum(weights), abs=1e-5)


def test_image_prompts_are_the_slow_way():
    tower = tiny_vit_encoder().image_tower
    assert attention_blocks(tower) == ["blocks.0", "blocks.1", "blocks.2"]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))
    whole, maps = image_prompted(tower, prompts)(pixels)
    tokens = tower.embedded(pixels)
    tokens = tower.blocks[0](torch.cat([tokens, prompts[0].expand(2, -1, -1)], 1))[:, :-4]
    tokens = tower.blocks[1](torch.cat([tokens, prompts[1].expand(2, -1, -1)], 1))
    slow, slow_maps = tower.read(tower.blocks[2](tokens)[:, :-4])
    torch.testing.assert_close(whole, slow)
    torch.testing.assert_close(maps[0], slow_maps[0])


@pytest.mark.parametrize("name", BLOCK_METHODS)
def test_a_network_without_tokens_is_refused_in_one_line(name):
    with pytest.raises(PairError, match="no transformer") as caught:
        method(name).fit(problem_of(tiny_encoder()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WORD_METHODS)
def test_bad_words_are_one_line(name):
    problem = problem_of(tiny_encoder())
    long = replace(
        problem.query,
        candidates=replace(problem.query.wanted, prompts=(("an image of " + "very " * 300,), *problem.query.wanted.prompts[1:])),
    )
    apart = replace(problem.query, candidates=replace(problem.query.wanted, prompts=(("one",), ("two",), ("three",))))
    cases = [(EncoderError, {}, long), (SettingsError, {"template": "no place"}, apart), (SettingsError, {"template": "{} first"}, apart)]
    for kind, settings, query in cases:
        with pytest.raises(kind) as caught:
            method(name, **settings).fit(replace(problem, query=query))
        assert "\n" not in str(caught.value)
    with pytest.raises(MedtameError):
        method(name, tokens=65)
