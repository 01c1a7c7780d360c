"""The product of question and image: its leave-one-group-out against a slow twin, its kernel, its unseen answers, the concepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import run as path
from medtame.features.scales import distinct, pooled_scales
from medtame.learning.question_product import View, fitted, leave_group_out, likeness, same_question
from medtame.strategies.base import REFUSED
from medtame.strategies.fusion.question_image_product import DISCOUNT, QuestionImageProduct, nearness
from medtame.strategies.knowledge.intermediate_answers import held_out, probed, told, values_of
from medtame.strategies.tuning.question_type_router import QuestionTypeRouter
from medtame.tasks.visual_question_answering import VisualQuestionAnswering


def units(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_leave_one_group_out_equals_fits_without_the_group():
    questions, images, random = units(20, 5, 0), units(20, 6, 1), np.random.default_rng(2)
    targets, groups = torch.from_numpy(random.standard_normal((20, 3))), random.integers(0, 6, 20)
    kernel = same_question(questions, questions, 1.0) * (1 + 0.7 * likeness(images, images))
    penalties = torch.tensor([0.1, 2.0], dtype=torch.float64)
    for penalty, found in zip(penalties, leave_group_out(kernel, targets, groups, penalties), strict=True):
        slow = torch.empty_like(targets)
        for group in set(groups.tolist()):
            outside, inside = torch.as_tensor(np.flatnonzero(groups == group)), torch.as_tensor(np.flatnonzero(groups != group))
            system = kernel[inside][:, inside] + penalty * torch.eye(len(inside), dtype=torch.float64)
            slow[outside] = kernel[outside][:, inside] @ torch.linalg.solve(system, targets[inside])
        torch.testing.assert_close(found, slow, rtol=1e-6, atol=1e-8)


def test_likeness_is_one_for_the_same_zero_at_right_angles_and_positive_semidefinite():
    vectors = torch.eye(3).double()
    torch.testing.assert_close(likeness(vectors, vectors), torch.eye(3, dtype=torch.float64))
    many = units(40, 4, 3)
    assert float(torch.linalg.eigvalsh(likeness(many, many))[0]) > -1e-6
    squared = torch.cdist(many.double(), many.double()).square()
    torch.testing.assert_close(same_question(many, many, 0.5), torch.exp(-0.5 * squared), rtol=1e-4, atol=1e-5)


def test_a_view_without_a_word_to_say_gets_no_weight_and_one_that_tells_gets_some():
    random = np.random.default_rng(5)
    answers = random.integers(0, 2, 80)
    questions, groups = units(1, 4, 6).expand(80, 4), np.repeat(np.arange(40), 2)
    answers = np.repeat(answers[:40], 2)
    telling, noise = torch.from_numpy(np.eye(2)[answers]).float(), units(80, 30, 7)
    targets = torch.nn.functional.one_hot(torch.from_numpy(answers), 2).float()
    assert fitted(questions, [telling], targets, groups, 1.0).weights[0] > 0
    assert fitted(questions, [telling, noise], targets, groups, 1.0).chosen_by_data
    two = fitted(questions[:4], [telling[:4]], targets[:4], groups[:4], 1.0)
    assert (two.weights, two.penalty, two.chosen_by_data) == ((1.0,), 0.3, False)


def test_parts_of_a_view_count_the_same_whatever_their_scale():
    a, b = units(30, 4, 8), units(30, 9, 9)
    one, other = View.of([a, b]), View.of([1000 * a, b])
    torch.testing.assert_close(one.placed([a, b]), other.placed([1000 * a, b]), rtol=1e-4, atol=1e-5)


def test_scales_are_read_once_an_image_and_stand_at_its_rows():
    encoder, (train, _) = tiny_encoder(), tiny("visual_question_answering")
    query = VisualQuestionAnswering().frame(train, "scores").query(train.only(("image", "question")), encoder)
    firsts, of_sample = distinct(query.samples)
    assert len(firsts) == len(set(of_sample.tolist())) == 24
    whole = encoder.grid(train)[0].mean((2, 3))
    torch.testing.assert_close(pooled_scales(query)[0], torch.nn.functional.normalize(whole, dim=-1))
    assert [part.shape[1] for part in pooled_scales(query)] == [32, 128, 16, 64]


def test_an_unseen_answer_is_scored_by_its_nearest_seen_ones():
    encoder, (train, test) = tiny_encoder(), tiny("visual_question_answering")
    task = VisualQuestionAnswering(answers=("bright disc",))
    run = path.fitted(train, task, QuestionImageProduct(), encoder)
    query = run.query(test)
    names, values = query.wanted.names, run.answer(query).values
    new, seen = names.index("bright disc"), [k for k, name in enumerate(names) if name != "bright disc"]
    near = nearness((("bright disc",),), [query.wanted.prompts[k] for k in seen], encoder)[0]
    rows = np.flatnonzero(query.allowed.all(1))
    torch.testing.assert_close(values[rows, new], DISCOUNT * values[rows][:, seen] @ near, rtol=1e-4, atol=1e-5)
    probe = path.fitted(train, task, path.catalogue.build(path.catalogue.METHODS, "linear_probe"), encoder)
    assert float(probe.answer(query).values[rows, new].max()) <= REFUSED / 2


def test_nothing_to_look_at_means_that_images_do_not_matter():
    encoder, (train, test) = tiny_encoder(), tiny("visual_question_answering")
    run = path.fitted(train, VisualQuestionAnswering(), QuestionImageProduct(look="nothing"), encoder)
    assert run.measure(test)["visual_reliance"].value() == 0
    seeing = path.fitted(train, VisualQuestionAnswering(), QuestionImageProduct(), encoder).measure(test)
    assert seeing["accuracy"].value() > run.measure(test)["accuracy"].value() + 0.1


def test_the_router_answers_a_rare_kind_from_all_rows():
    encoder, (train, test) = tiny_encoder(), tiny("visual_question_answering")
    run = path.fitted(train, VisualQuestionAnswering(), QuestionTypeRouter(least=10_000), encoder)
    assert set(run.adapted.features) == {"all"}
    routed = path.fitted(train, VisualQuestionAnswering(), QuestionTypeRouter(least=8), encoder)
    assert set(routed.adapted.features) == {"all", "yes_no", "other", "place"}
    assert routed.measure(test)["accuracy"].value() > 0.5


@pytest.mark.parametrize(
    ("concept", "question", "answer", "found"),
    [
        ("organ", "Are the lungs clear?", "no", ["chest"]),
        ("organ", "What is seen?", "Liver", ["abdomen"]),
        ("modality", "Is this an MRI?", "yes", ["mr"]),
        ("modality", "Is this an MRI?", "no", []),
        ("modality", "What is this not: an image of?", "ultrasound", []),
        ("plane", "In which plane?", "Axial plane", ["axial"]),
        ("plane", "Is it flat?", "map", []),
    ],
)
def test_what_questions_and_answers_tell_of_an_image(concept, question, answer, found):
    assert told(concept, question, answer) == found


def test_an_image_is_what_most_of_its_rows_say_and_a_tie_is_unknown():
    questions = ["the lungs?", "the heart?", "the liver?", "the brain?", "the liver?", "the colour?"]
    assert values_of("organ", questions, ["no"] * 6, [0, 0, 0, 1, 1, 2], 3) == ["chest", None, None]


def test_held_out_probabilities_do_not_know_the_group_that_they_are_about():
    """Labels that follow no rule are guessed by the probe that saw them and not by those that did not."""
    random = np.random.default_rng(0)
    vectors, values = units(60, 80, 10), random.integers(0, 2, 60)
    groups = np.array([f"g{k // 2}" for k in range(60)])
    probe = probed(vectors, values)
    assert (probe.probabilities(vectors).argmax(1).numpy() == values).mean() > 0.9
    assert (held_out(vectors, values, groups, probe).argmax(1).numpy() == values).mean() < 0.7
    assert probed(vectors, np.where(values == 0, 0, -1)) is None
