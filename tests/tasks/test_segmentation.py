import numpy as np
import pytest
import torch

from doubles import disc, tiny_encoder
from medtame import catalogue
from medtame.data.images import ArrayPicture
from medtame.data.manifest import read
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError, SettingsError
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.segmentation import (
    Segmentation,
    SegmentationFrame,
    area_shares,
    balanced,
    dice_and_cross_entropy,
    patches,
)
from medtame.types import Geometry, Grids, Predicted, Scores, Texts

NAMES = ("a bright disc", "a dark disc")


class Scanned(ArrayPicture):
    """A picture whose file knows its spacing."""

    def geometry(self):
        return Geometry(height=self.pixels.shape[0], width=self.pixels.shape[1], spacing_mm=(2.0, 0.5))


def images(n: int, seed: int = 0, size=(48, 40)):
    """A bright and a dark disc, one a side, in turn: (name, pixels, {structure: mask})."""
    random, made = np.random.default_rng(seed), []
    for i in range(n):
        sides = ("left", "right")[:: 1 - i % 2 * 2]
        (first, one), (second, two) = disc("bright", sides[0], random, *size), disc("dark", sides[1], random, *size)
        made.append((f"image-{i}", np.clip(first + second - 0.5, 0, 1), dict(zip(NAMES, (one, two), strict=True))))
    return made


def lines(made, keep=lambda i, structure: True) -> ManifestSamples:
    columns = {"image": [], "mask": [], "prompt": []}
    groups = []
    for i, (name, pixels, masks) in enumerate(made):
        picture = ArrayPicture(pixels, name)
        for structure, mask in masks.items():
            if keep(i, structure):
                columns["image"].append(picture)
                columns["mask"].append(ArrayPicture(mask.astype(np.uint8), f"mask-{name}"))
                columns["prompt"].append(structure)
                groups.append(name)
    return ManifestSamples(columns, np.array(groups))


def frame(wants="scores", structures=NAMES, rows=6000, side=8, size=32) -> SegmentationFrame:
    return SegmentationFrame(wants, structures, rows, side, size)


# ---- what is asked ----------------------------------------------------------------------------------------------


def test_a_patch_is_a_cell_of_the_image():
    assert patches(2).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


def test_a_cell_s_share_is_the_mean_of_the_mask_in_it():
    mask = np.random.default_rng(0).random((12, 8)) > 0.5
    slow = [[mask[3 * y : 3 * y + 3, 2 * x : 2 * x + 2].mean() for x in range(4)] for y in range(4)]
    assert np.allclose(area_shares(mask, 4), slow)


def test_patch_targets_are_hard_and_unknown_structures_stay_unknown():
    made = images(3)
    support = lines(made, keep=lambda i, structure: i != 1 or structure == NAMES[0])
    problem = frame(rows=10**6).problem(support, tiny_encoder(), 0)
    for row, (source, region) in enumerate(zip(problem.query.source, problem.query.regions, strict=True)):
        name = problem.query.samples.pictures()[source].name
        _, pixels, masks = next(image for image in made if image[0] == name)
        height, width = pixels.shape
        x0, y0, x1, y1 = (region * torch.tensor([width, height, width, height])).int().tolist()
        wanted = [float(masks[structure][y0:y1, x0:x1].mean() > 0.5) for structure in NAMES]
        wanted = [*wanted, 1 - max(wanted)]
        if name == "image-1":
            wanted[1:] = [np.nan, np.nan]
        assert np.array_equal(problem.targets[row].numpy(), wanted, equal_nan=True)


def test_one_structure_is_learnt_from_as_many_patches_inside_as_outside():
    support = lines(images(4), keep=lambda i, structure: structure == NAMES[0])
    targets = frame(structures=NAMES[:1], rows=10**6).problem(support, tiny_encoder(), 0).targets
    inside = sum(int((area_shares(masks[NAMES[0]], 8) > 0.5).sum()) for _, _, masks in images(4))
    assert (targets[:, 0] == 1).sum() == (targets[:, 0] == 0).sum() == inside


def test_balanced_rows_are_equal_a_structure_capped_and_seeded():
    random = np.random.default_rng(0)
    targets = torch.from_numpy(random.choice([0.0, 1.0, np.nan], p=[0.8, 0.1, 0.1], size=(4000, 3)))
    rows = balanced(targets, 600, seed=1)
    assert len(rows) <= 600
    assert np.array_equal(rows, balanced(targets, 600, seed=1))
    assert not np.array_equal(rows, balanced(targets, 600, seed=2))
    assert all((targets[rows, k] == 1).sum() >= 100 and (targets[rows, k] == 0).sum() >= 100 for k in range(3))
    one = balanced(targets[:, :1], 10**6, seed=1)
    assert (targets[one, 0] == 1).sum() == (targets[one, 0] == 0).sum() == (targets[:, 0] == 1).sum()


