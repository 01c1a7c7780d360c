"""`medtame search` as a user meets it: an index that grows, is never half-written, and is refused where it does not belong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from contracts.tiny import tiny
from doubles import tiny_encoder
from medtame import cli, encoders
from medtame.errors import DataError
from medtame.features import index_folder
from medtame.features.index import Index
from medtame.features.searching import exact
from medtame.misfits import described, misfits, standing, without_hubs
from shop import family, written

IDENTITY = {"spec": "a", "image_identity": "a", "text_identity": "t"}


def grown(index: Index, start: int, count: int, width: int = 16) -> Index:
    rows = np.random.default_rng(start).standard_normal((count, width))
    vectors = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    digests = [f"{number:064x}" for number in range(start, start + count)]
    return index.added(vectors, digests, {"image": [str(number) for number in range(start, start + count)]}, None)


def test_an_index_comes_back_as_it_was_and_keeps_no_old_files(tmp_path: Path) -> None:
    first = index_folder.write(grown(Index(IDENTITY), 0, 40), tmp_path)
    second = index_folder.write(grown(index_folder.read(tmp_path, IDENTITY), 40, 20), tmp_path)
    assert [part.file for part in second.parts][:1] == [part.file for part in first.parts]
    (tmp_path / ".part-killed.safetensors.abc").write_bytes(b"half")
    back = index_folder.read(tmp_path, IDENTITY)
    assert len(back) == 60
    assert back.column("image") == [str(number) for number in range(60)]
    asked = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    np.testing.assert_array_equal(back.nearest(asked, 5).rows, exact(grown(grown(Index(IDENTITY), 0, 40), 40, 20).bank, asked, 5).rows)
    index_folder.write(back, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".parquet", ".parquet", ".safetensors", ".safetensors"]


def test_another_encoder_and_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    index_folder.write(grown(Index(IDENTITY), 0, 40), tmp_path)
    with pytest.raises(DataError, match="was built by a, not by b"):
        index_folder.read(tmp_path, IDENTITY | {"spec": "b", "image_identity": "b"})
    part = next(tmp_path.glob("*.safetensors"))
    whole = part.read_bytes()
    for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        part.write_bytes(broken)
        with pytest.raises(DataError, match="is damaged"):
            index_folder.read(tmp_path, IDENTITY)
    part.unlink()
    with pytest.raises(DataError, match="is not there"):
        index_folder.read(tmp_path, IDENTITY)
    for text, said in (("{", "no JSON"), ("[]", "has format None"), ('{"format": "medtame-index-0"}', "has format")):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DataError, match=said):
            index_folder.read(tmp_path, IDENTITY)


WRITER = """
import sys
from pathlib import Path
import numpy as np
import torch
from medtame.features import index_folder
folder = Path(sys.argv[1])
print("ready", flush=True)
for start in range(100, 100000, 50):
    rows = torch.nn.functional.normalize(torch.randn(50, 16), dim=1)
    numbers = range(start, start + 50)
    index = index_folder.read(folder).added(rows, [f"{n:064x}" for n in numbers], {"image": [str(n) for n in numbers]}, None)
    index_folder.write(index, folder)
