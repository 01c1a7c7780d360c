"""What happens at test time: views that keep the lesion, the loss of the paper in closed form, a slow twin, and caches without order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import catalogue
from medtame.data.images import ArrayPicture
from medtame.errors import PairError
from medtame.strategies.direct_use import test_time_prompt as views
from medtame.strategies.direct_use.low_entropy_cache import surest
from medtame.tasks.classification import Classification
from medtame.types import Problem


def problem_of(encoder) -> Problem:
    task = Classification()
    samples = task.usable(tiny("classification")[1])
    return task.settled(samples).frame(samples, "scores").problem(samples, encoder, 0)


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def test_views_hold_half_of_the_image_and_are_never_turned():
    rows, columns = np.mgrid[:40, :61]
    picture = ArrayPicture(np.stack([rows, columns, rows * 0], 2).astype(np.uint8), "ramp")
    made = views.views_of(picture, 200)
    for view in made:
        pixels = view.read().astype(int)
        assert pixels.shape[0] * pixels.shape[1] >= 0.5 * 40 * 61
        assert (np.diff(pixels[..., 0], axis=0) == 1).all(), "rows in order"
        assert (np.diff(pixels[..., 1], axis=1) == 1).all(), "columns in order: not flipped"
    areas = [view.read().size / picture.read().size for view in made]
    assert min(areas) < 0.55
    assert max(areas) > 0.95
    again = views.views_of(picture, 200)
    assert all(np.array_equal(a.read(), b.read()) for a, b in zip(made, again, strict=True))


def test_the_loss_is_the_entropy_of_the_mean_not_the_mean_entropy():
    sure = torch.tensor([[[0.98, 0.02], [0.02, 0.98]]])
    assert float(views.entropy_of_mean(sure.log())) == pytest.approx(math.log(2), abs=1e-6)
    kept = views.surest(torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.7, 0.3], [0.99, 0.01]]]).log(), 0.5)
    assert sorted(kept[0].tolist()) == [1, 3]


def test_one_image_is_the_slow_way():
    """A step of torch's own AdamW on one context, view by view."""
    encoder = tiny_encoder()
    query = problem_of(encoder).query.take([4])
    fitted = method("test_time_prompt", views=9, kept=0.3, steps=2, spreading=0.1).fit(problem_of(encoder))
    found = fitted.answer(query).values[0]
    pixels = [
        encoder.prepare(torch.from_numpy(v.read().transpose(2, 0, 1).copy())[None]) for v in views.views_of(query.samples.pictures()[0], 9)
    ]
    vectors = torch.cat([encoder.whole(query.samples), encoder.image_tower(torch.cat(pixels))[0]])
    tower = encoder.text_tower
    ids, mask = tower.tokens([sentences[0] for sentences in query.wanted.prompts])
    embedded, shared = tower.embed(ids), len(fitted.ids)
    real = torch.cat([row[kept > 0][1:-1] for row, kept in zip(embedded, mask, strict=True)])
    own = torch.cat(
        [embedded[0, 1 : 1 + shared], *[row[1 + shared : int(kept.sum()) - 1] for row, kept in zip(embedded, mask, strict=True)]]
    )
    assert len(real) > len(own)
    change = torch.nn.Parameter(torch.zeros(shared, 48))
    optimiser = torch.optim.AdamW([change], lr=0.25, weight_decay=0.0)

    def texts():
        context = embedded[0, 1 : 1 + shared] + own.std() * change
        return tower.encode(torch.cat([embedded[:, :1], context.expand(len(embedded), -1, -1), embedded[:, 1 + shared :]], 1), mask)

    chosen = None
    for _ in range(2):
        optimiser.zero_grad()
        said = texts()
        probability = (20 * vectors @ said.T - 0.5).softmax(1)
        if chosen is None:
            chosen = (-(probability * probability.log()).sum(1)).argsort()[:3]
        mean = probability[chosen].mean(0)
        loss = -(mean * mean.log()).sum() - 0.1 * (said - said.mean(0)).norm(dim=1).mean()
        loss.backward()
        optimiser.step()
    slow = 20 * vectors[0] @ texts().T - 0.5
    torch.testing.assert_close(found, slow.detach(), atol=2e-4, rtol=1e-4)


def test_no_step_is_zero_shot_with_the_first_prompt_and_small_steps_make_it_surer():
    encoder = replace(tiny_encoder(), scale=3.0)
    problem = problem_of(encoder)

    def answered(name, **settings):
        return method(name, **settings).fit(problem).answer(problem.query).values

    none, one, many = (answered("test_time_prompt", steps=steps, learning_rate=0.01) for steps in (0, 1, 8))
    torch.testing.assert_close(none, answered("coop", steps=0), atol=1e-5, rtol=1e-5)
    entropy = [-(v.softmax(1) * v.log_softmax(1)).sum(1).mean() for v in (none, one, many)]
    assert entropy[0] > entropy[1] > entropy[2]


def test_regions_are_refused():
    problem = problem_of(tiny_encoder())
    query = replace(problem.query, regions=torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(len(problem.query), -1))
    with pytest.raises(PairError, match="whole images"):
        method("test_time_prompt").fit(problem).answer(query)


def test_a_cache_of_the_surest_rows_is_the_slow_one():
    encoder = replace(tiny_encoder(), scale=4.0)
    problem = problem_of(encoder)
    query = replace(problem.query, encoder=encoder)
    found = method("low_entropy_cache", size=2, weight=0.1, sharpness=3.0).fit(replace(problem, query=query)).answer(query).values
    logits = method("zero_shot").fit(problem).answer(query).values
    features = query.vectors()
    probability = logits.softmax(1)
    entropy = -(probability * probability.log()).sum(1)
    for row in range(len(query)):
        slow = logits[row].clone()
        for own in range(3):
            members = [i for i in entropy.argsort().tolist() if int(logits[i].argmax()) == own][:2]
            for i in members:
                slow[own] += 0.0 if i == row else 4.0 * 0.1 * math.exp(-3.0 * (1 - float(features[row] @ features[i])))
        torch.testing.assert_close(found[row], slow, atol=1e-4, rtol=1e-4)
    assert len(surest(logits, 2)) <= 6
