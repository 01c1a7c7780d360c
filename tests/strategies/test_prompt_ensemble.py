"""Prompts weighted by the confidence of zero-shot on support rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit

from medtame.strategies.direct_use.prompt_ensemble import PromptEnsemble
from medtame.strategies.direct_use.zero_shot import ZeroShot

NAMES = ("a", "b")
PROMPTS = (("a one", "a two", "a three"), ("b one", "b two", "b three"))


def asked(n=10, prompts=PROMPTS, **more):
    return query(PlantedEncoder(unit(noise(n, 6))), NAMES, samples(n), prompts=prompts, **more)


def test_weights_are_the_softmax_of_the_mean_largest_centred_logit():
    rows = asked()
    encoder, images = rows.encoder, rows.encoder.images
    scores = []
    for p in range(3):
        logits = [[encoder.scale * float(image @ encoder.texts([PROMPTS[c][p]])[0]) for c in range(2)] for image in images]
        middle = [sum(row[c] for row in logits) / len(logits) for c in range(2)]
        scores.append(sum(max(row[c] - middle[c] for c in range(2)) for row in logits) / len(logits))
    weights = torch.tensor(scores).softmax(0)
    adapted = PromptEnsemble().fit(problem(rows, [0, 1] * 5))
    assert adapted.weights == pytest.approx(weights.tolist(), abs=1e-5)
    vectors = [unit(sum(w * encoder.texts([PROMPTS[c][p]])[0] for p, w in enumerate(weights))) for c in range(2)]
    slow = encoder.scale * images @ torch.stack(vectors).T + encoder.bias
    assert torch.allclose(adapted.answer(rows).values, slow, atol=1e-4)


def test_prompts_that_are_all_alike_give_zero_shot():
    rows = asked(prompts=(("a",) * 3, ("b",) * 3))
    adapted = PromptEnsemble().fit(problem(rows, [0, 1] * 5))
    assert adapted.weights == pytest.approx([1 / 3] * 3)
    assert torch.allclose(adapted.answer(rows).values, ZeroShot().fit(problem(rows, [0, 1] * 5)).answer(rows).values, atol=1e-5)


def test_a_set_that_tells_the_images_apart_outweighs_one_that_is_near_to_all_of_them():
    centre, apart = torch.eye(6)[0], torch.eye(6)[1]
    images = unit(torch.stack([centre + (1 if i % 2 else -1) * apart for i in range(10)]) + 0.05 * noise(10, 6))
    told = {"a good": unit(-apart), "b good": unit(apart), "a flat": centre, "b flat": unit(centre + 0.01 * noise(6))}
    encoder = PlantedEncoder(images, told)
    rows = query(encoder, NAMES, samples(10), prompts=(("a flat", "a good"), ("b flat", "b good")))
    weights = PromptEnsemble().fit(problem(rows, [0, 1] * 5)).weights
    assert weights[1] > 0.99


def test_no_label_is_read_and_unlabelled_rows_are():
    rows = asked()
    first, second = (PromptEnsemble().fit(problem(rows, labels)).weights for labels in ([0, 1] * 5, [1, 0] * 5))
    assert first == second
    whole = PromptEnsemble().fit(problem(rows, [0, 1] * 5)).weights
    half = PromptEnsemble().fit(problem(rows.take(range(5)), [0, 1, 0, 1, 0], unlabelled=rows.take(range(5, 10)))).weights
    assert half == pytest.approx(whole, abs=1e-6)


def test_a_class_with_fewer_prompts_starts_again_with_its_first():
    rows = asked(prompts=(("a one", "a two", "a three"), ("b one",)))
    filled = asked(prompts=(("a one", "a two", "a three"), ("b one",) * 3))
    labels = [0, 1] * 5
    one, other = (PromptEnsemble().fit(problem(each, labels)).answer(each).values for each in (rows, filled))
    assert torch.allclose(one, other, atol=1e-5)


def test_words_of_a_row_and_negative_prompts_are_used_as_zero_shot_does():
    for more in ({"words": tuple(f"question {i}" for i in range(10))}, {"exclusive": False, "negatives": (("no a", "not a"), ("no b",))}):
        rows = asked(prompts=(("a",), ("b",)), **more)
        fitted = problem(rows, [0, 1] * 5)
        assert torch.allclose(PromptEnsemble().fit(fitted).answer(rows).values, ZeroShot().fit(fitted).answer(rows).values, atol=1e-5)


def test_new_candidates_with_another_number_of_prompts_are_answered():
    rows = asked()
    adapted = PromptEnsemble().fit(problem(rows, [0, 1] * 5))
    new = replace(rows, candidates=replace(rows.wanted, names=("c", "d", "e"), prompts=(("c",), ("d",), ("e",))))
    assert torch.allclose(adapted.answer(new).values, ZeroShot().fit(problem(rows, [0, 1] * 5)).answer(new).values, atol=1e-5)
