"""The phantom against its own truth, read back from what it wrote."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medtame.data import phantom_anatomy as anatomy
from medtame.data.phantom import BORDER_SHADES, CLASSES, TISSUES, Phantom, make
from medtame.data.phantom_lesions import KINDS, make_lesion
from medtame.data.phantom_scanner import GRADES, SCANNERS, picture
from medtame.errors import DataError, MissingExtraError, SettingsError, UnknownNameError

SIZE = 96


def pixels(phantom: Phantom, path: str) -> np.ndarray:
    with Image.open(phantom.folder / path) as image:
        return np.asarray(image)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over fluid, grey and white matter."""
    return float(np.mean([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in TISSUES.values()]))


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("standard"), patients=60, seed=3, size=SIZE)


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("easy"), patients=40, seed=5, difficulty="easy", size=SIZE)


@pytest.fixture(scope="module")
def template() -> anatomy.Template:
    return anatomy.load_template()


@pytest.fixture(scope="module")
def lesions(standard: Phantom) -> pd.DataFrame:
    """A row a lesion mask, with the truth of its image."""
    masks = pd.read_csv(standard.masks)
    return masks[masks.prompt.isin(KINDS)].merge(pd.read_csv(standard.truth).drop(columns=["patient", "split"]), on="image")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, patients=10, seed=seed, size=64, border_shortcut=0.5, label_noise=0.3)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    images = [name for name in a if name.startswith("images/")]
    assert len(images) == 10
    assert not {a[name] for name in images} & {value for name, value in c.items() if name.startswith("images/")}


def test_every_path_is_there_below_the_folder_and_nothing_else_is_written(tmp_path: Path) -> None:
    phantom = make(tmp_path / "deep" / "phantom", patients=11, seed=0, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["phantom"]
    named = set()
    for table in (phantom.images, phantom.masks, phantom.anomalies, phantom.questions, phantom.boxes, phantom.pairs):
        rows = pd.read_csv(table)
        columns = [c for c in rows if c in {"image", "mask", "moving", "fixed"} or c.endswith(("_labels", "_landmarks"))]
        named |= set(rows[columns].stack().dropna())
    written = set(digests(phantom.folder))
    assert named <= written
    tables = {
        "images.csv",
        "masks.csv",
        "anomalies.csv",
        "questions.csv",
        "boxes.csv",
        "pairs.csv",
        "truth/images.csv",
        "truth/deformations.npz",
    }
    paired = {name.split("/")[1].split("_")[0] for name in named if name.startswith("tissues")}
    alone = {name for name in written - named - tables if name.split("/")[1].split("_")[0] not in paired}
    assert {name.split("/")[0] for name in alone} <= {"tissues", "landmarks"}
    assert named | tables | alone == written


def test_the_manifests_have_the_columns_that_the_readers_know(standard: Phantom) -> None:
    def header(path: Path) -> str:
        return path.read_text(encoding="utf-8").splitlines()[0]

    assert header(standard.images) == "image,label,labels,findings,text,patient,site,sex,age,split,simulated"
    assert header(standard.masks) == "image,mask,prompt,patient,split,simulated"
    assert header(standard.questions) == "image,question,answer,answer_type,patient,split,simulated"
    assert header(standard.boxes) == "image,label,xmin,ymin,xmax,ymax,patient,split,simulated"
    assert header(standard.pairs) == "moving,fixed,moving_labels,fixed_labels,moving_landmarks,fixed_landmarks,patient,split,simulated"


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty: give a new or empty folder"):
        make(tmp_path, patients=10, size=64)
    with pytest.raises(DataError, match="is a file"):
        make(tmp_path / "mine.txt", patients=10, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"patients": 9}, SettingsError),
        ({"difficulty": "eazy"}, UnknownNameError),
        ({"size": 40}, SettingsError),
        ({"seed": -1}, SettingsError),
        ({"label_noise": 1.1}, SettingsError),
        ({"border_shortcut": -0.1}, SettingsError),
        ({"border_shortcut": float("nan")}, SettingsError),
        ({"site_effect": 3.0}, SettingsError),
        ({"images_per_patient": 8}, SettingsError),
        ({"test_share": 1.0}, SettingsError),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(settings: dict[str, Any], error: type, tmp_path: Path) -> None:
    with pytest.raises(error, match=str(next(iter(settings)))):
        make(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_without_nilearn_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MissingExtraError, match=r'pip install "medtame\[demo\]"'):
        make(tmp_path / "new", patients=10)
    assert not (tmp_path / "new").exists()


