import numpy as np
import pytest
import torch

from doubles import KINDS, SIDES, disc, tiny_encoder
from medtame import state
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.learning.loop import finish
from medtame.strategies.language_model.prefix_language_model import (
    END,
    SPEAK,
    UNKNOWN,
    PrefixLanguageModel,
    image_vectors,
    padded,
    sequences,
    split_words,
)
from medtame.tasks.report_generation import ReportGeneration
from medtame.types import Adapted, Candidates, Problem, Query

SMALL = PrefixLanguageModel(steps=200, width=32, learning_rate=3e-3, feature_dropout=0.1)


def sentence(kind: str, side: str) -> str:
    return "No disc is seen." if kind == "nothing" else f"There is a {kind} disc on the {side}, of usual size."


def discs(n: int, seed: int) -> ManifestSamples:
    random = np.random.default_rng(seed)
    truth = [(KINDS[i % 3], SIDES[i // 3 % 2]) for i in range(n)]
    images = [ArrayPicture(disc(kind, side, random)[0], f"image-{i}") for i, (kind, side) in enumerate(truth)]
    columns = {"image": images, "findings": [sentence(*row) for row in truth], "kind": [kind for kind, _ in truth]}
    return ManifestSamples(columns, np.arange(n))


TRAIN, TEST = discs(72, 0), discs(24, 1)
FRAME = ReportGeneration().frame(TRAIN, "texts")


def problem(samples=TRAIN, seed: int = 0) -> Problem:
    return FRAME.problem(samples, tiny_encoder(), seed)


def asked(samples=TEST) -> Query:
    return FRAME.query(samples.only(["image"]), tiny_encoder())


@pytest.fixture(scope="module")
def adapted() -> Adapted:
    return SMALL.fit(problem())


def right(said: list[str], samples=TEST) -> float:
    return float(np.mean([a == b for a, b in zip(said, samples.column("findings"), strict=True)]))


def test_sentences_that_belong_to_images_are_said_again_word_for_word(adapted):
    assert right(adapted.answer(asked(TRAIN)).values, TRAIN) > 0.95
    assert right(adapted.answer(asked()).values) > 0.8


def test_with_the_images_of_others_the_sentences_are_wrong(adapted):
    pictures = TEST.column("image")
    assert right(adapted.answer(asked(TEST.replaced(image=pictures[1:] + pictures[:1]))).values) < 0.2


def test_sentences_dealt_at_random_are_not_learnt_about_other_images():
    order = np.random.default_rng(0).permutation(len(TRAIN))
    dealt = TRAIN.replaced(findings=[TRAIN.column("findings")[i] for i in order])
    assert right(SMALL.fit(problem(dealt)).answer(asked()).values) < 0.5


def test_an_answer_does_not_depend_on_other_rows_or_their_order(adapted):
    query = asked()
    whole = adapted.answer(query).values
    order = np.random.default_rng(0).permutation(len(query))
    assert adapted.answer(query.take(order)).values == [whole[i] for i in order]
    assert [adapted.answer(query.take([i])).values[0] for i in range(len(query))] == whole


def test_a_resumed_descent_equals_an_uninterrupted_one():
    method, states = PrefixLanguageModel(steps=5, width=16), []
    steps = method.learn(problem())
    for _ in range(3):
        states.append(next(steps).state())
    whole, resumed = finish(steps), finish(method.learn(problem(), resume=states[1]))
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_same_seed_same_weights_other_seed_others():
    method = PrefixLanguageModel(steps=3, width=16)
    one, two, other = (method.fit(problem(seed=seed)).weights for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["out.weight"], other["out.weight"])


def test_a_saved_model_says_the_same(adapted, tmp_path):
    state.save({"adapted": adapted}, tmp_path, {})
    loaded, _ = state.load(tmp_path, (Adapted,), tiny_encoder)
    assert loaded["adapted"].answer(asked()).values == adapted.answer(asked()).values


# ---- questions and candidates -----------------------------------------------------------------------------------

QUESTIONS = ("what is shown", "on which side of the image")


def questions(samples, seed: int, wants="scores", names=(*KINDS, *SIDES)) -> tuple[Query, list[str]]:
    """Each image with one of two questions, of unlike length."""
    which = np.random.default_rng(seed).integers(0, 2, len(samples))
    truth = [SIDES[i // 3 % 2] if which[i] else KINDS[i % 3] for i in range(len(samples))]
    query = Query(
        wants=wants,
        samples=samples.only(["image"]),
        encoder=tiny_encoder(),
        source=np.arange(len(samples)),
        words=tuple(QUESTIONS[k] for k in which),
        candidates=Candidates(names=names, prompts=tuple((name,) for name in names)),
    )
    return query, truth


def asked_and_fitted() -> Adapted:
    query, truth = questions(TRAIN, 0)
    targets = torch.tensor([[float(name == answer) for name in query.wanted.names] for answer in truth])
    return SMALL.fit(Problem(query=query, targets=targets))


def test_a_question_is_read_and_candidates_are_scored_by_their_mean_log_likelihood():
    fitted = asked_and_fitted()
    query, truth = questions(TEST, 1)
    scores = fitted.answer(query).values
    kinds = [scores[i, :3].max() > scores[i, 3:].max() for i in range(len(query))]
    assert np.mean([kind == (word == QUESTIONS[0]) for kind, word in zip(kinds, query.words, strict=True)]) > 0.95
    shown = [i for i, word in enumerate(query.words) if word == QUESTIONS[0]]
    assert np.mean([query.wanted.names[int(scores[i].argmax())] == truth[i] for i in shown]) > 0.8

    vectors = (image_vectors(query) - fitted.centre) / fitted.spread
    for row, name in ((0, 0), (5, 4)):
        start, answer = fitted.beginnings([query.words[row]])[0], [*fitted.ids(query.wanted.names[name]), END]
        logits = fitted.logits(vectors[[row]], torch.tensor([[*start, *answer]]))[0].log_softmax(-1)
        slow = np.mean([float(logits[len(start) - 1 + k, word].detach()) for k, word in enumerate(answer)])
        assert float(scores[row, name]) == pytest.approx(slow, abs=1e-4)

    spoken, _ = questions(TEST, 1, wants="texts")
    assert np.mean([said == names for said, names in zip(fitted.answer(spoken).values, truth, strict=True)]) > 0.6


def test_what_a_row_may_not_take_is_never_its_best_and_unseen_words_are_finite():
    fitted = asked_and_fitted()
    query, _ = questions(TEST, 1, names=("bright", "left", "something never heard of", ""))
    allowed = np.ones((len(query), 4), dtype=bool)
    allowed[:, 0] = False
    scores = fitted.answer(Query(**{**vars(query), "allowed": allowed})).values
    assert bool(scores.isfinite().all())
    assert bool((scores[:, 0] < scores[:, 1:].amin(1)).all())
    assert torch.allclose(scores[:, 1:], fitted.answer(query).values[:, 1:], atol=1e-4)


# ---- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["A 3.5 cm mass, left-sided; no oedema!", "Überraschung (links): 5 %", "x"])
def test_words_joined_are_the_text_again(text):
    assert "".join(split_words(text)).strip() == text
    assert split_words("the heart.") == [" the", " heart", "."]


def test_a_word_that_was_never_seen_is_unknown(adapted):
    assert adapted.ids("There is zebra")[2] == UNKNOWN
    assert adapted.beginnings([""]) == [[SPEAK]]


def test_sequences_are_padded_on_the_right_and_only_answers_are_learnt():
    ids, said = sequences([[7, 2], [2]], [[5, 0], [5, 6, 0]])
    assert ids.tolist() == [[7, 2, 5, 0], [2, 5, 6, 0]]
    assert said.tolist() == [[False, True, True], [True, True, True]]
    assert padded([[1], [1, 2, 3]]).tolist() == [[1, 0, 0], [1, 2, 3]]


def test_quarters_of_an_image_are_told_apart():
    """A disc on the left changes the left quarters more than the right ones."""
    random = np.random.default_rng(0)
    plain, left = (np.full((48, 40), 0.5) for _ in range(2))
    left[disc("bright", "left", random)[1]] = 0.9
    vectors = image_vectors(asked(ManifestSamples({"image": [ArrayPicture(plain, "a"), ArrayPicture(left, "b")]}, np.arange(2))))
    change = (vectors[0] - vectors[1]).norm(dim=-1)
    assert vectors.shape == (2, 5, 32)
    assert min(change[1], change[3]) > 2 * max(change[2], change[4])


def test_texts_without_words_are_refused():
    with pytest.raises(DataError, match="all 72 support texts are empty"):
        SMALL.fit(problem(TRAIN.replaced(findings=[" "] * 72)))
