"""Shards: WebDataset archives and Parquet files with pictures give what a folder of the same files gives, and say what they leave out."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medtame.data import manifest, quick_check, splits
from medtame.data.images import FilePicture
from medtame.data.packed import PackedPicture, RowGroups, address, at
from medtame.data.readers import shards
from medtame.encoders.towers import Digests, file_name
from medtame.errors import DataError, ImageError


def image(number: int, kind: str = "PNG", size: int = 12) -> bytes:
    """No two alike."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (size, size + 1)).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_dicom(path: Path, pixels: np.ndarray, patient: str = "A") -> None:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.PatientName, made.PatientID, made.Modality = "Secret^Person", patient, "CT"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, 0
    made.Rows, made.Columns = pixels.shape
    made.PixelData = pixels.tobytes()
    made.save_as(path, enforce_file_format=True)


def pairs(start: int, count: int) -> dict[str, bytes]:
    made = {}
    for number in range(start, start + count):
        made |= {f"{number:04d}.png": image(number), f"{number:04d}.txt": f"caption {number}".encode()}
    return made


def hugging_face(path: Path, cells: Sequence[bytes | None], **columns: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [None if cell is None else {"bytes": cell, "path": "same.png"} for cell in cells]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(values, kind), **columns}), path, row_group_size=4)
    return path


# ---- the same as files ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "files"
    folder.mkdir()
    pixels = np.random.default_rng(5).integers(0, 4000, (9, 7)).astype(np.uint16)
    write_dicom(folder / "scan.dcm", pixels)
    Image.fromarray(pixels).save(folder / "deep.png")
    Image.effect_noise((32, 24), 80).save(folder / "plain.jpg")
    Image.merge("RGBA", [Image.effect_noise((8, 6), 90)] * 4).save(folder / "layered.tif")
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), folder / "volume.nii.gz")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_every_kind_of_image_is_what_its_file_is(form: str, files: dict[str, bytes], tmp_path: Path) -> None:
    if form == "tar":
        read = manifest.read(tar(tmp_path / "one.tar", files))
    else:
        kinds = pa.array([{"bytes": data, "path": name} for name, data in files.items()])
        parquet.write_table(pa.table({"image": kinds}), tmp_path / "one.parquet", row_group_size=2)
        read = manifest.read(tmp_path / "one.parquet")
    assert len(read) == len(files) == 5
    for name, packed in zip(files, read.pictures(), strict=True):
        file = FilePicture(tmp_path / "files" / name, name)
        assert packed.digest() == file.digest()
        assert packed.read().dtype == file.read().dtype
        assert np.array_equal(packed.array(), file.array())
        assert packed.geometry() == file.geometry()
        assert packed.frames() == file.frames()
        if name != "layered.tif":
            assert np.array_equal(packed.values(), file.values())


def test_a_window_is_that_of_the_file(files: dict[str, bytes], tmp_path: Path) -> None:
    read = manifest.read(tar(tmp_path / "one.tar", {"scan.dcm": files["scan.dcm"]})).windowed("lung")
    file = FilePicture(tmp_path / "files" / "scan.dcm", "scan.dcm", window="lung")
    packed = read.pictures()[0]
    assert np.array_equal(packed.array(), file.array())
    assert packed.digest() == file.digest()
    assert packed.digest() != read.windowed("").pictures()[0].digest()


def test_features_of_a_tar_are_those_of_the_folder_and_are_not_worked_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medtame import run
    from medtame.encoders.towers import TowerEncoder

    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "classes"
    for number in range(6):
        place = folder / f"class {number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image(number, size=30))
    from_files = manifest.read(folder)
    in_order = {f"{number}.png": image(number, size=30) for number in (0, 2, 4, 1, 3, 5)}
    packed = manifest.read(tar(tmp_path / "shard" / "all.tar", in_order))
    features = run.encoder("bundled").whole(from_files)
    monkeypatch.setattr(TowerEncoder, "wholes", lambda *_: pytest.fail("worked out again"))
    again = run.encoder("bundled").whole(packed)
    assert features.shape[0] == 6
    assert np.array_equal(features.numpy(), again.numpy())