def test_splits_keep_patients_apart_and_hold_every_class_and_site(standard: Phantom) -> None:
    images = pd.read_csv(standard.images)
    assert images.patient.is_unique
    dealt = {(split, kind): count for split, count in (("test", 4), ("train", 8)) for kind in CLASSES}
    assert images.groupby(["split", "label"]).size().to_dict() == dealt
    assert images.groupby(["split", "label"]).site.nunique().min() == 3
    pairs = pd.read_csv(standard.pairs)
    assert len(pairs) == 30
    split = images.set_index("image").split
    assert (split.loc[pairs.moving].to_numpy() == pairs.split).all()
    assert (split.loc[pairs.fixed].to_numpy() == pairs.split).all()
    assert not pairs[["moving", "fixed"]].stack().duplicated().any()


def test_several_images_of_a_patient_share_its_facts_and_differ_in_level(tmp_path: Path) -> None:
    phantom = make(tmp_path / "new", patients=12, seed=4, size=64, images_per_patient=3)
    truth = pd.read_csv(phantom.truth, keep_default_na=False).groupby("patient")
    assert (truth.size() == 3).all()
    assert (truth.level_mm.nunique() == 3).all()
    assert (truth[["label", "side", "size", "split"]].nunique() == 1).all().all()
    level = pd.read_csv(phantom.truth).set_index("image").level_mm
    pairs = pd.read_csv(phantom.pairs)
    assert (level.loc[pairs.moving].to_numpy() == level.loc[pairs.fixed].to_numpy()).all()
    assert (pairs.groupby("patient").size() == 3).all()


def test_label_noise_replaces_its_exact_share_of_training_labels_and_nothing_else(tmp_path: Path) -> None:
    clean = pd.read_csv(make(tmp_path / "clean", patients=40, seed=6, size=64).images)
    phantom = make(tmp_path / "noisy", patients=40, seed=6, size=64, label_noise=0.25)
    noisy = pd.read_csv(phantom.images)
    changed = clean.label != noisy.label
    assert changed.sum() == round(0.25 * (clean.split == "train").sum())
    assert set(noisy.split[changed]) == {"train"}
    assert set(noisy.label) <= set(CLASSES)
    pd.testing.assert_frame_equal(clean.drop(columns="label"), noisy.drop(columns="label"))
    assert (pd.read_csv(phantom.truth).label == clean.label).all()


def test_findings_captions_and_labels_state_the_facts(standard: Phantom) -> None:
    truth = pd.read_csv(standard.truth)
    images = pd.read_csv(standard.images)
    for fact, row in zip(truth.itertuples(), images.itertuples(), strict=True):
        told = [row.findings.lower(), row.text.lower()]
        if fact.label == "normal":
            assert row.labels == "normal"
            assert not any(word in text for text in told for word in ("left", "right", "small", "large"))
        else:
            assert row.labels == f"{fact.label}|{fact.side} side"
            for text in told:
                assert {kind for kind in KINDS if kind in text} == {fact.label}
                assert {side for side in ("left", "right") if side in text} == {fact.side}
                assert {size for size in ("small", "large") if size in text} == {fact.size}
        assert "simulated" in told[1]
    assert images.groupby("label").findings.nunique().min() >= 4


def test_uninformative_text_says_nothing_and_leaves_the_rest(standard: Phantom, tmp_path: Path) -> None:
    blank = make(tmp_path / "new", patients=60, seed=3, size=SIZE, uninformative_text=True)
    images = pd.read_csv(blank.images)
    told = " ".join([*images.findings, *images.text]).lower()
    assert not any(word in told for word in ("left", "right", "small", "large", "normal", "lesion", "haemorrhage", "tumour", "infarct"))
    words = ["findings", "text"]
    assert (images.drop(columns=words) == pd.read_csv(standard.images).drop(columns=words)).all().all()
    ours, theirs = digests(blank.folder), digests(standard.folder)
    assert {name: value for name, value in ours.items() if name.endswith(".png")} == {n: v for n, v in theirs.items() if n.endswith(".png")}


