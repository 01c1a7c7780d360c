"""Power and standardised features of the two probes: by hand, on the support alone, and plain unless asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_vectors import unit, world
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from medtame import catalogue
from medtame.errors import SettingsError
from medtame.features.transforms import folded, rooted, spread


def method(name, **settings):
    return catalogue.build(catalogue.METHODS, name, settings)


def test_the_power_view_is_a_signed_root_of_unit_norm():
    features = torch.tensor([[0.25, -0.04, 0.0], [-1.0, 4.0, 9.0]])
    assert torch.allclose(rooted(features)[0], torch.tensor([0.5, -0.2, 0.0]) / (0.29**0.5))
    assert torch.allclose(rooted(features)[1], torch.tensor([-1.0, 2.0, 3.0]) / 14**0.5)
    assert not rooted(torch.zeros(1, 3)).isnan().any()


def test_the_standardised_view_has_one_spread_a_column_and_a_norm_of_one():
    features = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 1, 2, 1e-6]) + 5
    mean, divisor = spread(features)
    seen = (features - mean) / divisor
    reference = StandardScaler().fit_transform(features[:, :5].double().numpy()) / 6**0.5
    assert np.allclose(seen[:, :5], reference, atol=1e-4)
    assert seen[:, 5].abs().max() < 1e-4, "a column that hardly varies is not blown up"
    assert torch.equal(spread(features[:1])[1], torch.ones(6)), "one row has no spread"


def test_folded_weights_are_those_of_the_view():
    features, weight, bias = torch.randn(9, 4), torch.randn(3, 4), torch.randn(3)
    mean, divisor = spread(features)
    inside, shift = folded(weight, bias, mean, divisor)
    assert torch.allclose(features @ inside.T + shift, (features - mean) / divisor @ weight.T + bias, atol=1e-5)


@pytest.fixture(scope="module")
def w():
    return world(classes=3, noise=2.5)


@pytest.mark.parametrize("view", ["plain", "power", "standardised"])
def test_the_linear_probe_is_scikit_learns_on_the_view(w, view):
    support = w.shots([8, 8, 8])
    images = w.encoder.images.numpy().astype(float)
    if view == "power":
        images = np.sign(images) * np.abs(images) ** 0.5
        images /= np.linalg.norm(images, axis=1, keepdims=True)
    if view == "standardised":
        images = StandardScaler().fit(images[support]).transform(images) / images.shape[1] ** 0.5
    model = LogisticRegression(C=100, max_iter=1000).fit(images[support], w.labels[support])
    adapted = method("linear_probe", features=view).fit(w.problem(support))
    said = adapted.answer(w.query(range(180))).values.softmax(1).numpy()
    assert np.allclose(said, model.predict_proba(images), atol=1e-2)


@pytest.mark.parametrize("view", ["plain", "power", "standardised"])
def test_the_ridge_probe_is_scikit_learns_on_the_view(w, view):
    support = w.shots([8, 8, 8])
    images = w.encoder.images.numpy().astype(float)
    if view == "power":
        images = unit(np.sign(images) * np.abs(images) ** 0.5).numpy().astype(float)
    if view == "standardised":
        images = StandardScaler().fit(images[support]).transform(images) / images.shape[1] ** 0.5
    problem = w.problem(support)
    adapted = method("ridge_probe", features=view).fit(problem)
    model = Ridge(alpha=adapted.penalty).fit(images[support], problem.targets.numpy())
    assert np.allclose(adapted.answer(w.query(range(180))).values, 100 * model.predict(images), atol=0.05)


@pytest.mark.parametrize("name", ["linear_probe", "ridge_probe"])
def test_the_statistics_are_of_the_support_alone(w, name):
    adapted = method(name, features="standardised").fit(w.problem(w.shots([8, 8, 8])))
    query = w.query(range(180))
    whole = adapted.answer(query).values
    assert torch.allclose(adapted.answer(query.take([7])).values[0], whole[7], atol=1e-4)


@pytest.mark.parametrize("name", ["linear_probe", "ridge_probe"])
def test_plain_is_the_default_and_an_unknown_view_is_refused(w, name):
    problem = w.problem(w.shots([4, 4, 4]))
    assert torch.equal(method(name).fit(problem).weight, method(name, features="plain").fit(problem).weight)
    with pytest.raises(SettingsError, match="features"):
        method(name, features="whitened")


@pytest.mark.parametrize("name", ["linear_probe", "ridge_probe"])
@pytest.mark.parametrize("view", ["power", "standardised"])
def test_a_missing_class_and_one_row_a_class(w, name, view):
    said = method(name, features=view).fit(w.problem(w.shots([1, 1, 0]))).answer(w.query(range(180))).values
    assert torch.isfinite(said).all()
    assert (said.argmax(1) != 2).all()
