"""Engines: what agrees and is faster is used, all else falls back by itself, and the cache finds its rows again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import doubles
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.encoders import bundled
from medtame.encoders.towers import EncoderCard, TowerEncoder, frozen
from medtame.errors import EncoderError, MissingExtraError
from medtame.features import engines
from medtame.features.cached import CachedEncoder
from medtame.features.store import Store

CARD = EncoderCard(
    spec="slow",
    image_identity="image-1",
    text_identity="",
    scale=10.0,
    bias=0.0,
    dimension=6,
    scales=((6, 2), (4, 4)),
    has_text=False,
    notes="a toy",
)


class Tower(nn.Module):
    """Works `times` times as much as it must. `error` is added to whole, where the image is bright only if `bright_only`."""

    def __init__(self, times: int, error: float = 0.0, *, bright_only: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fine, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)
        self.times, self.error, self.bright_only = times, error, bright_only

    def forward(self, prepared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        for _ in range(self.times):
            fine = torch.relu(self.fine(prepared))
        coarse = self.coarse(fine)
        whole = nn.functional.normalize(coarse.mean((2, 3)), dim=1)
        moved = whole + self.error * whole.roll(1, 1) * (prepared.mean((1, 2, 3)) > -0.1)[:, None] ** self.bright_only
        return nn.functional.normalize(moved, dim=1) if self.error else whole, (coarse, fine)


def prepare(image: Tensor) -> Tensor:
    return nn.functional.interpolate(image, (16, 16), mode="bilinear", antialias=True).expand(-1, 3, -1, -1) - 0.5


def slow() -> TowerEncoder:
    names = {"spec": "slow", "image_identity": "image-1", "text_identity": "", "scale": 10.0, "bias": 0.0}
    return TowerEncoder(**names, image_tower=frozen(Tower(300)), text_tower=None, prepare=prepare)


def refused() -> TowerEncoder:
    raise AssertionError("the encoder was opened")


def samples(count: int, brightness: float = 0.5, seed: int = 1) -> ManifestSamples:
    """Images of 4 x 4 fields, as unlike one another as can be."""
    rng = np.random.default_rng(seed)
    fields = [np.clip(brightness * rng.integers(0, 2, (4, 4, 3)), 0, 1).astype(np.float32) for _ in range(count)]
    pictures = [ArrayPicture(each.repeat(6, 0).repeat(5, 1), f"image {i}") for i, each in enumerate(fields)]
    return ManifestSamples({"image": pictures}, np.arange(count))


def plant(monkeypatch: pytest.MonkeyPatch, name: str, made: nn.Module) -> None:
    monkeypatch.setitem(engines.BUILDERS, name, lambda tower, example, path: made)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that works a 300th, and is near enough but not exact."""
    plant(monkeypatch, "planted", frozen(Tower(1, 0.001)))


def expected(images: ManifestSamples, tower: nn.Module) -> Tensor:
    with torch.no_grad():
        return (
            tower(torch.cat([prepare(torch.from_numpy(p.array().transpose(2, 0, 1))[None]) for p in images.pictures()]))[0].half().float()
        )


# ---- the gate -------------------------------------------------------------------------------------------------


def test_the_fastest_that_agrees_is_kept_and_every_other_has_its_reason():
    def build(name: str) -> nn.Module:
        if name == "broken":
            raise RuntimeError("this operator is unknown\nand more")
        made = {"wrong": Tower(1, 0.2), "exact": Tower(1), "nearly": Tower(100), "slower": Tower(900)}
        return frozen(made[name])

    names = ("broken", "wrong", "nearly", "exact", "slower")
    verdict, towers = engines.judged(slow(), samples(16).pictures(), names, build)
    tried = {trial.engine: trial for trial in verdict.tried}
    assert (verdict.engine, [*towers], verdict.images) == ("exact", ["exact"], 16)
    assert verdict.cosine == pytest.approx(1, abs=1e-9)
    assert (tried["broken"].refused, tried["broken"].cosine) == ("this operator is unknown", None)
    assert tried["wrong"].refused == "other features"
    assert 0.9 < tried["wrong"].cosine < 0.999
    assert [tried[name].refused for name in ("nearly", "exact", "slower")] == ["", "", ""]
    assert engines.judged(slow(), samples(16).pictures(), ("broken", "wrong", "slower"), build)[0].engine == "eager"


