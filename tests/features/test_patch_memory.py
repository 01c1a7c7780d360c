"""The patch memory against plain loops."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist

from medtame.features import patch_memory


def test_the_nearest_distance_is_that_of_a_plain_loop(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors, bank = torch.randn(301, 24, generator=generator), torch.randn(157, 24, generator=generator)
    plain = cdist(vectors.double().numpy(), bank.double().numpy()).min(1)
    for at_once in (10, 1000, 10**7):
        monkeypatch.setattr(patch_memory, "AT_ONCE", at_once)
        assert np.abs(patch_memory.nearest(vectors, bank).numpy() - plain).max() < 1e-5
    assert float(patch_memory.nearest(bank[:5], bank).max()) == 0  # exact where both are the same
    by_image = patch_memory.nearest_by_image(vectors, bank[:150].reshape(3, 50, 24))
    assert by_image.shape == (301, 3)
    assert torch.allclose(by_image.amin(1), patch_memory.nearest(vectors, bank[:150]), atol=1e-6)


def test_a_coreset_is_spread_out_as_the_greedy_loop_says():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(200, 8, generator=generator)
    chosen = patch_memory.coreset(vectors, 20, 3).tolist()
    first = int(torch.randint(200, (1,), generator=torch.Generator().manual_seed(3)))
    greedy = [first]
    while len(greedy) < 20:
        greedy.append(int(torch.cdist(vectors, vectors[greedy]).amin(1).argmax()))
    assert chosen == sorted(greedy)
    assert patch_memory.coreset(vectors, 500, 0).tolist() == list(range(200))


def test_a_coreset_covers_better_than_chance():
    generator = torch.Generator().manual_seed(2)
    vectors = torch.cat([0.01 * torch.randn(980, 100, generator=generator), torch.randn(20, 100, generator=generator)])
    chosen = patch_memory.coreset(vectors, 40, 0)
    assert (chosen >= 980).sum() == 20  # every rare patch is kept
