"""Search: the exact one against a sort of all products, lists and bits against their definitions, recall on planted clusters, filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtame.errors import DataError
from medtame.features import index as indexes
from medtame.features import search_lists, searching
from medtame.features.index import Index
from medtame.features.search_lists import Depth, Frame, Listed, apart, by_lists, deepened, near
from medtame.features.searching import Bank, exact


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(count: int, width: int, seed: int, clusters: int = 40) -> np.ndarray:
    """(count, width) float16 in clusters about a mean that is not zero."""
    spread = np.arange(1, width + 1) ** -0.5
    centres = 1.0 + 2 * np.random.default_rng(99).standard_normal((clusters, width)) * spread
    random = np.random.default_rng(seed)
    return unit(centres[random.integers(0, clusters, count)] + random.standard_normal((count, width)) * spread).astype(np.float16)


def sorted_products(rows: np.ndarray, asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    products = asked.astype(np.float64) @ rows.astype(np.float64).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(products, order, 1)


@pytest.fixture(params=[(True, 1), (False, 1), (True, 100)], ids=["16 bits", "32 bits", "few queries"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    rounded, few = request.param
    monkeypatch.setattr(searching, "FEW", few)
    monkeypatch.setattr(searching, "fast_16_bits", lambda: rounded)
    monkeypatch.setattr(search_lists, "fast_16_bits", lambda: rounded)
    return bool(rounded)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("size", "width", "count"), [(3000, 96, 10), (700, 40, 3), (50, 24, 60), (9, 16, 4)])
def test_the_exact_search_is_a_sort_of_all_products(size: int, width: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "ROWS_AT_ONCE", 512)
    rows, asked = planted(size, width, 1), unit(planted(7, width, 2).astype(np.float32))
    bank = Bank([rows[: size // 3], rows[size // 3 :]])
    for chosen in (None, np.flatnonzero(np.arange(size) % 3 != 1)):
        right, cosines = sorted_products(rows if chosen is None else rows[chosen], asked, count)
        found = exact(bank, torch.from_numpy(asked), count, chosen)
        np.testing.assert_allclose(found.cosines, cosines, atol=2e-6)
        right = right if chosen is None else chosen[right]
        for one, other in zip(found.rows, right, strict=True):  # neighbours in the list may be closer than single precision tells
            assert len(set(one.tolist()) & set(other.tolist())) >= len(other) - 1
        assert (found.rows == right).mean() > 0.97


@pytest.mark.usefixtures("precision")
def test_of_equal_rows_the_first_come_first_and_rounding_hides_no_winner() -> None:
    """Rows that 16 bits cannot tell from one another: their order is still that of single precision."""
    base = unit(np.random.default_rng(0).standard_normal((1, 64)))
    close = unit(base + 2e-3 * np.random.default_rng(1).standard_normal((5000, 64))).astype(np.float16)
    close[4000:4010] = base.astype(np.float16)
    found = exact(Bank([close]), torch.from_numpy(base).float(), 12)
    np.testing.assert_array_equal(found.rows[0, :10], np.arange(4000, 4010))
    np.testing.assert_allclose(found.cosines, sorted_products(close, base.astype(np.float32), 12)[1], atol=1e-6)


def test_short_rows_are_near_the_long_ones() -> None:
    rows = np.array([[0.5, -0.25, 1.0, -1.5, 3e-5, -6e-8, 0.0, 0.333]], dtype=np.float16)
    short = searching.brief(rows, np.empty((4, 8), dtype=np.int16)).float().numpy()
    np.testing.assert_allclose(short, rows, rtol=2.0**-8, atol=3.1e-5)
    np.testing.assert_array_equal(short[0, :4], rows[0, :4])


def with_lists(rows: np.ndarray) -> Listed:
    frame = Frame.of([rows])
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return Listed(Bank(halves), [frame.lists(half) for half in halves], frame)


@pytest.mark.usefixtures("precision")
def test_lists_are_the_nearest_centres_and_bits_the_signs_of_rotated_centred_rows() -> None:
    rows = planted(3000, 70, 3)
    frame = Frame.of([rows[:100], rows[100:]])
    np.testing.assert_allclose(frame.mean, rows.astype(np.float64).mean(0), atol=1e-5)
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(70), atol=1e-5)
    assert frame.centres.shape == (3000 // 32, 70)
    lists = frame.lists(rows)
    np.testing.assert_array_equal(np.sort(lists.rows), np.arange(3000))
    said = np.unpackbits(lists.words.view(np.uint8), axis=1, bitorder="little")
    turned = (rows[lists.rows].astype(np.float32) - frame.mean) @ frame.rotation
    assert lists.words.shape == (3000, 2)
    assert (said[:, :70] == (turned > 0)).mean() > 0.9999
    assert not said[:, 70:].any()
    away = np.linalg.norm(rows[:, None].astype(np.float64) - frame.centres[None], axis=2)
    held = np.repeat(np.arange(len(frame.centres)), np.diff(lists.edges))
    assert (away[lists.rows, held] - away.min(1)[lists.rows]).max() < 0.015
    assert (held == away.argmin(1)[lists.rows]).mean() > 0.95


def test_centres_are_the_means_of_their_rows() -> None:
    """Three heaps far apart: Lloyd's rounds end at their means when each has a centre; one without rows stays."""
    heaps = np.eye(8)[[0, 3, 6]][np.arange(300) % 3] + 0.01 * np.random.default_rng(0).standard_normal((300, 8))
    sample = torch.from_numpy(heaps).float()

    class Chosen:
        def choice(self, *_: object, **__: object) -> np.ndarray:
            return np.array([0, 1, 2, 3])  # the fourth begins in the first heap

    centres = search_lists.centred(sample, 4, Chosen())  # type: ignore[arg-type]
    means = [heaps[start::3].mean(0) for start in (1, 2)]
    np.testing.assert_allclose(centres[1:3], means, atol=1e-4)
    held = search_lists.dealt(heaps.astype(np.float16), torch.from_numpy(centres))
    assert set(held[::3].tolist()) <= {0, 3}