def test_structures_smaller_than_half_a_patch_are_refused():
    dot = np.zeros((48, 40))
    dot[3, 3] = 1
    support = lines([("image", dot, {"a dot": dot > 0})])
    with pytest.raises(DataError, match="raise the setting 'side'"):
        frame(structures=("a dot",)).problem(support, tiny_encoder(), 0)


def test_grids_have_a_row_a_line_with_its_prompt_and_its_mask_at_working_size():
    made = images(3)
    support = lines(made, keep=lambda i, structure: i != 2 or structure == NAMES[1])
    problem = frame("grids").problem(support, tiny_encoder(), 0)
    assert problem.query.words == (*NAMES, *NAMES, NAMES[1])
    assert problem.query.size == (32, 32)
    assert problem.query.source.tolist() == [0, 0, 2, 2, 4]
    assert problem.targets.shape == (5, 1, 32, 32)
    assert torch.equal(problem.targets[4, 0], (area_shares(made[2][2][NAMES[1]], 32) >= 0.5).float())


def test_lines_of_an_image_that_do_not_lie_together_are_brought_together_to_learn_from():
    support = lines(images(3))
    problem = frame("grids").problem(support.take([0, 2, 4, 1, 3, 5]), tiny_encoder(), 0)
    assert len(np.unique(problem.query.source)) == 3


def test_images_without_prompts_are_asked_for_all_structures_and_words_for_themselves():
    bare = lines(images(2)).only(["image"])
    query = frame("grids").query(bare, tiny_encoder())
    assert query.samples.column("prompt") == [*NAMES, *NAMES]
    assert [picture.name for picture in query.samples.pictures()] == ["image-0", "image-0", "image-1", "image-1"]
    query = frame("scores").query(bare, tiny_encoder(), ["a lamp"])
    assert query.wanted.names == ("a lamp", "background")
    assert not query.wanted.exclusive
    assert query.samples.column("prompt") == ["a lamp", "a lamp"]
    with pytest.raises(DataError, match="may not see 'mask'"):
        frame("grids").query(lines(images(1)).only(["image", "prompt"]), tiny_encoder()).samples.column("mask")


def test_the_loss_is_dice_plus_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 1, 6, 5), (torch.rand(3, 1, 6, 5) > 0.5).float()
    p = logits.sigmoid()
    dice = 1 - 2 * (p * targets).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + targets.sum((1, 2, 3)))
    entropy = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert torch.allclose(dice_and_cross_entropy(logits, targets), dice.mean() + entropy, atol=1e-4)


# ---- how answers are read ---------------------------------------------------------------------------------------


def test_grids_come_back_at_the_size_of_the_source():
    """A corner of the working square lands in the same corner of an image that is not square."""
    query = frame("grids", size=8).query(lines(images(1, size=(60, 32))).only(["image", "prompt"]), tiny_encoder())
    logits = torch.full((2, 1, 8, 8), -1.0)
    logits[0, 0, :4, 6:] = 1.0
    said = frame("grids", size=8).read(query, Grids(logits))
    mask = said.arrays["0/mask"]
    assert mask.shape == (60, 32)
    assert mask.dtype == np.uint8
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 29, 24, 31)
    assert 0.95 * 30 * 8 < mask.sum() <= 30 * 8
    assert said.table[0] == {"image": "image-0", "structure": NAMES[0], "pixels": mask.sum(), "warning": ""}
    assert said.table[1] == {"image": "image-0", "structure": NAMES[1], "pixels": 0, "warning": "nothing found"}


def test_patch_scores_become_masks_above_zero_and_above_the_background():
    made = frame()
    asked = lines(images(2), keep=lambda i, structure: i == 1 or structure == NAMES[1]).only(["image", "prompt"])
    query = made.query(asked, tiny_encoder())
    assert len(query) == 2 * 64
    scores = torch.full((2, 8, 8, 3), -5.0)
    scores[0, 2:4, 2:4, 1] = 5.0  # image 0, dark, marked
    scores[1, 0:4, :, 0] = 5.0  # image 1, bright, marked above
    scores[1, 4:8, :, 0] = -3.0
    scores[1, 4:8, :, 1] = 1.0  # image 1, dark, below, but the background is likelier there
    scores[1, 4:8, :, 2] = 2.0
    said = made.read(query, Scores(scores.reshape(128, 3)))
    assert [(row["image"], row["structure"]) for row in said.table] == [("image-0", NAMES[1]), ("image-1", NAMES[0]), ("image-1", NAMES[1])]
    block = np.zeros((48, 40), dtype=np.uint8)
    block[12:24, 10:20] = 1
    assert (said.arrays["0/mask"] <= block).all()
    assert said.arrays["0/mask"].sum() > 0.85 * block.sum(), "bilinear: only the corners are rounded off"
    assert np.array_equal(said.arrays["1/mask"], np.repeat([1, 0], 24)[:, None].repeat(40, 1))
    assert not said.arrays["2/mask"].any()


