"""Search: the exact one against a sort of all products, bits against their definition, recall on planted clusters, filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtame.errors import DataError
from medtame.features import index as indexes
from medtame.features import searching
from medtame.features.index import Index
from medtame.features.searching import Bank, Depth, Frame, by_signs, deepened, exact


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


@pytest.fixture(params=[True, False], ids=["16 bits", "32 bits"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(searching, "fast_16_bits", lambda: request.param)
    return bool(request.param)


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


def with_bits(rows: np.ndarray) -> Bank:
    frame = Frame.of([rows])
    half = len(rows) // 2
    return Bank([rows[:half], rows[half:]], [frame.bits(rows[:half]), frame.bits(rows[half:])], frame)


def test_bits_are_the_signs_of_rotated_centred_rows_and_the_rotation_keeps_angles() -> None:
    rows = planted(300, 70, 3)
    frame = Frame.of([rows[:100], rows[100:]])
    np.testing.assert_allclose(frame.mean, rows.astype(np.float64).mean(0), atol=1e-5)
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(70), atol=1e-5)
    words = frame.words(torch.from_numpy(rows).float())
    assert words.shape == (300, 2)
    said = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    turned = (rows.astype(np.float32) - frame.mean) @ frame.rotation
    assert (said[:, :70] == (turned > 0)).mean() > 0.9999
    assert not said[:, 70:].any()


@pytest.mark.usefixtures("precision")
def test_distances_by_product_are_those_by_counting() -> None:
    random = np.random.default_rng(0)
    first, asked = random.integers(0, 2**63, (2, 200), dtype=np.uint64), random.integers(0, 2**63, (5, 2), dtype=np.uint64)
    asked[0] = first[:, 17]
    plain = np.array([[sum(int(a ^ b).bit_count() for a, b in zip(row, word, strict=True)) for row in first.T] for word in asked])
    np.testing.assert_array_equal(searching.popcounts(first, asked), plain)
    within = np.array([0, 40, 64, 70, 128])
    np.testing.assert_array_equal(searching.near_by_counting(first, asked, within), plain <= within[:, None])
    product = searching.near_by_product(first, asked, within)
    assert not (~product & (plain <= within[:, None])).any()
    assert not (product & (plain > within[:, None] + 1))[within < 64].any()  # where half may differ nothing is near, and all is looked at


@pytest.mark.usefixtures("precision")
def test_bits_find_planted_neighbours_alone_and_together_and_a_shallow_look_is_told() -> None:
    rows = planted(6000, 192, 4)
    bank, own = with_bits(rows), np.arange(0, 6000, 60)
    queries = unit(rows[own].astype(np.float32) + 0.02 * np.random.default_rng(5).standard_normal((100, 192)) / 192**0.5).astype(np.float32)
    depth, recalls = deepened(bank, [bank.rows(own), torch.from_numpy(queries)], own)
    assert depth is not None
    assert min(recalls) >= 0.99
    right = sorted_products(rows, queries, 10)[0]
    found = by_signs(bank, torch.from_numpy(queries), 10, depth)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), right.tolist(), strict=True)]) >= 0.98
    alone = by_signs(bank, torch.from_numpy(queries[:1]), 10, depth)
    np.testing.assert_array_equal(alone.rows[0], found.rows[0])
    shallow = by_signs(bank, torch.from_numpy(queries), 10, Depth(12, 11))
    assert searching.recall(np.pad(shallow.rows, ((0, 0), (0, 1))), np.pad(right, ((0, 0), (0, 1))), None) < min(recalls)
    chosen = np.arange(0, 6000, 2)
    some = by_signs(bank, torch.from_numpy(queries), 10, depth, chosen)
    assert not (some.rows % 2).any()
    near = sorted_products(rows[chosen], queries, 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(some.rows.tolist(), chosen[near].tolist(), strict=True)]) >= 0.98


def test_rows_without_structure_are_searched_exactly() -> None:
    """In noise nothing is near: so many rows would have to be looked at that bits do not pay, and it is said."""
    rows = unit(np.random.default_rng(0).standard_normal((1500, 256))).astype(np.float16)
    own = np.arange(0, 1500, 30)
    depth, recalls = deepened(with_bits(rows), [torch.from_numpy(rows[own]).float()], own)
    assert depth is None
    assert recalls[0] < 0.99


# ---- an index -------------------------------------------------------------------------------------------------


def made(rows: np.ndarray, start: int = 0) -> tuple[torch.Tensor, list[str], dict[str, list[str | None]]]:
    names = [f"{number:064x}" for number in range(start, start + len(rows))]
    kinds: list[str | None] = [("CT", "MR", None)[number % 3] for number in range(start, start + len(rows))]
    return torch.from_numpy(rows).float(), names, {"image": [f"{int(name, 16)}.png" for name in names], "modality": kinds}


def test_an_index_that_grows_is_the_one_made_at_once_also_where_bits_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = planted(900, 64, 6), torch.from_numpy(unit(planted(5, 64, 7).astype(np.float32)))
    empty = Index({"spec": "a", "image_identity": "a", "text_identity": "a"})
    for limit in (10_000, 500):
        monkeypatch.setattr(indexes, "EXACT_UP_TO", limit)
        grown = empty
        for start in range(0, 900, 300):
            grown = grown.added(*made(rows[start : start + 300], start), None)
        once = empty.added(*made(rows), None)
        assert (once.frame is not None) == (limit == 500)
        assert grown.column("modality") == once.column("modality")
        for chosen in (None, once.where({"modality": "ct"})):
            for exactly in (True, False):
                one, other = (index.nearest(asked, 10, chosen, exactly=exactly) for index in (grown, once))
                np.testing.assert_allclose(one.cosines, other.cosines, atol=1e-6)
        if limit == 500:
            assert grown.measured is not None
            assert min(grown.measured.recalls) >= 0.99
            assert "recall@10 " in grown.how(900)
        assert grown.how(900, exactly=True) == "exact"


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