def test_answers_are_true(standard: Phantom) -> None:
    asked = pd.read_csv(standard.questions).merge(pd.read_csv(standard.truth)[["image", "label", "side", "size"]], on="image")
    answers = {(row.image, row.answer) for row in asked.itertuples()}
    for row in pd.read_csv(standard.truth).itertuples():
        true = {"no", "normal"} if row.label == "normal" else {"yes", row.label, row.side, row.size}
        assert {answer for image, answer in answers if image == row.image} == true
    assert set(asked.answer_type[asked.answer.isin(["yes", "no", "left", "right", "small", "large"])]) == {"closed"}
    assert set(asked.answer_type[asked.answer.isin(CLASSES)]) == {"open"}
    assert asked.groupby("answer_type").question.nunique().to_dict() == {"closed": 9, "open": 3}


def test_the_radiological_side_is_right(standard: Phantom, lesions: pd.DataFrame) -> None:
    for row in lesions.itertuples():
        column = np.nonzero(pixels(standard, row.mask))[1].mean()
        assert (column > SIZE / 2) == (row.side == "left")


def test_the_picture_has_the_patients_left_on_its_right_and_the_front_up() -> None:
    """A voxel lit in MNI space at x = -40 (left), y = +30 (front) must appear right of and above the centre."""
    plane = np.zeros((3, 197, 233), dtype=np.float32)
    plane[0, 98 - 42 : 98 - 37, 134 + 28 : 134 + 33] = 1
    still = np.zeros((2, anatomy.CONTROLS, anatomy.CONTROLS))
    slice_ = anatomy.deformed(anatomy.Template({8: plane}, (-98.0, -134.0)), 8, still, 208)
    rows, columns = np.nonzero(slice_.t1 > 0.5)
    assert columns.mean() == pytest.approx(103.5 + 40, abs=0.6)
    assert rows.mean() == pytest.approx(103.5 - 47, abs=0.6)
    assert slice_.left_mm[rows, columns].mean() == pytest.approx(40, abs=0.6)


def test_large_is_larger_than_small(standard: Phantom, lesions: pd.DataFrame) -> None:
    area = lesions.assign(area=[(pixels(standard, path) > 0).sum() for path in lesions["mask"]])
    for _, kind in area.groupby("prompt"):
        assert kind.area[kind["size"] == "small"].max() < kind.area[kind["size"] == "large"].min()


def test_boxes_are_the_extent_of_the_lesion_masks(standard: Phantom, lesions: pd.DataFrame) -> None:
    boxes = pd.read_csv(standard.boxes)
    assert list(boxes.image) == list(lesions.image)
    assert list(boxes.label) == list(lesions.prompt)
    for box, path in zip(boxes.itertuples(), lesions["mask"], strict=True):
        mask = pixels(standard, path)
        inside = mask[box.ymin : box.ymax, box.xmin : box.xmax]
        assert set(np.unique(mask)) == {0, 255}
        assert inside.sum() == mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_changes_its_own_pixels_and_no_others(kind: str, template: anatomy.Template) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        slice_ = anatomy.deformed(template, 20, anatomy.random_deformation(3, rng), SIZE)
        lesion = make_lesion(kind, "left", "small", slice_, rng)
        with_it, without = (picture(slice_, it, SCANNERS[1], 1, GRADES["easy"], np.random.default_rng(9)) for it in (lesion, None))
        change = np.abs(with_it.astype(int) - without)
        assert (change[lesion.weight == 0] == 0).all()
        assert (change[lesion.mask] > 10).mean() > 0.75
        assert slice_.brain[lesion.mask].all()


