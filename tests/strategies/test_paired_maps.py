"""Maps of images and texts learnt from pairs: a closed form, planted pairs found, shuffled pairs not, and each addition against none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit
from torch import Tensor

from medtame.errors import DataError
from medtame.learning.paired import decomposed, mapped, reciprocal_rank, shares, softened
from medtame.strategies.base import Method
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.fusion.late_fusion import LateFusion
from medtame.strategies.knowledge.concept_expansion import ConceptExpansion, concepts_of, terms
from medtame.strategies.knowledge.report_expansion import ReportExpansion, joined
from medtame.strategies.tuning.linear_maps import LinearMaps
from medtame.strategies.tuning.projections import Projections, contrastive
from medtame.strategies.tuning.soft_target_maps import SoftTargetMaps
from medtame.types import Problem, Query

TRAIN, TEST, WIDTH = 60, 24, 32
METHODS = (
    LinearMaps(),
    SoftTargetMaps(),
    ReportExpansion(),
    ConceptExpansion(),
    Projections(components=16, width=16, steps=60, learning_rate=0.01),
)


class Planted:
    """Pairs whose image and text are two noisy views of six hidden numbers."""

    def __init__(self, seed: int = 0, image_noise: float = 0.05, text_noise: float = 0.05) -> None:
        hidden = noise(TRAIN + TEST, 6, seed=seed)
        images = hidden @ noise(6, WIDTH, seed=seed + 1) + image_noise * noise(TRAIN + TEST, WIDTH, seed=seed + 2)
        texts = hidden @ noise(6, WIDTH, seed=seed + 3) + text_noise * noise(TRAIN + TEST, WIDTH, seed=seed + 4)
        self.names = tuple(f"case number {k:03d}" for k in range(TRAIN + TEST))
        self.encoder = PlantedEncoder(unit(images), dict(zip(self.names, unit(texts), strict=True)))

    def support(self, order: list[int] | None = None) -> Problem:
        return problem(query(self.encoder, self.names[:TRAIN], samples(TRAIN)), order or list(range(TRAIN)))

    def asked(self) -> Query:
        return query(self.encoder, self.names[TRAIN:], samples(TEST, TRAIN))

    def recall_at_1(self, method: Method, order: list[int] | None = None) -> float:
        scores = method.fit(self.support(order)).answer(self.asked()).values
        ways = (scores.argmax(1) == torch.arange(TEST)).float().mean(), (scores.argmax(0) == torch.arange(TEST)).float().mean()
        return float(sum(ways)) / 2


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_planted_pairs_are_found_among_texts_that_fit_never_saw_and_shuffled_ones_are_not(method: Method) -> None:
    planted = Planted()
    assert planted.recall_at_1(ZeroShot()) < 0.2
    assert planted.recall_at_1(method) > 0.7
    shuffled = np.random.default_rng(1).permutation(TRAIN).tolist()
    assert planted.recall_at_1(method, shuffled) < 0.25


def test_without_penalty_the_maps_are_canonical_correlations() -> None:
    """The singular values of Qx^T Qy (Björck and Golub 1973) are the correlations of the mapped columns."""
    images, texts = noise(50, 6, seed=3).double(), noise(50, 4, seed=4).double()
    texts[:, 0] += images[:, 1]
    maps = decomposed(images, texts, torch.eye(50)).maps(0.0, 0.0, (0.0,))[0]
    first, second = (images - maps[0]) @ maps[1], (texts - maps[2]) @ maps[3]
    sides = [torch.linalg.qr(side - side.mean(0)).Q for side in (images, texts)]
    expected = torch.linalg.svdvals(sides[0].T @ sides[1])
    torch.testing.assert_close(first.T @ second, torch.diag(expected), atol=1e-9, rtol=0)
    torch.testing.assert_close(first.T @ first, torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_text_of_two_rows_counts_as_two_equal_texts() -> None:
    images, texts = noise(20, 6, seed=5), noise(10, 5, seed=6)
    own = torch.arange(20) // 2
    once = decomposed(images, texts, torch.nn.functional.one_hot(own, 10)).maps(1.0, 2.0, (1.0,))[0]
    twice = decomposed(images, texts[own], torch.eye(20)).maps(1.0, 2.0, (1.0,))[0]
    for maps in (once, twice):
        assert maps[1].shape[1] == maps[3].shape[1]
    found, expected = (mapped(images, *maps[:2]) @ mapped(texts, *maps[2:]).T for maps in (once, twice))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_reciprocal_rank_by_hand() -> None:
    scores, right = torch.tensor([[3.0, 2, 1], [3, 1, 2]]), torch.tensor([[True, False, False], [False, True, False]])
    # rows: ranks 1 and 3; texts: 0 -> row 0 ties with row 1 (counted last) rank 2, 1 -> row 1 is second, 2 has no right row
    assert reciprocal_rank(scores, right) == pytest.approx(((1 + 1 / 3) / 2 + (1 / 2 + 1 / 2) / 2) / 2)


def test_few_cases_choose_nothing_and_say_so() -> None:
    planted = Planted()
    small = planted.support().take(range(5))
    assert not LinearMaps().fit(small).chosen_by_data
    assert LinearMaps().fit(planted.support()).chosen_by_data


# ---- soft targets ---------------------------------------------------------------------------------------------


def test_soft_targets_keep_their_sum_and_go_to_like_texts() -> None:
    texts = unit(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]]))
    soft = softened(torch.eye(4), texts, 0.5, 0.2)
    torch.testing.assert_close(soft.sum(1), torch.ones(4, dtype=torch.float64))
    assert soft[0, 1] > 0.2
    assert soft[0, 2] < 0.01
    torch.testing.assert_close(softened(torch.eye(4), texts, 0.0, 0.2), torch.eye(4, dtype=torch.float64))


def test_texts_of_a_case_are_no_false_negatives_in_the_contrastive_loss() -> None:
    images = texts = unit(torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    alone, shared = torch.eye(3), torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
    assert contrastive(images, texts, shared, 0.1) == pytest.approx(float(contrastive(images, texts, alone, 0.1)), abs=1e-6)
    assert contrastive(images, texts, alone, 0.1) == pytest.approx(2 / 3 * np.log(2), abs=1e-3)


# ---- expansions and fusion ------------------------------------------------------------------------------------


def test_expansion_without_weight_is_none_and_with_it_the_mean_of_the_nearest() -> None:
    queries, keys, values = unit(noise(3, 4, seed=1)), unit(noise(5, 4, seed=2)), unit(noise(5, 4, seed=3))
    assert joined(queries, keys, values, 2, 0.0) is queries
    found = joined(queries, keys, values, 2, 0.5)
    for row in range(3):
        near = torch.argsort(keys @ queries[row], descending=True)[:2]
        expected = unit(queries[row] + 0.5 * unit(values[near].mean(0)))
        torch.testing.assert_close(found[row], expected)


def test_concepts_are_the_words_that_several_texts_use_and_not_nearly_all() -> None:
    found = concepts_of(["axial CT chest", "axial MR head", "axial MR chest", "axial ray", "axial ultrasound"], least=2)
    assert found.names == ("axial mr", "chest", "mr"), "axial stands in more than half of the texts"
    assert found.weights[1] == pytest.approx(np.log(6 / 3) + 1)
    assert terms("Axial CT, of") == ["axial", "ct", "of", "axial ct", "ct of"]
    vectors = found.vectors(["nothing known", "chest"])
    assert float(vectors[0].norm()) == 0
    assert float(vectors[1].norm()) == pytest.approx(1)


def test_words_help_where_the_sentence_vector_says_nothing() -> None:
    """Sentence vectors are noise; four words, two a text, say which direction the image has."""
    random = np.random.default_rng(0)
    held = random.integers(0, 2, (TRAIN + TEST, 6))
    images = unit(torch.as_tensor(held * 2.0 - 1).float() @ noise(6, WIDTH, seed=1) + 0.1 * noise(TRAIN + TEST, WIDTH, seed=2))
    names = tuple(f"{' '.join(f'sign{j}' if on else f'free{j}' for j, on in enumerate(row))} c{k}" for k, row in enumerate(held))
    encoder = PlantedEncoder(images, {name: unit(noise(WIDTH, seed=100 + k)) for k, name in enumerate(names)})
    fit = problem(query(encoder, names[:TRAIN], samples(TRAIN)), list(range(TRAIN)))
    asked = query(encoder, names[TRAIN:], samples(TEST, TRAIN))
    right = torch.as_tensor((held[TRAIN:, None] == held[None, TRAIN:]).all(2))
    found = ConceptExpansion().fit(fit)
    assert found.weight > 0
    with_words, without = (reciprocal_rank(method.answer(asked).values, right) for method in (found, LinearMaps().fit(fit)))
    assert with_words > without + 0.3


def worded(planted: Planted, asked: Query, first: int, informative: bool) -> Query:
    words = tuple(f"words {k}" for k in range(first, first + len(asked)))
    for k, word in zip(range(first, first + len(asked)), words, strict=True):
        own: Tensor = planted.encoder.sentences[planted.names[k]]
        planted.encoder.sentences[word] = unit(own + 0.05 * noise(WIDTH, seed=k)) if informative else unit(noise(WIDTH, seed=k))
    return replace(asked, words=words)


@pytest.mark.parametrize("informative", [True, False])
def test_fusion_takes_words_as_far_as_they_help(informative: bool) -> None:
    planted = Planted(image_noise=4.0)
    support = planted.support()
    support = replace(support, query=worded(planted, support.query, 0, informative))
    asked = worded(planted, planted.asked(), TRAIN, informative)
    found, right = LateFusion().fit(support), torch.eye(TEST, dtype=torch.bool)
    fused, alone = (reciprocal_rank(method.answer(asked).values, right) for method in (found, LinearMaps().fit(support)))
    if informative:
        assert found.weight >= 0.5
        assert fused > alone + 0.1
    else:
        assert found.weight <= 0.25


def test_a_row_without_words_is_ranked_by_its_image_alone() -> None:
    planted = Planted()
    support = planted.support()
    found = LateFusion().fit(replace(support, query=worded(planted, support.query, 0, informative=True)))
    silent = replace(worded(planted, planted.asked(), TRAIN, informative=True), words=("", *["words 60"] * (TEST - 1)))
    images = planted.encoder.whole(silent.samples)
    texts = planted.encoder.texts(planted.names[TRAIN:])
    expected = planted.encoder.scale * (1 - found.weight) * (mapped(images, *found.maps[:2]) @ mapped(texts, *found.maps[2:]).T)
    torch.testing.assert_close(found.answer(silent).values[0], expected[0].float(), atol=1e-4, rtol=0)


# ---- bad input ------------------------------------------------------------------------------------------------


def test_late_fusion_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="--columns query="):
        LateFusion().fit(Planted().support())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_one_sentence_for_all_scores_all_the_same(method: Method) -> None:
    """As the control of constant text fits it: at chance, and no error."""
    planted = Planted()
    support, asked = planted.support(), planted.asked()
    same = [
        replace(one, candidates=replace(one.wanted, prompts=(("an image",),) * len(one.wanted.names))) for one in (support.query, asked)
    ]
    scores = method.fit(replace(support, query=same[0])).answer(same[1]).values
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))


def test_one_text_and_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="same text"):
        shares(torch.tensor([[1.0, 0], [1, 0]]))
    with pytest.raises(DataError, match="1 of 2 support rows have no text"):
        shares(torch.tensor([[1.0, 0], [0, 0]]))
