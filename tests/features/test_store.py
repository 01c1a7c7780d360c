"""Rows on disk: exact, by key, safe among processes, and never wrong when the disk is."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medtame.features.store import MAX_HEADER_BYTES, Store, default_folder
from medtame.types import Array


def key(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def rows(names: range, shape: tuple[int, ...] = (3, 2)) -> dict[str, Array]:
    return {key(name): np.random.default_rng(name).standard_normal(shape).astype(np.float16) for name in names}


def same(found: dict[str, Array], wanted: dict[str, Array]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[k], wanted[k]) for k in wanted)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_rows_come_back_by_key_also_to_another_store(tmp_path: Path):
    store, first, second = Store(tmp_path), rows(range(5)), rows(range(5, 9))
    assert store.write("encoder", "whole", first)
    assert store.write("encoder", "whole", second)
    wanted = [key(7), key(1), key("absent"), key(1)]
    both = first | second
    for reader in (store, Store(tmp_path), pickle.loads(pickle.dumps(store))):
        assert same(reader.read("encoder", "whole", wanted), {key(7): both[key(7)], key(1): both[key(1)]})


def test_identities_and_kinds_are_apart(tmp_path: Path):
    store = Store(tmp_path)
    store.write("encoder", "whole", rows(range(2)))
    assert store.read("encoder+lora", "whole", [key(0)]) == {}
    assert store.read("encoder", "map-0", [key(0)]) == {}
    assert store.read("encoder\nwhole", "", [key(0)]) == {}


def test_a_shard_in_the_wrong_folder_is_not_believed(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", "whole", rows(range(2)))
    store.write("b", "whole", rows(range(2, 4)))
    moved, other = shards(tmp_path)
    (moved).rename(other.with_name("moved.safetensors"))
    fresh = Store(tmp_path)
    assert len(fresh.read("a", "whole", [key(i) for i in range(4)])) + len(fresh.read("b", "whole", [key(i) for i in range(4)])) == 2


def test_a_store_sees_what_another_writes_later(tmp_path: Path):
    reader, writer = Store(tmp_path), Store(tmp_path)
    assert reader.read("e", "whole", [key(0)]) == {}
    writer.write("e", "whole", rows(range(1)))
    assert same(reader.read("e", "whole", [key(0)]), rows(range(1)))


@pytest.mark.parametrize("position", [0.0, 0.03, 0.3, 0.55, 0.7, 0.9, 0.999])
def test_one_flipped_bit_never_gives_a_wrong_row(tmp_path: Path, position: float):
    """Good rows of other shards stay; of the flipped shard only right rows may come back; writing again mends it."""
    good, hurt = rows(range(4)), rows(range(4, 8))
    Store(tmp_path).write("e", "whole", hurt)
    [path] = shards(tmp_path)
    Store(tmp_path).write("e", "whole", good)
    content = bytearray(path.read_bytes())
    for bit in range(8):
        broken = bytearray(content)
        broken[int(position * len(content))] ^= 1 << bit
        path.write_bytes(broken)
        store = Store(tmp_path)
        found = store.read("e", "whole", [*good, *hurt])
        assert same({k: found[k] for k in good}, good)
        assert all(np.array_equal(found[k], hurt[k]) for k in found.keys() & hurt.keys())
        store.write("e", "whole", hurt)
        assert same(store.read("e", "whole", [*hurt]), hurt)


def test_a_flipped_number_is_found_and_its_shard_deleted_while_the_store_is_open(tmp_path: Path):
    store, wanted = Store(tmp_path), rows(range(4))
    store.write("e", "whole", wanted)
    assert same(store.read("e", "whole", [*wanted]), wanted)
    [path] = shards(tmp_path)
    stored = load_file(path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(stored["rows"].tobytes())
    content[place + 5] ^= 16
    path.write_bytes(content)
    assert len(store.read("e", "whole", [*wanted])) < 4
    assert shards(tmp_path) == []
    assert store.read("e", "whole", [*wanted]) == {}


def test_rows_in_two_shards_survive_the_loss_of_one(tmp_path: Path):
    store = Store(tmp_path)
    store.write("e", "whole", rows(range(3)))
    [first] = shards(tmp_path)
    store.write("e", "whole", rows(range(1, 5)))
    content = first.read_bytes()
    for path in shards(tmp_path):
        path.write_bytes(content if path == first else path.read_bytes()[:-1])
    assert same(store.read("e", "whole", [*rows(range(3))]), rows(range(3)))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_a_cut_shard_is_missing_and_made_again(tmp_path: Path, length: int):
    wanted = rows(range(4))
    store = Store(tmp_path)
    store.write("e", "whole", wanted)
    store.read("e", "whole", [*wanted])
    [path] = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert store.read("e", "whole", [*wanted]) == {}
    assert Store(tmp_path).read("e", "whole", [*wanted]) == {}
    assert store.write("e", "whole", wanted)
    assert same(store.read("e", "whole", [*wanted]), wanted)


def test_what_is_no_shard_of_ours_is_dropped(tmp_path: Path):
    wanted = rows(range(2))
    Store(tmp_path).write("e", "whole", wanted)
    [path] = shards(tmp_path)
    place, long = path.parent, MAX_HEADER_BYTES + 1
    (place / "text.safetensors").write_text("this is no shard" * 10)
    (place / "long.safetensors").write_bytes(long.to_bytes(8, "little") + b"{" + b" " * long)
    (place / "deep.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    (place / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    save_file({"rows": np.zeros((2, 2), np.float32)}, place / "other.safetensors", metadata={"format": "medtame-features-1"})
    assert same(Store(tmp_path).read("e", "whole", [*wanted]), wanted)
    assert shards(tmp_path) == [path]


def test_safetensors_itself_reads_the_shards(tmp_path: Path):
    wanted = rows(range(3))
    Store(tmp_path).write("e", "whole", wanted)
    stored = load_file(shards(tmp_path)[0])
    assert {k.tobytes().hex(): row.tolist() for k, row in zip(stored["keys"], stored["rows"], strict=True)} == {
        k[:12]: row.tolist() for k, row in wanted.items()
    }


WRITER = """
import sys, numpy, hashlib
from pathlib import Path
from medtame.features.store import Store
store = Store(Path(sys.argv[1]))
for start in range(0, 60, 10):
    names = range(start, start + 10 + int(sys.argv[2]) % 2)   # half the writers overlap with their next chunk
    made = {hashlib.sha256(str(n).encode()).hexdigest(): numpy.random.default_rng(n).standard_normal((3, 2)).astype("f2") for n in names}
    assert store.write("e", "whole", made)
    assert store.keep_digests({key: key for key in made})
    assert store.read("e", "whole", list(made)).keys() == made.keys()