def test_written_masks_lie_where_written_images_differ_from_a_brain_without_lesion(easy: Phantom, template: anatomy.Template) -> None:
    images, truth = pd.read_csv(easy.images), pd.read_csv(easy.truth)
    masks = pd.read_csv(easy.masks)
    found = masks[masks.prompt.isin(KINDS)].set_index("image")["mask"]
    scanners = {scanner.name: scanner for scanner in SCANNERS}
    with np.load(easy.deformations) as controls:
        for row, level in zip(images.itertuples(), truth.level_mm, strict=True):
            slice_ = anatomy.deformed(template, level, controls[row.patient], SIZE)
            plain = picture(slice_, None, scanners[row.site], 1, GRADES["easy"], np.random.default_rng(0))
            change = np.abs(pixels(easy, row.image).astype(float) - plain)
            lesion = pixels(easy, found[row.image]) > 0 if row.image in found else np.zeros_like(slice_.brain)
            assert change[slice_.brain & ~lesion].mean() < 25
            if lesion.any():
                assert change[lesion].mean() > 2 * change[slice_.brain & ~lesion].mean()


def test_the_spline_sums_to_one_and_reproduces_a_linear_map() -> None:
    places = np.linspace(0, anatomy.FIELD_MM, 50)
    weights = anatomy.spline(places, 9)
    own = np.arange(-1, 8) * anatomy.FIELD_MM / 6
    assert np.allclose(weights.sum(1), 1)
    assert np.allclose(weights @ own, places)
    grid = np.stack(np.meshgrid(own, own))
    assert np.allclose(anatomy.jacobian(0.1 * grid, 64), 1.21)
    points = np.array([[20.0, 30.0], [150.0, 90.0]])
    assert np.allclose(anatomy.displacement_mm(0.1 * grid, points), 0.1 * points)
    assert np.allclose(anatomy.carried_to_patient(points, 0.1 * grid), points / 1.1)


@pytest.mark.parametrize("difficulty", GRADES)
def test_no_deformation_folds(difficulty: str) -> None:
    strength = GRADES[difficulty].deformation_mm
    for seed in range(10):
        controls = anatomy.random_deformation(strength, np.random.default_rng(seed))
        assert anatomy.jacobian(controls, 160).min() > 0.2
        assert 0.3 * strength < np.abs(anatomy.displacement(controls, 208)).mean() < 2 * strength


def test_tissues_are_the_template_warped_by_the_known_deformation(standard: Phantom, template: anatomy.Template) -> None:
    truth = pd.read_csv(standard.truth)
    masks = pd.read_csv(standard.masks).set_index(["image", "prompt"])["mask"]
    still = np.zeros((2, anatomy.CONTROLS, anatomy.CONTROLS))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    with np.load(standard.deformations) as controls:
        for row in truth.head(12).itertuples():
            fine = anatomy.deformed(template, row.level_mm, still, 8 * SIZE).tissue  # eight fine pixels a pixel
            x, y = anatomy.displacement(controls[row.patient], SIZE)
            warped = map_coordinates(fine, [8 * (rows + y) + 3.5, 8 * (columns + x) + 3.5], order=0)
            tissue = pixels(standard, row.image.replace("images", "tissues"))
            assert dice(warped, tissue) > 0.95
            for prompt, value in TISSUES.items():
                assert ((pixels(standard, masks[row.image, prompt]) == 255) == (tissue == value)).all()


def test_landmarks_of_a_pair_are_the_same_template_points(standard: Phantom) -> None:
    with np.load(standard.deformations) as controls:
        for row in pd.read_csv(standard.pairs).itertuples():
            carried = []
            for name, path in zip(row.patient.split(), (row.moving_landmarks, row.fixed_landmarks), strict=True):
                x, y = pd.read_csv(standard.folder / path)[["X", "Y"]].to_numpy().T
                u = anatomy.displacement(controls[name], SIZE)
                carried.append(np.array([x + map_coordinates(u[0], [y, x], order=1), y + map_coordinates(u[1], [y, x], order=1)]))
            assert carried[0].shape[1] >= 15
            assert np.abs(carried[0] - carried[1]).max() < 0.1