def test_a_refusal_marks_nothing():
    query = frame().query(lines(images(1)).only(["image", "prompt"]), tiny_encoder())
    said = frame().read(query, Scores(torch.full((64, 3), torch.nan)))
    assert [row["pixels"] for row in said.table] == [0, 0]


def test_area_is_told_where_the_spacing_is_known():
    picture = Scanned(np.full((10, 20), 0.5), "scanned")
    asked = ManifestSamples({"image": [picture], "prompt": ["x"]}, np.array(["a"]))
    said = frame("grids").read(frame("grids").query(asked, tiny_encoder()), Grids(torch.ones(1, 1, 32, 32)))
    assert said.table[0]["pixels"] == 200
    assert said.table[0]["area_mm2"] == 200 * 2.0 * 0.5


def test_only_grids_and_scores_are_read():
    query = frame().query(lines(images(1)).only(["image", "prompt"]), tiny_encoder())
    with pytest.raises(PairError, match="grids or scores"):
        frame().read(query, Texts(["a"]))


# ---- how they are measured --------------------------------------------------------------------------------------


def test_metrics_of_true_masks_and_of_half_of_one():
    truth = lines(images(3))
    arrays = {f"{line}/mask": mask.values().copy() for line, mask in enumerate(truth.pictures("mask"))}
    found = frame().measure(Predicted(table=[], arrays=arrays), truth)
    assert list(found) == ["dice", "iou", "hd95_pixels", "surface_dice", "dice.a bright disc", "dice.a dark disc"]
    assert [statistic.value() for statistic in found.values()] == [1, 1, 0, 1, 1, 1]
    whole = arrays["1/mask"]
    half = whole * (np.cumsum(whole.ravel()).reshape(whole.shape) <= whole.sum() // 2)
    found = frame().measure(Predicted(table=[], arrays=arrays | {"1/mask": half}), truth)
    lost = 2 * half.sum() / (half.sum() + whole.sum())
    assert found["dice"].value() == pytest.approx((5 + lost) / 6)
    assert found["dice.a bright disc"].value() == 1
    assert found["dice.a dark disc"].value() == pytest.approx((2 + lost) / 3)
    assert found["dice.a dark disc"].defined == 3


def test_a_structure_that_was_not_learnt_is_marked_so_and_not_measured():
    truth, known = lines(images(2)), frame(structures=NAMES[:1])
    query = known.query(truth.only(["image", "prompt"]), tiny_encoder())
    said = known.read(query, Scores(torch.tensor([[1.0, -1.0]]).repeat(128, 1)))
    assert [row["warning"] for row in said.table] == ["", "not among the structures that were learnt"] * 2
    assert known.measure(said, truth)["dice"].defined == 2


def test_a_mask_of_another_image_s_size_is_brought_to_the_truth():
    truth = lines(images(1), keep=lambda i, structure: structure == NAMES[0])
    double = truth.pictures("mask")[0].values().repeat(2, 0).repeat(2, 1)
    assert frame().measure(Predicted(table=[], arrays={"0/mask": double}), truth)["dice"].value() == 1


def test_distances_are_in_millimetres_where_the_spacing_is_known():
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[5, 5:15] = 1
    truth = ManifestSamples({"image": [Scanned(mask * 0.5, "a")], "mask": [ArrayPicture(mask, "m")], "prompt": ["x"]}, np.array(["a"]))
    moved = np.roll(mask, 2, axis=0)
    assert frame(structures=("x",)).measure(Predicted(table=[], arrays={"0/mask": moved}), truth)["hd95_mm"].value() == 4.0


# ---- with methods -----------------------------------------------------------------------------------------------


def dice_with(method, train, test) -> float:
    task, encoder = Segmentation(side=8), tiny_encoder()
    task = task.settled(train)
    asked = task.frame(train, "scores")
    adapted = method.fit(asked.problem(train, encoder, 0))
    query = asked.query(task.given(test)[0], encoder)
    return asked.measure(asked.read(query, adapted.answer(query)), test)["dice"].value()


def test_a_probe_on_patches_finds_discs_and_zero_shot_is_not_far_below_chance_by_a_wrong_sign():
    train, test = lines(images(12)), lines(images(8, seed=1))
    probe, wrong = (
        dice_with(LinearProbe(), train, test),
        dice_with(LinearProbe(), train.replaced(prompt=train.column("prompt")[::-1]), test),
    )
    assert probe > 0.6
    assert wrong < 0.2
    assert 0 <= dice_with(ZeroShot(), train, test) < probe


# ---- settings ---------------------------------------------------------------------------------------------------


def test_chosen_structures_only():
    samples = lines(images(3))
    chosen = Segmentation(structures=NAMES[1:])
    assert chosen.usable(samples).column("prompt") == [NAMES[1]] * 3
    assert Segmentation().settled(samples).structures == NAMES
    assert chosen.settled(samples).frame(samples, "grids").structures == NAMES[1:]
    assert Segmentation().strata(samples).tolist() == [*NAMES] * 3
    with pytest.raises(DataError, match="no row has the structure liver"):
        Segmentation(structures=("liver",)).usable(samples)
    with pytest.raises(DataError, match="'liver' is no structure of the training rows"):
        Segmentation(structures=("liver", *NAMES)).settled(samples)


def test_settings_are_checked():
    built = catalogue.build(catalogue.TASKS, "segmentation", {"structures": "left lung, right lung", "side": "14"})
    assert built.structures == ("left lung", "right lung")
    assert built.side == 14
    for wrong in ({"rows": 0}, {"side": 1}, {"size": 8}):
        with pytest.raises(SettingsError, match="segmentation cannot use"):
            catalogue.build(catalogue.TASKS, "segmentation", wrong)


def test_real_masks_lie_on_their_images(real_data):
    """Chest structures: patch targets and working-size masks keep each structure's share of the image."""
    samples = Segmentation(structures=("left lung", "right lung")).usable(read(real_data / "chest_structures" / "masks.csv")).take(range(6))
    problem = frame("grids", ("left lung", "right lung"), size=64).problem(samples, tiny_encoder(), 0)
    named = {
        (picture.name, prompt): mask
        for picture, prompt, mask in zip(samples.pictures(), samples.column("prompt"), samples.pictures("mask"), strict=True)
    }
    for line, (picture, prompt) in enumerate(zip(problem.query.samples.pictures(), problem.query.words, strict=True)):
        mask = named[picture.name, prompt].values() > 0
        assert float(problem.targets[line].mean()) == pytest.approx(mask.mean(), abs=0.02)
        centre = float((problem.targets[line, 0].sum(0) * torch.arange(64)).sum() / problem.targets[line].sum()) / 64
        assert (centre > 0.5) == (prompt == "left lung"), "the patient's left lies on the right of the picture"


# ---- fields of view, objects, structures that are only asked for ------------------------------------------------


def seen_through(samples, shown) -> ManifestSamples:
    """The lines with a field of view of which only some columns are shown; None for no field."""
    fields = []
    for mask in samples.pictures("mask"):
        field = np.zeros_like(mask.values())
        field[:, :shown] = 1
        fields.append(None if shown is None else ArrayPicture(field, "field"))
    return samples.replaced(fov=fields)


def test_what_lies_outside_the_field_of_view_is_neither_learnt_nor_measured():
    support = lines(images(3))
    whole = frame("grids").problem(support, tiny_encoder(), 0).targets
    half = frame("grids").problem(seen_through(support, 20), tiny_encoder(), 0).targets
    assert bool(half[..., 16:].isnan().all())
    assert torch.equal(half[..., :16], whole[..., :16])
    patches_seen = frame(rows=10**6).problem(seen_through(support, 20), tiny_encoder(), 0)
    assert float(patches_seen.query.regions[:, 2].max()) == 0.5
    truth = {f"{line}/mask": mask.values().copy() for line, mask in enumerate(support.pictures("mask"))}
    wrong = {key: np.where(np.arange(40) >= 20, 1 - mask, mask) for key, mask in truth.items()}
    measured = frame().measure(Predicted(table=[], arrays=wrong), seen_through(support, 20))
    assert measured["dice"].value() == 1
    assert frame().measure(Predicted(table=[], arrays=wrong), seen_through(support, None))["dice"].value() < 1


def test_pixels_without_a_target_carry_no_loss():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 1, 6, 8), (torch.rand(2, 1, 6, 8) > 0.5).float()
    unknown = targets.clone()
    unknown[..., 5:] = torch.nan
    asked = logits.clone().requires_grad_(True)
    value = dice_and_cross_entropy(asked, unknown)
    value.backward()
    assert torch.allclose(value, dice_and_cross_entropy(logits[..., :5], targets[..., :5]), atol=1e-5)
    assert bool((asked.grad[..., 5:] == 0).all())
    assert bool((asked.grad[..., :5] != 0).any())