"""


def test_four_processes_write_the_same_rows_at_once(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)], env=environment) for number in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    wanted = rows(range(60))
    assert same(Store(tmp_path).read("e", "whole", [*wanted]), wanted)
    assert Store(tmp_path).known_digests([*wanted]) == {k: k for k in wanted}
    assert list(tmp_path.rglob("*.part")) == []


def test_where_nothing_can_be_written_write_says_no(tmp_path: Path):
    blocked = tmp_path / "a file, no folder"
    blocked.write_text("")
    store = Store(blocked / "cache")
    assert store.write("e", "whole", rows(range(2))) is False
    assert store.read("e", "whole", [key(0)]) == {}
    assert store.keep_digests({key(0): key(1)}) is False
    assert store.known_digests([key(0)]) == {}


def test_old_unfinished_files_are_cleared_and_new_ones_left(tmp_path: Path):
    store = Store(tmp_path)
    store.write("e", "whole", rows(range(1)))
    place = shards(tmp_path)[0].parent
    old, new = place / ".old.part", place / ".new.part"
    for path in (old, new):
        path.write_bytes(b"half a sh")
    os.utime(old, (time.time() - 90_000,) * 2)
    store.write("e", "whole", rows(range(1, 2)))
    assert (old.exists(), new.exists()) == (False, True)


def test_digests_are_remembered_and_a_damaged_table_is_made_anew(tmp_path: Path):
    digests = {key(i): key(-i) for i in range(1200)}
    assert Store(tmp_path).keep_digests(digests)
    assert Store(tmp_path).known_digests([*digests, key("absent")]) == digests
    (tmp_path / "digests.sqlite").write_bytes(b"this is no table" * 100)
    assert Store(tmp_path).known_digests([*digests]) == {}
    assert Store(tmp_path).keep_digests(digests)
    assert Store(tmp_path).known_digests([*digests]) == digests


def test_the_default_folder_is_the_cache_or_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path))
    assert default_folder() == Store().folder == tmp_path
    monkeypatch.delenv("MEDTAME_CACHE")
    assert "medtame" in default_folder().name


def test_a_row_costs_one_hundredth_of_itself_and_small_shards_are_joined(tmp_path: Path):
    store, rng = Store(tmp_path), np.random.default_rng(0)
    wanted: dict[str, Array] = {}
    for start in range(0, 64 * 64, 64):
        chunk = {key(number): rng.standard_normal(512).astype(np.float16) for number in range(start, start + 64)}
        assert store.write("e", "whole", chunk)
        wanted |= chunk
    assert len(shards(tmp_path)) == 2
    assert sum(path.stat().st_size for path in shards(tmp_path)) <= 1.01 * 2 * 512 * len(wanted)
    for reader in (store, Store(tmp_path)):
        assert same(reader.read("e", "whole", [*wanted, key("absent")]), wanted)
    largest = max(shards(tmp_path), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1  # a number: its row was joined with the checksum that it had
    largest.write_bytes(content)
    found = Store(tmp_path).read("e", "whole", [*wanted])
    assert len(found) == len(wanted) - 1
    assert all(np.array_equal(found[each], wanted[each]) for each in found)
    assert not largest.exists()


def test_shards_of_the_format_before_are_still_read(tmp_path: Path):
    wanted = rows(range(3))
    store = Store(tmp_path)
    store.write("e", "whole", rows(range(3, 4)))
    place = shards(tmp_path)[0].parent
    tensors = {
        "rows": np.stack([*wanted.values()]),
        "keys": np.stack([np.frombuffer(bytes.fromhex(each), np.uint8) for each in wanted]),
        "sums": np.array([zlib.crc32(row.tobytes(), zlib.crc32(f"(3, 2){each}".encode())) for each, row in wanted.items()], np.uint32),
    }
    save_file(tensors, place / "old.safetensors", metadata={"format": "medtame-features-1", "identity": "e", "kind": "whole"})
    assert same(store.read("e", "whole", [*rows(range(4))]), rows(range(4)))


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path):
    first, second, third = (key(0)[:12] + key(number)[12:] for number in (1, 2, 3))
    made = rows(range(2))
    store = Store(tmp_path)
    store.write("e", "whole", {first: made[key(0)]})
    store.write("e", "whole", {second: made[key(1)]})
    for reader in (store, Store(tmp_path)):
        assert same(reader.read("e", "whole", [first, second]), {first: made[key(0)], second: made[key(1)]})
    assert store.read("e", "whole", [third]) == {}


def test_any_flipped_byte_costs_rows_at_most(tmp_path: Path):
    wanted = rows(range(3))
    Store(tmp_path).write("e", "whole", wanted)
    [path] = shards(tmp_path)
    content = path.read_bytes()
    lost = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        found = Store(tmp_path).read("e", "whole", [*wanted])
        assert all(np.array_equal(found[each], wanted[each]) for each in found)
        lost += len(found) < 3
    numbers = 3 * (3 * 2 * 2 + 6 + 4)  # bytes of rows, keys and checksums
    assert numbers <= lost <= len(content)


JOINER = WRITER.replace("store = Store", "import medtame.features.store\nmedtame.features.store.MANY_SHARDS = 3\nstore = Store")


def test_four_processes_join_shards_at_once_and_lose_nothing(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    joiners = [subprocess.Popen([sys.executable, "-c", JOINER, str(tmp_path), str(number)], env=environment) for number in range(4)]
    assert [joiner.wait(timeout=120) for joiner in joiners] == [0] * 4
    wanted = rows(range(60))
    assert same(Store(tmp_path).read("e", "whole", [*wanted]), wanted)
    assert len(shards(tmp_path)) <= 6
    assert list(tmp_path.rglob("*.part")) == []


def test_a_cache_of_another_encoder_is_not_used(tmp_path: Path):
    """Neither from its own folder nor when it was copied over the folder of this one: the shard says whose it is."""
    store = Store(tmp_path)
    store.write("mine", "whole", rows(range(2)))
    store.write("another", "whole", rows(range(2, 4)))
    mine, another = sorted((path.parent for path in shards(tmp_path)), key=lambda place: place != store._place("mine", "whole"))
    for path in mine.iterdir():
        path.unlink()
    for path in another.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    assert Store(tmp_path).read("mine", "whole", [key(number) for number in range(4)]) == {}
    assert list(mine.iterdir()) == []
    assert same(Store(tmp_path).read("another", "whole", [key(2), key(3)]), rows(range(2, 4)))
