import numpy as np
import pytest
import torch

from doubles import tiny_encoder
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import PairError
from medtame.learning.decoding import seen
from medtame.learning.loop import finish
from medtame.metrics.segmentation import dice_of
from medtame.strategies.fusion.text_query_decoder import TextQueryDecoder, TextQueryDecoderAdapted, prompts_of
from medtame.tasks.segmentation import SegmentationFrame
from medtame.types import Query

LEFT, RIGHT = "the blob on the left", "the blob on the right"
SIZE = 32


def two_blobs(n: int, seed: int) -> ManifestSamples:
    """Two discs that look the same, and a line for each: only the prompt tells which is meant."""
    random, columns = np.random.default_rng(seed), {"image": [], "mask": [], "prompt": []}
    rows, across = np.mgrid[:40, :48]
    for i in range(n):
        masks = []
        for centre in (random.uniform(8, 16), random.uniform(32, 40)):
            masks.append((rows - random.uniform(10, 30)) ** 2 + (across - centre) ** 2 <= 49)
        pixels = np.clip(0.4 + 0.4 * (masks[0] | masks[1]) + 0.03 * random.standard_normal((40, 48)), 0, 1)
        picture = ArrayPicture(pixels, f"image-{i}")
        for prompt, mask in zip((LEFT, RIGHT), masks, strict=True):
            columns["image"].append(picture)
            columns["mask"].append(ArrayPicture(mask.astype(np.uint8), f"mask-{i}"))
            columns["prompt"].append(prompt)
    return ManifestSamples(columns, np.array([f"patient-{i // 2}" for i in range(2 * n)]))


FRAME = SegmentationFrame("grids", (LEFT, RIGHT), 1, 2, SIZE)
TEST = two_blobs(6, seed=2)


def problem(seed: int = 0):
    return FRAME.problem(two_blobs(12, seed=1), tiny_encoder(), seed)


def query(samples=TEST, words=None) -> Query:
    asked = FRAME.query(samples.only(["image", "prompt"]), tiny_encoder())
    return asked if words is None else Query(**{**vars(asked), "words": words})


@pytest.fixture(scope="module")
def adapted() -> TextQueryDecoderAdapted:
    return TextQueryDecoder(steps=120, width=32).fit(problem())


def mean_dice(said) -> float:
    return float(np.mean([dice_of(said.arrays[f"{i}/mask"], mask.values() > 0) for i, mask in enumerate(TEST.pictures("mask"))]))


def test_the_prompt_alone_says_which_of_two_blobs_that_look_the_same(adapted):
    asked = query()
    assert mean_dice(FRAME.read(asked, adapted.answer(asked))) > 0.8
    exchanged = query(words=tuple(LEFT if word == RIGHT else RIGHT for word in asked.words))
    assert mean_dice(FRAME.read(exchanged, adapted.answer(exchanged))) < 0.3


def test_the_image_is_read(adapted):
    """The masks of other images fit less well than the image's own."""
    pictures = TEST.column("image")
    asked = query(TEST.replaced(image=pictures[2:] + pictures[:2]))
    assert mean_dice(FRAME.read(asked, adapted.answer(asked))) < 0.75


def test_an_answer_does_not_depend_on_other_rows_or_their_order(adapted):
    asked = query()
    whole = adapted.answer(asked).values
    order = np.random.default_rng(0).permutation(len(asked))
    assert whole.shape == (12, 1, SIZE, SIZE)
    assert torch.allclose(adapted.answer(asked.take(order)).values, whole[order], atol=1e-3)
    assert torch.allclose(torch.cat([adapted.answer(asked.take([i])).values for i in range(12)]), whole, atol=1e-3)


def test_more_images_than_fit_in_one_go_keep_their_order(adapted):
    many = two_blobs(19, seed=3)
    whole = adapted.answer(query(many)).values
    last = adapted.answer(query(many.take([37]))).values
    assert len(whole) == 38
    assert torch.allclose(whole[37:], last, atol=1e-3)


def test_same_seed_same_weights_other_seed_others():
    method = TextQueryDecoder(steps=4, width=16)
    one, two, other = method.fit(problem()), method.fit(problem()), method.fit(problem(seed=1))
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert not torch.equal(one.weights["last.weight"], other.weights["last.weight"])


def test_a_resumed_descent_equals_an_uninterrupted_one():
    method, states = TextQueryDecoder(steps=5, width=16), []
    steps = method.learn(problem())
    for _ in range(3):
        states.append(next(steps).state())
    whole, resumed = finish(steps), finish(method.learn(problem(), resume=states[1]))
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_the_loss_falls():
    losses = [step.loss for step in TextQueryDecoder(steps=60, width=16).learn(problem())]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_prompts_are_centred_and_of_unit_variance(adapted):
    conditioned = adapted.condition(prompts_of((LEFT, RIGHT, LEFT), tiny_encoder()))
    assert torch.allclose(conditioned[:2].mean(0), torch.zeros(32), atol=1e-5)
    assert float(conditioned[:2].square().mean()) == pytest.approx(1, abs=1e-4)
    assert torch.equal(conditioned[0], conditioned[2])


def test_one_prompt_for_all_is_a_constant():
    only = problem()
    one = only.take(np.flatnonzero([word == LEFT for word in only.query.words]))
    fitted = TextQueryDecoder(steps=2, width=16).fit(one)
    assert fitted.condition(prompts_of((LEFT,), tiny_encoder())).abs().max() == 0
    assert bool(fitted.answer(query()).values.isfinite().all())


def test_each_image_is_held_once():
    asked = problem().query
    held = seen(asked)
    assert len(held.pixels) == 12
    assert held.source.tolist() == [i // 2 for i in range(24)]
    scales, pixels = held.rows(torch.tensor([0, 1, 23]))
    assert torch.equal(pixels[0], pixels[1])
    assert torch.allclose(pixels[2], asked.pixels()[23].expand(3, -1, -1), atol=1e-3)
    assert [len(scale) for scale in scales] == [3] * len(scales)


def test_what_it_cannot_answer_is_refused(adapted):
    bare = problem()
    with pytest.raises(PairError, match="gives none"):
        TextQueryDecoder(steps=1).fit(type(bare)(query=bare.query, targets=bare.targets))
    with pytest.raises(PairError, match="give prompts"):
        prompts_of(None, tiny_encoder())
    with pytest.raises(PairError, match="names no size"):
        adapted.answer(Query(**{**vars(query()), "size": None}))
