"""Methods of anomaly detection against plain twins, planted words and controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from doubles import disc, tiny_encoder
from medtame import catalogue
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import SettingsError
from medtame.features.patch_memory import patch_vectors
from medtame.learning.anomaly import word_maps
from medtame.run import Run, fitted
from medtame.strategies.fusion.text_and_memory import TextAndMemory, knots, placed, ranked
from medtame.strategies.knowledge.described_anomalies import DescribedAnomalies, recipe_of
from medtame.strategies.tuning.residual_adapters import cosines
from medtame.tasks.anomaly_detection import AnomalyDetection

TASK = AnomalyDetection(normal="normal", size=8, side=4, made=30)


def discs(seed: int, n: int, kinds: tuple[str, ...] = ("nothing", "bright", "dark")) -> ManifestSamples:
    random = np.random.default_rng(seed)
    kind = [kinds[i % len(kinds)] for i in range(n)]
    images = [ArrayPicture(disc(one, ("left", "right")[i // 3 % 2], random)[0], f"image-{seed}-{i}") for i, one in enumerate(kind)]
    labels = ["normal" if one == "nothing" else one for one in kind]
    return ManifestSamples({"image": images, "label": labels}, np.array([f"{seed}-{i}" for i in range(n)]))


def run_of(name: str, train: ManifestSamples, task: AnomalyDetection = TASK, **settings) -> Run:
    return fitted(train, task, catalogue.build(catalogue.METHODS, name, settings), tiny_encoder())


def auroc(run: Run, test: ManifestSamples) -> float:
    return run.measure(test)["image_auroc"].value()


@pytest.fixture(scope="module")
def normals() -> ManifestSamples:
    return discs(1, 8, ("nothing",))


@pytest.fixture(scope="module")
def test() -> ManifestSamples:
    return discs(2, 18)


def test_the_memory_is_the_distance_to_the_nearest_patch_of_any_normal(normals, test):
    run = run_of("memory_bank", normals, side=8)
    query = run.query(test)
    known, asked = (patch_vectors(run.query(side), 8) for side in (normals, test))
    plain = torch.cdist(asked.double(), known.flatten(0, 1).double()).amin(2).reshape(-1, 1, 8, 8)
    assert torch.allclose(run.answer(query).values.double(), plain, atol=1e-4)
    assert auroc(run, test) > 0.9
    seen = run.answer(run.query(normals)).values
    assert float(seen.max()) < 1e-5  # what is in the bank has no distance


def test_the_border_sees_the_border_only(normals):
    run = run_of("border_only", normals, width=3)
    pixels = normals.pictures()[0].array()[..., 0]
    centre, frame = pixels.copy(), pixels.copy()
    centre[12:-12, 12:-12] = 1
    frame[:2] = 1
    asked = ManifestSamples({"image": [ArrayPicture(one, str(i)) for i, one in enumerate((pixels, centre, frame))]}, np.arange(3))
    found = run.answer(run.query(asked)).values[:, 0, 0, 0]
    assert float(found[0]) == pytest.approx(0, abs=1e-3)
    assert float(found[1]) == pytest.approx(0, abs=1e-3)
    assert float(found[2]) > 0.5


def test_windows_of_one_cell_are_a_plain_cosine(test):
    encoder, query = tiny_encoder(), TASK.frame(test, "grids").query(test, tiny_encoder())
    towards = torch.randn(32, generator=torch.Generator().manual_seed(0))
    cells = normalize(encoder.grid(test)[0], dim=1)
    plain = torch.einsum("nfhw,f->nhw", cells, towards) / 2 + (encoder.whole(test) @ towards)[:, None, None] / 2
    assert torch.allclose(word_maps(query, towards, (1,)), plain, atol=1e-5)
    two = word_maps(query, towards, (2,)) - (encoder.whole(test) @ towards)[:, None, None] / 2
    corner = normalize(cells[:, :, :2, :2].mean((2, 3)), dim=1) @ towards / 2  # the one window that a corner is in
    assert torch.allclose(two[:, 0, 0], corner, atol=1e-5)


def test_words_are_read_and_swapped_words_turn_the_answer_round(normals, test):
    bright = test.take(np.flatnonzero([label != "dark" for label in test.column("label")]))
    words = {"normal": ("an image of nothing",), "abnormal": ("a medical image showing bright",)}
    swapped = {"normal": words["abnormal"], "abnormal": words["normal"]}
    for name, settings in (("zero_shot_states", {}), ("learned_states", {"steps": 0})):
        runs = [run_of(name, normals, replace(TASK, prompts=one), **settings) for one in (words, swapped)]
        given, turned = (auroc(run, bright) for run in runs)
        assert given > 0.7
        assert turned < 0.5  # the map is turned round; its highest cells are others, so the score is not 1 - the score


def test_the_residual_is_what_no_example_explains(normals, test):
    run = run_of("in_context_residual", normals, examples=3, side=8)
    encoder, query = tiny_encoder(), run.query(test)
    chosen = np.sort(np.random.default_rng(0).permutation(8)[:3])
    examples = normals.take(chosen)
    maps = []
    for known, asked in zip(encoder.grid(examples), encoder.grid(test), strict=True):
        known, asked = (normalize(adaptive_avg_pool2d(normalize(one, dim=1), 8), dim=1) for one in (known, asked))
        cosines = torch.einsum("nfhw,mfxy->nhwmxy", asked, known).flatten(3).amax(3)
        maps.append(interpolate((1 - cosines)[:, None], (8, 8), mode="bilinear"))
    plain = torch.stack(maps).mean(0) + (1 - (encoder.whole(test) @ encoder.whole(examples).T).amax(1))[:, None, None, None]
    assert torch.allclose(run.answer(query).values, plain, atol=1e-4)
    assert auroc(run, test) > 0.8


@pytest.mark.parametrize("name", ["learned_states", "residual_adapters", "described_anomalies"])
def test_what_is_learnt_on_made_anomalies_finds_real_ones(name, normals, test):
    settings = {"described_anomalies": {"findings": ("a bright disc", "a dark disc"), "side": 8}}.get(name, {"steps": 60})
    assert auroc(run_of(name, normals, **settings), test) > 0.75


def test_a_bottlenecks_cosines_are_those_of_its_vectors():
    generator = torch.Generator().manual_seed(0)
    towards, up = torch.randn(20, generator=generator), torch.randn(20, 6, generator=generator)
    for width in (9, 20):  # 20: the map lies in the text's space
        maps, down = normalize(torch.randn(3, width, 4, 4, generator=generator), dim=1), torch.randn(6, width, generator=generator)
        made = normalize(torch.einsum("dh,nhxy->ndxy", up, torch.relu(torch.einsum("hf,nfxy->nhxy", down, maps))), dim=1)
        if width == 20:
            made = normalize(0.3 * made + 0.7 * maps, dim=1)
        plain = torch.einsum("ndxy,d->nxy", made, towards)
        assert torch.allclose(cosines(maps, down, up, towards, 0.3), plain, atol=1e-5)


def test_the_loss_falls_as_states_are_learnt(normals):
    frame = TASK.frame(normals, "grids")
    problem = frame.problem(normals, tiny_encoder(), 0)
    for name in ("learned_states", "residual_adapters"):
        losses = []
        for steps in (0, 40):
            adapted = catalogue.build(catalogue.METHODS, name, {"steps": steps}).fit(problem)
            losses.append(float(problem.loss(adapted.answer(problem.query).values, problem.targets)))
        assert losses[1] < losses[0] - 0.05


def test_ranks_are_shares_of_the_normals_and_go_on_beyond_them():
    values = torch.linspace(0, 10, 1001)
    scale = knots(values)
    assert torch.allclose(ranked(values, scale), values / 10, atol=1e-4)
    assert ranked(torch.tensor([-5.0, 15.0, 20.0]), scale).tolist() == pytest.approx([0.0, 1.5, 2.0])
    other = knots(torch.linspace(0, 1, 501) ** 2)
    assert torch.allclose(ranked(placed(torch.tensor([0.0, 0.31, 1.0, 1.4]), other), other), torch.tensor([0.0, 0.31, 1.0, 1.4]), atol=1e-3)
    assert (ranked(torch.tensor([1.0, 1.0]), knots(torch.ones(50))) <= 1).all()  # all normals alike


def test_useless_words_get_no_weight_and_telling_ones_a_weight(normals):
    method = TextAndMemory()
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(10, 4, 4, generator=random) > 0.8
    telling, noise = truth + 0.3 * torch.randn(10, 4, 4, generator=random), torch.randn(10, 4, 4, generator=random)
    assert method._weight((telling, noise), truth) == 0
    assert method._weight((noise, telling), truth) == 0.75
    run = run_of("text_and_memory", normals.take([0]), side=8)
    assert run.adapted.weight == method.weights[0]  # one patient: nothing can be left out


def test_without_weight_the_fusion_is_the_memory_and_with_all_of_it_the_words(normals, test):
    joined, plain = run_of("text_and_memory", normals, side=8, weights=(0.0,)), run_of("memory_bank", normals, side=8)
    assert torch.equal(joined.answer(joined.query(test)).values, plain.answer(plain.query(test)).values)
    only, words = run_of("text_and_memory", normals, side=8, weights=(1.0,)), run_of("zero_shot_states", normals)
    a, b = (run.answer(run.query(test)).values.flatten(1).mean(1) for run in (only, words))
    assert np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1] > 0.8  # in order: the scale is another


@pytest.mark.parametrize(
    ("sentence", "sign", "kind"),
    [
        ("a hypoechoic mass with an irregular margin", -1, "blob"),
        ("a bright spot", 1, "intensity"),
        ("a dense lobar consolidation", 1, "intensity"),
        ("a bright rim around a dark centre", 0, "intensity"),
        ("something else", 0, "intensity"),
    ],
)
def test_a_sentence_becomes_a_recipe(sentence, sign, kind):
    assert (recipe_of(sentence).sign, recipe_of(sentence).kind) == (sign, kind)


def test_sentences_say_size_and_outline():
    assert recipe_of("a small nodule").size[1] < recipe_of("a diffuse opacity").size[1]
    assert recipe_of("an oval mass with a smooth margin").roughness < recipe_of("a spiculated mass").roughness
    assert recipe_of("a heterogeneous mass").texture > recipe_of("a mass").texture


def test_the_sentences_steer_what_is_found(normals):
    """Told of dark discs, dark ones score higher than bright ones; told of bright discs, the other way round."""
    both = discs(3, 12, ("bright", "dark")).replaced(label=["normal", "dark"] * 6)
    told = [auroc(run_of("described_anomalies", normals, findings=(f"a {kind} disc",), side=8), both) for kind in ("dark", "bright")]
    assert told[0] > 0.8
    assert told[1] < 0.2


def test_sentences_come_from_a_shipped_file_without_its_normals():
    said = DescribedAnomalies(file="breast_ultrasound")._sentences()
    assert len(said) > 3
    assert not any("normal" in sentence for sentence in said)
    with pytest.raises(SettingsError, match="there is no file nowhere"):
        DescribedAnomalies(file="nowhere")._sentences()