def test_the_true_deformation_registers_a_pair(standard: Phantom) -> None:
    before, after = [], []
    pairs = pd.read_csv(standard.pairs)
    scale = SIZE / anatomy.FIELD_MM
    rows, columns = np.mgrid[:SIZE, :SIZE]
    with np.load(standard.deformations) as controls:
        for row in pairs.itertuples():
            moving, fixed = pixels(standard, row.moving_labels), pixels(standard, row.fixed_labels)
            before.append(dice(moving, fixed))
            if len(after) < 6:
                of_moving, of_fixed = (controls[name] for name in row.patient.split())
                places = (np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) / scale
                inside = anatomy.carried_to_patient(places + anatomy.displacement_mm(of_fixed, places), of_moving)
                x, y = (inside * scale - 0.5).T.reshape(2, SIZE, SIZE)
                after.append(dice(map_coordinates(moving, [y, x], order=0), fixed))
    assert 0.5 < np.mean(before) < 0.85
    assert min(after) > 0.8
    assert np.mean(after) > np.mean(before) + 0.15


def test_the_border_tells_the_class_only_where_the_shortcut_was_planted(easy: Phantom, tmp_path: Path) -> None:
    planted = make(tmp_path / "new", patients=40, seed=5, difficulty="easy", size=SIZE, border_shortcut=1.0)
    for row in pd.read_csv(planted.images).itertuples():
        ours, plain = pixels(planted, row.image), pixels(easy, row.image)
        edge = np.concatenate([ours[0], ours[-1], ours[:, 0], ours[:, -1]])
        assert set(edge) == {BORDER_SHADES[row.label]}
        assert (ours[4:-4, 4:-4] == plain[4:-4, 4:-4]).all()
        assert plain[0].max() < 40
    half = pd.read_csv(make(tmp_path / "half", patients=100, size=64, border_shortcut=0.5).truth)
    assert 35 <= half.border.notna().sum() <= 65
    assert (half.border.dropna() == half.label.map(BORDER_SHADES)[half.border.notna()]).all()


@pytest.mark.parametrize(("effect", "low", "high"), [(0.0, 0.95, 1.05), (1.0, 1.4, 2.0)])
def test_sites_differ_in_noise_by_the_site_effect(effect: float, low: float, high: float, tmp_path: Path) -> None:
    phantom = make(tmp_path / "new", patients=15, size=64, site_effect=effect)
    images = pd.read_csv(phantom.images)
    noise = images.assign(noise=[pixels(phantom, path)[:6].mean() for path in images.image]).groupby("site").noise.mean()
    assert low < noise["site C"] / noise["site A"] < high


def plain_features(picture_: np.ndarray) -> np.ndarray:
    """The picture at 20 x 20, how uneven each cell is, and the spread of differences from the mirror image."""
    values = picture_.astype(float) / 255
    smooth = gaussian_filter(values, 1)
    uneven = np.sqrt(np.maximum(gaussian_filter(smooth**2, 2) - gaussian_filter(smooth, 2) ** 2, 0))
    mirrored = gaussian_filter(smooth, 1) - gaussian_filter(smooth, 1)[:, ::-1]
    tails = [*np.percentile(smooth[smooth > 0.2], [1, 50, 99, 99.8]), *np.percentile(np.abs(mirrored), [90, 95, 99, 99.9])]
    return np.concatenate([zoom(smooth, 20 / len(values), order=1).ravel() / 5, zoom(uneven, 20 / len(values), order=1).ravel(), tails])


def test_the_three_difficulties_are_ordered(tmp_path: Path) -> None:
    accuracy = {}
    for difficulty in GRADES:
        phantom = make(tmp_path / difficulty, patients=150, size=80, difficulty=difficulty, test_share=0.5)  # type: ignore[arg-type]
        images = pd.read_csv(phantom.images)
        features = np.stack([plain_features(pixels(phantom, path)) for path in images.image])
        features[:, -8:] *= 10
        train = (images.split == "train").to_numpy()
        probe = make_pipeline(StandardScaler(with_std=False), LogisticRegression(C=10, max_iter=300))
        probe.fit(features[train], images.label[train])
        accuracy[difficulty] = balanced_accuracy_score(images.label[~train], probe.predict(features[~train]))
    assert accuracy["easy"] > accuracy["standard"] + 0.1
    assert accuracy["standard"] > accuracy["hard"] + 0.1