"""


def test_a_kill_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    index_folder.write(grown(Index(IDENTITY), 0, 100), tmp_path)
    sizes: list[int] = []
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    for wait in (0.13,):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        index = index_folder.read(tmp_path, IDENTITY)
        sizes.append(len(index))
        assert len(index) % 50 == 0
        assert len(set(index.column("image"))) == len(index)
    assert sizes[0] >= 100
    index_folder.write(grown(index_folder.read(tmp_path, IDENTITY), 200_000, 10), tmp_path)  # what was left behind is cleared away
    assert not list(tmp_path.glob(".*"))


def test_swapped_captions_are_found_and_right_ones_are_not_accused() -> None:
    train = tiny("image_text_retrieval")[0]
    parts = [part for seed in range(3) for part in tiny("image_text_retrieval", seed)]
    images = [image for part in parts for image in part.column("image")]
    groups = np.array([f"{number}-{group}" for number, part in enumerate(parts) for group in part.groups])
    texts = [text for part in parts for text in part.column("text")]
    samples = train.only(["image"]).take([0] * len(images)).replaced(image=images, text=texts)
    samples = type(samples)(samples.columns, groups)
    first = misfits(samples, tiny_encoder())
    random = np.random.default_rng(0)
    swapped, wrong = list(first.samples.column("text")), np.zeros(len(first.fits), dtype=bool)
    for a, b in random.permutation(len(swapped))[: len(swapped) // 10 * 2].reshape(-1, 2):
        if swapped[a].split() != swapped[b].split() and first.samples.groups[a] != first.samples.groups[b]:
            swapped[a], swapped[b] = swapped[b], swapped[a]
            wrong[[a, b]] = True
    found = misfits(first.samples.replaced(text=swapped), tiny_encoder())
    assert wrong.sum() >= 4
    planted = roc_auc_score(wrong, -found.fits)
    assert planted > 0.75
    assert planted > roc_auc_score(wrong, -first.fits) + 0.15  # the same rows, before their captions were swapped
    record = found.json(5)
    assert [one["fit"] for one in record["pairs"]] == sorted(found.fits.tolist())[:5]


def test_standing_is_in_standard_deviations_of_other_cases() -> None:
    scores = np.array([[3.0, 0, 2, 9], [1, 5, 1, 1], [0, 0, 4, 2], [1, 1, 1, 1]])
    found = standing(scores, np.array(["a", "b", "c", "a"]), np.array([0, 1, 2, 3]))
    assert found[0, 0] == pytest.approx((3 - 1) / 1)  # over 0 and 2; the other caption of its case does not count
    assert found[1, 0] == 0  # all others alike: nothing is known
    assert found[2, 1] == pytest.approx((4 - 4 / 3) / np.std([2, 1, 1]))


def test_hubs_lose_what_they_have_with_all_others() -> None:
    scores = np.array([[5.0, 1, 2], [7, 2, 3], [9, 0, 4]])
    other = ~np.eye(3, dtype=bool)
    found = without_hubs(scores, other)  # of three rows the largest one other is a row's neighbour
    rows, columns = np.array([2.0, 7, 9]), np.array([9.0, 1, 3])
    np.testing.assert_allclose(found, 2 * scores - rows[:, None] - columns)
    np.testing.assert_allclose(without_hubs(scores, np.zeros((3, 3), dtype=bool)), 2 * scores)


def test_words_and_vectors_have_the_same_part_in_a_text() -> None:
    texts = ["a bright disc on the left", "a dark disc on the right", "a bright disc on the right", "nothing on the left"] * 3
    found = described(texts, tiny_encoder()).numpy()
    width = tiny_encoder().texts(texts).shape[1]
    variances = [float((side**2).sum(1).mean()) for side in (found[:, :width], found[:, width:])]
    np.testing.assert_allclose(variances, [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    words = found[:, width:] @ found[:, width:].T
    assert words[0, 2] > words[0, 1]
    assert words[0, 2] > words[0, 3]
    np.testing.assert_allclose(words[:4, :4], words[4:8, 4:8], atol=1e-9)
    alone = ["bright", "dark", "nothing"]
    np.testing.assert_allclose(described(alone, tiny_encoder()).numpy(), tiny_encoder().texts(alone).double().numpy())


@pytest.fixture
def medtame(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.setattr(encoders, "FAMILIES", {"tiny": family})
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medtame", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def test_the_verb_builds_grows_filters_and_shows(medtame, tmp_path: Path) -> None:
    data = written(tmp_path / "data")
    with data.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    some = data.with_name("some.csv")
    with some.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines[:20])
    kind = lines[0]["label"]
    code, out, err = medtame("search", "tiny", some, "--text", f"a {kind} disc", "--index", "kept", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 20
    image = data.parent / lines[3]["image"]
    code, out, _ = medtame(
        "search", "tiny", data, "--image", image, "--index", "kept", "--where", f"label={lines[3]['label']}", "--json", "--out", "p.html"
    )
    record = json.loads(out)
    assert record["images"] == len(lines)
    assert record["hits"][0]["image"] == lines[3]["image"]
    assert record["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
    assert {one["cells"]["label"] for one in record["hits"]} == {lines[3]["label"]}
    assert record["use"].startswith("research use only")
    page = Path("p.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(record["hits"]) + 1
    assert lines[3]["image"] in page
    code, out, _ = medtame("search", "tiny", data, "--image", image, "--where", f"label={lines[3]['label']}", "--json")
    assert json.loads(out)["hits"] == record["hits"]  # without a folder, and from scratch: the same
    code, out, _ = medtame("search", "tiny", "kept", "--text", "a bright disc", "--image", image)
    assert "research use only" in out
    for words, said in (
        (["kept"], "nothing is asked"),
        (["kept", "--text", "a", "--where", "label"], "--where takes column=value"),
        (["kept", "--text", "a", "--where", "label=elephant"], "no image has label=elephant"),
        (["absent.csv", "--text", "a"], "absent.csv"),
        ([data, "--misfits", 3, "--text", "a"], "--misfits judges every pair"),
    ):
        code, _, err = medtame("search", "tiny", *words)
        assert code == 2
        assert said in err


def test_runs_that_change_the_encoder_are_spaces_of_their_own_and_others_are_refused(medtame, tmp_path: Path) -> None:
    data = written(tmp_path / "data")
    assert medtame("adapt", data, "--encoder", "tiny", "--method", "linear_probe", "--split", "all", "--out", "probe")[0] == 0
    code, _, err = medtame("search", "probe", data, "--text", "a bright disc")
    assert code == 2
    assert "linear_probe of probe scores candidates" in err
    assert medtame("adapt", data, "--encoder", "tiny", "--method", "lora", "--set", "steps=2", "--split", "all", "--out", "lora")[0] == 0
    code, _, err = medtame("search", "lora", data, "--text", "a bright disc", "--index", "kept", "--json")
    assert code == 0, err
    code, _, err = medtame("search", "tiny", "kept", "--text", "a bright disc")
    assert code == 2
    assert "was built by lora, not by tiny" in err