def test_agreement_against_numpy_and_what_has_another_shape():
    rng = np.random.default_rng(0)
    wanted = [rng.standard_normal((5, 8)) + 3, rng.standard_normal((5, 4, 3, 3))]
    found = [each + 0.1 * rng.standard_normal(each.shape) for each in wanted]

    def cosines(centred: bool) -> float:
        worst = 1.0
        for a, b in zip(wanted, found, strict=True):
            mean = a.mean(0) if a.ndim == 2 else a.mean((0, 2, 3))[:, None, None]
            for x, y in zip(a - mean * centred, b - mean * centred, strict=True):
                worst = min(worst, (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
        return float(worst)

    as_tensors = [(torch.from_numpy(whole), (torch.from_numpy(scale),)) for whole, scale in (wanted, found)]
    assert engines.agreement(*as_tensors) == pytest.approx((cosines(False), cosines(True)), abs=1e-9)
    with pytest.raises(ValueError, match="shape"):
        engines.agreement(as_tensors[0], (as_tensors[1][0][:, :7], as_tensors[1][1]))
    nothing = (torch.full((5, 8), torch.nan), as_tensors[0][1])
    assert engines.agreement(as_tensors[0], nothing) == (-1, -1)


def test_a_common_mean_does_not_hide_a_difference():
    """Features near one another, as those of CLIP are: the cosine is .9999, and all that a probe sees is noise."""
    rng = np.random.default_rng(0)
    mean, own, other = rng.standard_normal(64), *(0.01 * rng.standard_normal((2, 16, 64)))
    plain, centred = engines.agreement(*((torch.from_numpy(mean + each), ()) for each in (own, other)))
    assert plain > engines.LEAST_COSINE
    assert centred < 0.5 < engines.LEAST_CENTRED_COSINE


def test_16_bit_weights_fall_back_by_themselves_on_the_trained_network():
    try:
        encoder = bundled.load()
    except MissingExtraError as error:
        pytest.skip(str(error))
    random = np.random.default_rng(0)
    pictures = [ArrayPicture(doubles.disc("bright", "left", random)[0], f"disc {i}") for i in range(4)]
    with torch.no_grad():
        verdict, towers = engines.judged(encoder, pictures, ("bf16",), lambda name: engines.bf16(encoder.image_tower, torch.empty(0), None))
    assert (verdict.engine, towers, verdict.tried[0].refused) == ("eager", {}, "other features")
    assert verdict.tried[0].cosine < 0.999


# ---- the engines ----------------------------------------------------------------------------------------------


class TinyVit(doubles.TinyVitTower):
    def embedded(self, pixels: Tensor) -> Tensor:
        """The same, its number of images not fixed at export as `len` fixes it."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(pixels.shape[0], -1, -1), patches], 1) + self.positions


@pytest.mark.parametrize("made", [doubles.TinyImageTower, TinyVit])
def test_each_engine_gives_the_towers_features_at_any_number_of_images(made: type, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tower = frozen(made())
    state = torch.random.get_rng_state()
    built = {name: build(tower, torch.zeros(2, 3, 32, 32), tmp_path / "graph.onnx") for name, build in engines.BUILDERS.items()}
    again = engines.onnxruntime(nn.Identity(), torch.empty(0), tmp_path / "graph.onnx")  # what is kept is not exported again
    assert torch.equal(torch.random.get_rng_state(), state)
    for count in (1, 2, 5):
        pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = tower(pixels)
            for name, engine in (built | {"kept": again}).items():
                tolerance = 0.05 if name == "bf16" else 1e-5
                found = engine(pixels)
                for a, b in zip((wanted[0], *wanted[1]), (found[0], *found[1]), strict=True):
                    assert b.dtype == torch.float32
                    torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance)
    assert built["bf16"].tower is not tower
    assert next(tower.parameters()).dtype == torch.float32


def test_a_graph_follows_the_threads_of_torch_and_a_damaged_one_is_made_anew(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tower, path, before = frozen(Tower(1)), tmp_path / "engines" / "graph.onnx", torch.get_num_threads()
    engine, pixels = engines.onnxruntime(tower, torch.zeros(2, 3, 16, 16), path), torch.ones(1, 3, 16, 16)
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            engine(pixels)
            assert engine.session.get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert engines.kept_graph(path) is None
    torch.testing.assert_close(engines.onnxruntime(tower, torch.zeros(2, 3, 16, 16), path)(pixels), tower(pixels))
    assert engines.kept_graph(path) is not None


class Asks(Tower):
    def forward(self, prepared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return super().forward(-prepared if prepared.sum() > 0 else prepared)


@pytest.mark.parametrize("made", [Asks(1), doubles.TinyVitTower()])
def test_a_tower_that_cannot_be_exported_is_left_as_it_is(made: nn.Module):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ladder = engines.Ladder("asks", None, ("onnxruntime",))
    encoder = doubles.tiny_encoder().changed(image=frozen(made), identity="asks")
    ladder.settle(encoder, samples(200).pictures(), 200)
    assert ladder.verdict.engine == "eager"
    assert ladder.verdict.tried[0].refused not in ("", "other features")
    assert ladder.running(encoder) is encoder


# ---- in the cache ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("planted")
def test_few_images_are_encoded_plainly_and_many_by_what_the_gate_chose(tmp_path: Path):
    few, many = samples(engines.WORTH_IMAGES - 1), samples(engines.WORTH_IMAGES, seed=2)
    encoder = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    assert torch.equal(encoder.whole(few), expected(few, Tower(1)))
    assert (encoder.engine["engine"], encoder.engine["cosine"], encoder.engine["tried"]) == ("eager", None, ())
    assert torch.equal(encoder.whole(many), expected(many, Tower(1, 0.001)))
    assert not torch.equal(encoder.whole(many), expected(many, Tower(1)))
    assert encoder.engine["engine"] == "planted"
    assert encoder.engine["cosine"] >= engines.LEAST_COSINE
    assert engines.LEAST_CENTRED_COSINE <= encoder.engine["centred_cosine"] < engines.SAME_COSINE
    for second in (CachedEncoder(CARD, refused, Store(tmp_path), engines=("planted",)), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(second.whole(many), encoder.whole(many))
        assert second.engine == encoder.engine


@pytest.mark.usefixtures("planted")
def test_rows_of_the_plain_tower_keep_their_place_and_are_not_mixed_with_others(tmp_path: Path):
    images = samples(150)
    plain = CachedEncoder(CARD, slow, Store(tmp_path), engines=())
    wanted = plain.whole(images)
    assert torch.equal(wanted, expected(images, Tower(1)))
    assert len(Store(tmp_path).read("image-1", "whole", plain.digests.of(images.pictures()))) == 150
    assert torch.equal(CachedEncoder(CARD, refused, Store(tmp_path), engines=("planted",)).whole(images), wanted)  # all there already
    other = samples(300, seed=3)
    chosen = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    chosen.whole(other)
    assert chosen.engine["engine"] == "planted"
    assert torch.equal(chosen.whole(images), expected(images, Tower(1, 0.001)))
    assert torch.equal(CachedEncoder(CARD, refused, Store(tmp_path), engines=()).whole(images), wanted)
    assert CachedEncoder(CARD, refused, Store(tmp_path), engines=()).engine["engine"] == "eager"


@pytest.mark.usefixtures("planted")
def test_where_most_rows_are_there_no_other_engine_is_chosen(tmp_path: Path):
    images = samples(300)
    CachedEncoder(CARD, slow, Store(tmp_path), engines=()).whole(images.take(np.arange(160)))
    encoder = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    assert torch.equal(encoder.whole(images), expected(images, Tower(1)))
    assert encoder.engine["engine"] == "eager"


def test_an_engine_is_given_up_on_images_where_it_no_longer_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = frozen(Tower(1, 0.3, bright_only=True))
    made.fine.bias.add_(1e-3)  # not exact on dark images either
    plant(monkeypatch, "planted", made)
    dark, bright = samples(130, 0.5), samples(130, 3.0)
    encoder = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    encoder.whole(dark)
    assert encoder.engine["engine"] == "planted"
    assert torch.equal(encoder.whole(bright), expected(bright, Tower(1)))
    assert (encoder.engine["engine"], encoder.engine["tried"][0]["refused"]) == ("eager", "other features")
    assert torch.equal(CachedEncoder(CARD, refused, Store(tmp_path), engines=("planted",)).whole(bright), expected(bright, Tower(1)))


@pytest.mark.usefixtures("planted")
def test_changed_towers_and_the_tower_itself_are_torchs(tmp_path: Path):
    encoder = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    encoder.whole(samples(150))
    assert encoder.engine["engine"] == "planted"
    tower = copy.deepcopy(encoder.image_tower).requires_grad_(True)
    assert tower.times == 300
    encoder.changed(image=tower, identity="lora").whole(samples(2))[0, 0].backward()
    assert tower.coarse.weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"stamp": 1, "verdict": {}}', b"{\xff"])
def test_a_damaged_verdict_is_made_anew(tmp_path: Path, content: bytes):
    images = samples(130)
    first = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    wanted = first.whole(images)
    [path] = (tmp_path / "engines").glob("*.json")
    path.write_bytes(content)
    again = CachedEncoder(CARD, slow, Store(tmp_path), engines=("planted",))
    assert torch.equal(again.whole(images), wanted)
    assert again.engine["engine"] == "planted"


def test_the_environment_may_forbid_engines(monkeypatch: pytest.MonkeyPatch):
    for word, wanted in [("eager", ()), ("", ("channels_last", "bf16", "onnxruntime")), ("bf16", ("bf16",))]:
        monkeypatch.setenv("MEDTAME_ENGINE", word)
        assert CachedEncoder(CARD, refused).engines == wanted
    monkeypatch.setenv("MEDTAME_ENGINE", "warp")
    with pytest.raises(EncoderError, match="no engine is called 'warp': set MEDTAME_ENGINE to auto, eager"):
        CachedEncoder(CARD, refused)
