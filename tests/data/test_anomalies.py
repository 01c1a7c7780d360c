"""Made anomalies: they change what their mask says and nothing else, and depend on the image alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from medtame.data.anomalies import LEARNT, TRIED, MadeAnomaly, Recipe, balanced, covered, with_anomalies
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples


def picture(seed: int = 0, height: int = 90, width: int = 70) -> ArrayPicture:
    """A body with texture on a black ground."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    body = ((rows - height / 2) / (0.4 * height)) ** 2 + ((columns - width / 2) / (0.4 * width)) ** 2 < 1
    texture = ndimage.gaussian_filter(random.normal(size=(height, width)), 2)
    return ArrayPicture(np.clip(body * (0.5 + 0.6 * texture), 0, 1).astype(np.float32), f"image-{seed}")


@pytest.mark.parametrize("kind", [*LEARNT, *TRIED])
def test_what_is_far_from_the_mask_is_as_it_was(kind):
    for seed in range(6):
        normal = picture(seed)
        pixels, mask = MadeAnomaly(normal, Recipe(kind), seed).made()
        assert pixels.shape == normal.array().shape
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert 0.002 < mask.mean() < 0.25
        far = ndimage.distance_transform_edt(~mask) > 8
        assert np.array_equal(pixels[far], normal.array()[far])
    assert not np.array_equal(pixels[mask], normal.array()[mask])


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_recipe_says_darker_or_brighter(sign):
    for seed in range(6):
        normal = picture(seed)
        pixels, mask = MadeAnomaly(normal, Recipe("intensity", sign=sign), seed).made()
        assert sign * (pixels[mask].mean() - normal.array()[mask].mean()) > 0


def test_size_and_roughness_are_followed():
    small, large = (
        np.mean([MadeAnomaly(picture(seed), Recipe("blob", size=size), seed).made()[1].sum() for seed in range(8)])
        for size in ((0.1, 0.12), (0.4, 0.42))
    )
    assert 8 < large / small < 24  # about (0.41 / 0.11) squared
    assert covered(MadeAnomaly(picture(0), Recipe("blob"), 0), 5).sum() == pytest.approx(
        25 * MadeAnomaly(picture(0), Recipe("blob"), 0).made()[1].mean(), rel=1e-5
    )


def test_an_anomaly_depends_on_image_recipe_and_number_alone():
    one, same = MadeAnomaly(picture(0), Recipe("blob"), 0), MadeAnomaly(picture(0), Recipe("blob"), 0)
    assert one.digest() == same.digest()
    assert np.array_equal(one.array(), same.array())
    others = [MadeAnomaly(picture(1), Recipe("blob"), 0), MadeAnomaly(picture(0), Recipe("swirl"), 0), replace(one, number=1)]
    assert len({one.digest(), *(other.digest() for other in others)}) == 4
    assert picture(0).digest() != one.digest()


def test_samples_keep_the_patient_of_a_made_anomaly():
    samples = ManifestSamples({"image": [picture(0), picture(1)]}, np.array(["a", "b"]))
    whole, made = with_anomalies(samples, [Recipe("blob"), Recipe("cut_paste")], [1])
    assert whole.groups.tolist() == ["a", "b", "b", "b"]
    assert [one is None for one in made] == [True, True, False, False]
    assert [one.recipe.kind for one in made[2:]] == ["blob", "cut_paste"]


def test_patches_are_balanced_capped_and_seeded():
    shares = np.concatenate([np.zeros(900), np.full(40, 0.9), np.full(60, 0.3)])
    rows, abnormal = balanced(shares, 60, 0)
    assert (abnormal.sum(), len(rows)) == (30, 60)
    assert (shares[rows][abnormal] > 0.5).all()
    assert (shares[rows][~abnormal] == 0).all()
    assert np.array_equal(rows, balanced(shares, 60, 0)[0])
    assert not np.array_equal(rows, balanced(shares, 60, 1)[0])
    rows, abnormal = balanced(np.array([0, 0, 0.1, 0.2, 0]), 10, 0)  # all smaller than half a patch
    assert set(rows[abnormal].tolist()) == {2, 3}
