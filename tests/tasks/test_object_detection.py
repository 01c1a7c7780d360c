"""Boxes found on images whose boxes are known; rows, frames and bad input of the task."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from doubles import tiny_encoder
from medtame import run as path
from medtame.data.boxes import BOXES, CORNERS
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.strategies.baselines.fixed_code_detector import FixedCodeDetector
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.fusion.text_query_detector import TextQueryDetector
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.object_detection import BACKGROUND, NOTHING, PROPOSED, ObjectDetection, suppressed
from medtame.types import Boxes, Scores

BRIGHT, DARK = "a bright disc", "a dark disc"
HEIGHT, WIDTH = 48, 64
SMALL = {"size": 32, "rows": 300, "most": 20}


def scenes(n: int, seed: int, empty: int = 1) -> ManifestSamples:
    """Lines of images with one to three discs, bright or dark, that do not touch; the last `empty` images have a line without corners."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made: dict[str, list] = {name: [] for name in ("image", "label", *CORNERS)}
    groups = []
    for i in range(n):
        pixels = 0.5 + 0.02 * random.standard_normal((HEIGHT, WIDTH))
        lines = []
        for place in random.permutation(6)[: 0 if i >= n - empty else random.integers(1, 4)]:
            radius = random.uniform(4, 8)
            x, y = (place % 3 + 0.5) * WIDTH / 3 + random.uniform(-2, 2), (place // 3 + 0.5) * HEIGHT / 2 + random.uniform(-2, 2)
            label = (BRIGHT, DARK)[random.integers(2)]
            pixels[(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2] += 0.4 if label == BRIGHT else -0.4
            lines.append((label, max(0, x - radius), max(0, y - radius), min(WIDTH, x + radius), min(HEIGHT, y + radius)))
        picture = ArrayPicture(np.clip(pixels, 0, 1).astype(np.float32), f"scene-{seed}-{i}")
        for line in lines or [(None,) * 5]:
            for name, value in zip(made, (picture, *line), strict=True):
                made[name].append(value)
            groups.append(f"{seed}-{i // 2}")
    return ManifestSamples(made, np.array(groups))


def usable(samples: ManifestSamples, **settings) -> tuple[ObjectDetection, ManifestSamples]:
    task = ObjectDetection(**{**SMALL, **settings})
    folded = task.usable(samples)
    return task.settled(folded), folded


TASK, TRAIN = usable(scenes(36, 0))
PROPOSER = replace(TASK, steps=150)
TEST = TASK.usable(scenes(16, 1))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(method, task=TASK, train=TRAIN) -> path.Run:
    return path.fitted(train, task, method, tiny_encoder(), seed=0)


def ap50(run: path.Run, test: ManifestSamples = TEST, said=None) -> float:
    return run.frame.measure(said or run.predict(test), test)["ap50"].value()


@pytest.fixture(scope="module")
def by_text() -> path.Run:
    return fitted(TextQueryDetector(steps=200, width=32, learning_rate=6e-3))


@pytest.fixture(scope="module")
def by_names() -> path.Run:
    return fitted(LinearProbe(), PROPOSER)


# ---- what is found --------------------------------------------------------------------------------------------


def test_discs_are_found_and_named_by_the_prompt_alone(by_text):
    assert ap50(by_text) > 0.8
    query = by_text.query(TEST)
    turned = replace(query, candidates=replace(query.wanted, prompts=query.wanted.prompts[::-1]))
    assert ap50(by_text, said=by_text.frame.read(turned, by_text.answer(turned))) < 0.2, "with the words exchanged it finds the others"


def test_the_image_is_read(by_text):
    pictures = TEST.column("image")
    said = by_text.predict(TEST.replaced(image=pictures[3:] + pictures[:3]))
    assert ap50(by_text, said=said) < 0.3


def test_a_fixed_code_finds_them_too_and_nothing_of_a_class_it_never_saw():
    run = fitted(FixedCodeDetector(steps=200, width=32, learning_rate=6e-3))
    assert ap50(run) > 0.8
    said = run.predict(TEST, words=[BRIGHT, "a lamp"])
    found = np.concatenate([said.arrays[f"{BOXES}/{row}"] for row in range(len(TEST))])
    assert set(found[:, 5].tolist()) == {TASK.classes.index(BRIGHT)}


def test_scorers_name_what_the_proposer_found(by_names):
    assert ap50(by_names) > 0.8
    turned = replace(by_names.adapted, weight=by_names.adapted.weight[[1, 0, 2]], bias=by_names.adapted.bias[[1, 0, 2]])
    assert ap50(replace(by_names, adapted=turned)) < 0.3, "with the names exchanged"
    assert 0 < ap50(fitted(ZeroShot(), PROPOSER)) <= 1


def test_the_same_seed_gives_the_same_proposer_and_a_run_carries_it(by_names, tmp_path):
    again = fitted(LinearProbe(), PROPOSER)
    assert all(torch.equal(by_names.frame.proposer[name], again.frame.proposer[name]) for name in again.frame.proposer)
    by_names.save(tmp_path / "run")
    opened = path.open(tmp_path / "run", opener=lambda spec: tiny_encoder())
    one, two = by_names.predict(TEST), opened.predict(TEST)
    assert one.table == two.table
    assert all(np.array_equal(one.arrays[key], two.arrays[key]) for key in one.arrays)


def test_an_unseen_class_is_an_object_without_a_name():
    task, train = usable(scenes(24, 0), unseen=(DARK,), steps=150)
    run = fitted(LinearProbe(), task, train)
    assert run.frame.names == (BRIGHT, DARK)
    problem = run.frame.problem(train, tiny_encoder(), 0)
    assert problem.query.wanted.names == (BRIGHT, BACKGROUND)
    dark = [boxes[boxes[:, 4] == 1, :4] for boxes in run.frame.truth(train)]
    query = run.query(train)
    proposals = query.samples.column(PROPOSED)
    found = [path_iou(proposals[row][:, :4], boxes) for row, boxes in enumerate(dark) if len(boxes)]
    assert np.mean(np.concatenate(found)) > 0.5, "the proposer marks them as objects"
    for row in range(len(problem.query)):
        image, region = problem.query.source[row], problem.query.regions[row]
        name = problem.query.samples.pictures()[image].name
        own = dark[[picture.name for picture in train.pictures()].index(name)]
        assert not len(own) or path_iou(own, region[None]).max() < 0.5, "what lies on one is no row to learn from"
    asked = ObjectDetection(**SMALL, unseen=(DARK,)).settled(train).frame(train, "boxes").query(train.only(["image"]), tiny_encoder())
    assert asked.wanted.names == (BRIGHT, DARK)


def path_iou(one, two) -> np.ndarray:
    from torchvision.ops import box_iou

    return box_iou(one, two).amax(0).numpy()


def test_counting_thresholds_are_learnt_from_training_images(by_text):
    assert len(by_text.frame.thresholds) == 2
    said = by_text.predict(TRAIN)
    true = sum(len(boxes) for boxes in TRAIN.column(BOXES))
    assert abs(sum(line["label"] != "" for line in said.table) - true) <= 0.15 * true


# ---- rows and frames ------------------------------------------------------------------------------------------


def test_lines_fold_to_a_row_an_image_and_folding_twice_changes_nothing():
    lines = scenes(6, 3, empty=2)
    folded = ObjectDetection().usable(lines)
    assert len(folded) == 6
    assert [len(boxes) for boxes in folded.column(BOXES)][-2:] == [0, 0]
    assert sum(len(boxes) for boxes in folded.column(BOXES)) == sum(label is not None for label in lines.column("label"))
    assert folded.groups.tolist() == [f"3-{i // 2}" for i in range(6)]
    assert "label" not in folded
    assert ObjectDetection().usable(folded).columns == folded.columns


def test_corners_become_fractions_of_the_image():
    run_frame = TASK.frame(TRAIN, "boxes")
    label, xmin, ymin, xmax, ymax = TRAIN.column(BOXES)[0][0]
    wanted = [xmin / WIDTH, ymin / HEIGHT, xmax / WIDTH, ymax / HEIGHT, TASK.classes.index(label)]
    assert run_frame.truth(TRAIN)[0][0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_an_image_is_drawn_by_its_rarest_class():
    boxes = [((BRIGHT, 0, 0, 5, 5), (DARK, 0, 0, 5, 5)), ((BRIGHT, 0, 0, 5, 5),), ()]
    picture = ArrayPicture(np.zeros((9, 9), np.float32), "one")
    samples = ManifestSamples({"image": [picture] * 3, BOXES: boxes}, np.arange(3))
    assert TASK.strata(samples).tolist() == [DARK, BRIGHT, NOTHING]


def test_rows_of_regions_are_capped_and_balanced(by_names):
    frame = replace(by_names.frame, rows=30)
    problem = frame.problem(TRAIN, tiny_encoder(), 0)
    assert problem.targets.sum(0).tolist() == [10, 10, 10]
    other = frame.problem(TRAIN, tiny_encoder(), 1)
    assert not torch.equal(problem.query.regions, other.query.regions), "the seed chooses"


def test_a_score_is_objectness_times_the_probability_of_the_name(by_names):
    query = by_names.query(TEST.take([0]))
    frame = replace(by_names.frame, counted=0.5, overlap=1.0)
    proposals = query.samples.column(PROPOSED)[0]
    logits = torch.zeros(len(query), 3)
    logits[:, 0] = 2
    boxes = frame.read(query, Scores(logits)).arrays[f"{BOXES}/0"]
    wanted = float(proposals[0, 4]) * float(logits[0].softmax(0)[0])
    assert boxes[0, 4] == pytest.approx(wanted, rel=1e-4)
    assert boxes[0, 5] == 0


def test_boxes_of_one_class_that_lie_on_each_other_are_one_and_of_two_classes_stay():
    boxes = torch.tensor(
        [[0.1, 0.1, 0.5, 0.5, 0.9, 0], [0.1, 0.1, 0.5, 0.52, 0.8, 0], [0.1, 0.1, 0.5, 0.52, 0.7, 1], [0.6, 0.6, 0.9, 0.9, 0.2, 0]]
    )
    assert suppressed(boxes, 0.5, 10)[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.2])
    assert len(suppressed(boxes, 0.5, 2)) == 2


def test_the_table_is_in_pixels_of_the_source_and_says_where_nothing_is_found():
    frame = TASK.frame(TRAIN, "boxes")
    query = frame.query(TEST.only(["image"]).take([0, 1]), tiny_encoder())
    said = frame.read(query, Boxes([torch.tensor([[0.25, 0.5, 0.5, 1.0, 0.9, 1.0]]), torch.zeros(0, 6)]))
    line, none = said.table
    assert (line["label"], line["xmin"], line["ymin"], line["xmax"], line["ymax"]) == (TASK.classes[1], 16, 24, 32, 48)
    assert (none["label"], none["warning"]) == ("", "nothing found")


def test_words_may_be_new_and_keep_their_numbers_apart(by_text):
    said = by_text.predict(TEST, words=["a lamp", BRIGHT])
    assert said.arrays["names"].tolist() == [*TASK.classes, "a lamp"]
    found = np.concatenate([said.arrays[f"{BOXES}/{row}"] for row in range(len(TEST))])
    assert set(found[:, 5].tolist()) <= {0.0, 2.0}
    assert np.isfinite(ap50(by_text, said=said))


def test_a_manifest_with_a_line_a_box_asks_each_image_once(by_text):
    lines = scenes(4, 5)
    assert by_text.predict(lines).arrays["images"].tolist() == list(dict.fromkeys(picture.name for picture in lines.pictures()))


# ---- bad input ------------------------------------------------------------------------------------------------


def one_box(**corners) -> ManifestSamples:
    picture = ArrayPicture(np.zeros((HEIGHT, WIDTH), np.float32), "one")
    box = {"label": BRIGHT, "xmin": 4.0, "ymin": 4.0, "xmax": 20.0, "ymax": 20.0} | corners
    return ManifestSamples({"image": [picture], **{name: [value] for name, value in box.items()}}, np.arange(1))


@pytest.mark.parametrize(
    ("corners", "said"),
    [
        ({"xmax": 90.0}, "row 1 .* lies outside its image of 64 x 48 pixels"),
        ({"ymin": -5.0}, "lies outside"),
        ({"xmin": 64.5, "xmax": 65.0}, "lies outside"),
        ({"xmin": 30.0}, "is reversed or has no area"),
        ({"ymax": 4.0}, "is reversed or has no area"),
        ({"label": None}, "has no label"),
    ],
)
def test_boxes_that_cannot_be_are_told_in_one_line(corners, said):
    with pytest.raises(DataError, match=said) as caught:
        ObjectDetection().usable(one_box(**corners))
    assert "\n" not in str(caught.value)


def test_a_corner_that_overhangs_by_a_pixel_is_cut():
    assert ObjectDetection().usable(one_box(xmin=-0.6, xmax=64.4)).column(BOXES)[0] == ((BRIGHT, 0.0, 4.0, 64.0, 20.0),)


def test_no_box_at_all_a_wrong_name_and_an_empty_prompt():
    none = ObjectDetection().usable(one_box(**dict.fromkeys((*CORNERS, "label"))))
    with pytest.raises(DataError, match="none of the 1 training images has a box"):
        ObjectDetection().settled(none)
    with pytest.raises(DataError, match="'a lamp' is no class of the training boxes"):
        ObjectDetection(classes=("a lamp",)).settled(TRAIN)
    with pytest.raises(DataError, match="every class is named as unseen"):
        ObjectDetection(unseen=(BRIGHT, DARK)).settled(TRAIN)
    with pytest.raises(DataError, match="no training box has the label"):
        replace(TASK, classes=(BRIGHT,)).servable(TEST)
    with pytest.raises(DataError, match="an empty prompt"):
        TASK.frame(TRAIN, "boxes").query(TEST.only(["image"]), tiny_encoder(), [" "])
    with pytest.raises(DataError, match="'xmin'"):
        ObjectDetection().usable(ManifestSamples({"image": [1], "label": ["a"]}, np.arange(1)))


def test_a_support_without_a_box_is_refused():
    empty = TRAIN.take([row for row, boxes in enumerate(TRAIN.column(BOXES)) if not boxes])
    with pytest.raises(DataError, match="training images has a box"):
        fitted(LinearProbe(), train=empty)


def test_one_class_alone_can_be_learnt():
    task, train = usable(scenes(20, 0), classes=(BRIGHT,), steps=20)
    for method in (LinearProbe(), TextQueryDetector(steps=20, width=16), FixedCodeDetector(steps=20, width=16)):
        run = fitted(method, task, train)
        assert run.frame.names == (BRIGHT,)
        assert np.isfinite(ap50(run, task.usable(scenes(6, 1))))


def test_an_image_of_one_colour_is_answered_with_a_warning(by_text):
    flat = ManifestSamples({"image": [ArrayPicture(np.zeros((HEIGHT, WIDTH), np.float32), "flat")]}, np.arange(1))
    assert all("one colour" in line["warning"] for line in by_text.predict(flat).table)
