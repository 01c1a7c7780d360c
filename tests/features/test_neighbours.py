"""The nearest rows, by rounded candidates and in single precision, are those of a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtame.features import neighbours
from medtame.features.neighbours import Rounded, nearest, plain


def unit(values: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(values.astype(np.float32)), dim=-1)


def cases() -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    noise = random.standard_normal((700, 24))
    close = 5 + 0.05 * random.standard_normal((700, 24))  # all cosines above .99: rounding alone would mix them up
    return {
        "noise": unit(noise),
        "close": unit(close),
        "twins": unit(np.repeat(random.standard_normal((350, 24)), 2, 0)),
        "few left over": unit(random.standard_normal((641, 3))),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_rounded_candidates_lose_no_neighbour(name, monkeypatch):
    features = cases()[name]
    monkeypatch.setattr(neighbours, "WORTH_ROWS", 0)
    monkeypatch.setattr(neighbours, "fast_16_bits", lambda: True)
    monkeypatch.setattr(neighbours, "NUMBERS_AT_ONCE", 100 * len(features))
    monkeypatch.setattr(neighbours, "MOST_CANDIDATES", len(features))
    numbers, cosines = nearest(features, 4)
    exact = (features.double() @ features.double().T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(cosines.double(), exact.topk(4, dim=1).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, numbers), cosines.double(), rtol=0, atol=1e-6)
    assert all(len(set(row)) == 4 for row in numbers.tolist())


def test_fewer_candidates_than_rows_are_looked_at():
    features = cases()["noise"]
    row, _ = Rounded.of(features, 4).candidates(torch.arange(len(features)))
    assert 4 * len(features) <= len(row) < 40 * len(features)


def test_where_most_rows_are_alike_the_block_is_worked_out_in_single_precision(monkeypatch):
    features = unit(np.ones((700, 8)))
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 0)  # taking pairs would fail
    numbers, cosines = Rounded.of(features, 3).nearest(torch.arange(700))
    assert torch.equal(cosines, plain(features, 3)(torch.arange(700))[1])
    assert not (numbers == torch.arange(700)[:, None]).any()