def test_a_digest_is_remembered_by_shard_and_place_and_forgotten_when_the_shard_changes(tmp_path: Path) -> None:
    path = tar(tmp_path / "one.tar", pairs(0, 2))
    first, second = manifest.read(path).pictures()
    names = [file_name(first), file_name(second)]
    assert None not in names
    assert names[0] != names[1]
    digests = Digests().of([first, second])
    assert digests == [first.digest(), second.digest()]
    tar(path, pairs(2, 3))
    assert file_name(first) != names[0]
    with pytest.raises(ImageError, match=r"one.tar/0000.png cannot be read: one.tar was written again since it was listed: start again"):
        first.array()


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_an_address_finds_the_picture_until_its_shard_changes(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a#b.{form}"
    write = (lambda count: tar(path, pairs(0, count))) if form == "tar" else (lambda n: hugging_face(path, [image(i) for i in range(n)]))
    write(6)
    picture = manifest.read(path).pictures()[5]
    found = at(address(picture), "shown.png")
    assert found is not None
    assert (found.name, found.digest()) == (f"a#b.{form}/shown.png", picture.digest())
    assert at(str(path), "x") is None
    assert at("", "x") is None
    write(7)
    assert at(address(picture), "shown.png") is None


# ---- what becomes of words ------------------------------------------------------------------------------------


def test_members_become_columns(tmp_path: Path) -> None:
    described = {"patient": "p1", "age": 61.0, "tags": ["a", "b"], "nested": {"x": 1}, "mask": "/etc/passwd", "caption": " two "}
    members = {
        "a/1.png": image(1),
        "a/1.mask.png": image(2),
        "a/1.txt": "\ufeff one \n".encode(),
        "a/1.cls": b"3",
        "a/1.json": json.dumps(described).encode(),
        "a/2.PNG": image(3),
        "a/2.findings.txt": b"clear lungs",
        "a/2.cls": b"0",
        "a/2.npy": b"xxx",
        "__key__.txt": b"no pair",
        ".hidden.png": b"no pair",
    }
    read = manifest.read(tar(tmp_path / "one.tar", members))
    told = {name: [str(cell) if isinstance(cell, PackedPicture) else cell for cell in read.column(name)] for name in read.columns}
    assert told == {
        "id": ["a/1", "a/2"],
        "patient": ["p1", None],
        "age": [61.0, None],
        "tags": ["a|b", None],
        "caption": ["two", None],
        "image": ["one.tar/a/1.png", "one.tar/a/2.PNG"],
        "mask": ["one.tar/a/1.mask.png", None],
        "text": ["one", None],
        "label": ["3", "0"],
        "findings": [None, "clear lungs"],
    }
    assert "Left out, for they hold more than a cell or name pictures: the key nested of the JSON, the key mask of the JSON." in read.notes
    assert "Ignored members: .npy (1)." in read.notes
    assert list(read.groups) == ["patient p1", "one.tar/a/2.PNG"]


def test_hugging_face_columns_and_names_of_classes(tmp_path: Path) -> None:
    path = hugging_face(
        tmp_path / "train-00000-of-00001.parquet", [image(n) for n in range(5)], label=[0, 1, 0, 1, 5], caption=list("abcde")
    )
    table = parquet.read_table(path)
    features = {"info": {"features": {"label": {"names": ["benign", "malignant"], "_type": "ClassLabel"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=2)
    read = manifest.read(path, columns={"text": "caption"})
    assert read.column("label") == ["benign", "malignant", "benign", "malignant", "5"]
    assert read.column("text") == list("abcde")
    assert read.column("split") == ["train"] * 5
    assert [picture.name for picture in read.pictures()][3:] == [f"{path.name}/4/same.png", f"{path.name}/5/same.png"]
    assert [picture.digest() for picture in read.pictures()] == [
        PackedPicture(cell.shard, "x.png", cell.place, cell.extent).digest() for cell in read.column("image")
    ]
    assert len(set(read.groups)) == 5  # though all paths are the same


def test_plain_bytes_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    parquet.write_table(pa.table({"picture": [image(1), image(2)], "sound": [b"a", b"b"], "text": ["x", "y"]}), path)
    with pytest.raises(DataError, match=r"one.parquet has no column 'image'.*--columns image=picture"):
        manifest.read(path)
    read = manifest.read(path, columns={"image": "picture"})
    assert set(read.columns) == {"image", "text"}
    assert "Left out, for no column of pictures is called so: sound." in read.notes
    (tmp_path / "2.png").write_bytes(image(2))
    assert read.pictures()[1].digest() == FilePicture(tmp_path / "2.png", "2").digest()


def test_a_cell_with_a_path_alone_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(image(7))
    values = [{"bytes": image(1), "path": None}, {"bytes": None, "path": "beside.png"}, {"bytes": None, "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(values, kind), "text": list("abc")}), tmp_path / "one.parquet")
    read = manifest.read(tmp_path / "one.parquet")
    assert [str(cell) for cell in read.column("image")] == ["one.parquet/1", "beside.png"]
    assert read.pictures()[1].digest() == FilePicture(tmp_path / "beside.png", "").digest()
    assert "Left out: 1 pair without an image: one.parquet/3." in read.notes


# ---- which files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stands_for"),
    [
        ("s-{008..010}.tar", ["s-008.tar", "s-009.tar", "s-010.tar"]),
        ("s-{9..11}.tar", ["s-9.tar", "s-10.tar", "s-11.tar"]),
        ("{b,a}-{1..2}.tar", ["b-1.tar", "b-2.tar", "a-1.tar", "a-2.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(name: str, stands_for: list[str]) -> None:
    assert list(shards.expanded(name)) == stands_for


def test_a_pattern_a_folder_and_a_range_give_the_same_rows(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / "all" / f"s-{number}.tar", pairs(10 * number, 2))
    texts = [f"caption {number}" for number in (0, 1, 10, 11, 20, 21)]
    for given in (tmp_path / "all", tmp_path / "all" / "s-{0..2}.tar", tmp_path / "all" / "s-*.tar"):
        assert manifest.is_manifest(given)
        read = manifest.read(given)
        assert read.column("text") == texts
        assert read.pictures()[2].name == "s-1.tar/0010.png"
    with pytest.raises(DataError, match=r"no file fits .*t-\*.tar: correct the pattern, or give a folder"):
        manifest.read(tmp_path / "all" / "t-*.tar")


def test_parquet_shards_in_folders_of_parts(tmp_path: Path) -> None:
    for part, start in (("train", 0), ("test", 9)):
        hugging_face(tmp_path / "all" / part / "pairs-0.parquet", [image(n) for n in range(start, start + 3)], label=["a", "b", "a"])
    read = manifest.read(tmp_path / "all")
    assert read.column("split") == ["test"] * 3 + ["train"] * 3
    assert "The split is the name of the first folder, or the beginning of a file's name." in read.notes
    assert [len(one) for one in (splits.split(read).train, splits.split(read).test)] == [3, 3]


def test_a_folder_with_images_and_a_folder_of_classes_stay_what_they_were(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(image(ord(name)))
    tar(tmp_path / "backup.tar", pairs(0, 1))
    assert not manifest.is_manifest(tmp_path)
    assert manifest.read(tmp_path).column("label") == ["a", "b"]


def test_a_parquet_table_of_paths_stays_a_table(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(image(1))
    parquet.write_table(pa.table({"image": ["1.png"], "text": ["one"]}), tmp_path / "one.parquet")
    assert manifest.read(tmp_path / "one.parquet").column("image") == ["1.png"]


# ---- copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_copies_across_shards_are_found(form: str, tmp_path: Path) -> None:
    for part, numbers in (("train", (1, 2, 3)), ("test", (4, 3))):
        if form == "tar":
            tar(tmp_path / "all" / part / "x.tar", {f"{part}{n}.png": image(n) for n in numbers})
        else:
            hugging_face(tmp_path / "all" / part / "x.parquet", [image(n) for n in numbers])
    read = manifest.read(tmp_path / "all")
    with pytest.raises(DataError, match=r"train and test overlap: 1 test image also in train, byte for byte"):
        splits.split(read)
    assert quick_check.quick(read).record["duplicates"]["exact_groups_across_parts"] == 1


def test_dicom_patients_in_an_archive_are_groups_and_their_tags_are_told(tmp_path: Path) -> None:
    members = {}
    for number, patient in enumerate(("A", "B", "A")):
        write_dicom(tmp_path / "x.dcm", np.full((4, 4), number, np.uint8) + np.eye(4, dtype=np.uint8), patient)
        members[f"{number}.dcm"] = (tmp_path / "x.dcm").read_bytes()
    read = manifest.read(tar(tmp_path / "one.tar", members))
    assert list(read.groups) == ["DICOM patient 1", "DICOM patient 2", "DICOM patient 1"]
    record = quick_check.quick(read).record
    assert record["formats"] == {"dicom": 3}
    assert record["tags"]["PatientName"] == 3


# ---- what is broken -------------------------------------------------------------------------------------------


def test_broken_shards_and_pairs_are_counted_or_refused(tmp_path: Path) -> None:
    for number in range(11):
        tar(tmp_path / f"s-{number:02d}.tar", pairs(10 * number, 2))
    whole = (tmp_path / "s-03.tar").read_bytes()
    (tmp_path / "s-03.tar").write_bytes(whole[: len(whole) // 20 + 700])
    (tmp_path / "s-05.tar").unlink()
    odd = pairs(70, 2) | {
        "a.png": image(1),
        "b.png": image(2),
        "c.png": image(3),
        "d.txt": b"no image",
        "e.png": image(4),
        "e.txt": b"\xff\xfe",
    }
    tar(tmp_path / "s-07.tar", odd | {"f.png": image(5), "f.json": b"[1]", "g.png": image(6), "g.jpg": image(7, "JPEG"), "g.txt": b"two"})
    read = manifest.read(tmp_path / "s-{00..10}.tar")
    assert len(read) == 18
    assert read.column("text")[-6:] == [f"caption {n}" for n in (80, 81, 90, 91, 100, 101)]
    assert [note for note in read.notes if note.startswith("Left out")] == [
        "Left out: 2 of 11 shards could not be read: s-03.tar is cut short, s-05.tar is not there.",
        "Left out: 1 pair without an image: s-07.tar/d.",
        "Left out: 2 pairs with words that are not UTF-8, no JSON object, or longer than 1 MB: s-07.tar/e, s-07.tar/f.",
        "Left out: 1 pair with more than one image: s-07.tar/g.",
        "Left out: 3 pairs without text: s-07.tar/a.png, s-07.tar/b.png, s-07.tar/c.png.",
    ]
    with pytest.raises(DataError, match=r"^2 of 11 shards could not be read: .*3 pairs without text.*: mend the shards") as caught:
        manifest.read(tmp_path / "s-{00..10}.tar", strict=True)
    assert "\n" not in str(caught.value)


def test_every_cut_of_an_archive_is_noticed(tmp_path: Path) -> None:
    """However much is missing: only an archive without any part of its end block is whole."""
    whole = tar(tmp_path / "whole.tar", pairs(0, 2)).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        end = [entry.offset_data + -(-entry.size // 512) * 512 for entry in archive][-1]
    for cut in [*range(0, end + 512, 100), end]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"no pair can be read: 1 of 1 shards could not be read: cut.tar is "):
            manifest.read(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])
    assert len(manifest.read(tmp_path / "cut.tar")) == 2


def test_a_broken_header_a_compressed_archive_and_what_is_none_are_told_apart(tmp_path: Path) -> None:
    whole = bytearray(tar(tmp_path / "s.tar", pairs(0, 3)).read_bytes())
    with tarfile.open(tmp_path / "s.tar") as archive:
        third = archive.getmembers()[2].offset
    whole[third + 3] ^= 0xFF
    (tmp_path / "s.tar").write_bytes(whole)
    with tarfile.open(tmp_path / "z.tar", "w:gz"):
        pass
    (tmp_path / "n.tar").write_bytes(b"no archive" * 200)
    for name, why in (("s", "has a broken header"), ("z", "is compressed: write it without compression"), ("n", "is no tar archive")):
        with pytest.raises(DataError, match=f"{name}.tar {why}"):
            manifest.read(tmp_path / f"{name}.tar")


def test_damaged_parquet(tmp_path: Path) -> None:
    good = hugging_face(tmp_path / "p-0.parquet", [image(n) for n in range(9)], text=[f"t{n}" for n in range(9)])
    whole = bytearray(good.read_bytes())
    (tmp_path / "p-1.parquet").write_bytes(whole[:-50])
    read = manifest.read(tmp_path / "p-{0..1}.parquet")
    assert len(read) == 9
    assert "Left out: 1 of 2 shards could not be read: p-1.parquet cannot be read as Parquet." in read.notes
    start = parquet.read_metadata(good).row_group(1).column(0).data_page_offset
    whole[start : start + 20] = bytes(20)
    good.write_bytes(whole)
    pictures = manifest.read(good).pictures()
    assert pictures[0].array().shape == (12, 13, 1)
    with pytest.raises(ImageError, match=r"p-0.parquet/5/same.png cannot be read: row group 1 of p-0.parquet is damaged"):
        pictures[4].array()


def test_text_of_parquet_that_is_no_utf_8_leaves_out_its_row(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff\xfe", b"good"], pa.binary()).view(pa.string())
    table = pa.table({"image": [image(1), image(2), image(3)], "text": text})
    parquet.write_table(table, tmp_path / "one.parquet")
    read = manifest.read(tmp_path / "one.parquet")
    assert read.column("text") == ["fine", "good"]
    assert "Left out: 1 pair with words that are not UTF-8: one.parquet/2." in read.notes


def test_an_image_that_cannot_be_decoded_is_an_image_error_with_its_name(tmp_path: Path) -> None:
    read = manifest.read(tar(tmp_path / "one.tar", {"a.png": image(1)[:60], "b.png": b""}))
    with pytest.raises(ImageError, match=r"one.tar/a.png cannot be read: it is damaged"):
        read.pictures()[0].array()
    with pytest.raises(ImageError, match=r"one.tar/b.png cannot be read: the file is empty"):
        read.pictures()[1].array()
    assert quick_check.quick(read).record["unreadable"] == 2


def test_names_never_touch_the_file_system(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(image(99))
    entries = [("../secret.png", image(1)), ("/etc/hostname.png", image(2)), ("a\nb\udcff.png", image(3)), ("d/../e.dcm", b"x")]
    path = tar(tmp_path / "in" / "one.tar", entries)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.png"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    read = manifest.read(path)
    assert [cell.content().data for cell in read.column("image")] == [data for _, data in entries]
    assert [picture.name for picture in read.pictures()][:3] == [
        "one.tar/../secret.png",
        "one.tar//etc/hostname.png",
        "one.tar/a\\nb\\udcff.png",
    ]
    assert "Ignored members: links and devices (1)." in read.notes
    with pytest.raises(ImageError):
        read.pictures()[3].array()
    assert sorted(tmp_path.rglob("*")) == before


# ---- memory ---------------------------------------------------------------------------------------------------


def test_twenty_thousand_members_take_a_few_hundred_bytes_a_pair(tmp_path: Path) -> None:
    """The archive is 30 MB; what stays is names, places and words."""
    picture = image(0) + bytes(1400)
    members = [(f"{n:06d}.{end}", picture if end == "png" else b"a caption of some words") for n in range(10_000) for end in ("png", "txt")]
    path = tar(tmp_path / "big.tar", members)
    assert path.stat().st_size > 30e6
    manifest.read(path)  # what is remembered once a process
    tracemalloc.start()
    read = manifest.read(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read) == 10_000
    assert kept < 500 * len(read)
    assert most < 800 * len(read)


def test_row_groups_are_kept_within_a_bound_and_the_last_used_stays(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "one.parquet", [bytes([n]) * 1000 for n in range(16)])  # four groups of 4 kB
    shard = manifest.read(path).column("image")[0].shard
    groups = RowGroups(most_bytes=9000)
    first = groups.of(shard, 0)
    groups.of(shard, 1)
    assert groups.of(shard, 0) is first
    assert groups.held_bytes < 9000
    groups.of(shard, 2)  # number 1 goes: it was used before number 0
    assert groups.of(shard, 0) is first
    assert groups.held_bytes < 9000
    groups.of(shard, 1)
    groups.of(shard, 3)
    assert groups.of(shard, 0) is not first
    assert RowGroups(most_bytes=10).of(shard, 3)[1].as_py() == bytes([13]) * 1000