def test_unequal_bits_are_counted() -> None:
    random = np.random.default_rng(0)
    words, one = random.integers(0, 2**64, (300, 3), dtype=np.uint64), random.integers(0, 2**64, 3, dtype=np.uint64)
    plain = [sum(int(a ^ b).bit_count() for a, b in zip(row, one, strict=True)) for row in words]
    np.testing.assert_array_equal(apart(words, one), plain)


def test_a_query_looks_at_its_nearest_lists_until_they_hold_enough() -> None:
    listed = with_lists(planted(3000, 70, 3))
    asked = torch.from_numpy(unit(planted(9, 70, 8).astype(np.float32)))
    chosen = np.arange(0, 3000, 7)
    held = np.empty(3000, dtype=int)
    for part, start in zip(listed.lists, (0, 1500), strict=True):
        held[part.rows + start] = np.repeat(np.arange(len(listed.frame.centres)), np.diff(part.edges))
    away = np.linalg.norm(asked.numpy()[:, None] - listed.frame.centres[None], axis=2)
    for least, allowed in ((200, None), (200, chosen), (2999, None)):
        for query, (vector, words, numbers, bits) in enumerate(near(listed, asked, least, allowed)):
            wanted: list[int] = []
            for one in np.argsort(away[query]):
                some = np.arange(3000) if allowed is None else allowed
                if len(wanted) >= least and len(np.intersect1d(wanted, some)) >= least * len(some) / 3000:
                    break
                wanted += np.flatnonzero(held == one).tolist()
            np.testing.assert_array_equal(np.sort(numbers), np.sort(np.intersect1d(wanted, some)))
            np.testing.assert_array_equal(vector.numpy(), asked[query].numpy())
            np.testing.assert_array_equal(words, listed.frame.words(asked[query : query + 1])[0])
            np.testing.assert_array_equal(bits[:20], listed.frame.words(listed.bank.rows(numbers[:20])))


