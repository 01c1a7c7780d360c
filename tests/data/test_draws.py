"""Draws: counts in closed form, groups before rows, nested in K, the same for every method."""

from __future__ import annotations

import numpy as np
import pytest

from medtame.data.draws import draw
from medtame.errors import DataError, SettingsError, UnknownNameError

STRATA = np.array(["a"] * 60 + ["b"] * 30 + ["c"] * 10, dtype=object)
ALONE = np.arange(100)


def counts(rows: np.ndarray, strata: np.ndarray = STRATA) -> list[int]:
    return [int((strata[rows] == name).sum()) for name in "abc"]


@pytest.mark.parametrize(("regime", "wanted"), [("standard", [4, 4, 4]), ("relaxed", [7, 4, 1])])
def test_counts_of_a_regime(regime: str, wanted: list[int]) -> None:
    made = draw(STRATA, ALONE, 4, seed=0, regime=regime)
    assert counts(made.rows) == wanted  # of 12: 7.2, 3.6, 1.2
    assert made.rows.tolist() == sorted(set(made.rows.tolist()))
    assert made.notes == []


def test_relaxed_gives_every_stratum_one_however_rare() -> None:
    strata = np.array(["a"] * 97 + ["b", "b", "c"], dtype=object)
    assert counts(draw(strata, ALONE, 1, seed=0, regime="relaxed").rows, strata) == [1, 1, 1]
    assert counts(draw(strata, ALONE, 5, seed=0, regime="relaxed").rows, strata) == [13, 1, 1]
    assert counts(draw(strata, ALONE, 50, seed=0, regime="relaxed").rows, strata) == [97, 2, 1]


def test_realistic_follows_prevalence_and_may_miss_a_stratum() -> None:
    drawn = np.array([counts(draw(STRATA, ALONE, 1, seed=seed, regime="realistic").rows) for seed in range(600)])
    assert (drawn.sum(1) == 3).all()
    share = np.array([0.6, 0.3, 0.1])
    expected = (3 * share - 3 * share**3) / (1 - (share**3).sum())  # of three rows that are not all of one stratum
    assert np.allclose(drawn.mean(0), expected, atol=0.12)
    assert (drawn == 0).any(1).mean() > 0.5
    assert ((drawn > 0).sum(1) > 1).all()


def test_all_is_every_row_with_a_stratum() -> None:
    strata = np.array(["a", None, "b", "a"], dtype=object)
    assert draw(strata, np.arange(4), "all", seed=0).rows.tolist() == [0, 2, 3]
    assert 1 not in draw(strata, np.arange(4), 2, seed=0).rows


def test_groups_come_before_second_rows_of_a_group() -> None:
    strata = np.array(["a"] * 30, dtype=object)
    groups = np.array(["big"] * 20 + [f"small {n}" for n in range(5) for _ in range(2)], dtype=object)
    for seed in range(20):
        assert len(set(groups[draw(strata, groups, 6, seed=seed).rows])) == 6
        made = draw(strata, groups, 12, seed=seed)
        held = [int((groups[made.rows] == name).sum()) for name in dict.fromkeys(groups)]
        assert held == [2] * 6
        assert made.notes == ["'a': 12 rows of only 6 groups"]
    first = [groups[draw(strata, groups, 1, seed=seed).rows[0]] for seed in range(600)]
    assert 0.11 < first.count("big") / 600 < 0.23  # one group of six, though 20 of 30 rows


@pytest.mark.parametrize("regime", ["standard", "realistic"])
def test_draws_are_nested_in_shots(regime: str) -> None:
    groups = np.arange(100) // 3
    for seed in range(5):
        rows = [set(draw(STRATA, groups, shots, seed=seed, regime=regime).rows.tolist()) for shots in (1, 4, 16, "all")]
        assert rows[0] < rows[1] < rows[2] < rows[3]


def test_the_seed_decides_and_the_names_of_groups_do_not() -> None:
    groups = np.arange(100) // 2
    one = draw(STRATA, groups, 4, seed=1)
    assert np.array_equal(one.rows, draw(STRATA, groups, 4, seed=1).rows)
    assert not np.array_equal(one.rows, draw(STRATA, groups, 4, seed=2).rows)
    renamed = np.array([f"patient {97 - group}" for group in groups], dtype=object)
    assert np.array_equal(one.rows, draw(STRATA, renamed, 4, seed=1).rows)


def test_a_small_stratum_gives_all_it_has_and_is_noted() -> None:
    made = draw(STRATA, ALONE, 16, seed=0)
    assert counts(made.rows) == [16, 16, 10]
    assert made.notes == ["'c' has only 10 of 16 rows: all are taken"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'relaxed'"):
        draw(STRATA, ALONE, 1, seed=0, regime="relax")
    for shots in (0, -1, True, 1.5, "every"):
        with pytest.raises(SettingsError, match="give a whole number from 1, or 'all'"):
            draw(STRATA, ALONE, shots, seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none of 2 training rows has a label"):
        draw(np.array([None, None]), np.arange(2), 1, seed=0)