def test_numbered_objects_are_the_mask_and_their_f1_is_measured():
    support = lines(images(2), keep=lambda i, structure: structure == NAMES[0])
    numbered = ManifestSamples(
        {
            "image": support.column("image"),
            "prompt": support.column("prompt"),
            "instances": [ArrayPicture(5 * mask.values().astype(np.int64), "objects") for mask in support.pictures("mask")],
        },
        support.groups,
    )
    usable = Segmentation().usable(numbered)
    arrays = {f"{line}/mask": (mask.values() > 0).astype(np.uint8) for line, mask in enumerate(usable.pictures("mask"))}
    assert all(mask.any() for mask in arrays.values())
    known = Segmentation().settled(usable).frame(usable, "grids")
    assert known.measure(Predicted(table=[], arrays=arrays), usable)["instance_f1"].value() == 1
    nothing = {key: np.zeros_like(mask) for key, mask in arrays.items()}
    assert known.measure(Predicted(table=[], arrays=nothing), usable)["instance_f1"].value() == 0


def test_an_unseen_structure_is_not_learnt_but_asked_for_and_measured():
    samples = Segmentation(unseen=(NAMES[1],)).usable(lines(images(3)))
    task = Segmentation(unseen=(NAMES[1],)).settled(samples)
    assert task.structures == NAMES[:1]
    assert task.strata(samples).tolist() == [NAMES[0], None] * 3
    known = task.frame(samples, "grids")
    assert set(known.problem(samples, tiny_encoder(), 0).query.words) == {NAMES[0]}
    assert known.query(samples.only(["image", "prompt"]), tiny_encoder()).words == NAMES * 3
    arrays = {f"{line}/mask": mask.values() for line, mask in enumerate(samples.pictures("mask"))}
    arrays |= {f"{line}/mask": np.zeros_like(arrays[f"{line}/mask"]) for line in (1, 3, 5)}
    found = known.measure(Predicted(table=[], arrays=arrays), samples)
    assert (found[f"dice.{NAMES[0]}"].value(), found[f"dice.{NAMES[1]}"].value(), found["dice"].value()) == (1, 0, 0.5)


