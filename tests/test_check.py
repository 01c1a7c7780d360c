"""`check` as a whole: exit codes, a record that is plain JSON, lines for a table, shortcuts only where they can be measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medtame.check import check, lines
from medtame.data.duplicates import fingerprints
from medtame.types import Array, Encoder, Samples


@dataclass(frozen=True)
class Thumbnails:
    """As an encoder: the small picture itself, of unit norm."""

    spec: str = "thumbnails"

    def whole(self, samples: Samples, column: str = "image") -> Tensor:
        small = fingerprints(samples.pictures(column)).thumbnails.reshape(len(samples), -1)
        return torch.nn.functional.normalize(torch.from_numpy(small - small.mean(1, keepdims=True)), dim=1)


ENCODER = cast(Encoder, Thumbnails())


def picture(label: str, rng: Any, *, framed: bool) -> Array:
    """A blob on the left or on the right tells the class; so does the frame, where there is one."""
    noise = gaussian_filter(rng.standard_normal((64, 64)), 1)
    pixels = 110 + 20 * noise / noise.std()
    across = slice(8, 28) if label == "left" else slice(36, 56)
    if rng.random() < 0.75:
        pixels[20:44, across] += 45
    if framed:
        pixels[[0, 1, 62, 63]] = pixels[:, [0, 1, 62, 63]] = 60 if label == "left" else 190
    return np.clip(pixels, 0, 255).astype(np.uint8)


def made(folder: Path, *, framed: bool = False, count: int = 90, split: bool = True, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    rows = ["image,label,patient" + (",split" if split else "")]
    for number in range(count):
        label = ("left", "right")[number % 2]
        Image.fromarray(picture(label, rng, framed=framed)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label},p{number}" + (f",{'train' if number < count * 2 // 3 else 'test'}" if split else ""))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "labels.csv"


@pytest.mark.parametrize("split", [True, False])
def test_a_clean_set_is_usable_and_a_framed_one_is_to_be_looked_at(tmp_path: Path, split: bool) -> None:
    (tmp_path / "clean").mkdir()
    (tmp_path / "framed").mkdir()
    clean = check(made(tmp_path / "clean", split=split), encoder=ENCODER)
    assert (clean.findings, clean.exit_code) == ([], 0)
    framed = check(made(tmp_path / "framed", framed=True, split=split), encoder=ENCODER)
    assert framed.exit_code == 1
    assert next(one.code for one in framed.findings if one.severity != "info") == "shortcut_border"
    assert framed.record["shortcuts"]["clues"]["border"]["accuracy"]["value"] == 1
    assert framed.record["shortcuts"]["clues"]["border"]["accuracy"]["n"] == (30 if split else 90)


def test_the_record_is_plain_json_with_its_findings_and_the_table_says_it_in_words(tmp_path: Path) -> None:
    result = check(made(tmp_path, framed=True), encoder=ENCODER)
    record = json.loads(json.dumps(result.record, allow_nan=False))
    assert record["schema"] == 1
    assert record["exit_code"] == result.exit_code == 1
    assert [one["code"] for one in record["findings"]] == [one.code for one in result.findings]
    assert all(one["mend"] for one in record["findings"])
    table = dict(lines(record))
    assert table["rows"] == "90 of 90 images in 90 groups"
    assert table["classes"] == "left 45, right 45"
    assert table["split"] == "train 60, test 30"
    assert table["border alone"].startswith("1.00, share ")
    assert table["border alone"].endswith("flagged")


def test_no_encoder_is_asked_in_the_quick_check_and_for_another_task(tmp_path: Path) -> None:
    path = made(tmp_path, count=12)
    unusable = cast(Encoder, object())
    assert check(path, encoder=unusable, quick=True).record["shortcuts"] is None
    other = check(path, "segmentation", encoder=unusable)
    assert "for classification" in other.record["no_shortcuts_because"]
    assert dict(lines(other.record))["shortcuts"].startswith("not measured")


def test_a_manifest_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\nabsent.png,a\n", encoding="utf-8")
    result = check(tmp_path / "labels.csv", encoder=ENCODER)
    assert (result.exit_code, [one.code for one in result.findings]) == (2, ["manifest"])
    assert "absent.png" in result.findings[0].message
    assert lines(result.record) == []
    assert check(tmp_path / "nowhere.csv").exit_code == 2


def test_a_patient_on_both_sides_and_an_unreadable_image_make_it_unusable(tmp_path: Path) -> None:
    path = made(tmp_path, count=24)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(",p23,", ",p0,"), encoding="utf-8")
    (tmp_path / "3.png").write_bytes(b"\x89PNG broken")
    result = check(path, encoder=ENCODER, quick=True)
    assert result.exit_code == 2
    assert {one.code for one in result.findings if one.severity == "error"} == {"shared_patient", "unreadable"}
    assert [one.severity for one in result.findings] == sorted([one.severity for one in result.findings], key="error warning info".index)
    assert "p0" not in json.dumps([one.json() for one in result.findings])


def test_an_unreadable_image_does_not_stop_the_shortcuts(tmp_path: Path) -> None:
    path = made(tmp_path, framed=True)
    (tmp_path / "3.png").write_bytes(b"no image")
    result = check(path, encoder=ENCODER)
    assert result.exit_code == 2
    assert result.record["shortcuts"]["clues"]["border"]["flagged"]


def test_a_split_of_other_words_and_too_few_groups_are_told(tmp_path: Path) -> None:
    path = made(tmp_path, count=12)
    path.write_text(path.read_text(encoding="utf-8").replace("train", "learn"), encoding="utf-8")
    codes = {one.code: one for one in check(path, encoder=ENCODER, quick=True).findings}
    assert codes["split"].severity == "error"


def test_progress_is_told_with_its_name(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check(made(tmp_path, count=24), encoder=ENCODER, watch=lambda what, done, of: told.append((what, done, of)))
    assert ("reading images", 24, 24) in told
    assert told[-1] == ("measuring shortcuts", 1, 1)


@pytest.mark.full
def test_the_chest_radiographs_are_flagged_by_their_border(real_data: Path) -> None:
    result = check(real_data / "chest_xray" / "labels.csv")
    assert result.record["shortcuts"]["clues"]["border"]["flagged"]
    assert result.exit_code == 1


def test_the_chest_radiographs_are_flagged_by_their_border_with_a_plain_probe_too(real_data: Path) -> None:
    result = check(real_data / "chest_xray" / "labels.csv", encoder=ENCODER)
    clue = result.record["shortcuts"]["clues"]["border"]
    assert clue["flagged"]
    assert clue["accuracy"]["low"] > 0.5  # chance is a third
