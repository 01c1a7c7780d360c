"""Paths of a manifest: Unicode forms, links, roots, and names that scanners give."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from medtame.data.manifest import is_image, read
from medtame.errors import DataError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), value).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_names_in_another_unicode_form_are_found_and_noted(tmp_path: Path) -> None:
    composed, split_up = unicodedata.normalize("NFC", "Lungenödem é"), unicodedata.normalize("NFD", "Lungenödem é")
    picture(tmp_path / split_up / f"{composed}.png", 1)
    picture(tmp_path / f"{composed}.png", 2)
    text = f"image\n{composed}/{split_up}.png\n{split_up}.png\n{composed}.png\n{tmp_path}/{split_up}.png\n"
    samples = read(write(tmp_path / "a.csv", text))
    assert [made.values()[0, 0] for made in samples.pictures()] == [1, 2, 2, 2]
    assert "3 file name(s) differ from the manifest only in their Unicode form and were found." in samples.notes
    assert samples.groups[1] == samples.groups[2] == samples.groups[3]
    picture(tmp_path / f"{split_up}.png", 3)  # both forms are there: each is itself
    assert [made.values()[0, 0] for made in read(tmp_path / "a.csv").pictures()] == [1, 3, 2, 3]


def test_links_inside_the_root_are_followed_and_those_that_leave_it_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "0.png", 5)
    root = tmp_path / "data"
    picture(root / "real" / "1.png", 6)
    (root / "inside").symlink_to(root / "real")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert read(write(root / "a.csv", "image\ninside/1.png\n")).pictures()[0].values()[0, 0] == 6
    with pytest.raises(DataError) as caught:
        read(write(root / "a.csv", "image\nfolder/0.png\nfile.png\ninside/1.png\n"))
    assert str(caught.value) == (
        "a.csv has 2 bad row(s): line 2: image folder/0.png leads out of the root through a link; "
        "line 3: image file.png leads out of the root through a link. "
        "Give the link's target as an absolute path, or with --root a folder that holds both."
    )
    for text in (f"image\n{root}/folder/0.png\n{root}/file.png\n", f"image\n{tmp_path}/elsewhere/0.png\n"):
        assert read(write(root / "a.csv", text)).pictures()[0].values()[0, 0] == 5
    assert read(write(root / "b.csv", "image\ndata/folder/0.png\n"), root=tmp_path).pictures()[0].values()[0, 0] == 5


def test_a_data_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    picture(tmp_path / "disk" / "a" / "0.png", 5)
    picture(tmp_path / "disk" / "b" / "1.png", 6)
    write(tmp_path / "disk" / "a.csv", "image\na/0.png\n")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert read(tmp_path / "data" / "a.csv").pictures()[0].values()[0, 0] == 5
    (tmp_path / "disk" / "a.csv").unlink()
    assert read(tmp_path / "data").column("label") == ["a", "b"]


def test_a_folder_that_holds_a_link_to_itself_ends(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert read(tmp_path).column("image") == ["a/0.png"]


def test_a_folder_may_have_a_root_above_it(tmp_path: Path) -> None:
    picture(tmp_path / "blobs" / "0.png", 5)
    (tmp_path / "set" / "ill").mkdir(parents=True)
    (tmp_path / "set" / "ill" / "1.png").symlink_to(tmp_path / "blobs" / "0.png")
    with pytest.raises(DataError, match=r"file ill/1\.png: image ill/1\.png leads out of the root through a link"):
        read(tmp_path / "set")
    samples = read(tmp_path / "set", root=tmp_path)
    assert samples.column("image") == ["set/ill/1.png"]
    assert samples.pictures()[0].values()[0, 0] == 5


def test_images_by_their_names_and_scanner_files_by_their_bytes(tmp_path: Path) -> None:
    assert is_image(tmp_path / "a.PNG")
    assert is_image(tmp_path / "a.nii.gz")
    for name in ("IM0001", "1.2.840.7"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
        assert is_image(tmp_path / name)
    (tmp_path / "README").write_text("x")
    assert not is_image(tmp_path / "README")
    assert not is_image(tmp_path / "notes.txt")