# ---- what is wrong is said --------------------------------------------------------------------------------------


def test_a_structure_that_no_training_image_has_is_a_guess_and_none_at_all_is_refused():
    support = lines(images(2))
    blank = ArrayPicture(np.zeros((48, 40), dtype=np.uint8), "empty")
    masks = zip(support.pictures("mask"), support.column("prompt"), strict=True)
    empty = [mask if prompt == NAMES[0] else blank for mask, prompt in masks]
    known = Segmentation(size=32).settled(support).frame(support.replaced(mask=empty), "grids")
    assert known.never == (NAMES[1],)
    query = known.query(support.only(["image", "prompt"]), tiny_encoder())
    said = known.read(query, Grids(torch.ones(4, 1, 32, 32)))
    assert [row["warning"] for row in said.table[:2]] == ["", "no training image has this structure: its mask is a guess"]
    none = support.replaced(mask=[blank] * 4)
    with pytest.raises(DataError, match="all 4 training masks are empty"):
        Segmentation().settled(none).frame(none, "grids").problem(none, tiny_encoder(), 0)


def test_an_image_of_one_colour_is_marked_so():
    black = lines([("black", np.zeros((48, 40)), {NAMES[0]: np.ones((48, 40)) > 0})])
    said = frame("grids").read(
        frame("grids").query(black.only(["image", "prompt"]), tiny_encoder()), Grids(torch.full((1, 1, 32, 32), -1.0))
    )
    assert said.table[0]["warning"] == "the image is one colour everywhere, so nothing can be seen on it; nothing found"


@pytest.mark.parametrize("words", [[""], ["a lamp", "  "], []])
def test_an_empty_prompt_is_refused(words):
    with pytest.raises(DataError, match="an empty prompt"):
        frame("grids").query(lines(images(1)).only(["image"]), tiny_encoder(), words)


def test_masks_that_do_not_fit_are_refused_before_anything_is_learnt():
    small = lines(images(1)).replaced(mask=[ArrayPicture(np.ones((5, 4), dtype=np.uint8), "small")] * 2)
    with pytest.raises(DataError, match="small is 5 x 4 pixels and its image 48 x 40"):
        Segmentation().usable(small)
