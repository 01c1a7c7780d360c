"""What a manifest holds and what is wrong with it, on small sets made here; text that is planted in the pixels; tags of DICOM files."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.datadict import keyword_dict
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter, grey_opening

from medtame.data import burned_in, tags
from medtame.data.findings import Finding
from medtame.data.images import ArrayPicture
from medtame.data.manifest import read
from medtame.data.quick_check import Findings, quick
from medtame.data.samples import ManifestSamples
from medtame.types import Array

SECRET = "Doe^Jane-4711"


def texture(seed: int, height: int = 60, width: int = 80) -> Array:
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 3)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def manifest(folder: Path, header: str, rows: list[str], images: dict[str, Array]) -> ManifestSamples:
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / name)
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read(folder / "labels.csv")


def coded(found: Findings) -> dict[str, Finding]:
    return {one.code: one for one in found.findings}


def simple(folder: Path, rows: list[str], header: str = "image,label", count: int = 6) -> Findings:
    return quick(manifest(folder, header, rows, {f"{number}.png": texture(number) for number in range(count)}))


def test_counts_are_those_of_a_small_set(tmp_path: Path) -> None:
    images = {"a.png": texture(0), "b.png": texture(1, 40, 30), "c.jpg": np.stack([texture(2), texture(3), texture(4)], -1)}
    rows = ["a.png,ill,p1,50,train", "b.png,well,p2,,train", "c.jpg,,p3,61,test", "a.png,ill,p1,50,train"]
    record = quick(manifest(tmp_path, "image,label,patient,age,split", rows, images)).record
    assert {name: record[name] for name in ("n", "images", "groups", "classes", "without_label", "split")} == {
        "n": 4,
        "images": 3,
        "groups": 3,
        "classes": {"ill": 2, "well": 1},
        "without_label": 1,
        "split": {"train": 3, "test": 1},
    }
    assert record["sizes"] == {"different": 2, "smallest": [40, 30], "largest": [60, 80], "commonest": [[60, 80, 2], [40, 30, 1]]}
    assert record["formats"] == {"png": 2, "jpg": 1}
    assert record["modalities"] == {"unknown": 3}
    assert record["colour"] == {"grey": 2, "colour": 1}
    assert record["missing"] == {"label": 1, "age": 1}


def test_a_clean_set_has_no_finding_and_every_finding_says_what_to_do(tmp_path: Path) -> None:
    rows = [f"{number}.png,{'ab'[number % 2]},p{number},{'train' if number < 4 else 'test'}" for number in range(6)]
    found = simple(tmp_path, rows, "image,label,patient,split")
    assert (found.findings, found.exit_code) == ([], 0)


@pytest.mark.parametrize(
    ("labels", "code", "exit_code"),
    [("aaaaaa", "single_class", 2), ("aaaaab", "tiny_class", 1), ("aaabbb", None, 0)],
)
def test_classes(tmp_path: Path, labels: str, code: str | None, exit_code: int) -> None:
    found = simple(tmp_path, [f"{number}.png,{label},p{number}" for number, label in enumerate(labels)], "image,label,patient")
    assert ([one.code for one in found.findings], found.exit_code) == ([code] if code else [], exit_code)


def test_one_class_of_boxes_is_no_error(tmp_path: Path) -> None:
    rows = [f"{number}.png,cell,p{number},1,1,9,9" for number in range(6)]
    assert simple(tmp_path, rows, "image,label,patient,xmin,ymin,xmax,ymax").exit_code == 0


def test_a_class_that_is_in_one_part_only(tmp_path: Path) -> None:
    rows = [f"{number}.png,{label},p{number},{'train' if number < 4 else 'test'}" for number, label in enumerate("aabbca")]
    found = coded(simple(tmp_path, rows, "image,label,patient,split"))
    assert "'c'" in found["class_not_in_train"].message
    assert "'b'" in found["class_not_in_test"].message


def test_unreadable_and_constant_images_are_named(tmp_path: Path) -> None:
    images = {f"{number}.png": texture(number) for number in range(4)} | {"flat.png": np.full((20, 20), 7, dtype=np.uint8)}
    rows = [f"{name},{'ab'[number % 2]},p{number}" for number, name in enumerate([*images, *(f"bad{k}.png" for k in range(25))])]
    for number in range(25):
        (tmp_path / f"bad{number}.png").write_bytes(b"this is text")
    found = quick(manifest(tmp_path, "image,label,patient", rows, images))
    bad = coded(found)["unreadable"]
    assert (bad.count, len(bad.images), bad.images[0], found.exit_code) == (25, 20, "bad0.png", 2)
    assert coded(found)["constant"].images == ("flat.png",)
    assert (found.record["unreadable"], found.record["constant"]) == (25, 1)


def test_patients_studies_and_groups_on_both_sides_are_counted_and_never_named(tmp_path: Path) -> None:
    rows = [
        f"0.png,a,{SECRET},s1,train",
        "1.png,b,P-2,s2,train",
        f"2.png,a,{SECRET},s3,test",
        "3.png,b,P-3,s2,test",
        f"4.png,a,{SECRET},s4,test",
        "5.png,b,P-4,s5,test",
    ]
    found = simple(tmp_path, rows, "image,label,patient,study,split")
    assert found.record["shared"] == {"patient": 1, "study": 1}
    patient, study = (coded(found)[f"shared_{kind}"] for kind in ("patient", "study"))
    assert (patient.severity, patient.images) == ("error", ("0.png", "2.png", "4.png"))
    assert (study.severity, study.images) == ("warning", ("1.png", "3.png"))
    told = json.dumps([found.record, [one.json() for one in found.findings]])
    assert not [value for value in (SECRET, "Jane", "P-2", "P-3", '"s2"') if value in told]


def test_equal_and_nearly_equal_images_across_the_split_and_with_other_labels(tmp_path: Path) -> None:
    images = {f"{number}.png": texture(number, 160, 160) for number in range(6)}
    images |= {"copy0.bmp": images["0.png"], "copy1.tif": images["1.png"], "mirror2.png": images["2.png"][:, ::-1].copy()}
    rows = [f"{number}.png,{'ab'[number % 2]},p{number},train" for number in range(6)]
    rows += ["copy0.bmp,a,q0,test", "copy1.tif,a,q1,train", "mirror2.png,b,q2,test"]
    found = quick(manifest(tmp_path, "image,label,patient,split", rows, images))
    codes = coded(found)
    assert (codes["exact_across"].severity, codes["exact_across"].images) == ("error", ("0.png", "copy0.bmp"))
    assert codes["exact"].images == codes["exact_labels"].images == ("1.png", "copy1.tif")
    assert codes["near_across"].images == codes["near_labels"].images == ("2.png", "mirror2.png")
    assert "flipped left-right" in codes["near_across"].message
    twice = found.record["duplicates"]
    assert [twice[name] for name in ("exact_groups", "exact_groups_across_parts", "near_pairs", "near_pairs_across_parts")] == [2, 1, 1, 1]
    assert all(one.message and one.mend for one in found.findings)


def test_near_copies_matter_where_folds_will_be_made_and_the_groups_differ(tmp_path: Path) -> None:
    images = {f"{number}.png": texture(number, 160, 160) for number in range(4)}
    images |= {"m0.png": images["0.png"][::-1].copy(), "m1.png": images["1.png"][::-1].copy()}
    rows = [f"{number}.png,{'ab'[number % 2]},p{number}" for number in range(4)] + ["m0.png,a,q0", "m1.png,b,p1"]
    codes = coded(quick(manifest(tmp_path, "image,label,patient", rows, images)))
    assert codes["near_groups"].images == ("0.png", "m0.png")
    assert (codes["near"].severity, codes["near"].images) == ("info", ("1.png", "m1.png"))


def test_empty_cells(tmp_path: Path) -> None:
    rows = ["0.png,a,p0,3", "1.png,b,,", "2.png,a,p2,", "3.png,b,p3,4", "4.png,,p4,2", "5.png,b,p5,1"]
    codes = coded(simple(tmp_path, rows, "image,label,patient,age"))
    assert codes["missing_group"].severity == "warning"
    assert "1 row without a value of patient" in codes["missing_group"].message
    assert "2 rows without a value of age" in codes["missing"].message
    assert "1 row without a label" in codes["unlabelled"].message


# ---- DICOM ----------------------------------------------------------------------------------------------------


def dicom(path: Path, patient: str, study: str, **tagged: object) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientID, dataset.StudyInstanceUID, dataset.Modality = patient, study, "CT"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    pixels = texture(crc32(path.name.encode()) % 1000)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", pixels.tobytes()
    for keyword, value in tagged.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_tags_that_identify_are_named_and_their_values_never(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", "id-1", "1.2.3", PatientName=SECRET, PatientBirthDate="19670523", InstitutionName="Saint Elsewhere")
    dicom(tmp_path / "b.dcm", "id-1", "1.2.4", PatientName="Anonymous", PatientIdentityRemoved="YES", Modality="MR")
    dicom(tmp_path / "c.dcm", "id-2", "1.2.3", BurnedInAnnotation="YES", PatientIdentityRemoved="YES")
    dicom(tmp_path / "d.dcm", "id-3", "1.2.5", Modality="US", PatientIdentityRemoved="YES", PatientAddress="")
    (tmp_path / "labels.csv").write_text("image,label,split\na.dcm,x,train\nb.dcm,y,test\nc.dcm,x,test\nd.dcm,y,train\n", encoding="utf-8")
    found = quick(read(tmp_path / "labels.csv"))
    codes = coded(found)
    assert found.record["tags"] == {"InstitutionName": 1, "PatientBirthDate": 1, "PatientID": 1, "PatientName": 1}
    assert codes["identifying_tags"].images == ("a.dcm",)
    assert codes["burned_in_tag"].images == ("c.dcm", "d.dcm")
    assert found.record["modalities"] == {"CT": 2, "MR": 1, "US": 1}
    assert found.record["formats"] == {"dicom": 4}
    assert found.record["shared"] == {"DICOM PatientID": 1, "DICOM StudyInstanceUID": 1}
    assert (codes["shared_DICOM_PatientID"].severity, codes["shared_DICOM_PatientID"].images) == ("error", ("a.dcm", "b.dcm"))
    assert codes["shared_DICOM_StudyInstanceUID"].images == ("a.dcm", "c.dcm")
    told = json.dumps([found.record, [one.json() for one in found.findings]])
    assert not [value for value in (SECRET, "Doe", "19670523", "Elsewhere", "id-1", "1.2.3") if value in told]


def test_private_tags_and_tags_deep_inside_are_found(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", "", "1.2")
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    dataset = dcmread(path)
    dataset.private_block(0x0099, "ours", create=True).add_new(1, "LO", SECRET)
    inner = Dataset()
    inner.ReferringPhysicianName = SECRET
    dataset.ReferencedStudySequence = [inner]
    dataset.save_as(path)
    header = tags.headers([path])[0]
    assert header is not None
    assert header.identifying == {tags.PRIVATE, "ReferringPhysicianName"}
    assert header.patient is None


def test_what_is_no_dicom_file_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert tags.headers([None, tmp_path / "absent.dcm", tmp_path / "b.png"]) == [None, None, None]
    broken = tags.headers([tmp_path / "a.dcm"])[0]
    assert broken is None or broken.identifying == frozenset()


def test_the_identifying_keywords_are_keywords_of_the_standard() -> None:
    assert tags.IDENTIFYING.issubset(keyword_dict)


# ---- text in the pixels ---------------------------------------------------------------------------------------


def written(pixels: Array, text: str, size: int, where: tuple[int, int] = (6, 5), shade: int = 255) -> Array:
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text(where, text, fill=shade, font=ImageFont.load_default(size))
    return np.asarray(image)


@pytest.mark.parametrize("size", [11, 14, 18, 24])
@pytest.mark.parametrize("shade", [255, 0])
def test_rendered_text_is_found_and_the_same_pictures_without_it_are_not(size: int, shade: int) -> None:
    rng = np.random.default_rng(size)
    words = ["PORTABLE AP", "DOE JANE", "ID 881234", "2019-04-12", "LEFT BREAST"]
    grounds = [(texture(seed, 256, 256).astype(float) * 0.35 + (20 if shade else 130)).astype(np.uint8) for seed in range(40)]
    texts = [written(ground, str(rng.choice(words)), size, (6, int(rng.choice([5, 220]))), shade) for ground in grounds]
    assert np.mean([bool(burned_in.lines(text[..., None])) for text in texts]) >= 0.85
    assert not any(burned_in.lines(ground[..., None]) for ground in grounds)


def test_the_box_holds_the_text() -> None:
    pixels = written(np.full((200, 300), 40, dtype=np.uint8), "NAME 4711", 20, (30, 100))
    changed = np.argwhere(pixels != 40)
    (top, left), (bottom, right) = changed.min(0), changed.max(0) + 1
    box = burned_in.lines(pixels[..., None])[0]
    assert np.abs(np.array(box) - (top, bottom, left, right)).max() <= 18  # a word of the line at least
    assert box[0] >= top - 1
    assert box[3] <= right + 1


def test_the_opening_equals_that_of_scipy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 53)).astype(np.uint8)
    assert np.array_equal(burned_in._opened(pixels), grey_opening(pixels, size=(9, 9), mode="nearest"))


def test_text_is_told_of_as_a_guess() -> None:
    pixels = written((texture(3, 200, 200) // 4).astype(np.uint8), "PATIENT 4711", 16)
    pictures = [ArrayPicture(pixels, "written"), *(ArrayPicture(texture(seed, 200, 200), f"plain{seed}") for seed in range(3))]
    samples = ManifestSamples({"image": pictures, "label": list("abab"), "patient": list("pqrs")}, np.array(list("pqrs"), dtype=object))
    found = quick(samples)
    assert coded(found)["burned_in_text"].images == ("written",)
    assert "may hold" in coded(found)["burned_in_text"].message
    assert found.exit_code == 1


def test_real_images_without_text_are_rarely_taken_for_text(real_data: Path) -> None:
    skin = read(real_data / "skin_lesions" / "labels.csv").pictures()[::4]
    assert not any(burned_in.lines(picture.read()) for picture in skin)
    lungs = read(real_data / "covid_ct" / "labels.csv").pictures()[::4]
    assert np.mean([bool(burned_in.lines(picture.read())) for picture in lungs]) <= 0.02