@pytest.mark.usefixtures("precision")
def test_lists_find_planted_neighbours_alone_and_together_and_a_shallow_look_is_told() -> None:
    rows = planted(6000, 192, 4)
    bank, own = with_lists(rows), np.arange(0, 6000, 60)
    queries = unit(rows[own].astype(np.float32) + 0.02 * np.random.default_rng(5).standard_normal((100, 192)) / 192**0.5).astype(np.float32)
    depth, recalls = deepened(bank, [bank.bank.rows(own), torch.from_numpy(queries)], own)
    assert depth is not None
    assert min(recalls) >= 0.99
    right = sorted_products(rows, queries, 10)[0]
    found = by_lists(bank, torch.from_numpy(queries), 10, depth)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), right.tolist(), strict=True)]) >= 0.98
    alone = by_lists(bank, torch.from_numpy(queries[:1]), 10, depth)
    np.testing.assert_array_equal(alone.rows[0], found.rows[0])
    shallow = by_lists(bank, torch.from_numpy(queries), 10, Depth(12, 11))
    assert search_lists.recall(list(shallow.rows), right, None) < min(recalls)
    chosen = np.arange(0, 6000, 2)
    some = by_lists(bank, torch.from_numpy(queries), 10, depth, chosen)
    assert not (some.rows % 2).any()
    few = np.arange(5, 6000, 250)
    all_of_them = by_lists(bank, torch.from_numpy(queries[:3]), 40, depth, few)
    np.testing.assert_array_equal(np.sort(all_of_them.rows), np.tile(few, (3, 1)))
    near = sorted_products(rows[chosen], queries, 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(some.rows.tolist(), chosen[near].tolist(), strict=True)]) >= 0.98


def test_rows_without_structure_are_searched_exactly() -> None:
    """In noise nothing is near: so many rows would have to be looked at that lists do not pay, and it is said."""
    rows = unit(np.random.default_rng(0).standard_normal((1500, 256))).astype(np.float16)
    own = np.arange(0, 1500, 30)
    depth, recalls = deepened(with_lists(rows), [torch.from_numpy(rows[own]).float()], own)
    assert depth is None
    assert recalls[0] < 0.99


# ---- an index -------------------------------------------------------------------------------------------------


def made(rows: np.ndarray, start: int = 0) -> tuple[torch.Tensor, list[str], dict[str, list[str | None]]]:
    names = [f"{number:064x}" for number in range(start, start + len(rows))]
    kinds: list[str | None] = [("CT", "MR", None)[number % 3] for number in range(start, start + len(rows))]
    return torch.from_numpy(rows).float(), names, {"image": [f"{int(name, 16)}.png" for name in names], "modality": kinds}


def test_an_index_that_grows_is_the_one_made_at_once_also_where_lists_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = planted(3000, 64, 6), torch.from_numpy(unit(planted(5, 64, 7).astype(np.float32)))
    empty = Index({"spec": "a", "image_identity": "a", "text_identity": "a"})
    for limit in (10_000, 1500):
        monkeypatch.setattr(indexes, "EXACT_UP_TO", limit)
        grown = empty
        for start in range(0, 3000, 1000):
            grown = grown.added(*made(rows[start : start + 1000], start), None)
        once = empty.added(*made(rows), None)
        assert (once.frame is not None) == (limit == 1500)
        assert grown.column("modality") == once.column("modality")
        for chosen in (None, once.where({"modality": "ct"})):
            for exactly in (True, False):
                one, other = (index.nearest(asked, 10, chosen, exactly=exactly) for index in (grown, once))
                np.testing.assert_allclose(one.cosines, other.cosines, atol=1e-6)
        if limit == 1500:
            assert grown.measured is not None
            assert min(grown.measured.recalls) >= 0.99
            assert "recall@10 " in grown.how(3000)
        assert grown.how(3000, exactly=True) == "exact"


def test_filters_leave_the_rows_that_have_all_values() -> None:
    index = Index({}).added(*made(planted(30, 16, 1)), None)
    np.testing.assert_array_equal(index.where({"modality": "mr"}), np.arange(1, 30, 3))
    np.testing.assert_array_equal(index.where({"modality": "CT", "image": "3.png"}), [3])
    assert index.where({}) is None
    with pytest.raises(DataError, match="no image has modality=PET; modality is CT, MR"):
        index.where({"modality": "PET"})
    with pytest.raises(DataError, match="no column 'plane'"):
        index.where({"plane": "axial"})
    with pytest.raises(DataError, match="give fewer filters"):
        index.where({"modality": "CT", "image": "1.png"})


def test_many_small_parts_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "MANY_PARTS", 3)
    rows = planted(10, 16, 1)
    index = Index({})
    for start in range(10):
        index = index.added(*made(rows[start : start + 1], start), None)
    assert len(index.parts) <= 3
    assert index.column("image") == [f"{number}.png" for number in range(10)]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in index.parts]), rows)
    with pytest.raises(DataError, match="vectors of 8 numbers for an index of 16"):
        index.added(*made(planted(2, 8, 1), 20), None)
