"""Benchmarks: at a small size each one's results agree, a wrong one is caught, and the command line says what it did. Nothing is timed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medtame.encoders import bundled
from medtame.errors import MissingExtraError
from medtame.features import engines, search_lists

ISSUE = {  # name: goal
    "encode_vit_b32_batch8": 1.8,
    "encode_vit_b32_batch1": 1.8,
    "encode_bundled_onnxruntime": 2.2,
    "decode_640": 2.0,
    "decode_1600": 2.5,
    "decode_small_grey": 1.3,
    "second_run": 1000.0,
    "cache_rows": None,
    "bootstrap": 100.0,
    "grid": 200.0,
    "cache_search": 50.0,
    "ridge": 5.0,
    "transduction": 10.0,
    "patch_memory_search": 10.0,
    "average_precision": None,
    "average_precision_bootstrap": None,
    "decoder_vit_b16": 5.0,
    "decoder_vit_b16_dense": 5.0,
    "decoder_bundled": None,
    "two_prompts": None,
    "prompt_step_3": 6.0,
    "prompt_step_8": 8.0,
    "prompt_step_20": 10.0,
    "prompt_step_3_bf16": 9.0,
    "prompt_step_8_bf16": 12.0,
    "prompt_step_20_bf16": 15.0,
    "prompt_step_bert": None,
    "short_frozen_prompts": 5.0,
    "lora_bf16": 2.2,
    "lora_last_4_blocks_kept_inputs": 6.0,
    "pretrain_in_chunks": 1 / 1.35,
    "search_100_000": 15.0,
    "search_1_000_000": 50.0,
}


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the folder `benchmarks`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def made_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDTAME_DATA", str(tmp_path / "absent"))


def checked(opened: AbstractContextManager[Any]) -> tuple[str, Any]:
    with torch.no_grad(), opened as case:
        return case.check(), case.goal


@pytest.fixture
def weights() -> None:
    try:
        bundled.card()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("made_images")
@pytest.mark.parametrize(("name", "goal"), [("of_640", 2.0), ("of_1600", 2.5), ("of_small_grey", 1.3)])
def test_decoding_gives_the_pixels_of_open_clip(of: Callable[[str], Any], name: str, goal: float):
    found, stated = checked(getattr(of("decode"), name)(2))
    assert (found[:4], stated) == ("ok: ", goal)


def test_decoding_of_real_images(of: Callable[[str], Any], real_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDTAME_DATA", str(real_data))
    assert checked(of("decode").of_640(2))[0].startswith("ok: ")
    assert checked(of("decode").of_small_grey(2))[0].startswith("ok: ")


@pytest.mark.usefixtures("made_images")
def test_a_shifted_image_is_caught(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    class Shifted:
        def __init__(self, path: Path, name: str) -> None:
            self.path = path

        def read(self) -> np.ndarray:
            from medtame.data.decode import plain

            return np.roll(plain(self.path), 2, 0)

    monkeypatch.setattr(of("decode"), "FilePicture", Shifted)
    assert checked(of("decode").of_640(1))[0].startswith("failed: ")


@pytest.mark.usefixtures("made_images")
def test_half_weights_give_the_vectors_of_open_clip(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    tiny = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: open_clip.CLIP(**tiny))
    assert checked(of("encode").vit_bf16(2))[0].startswith("ok: cosine 0.99")

    class Wrong(nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return pixels.flatten(1)[:, :32], ()

    monkeypatch.setattr(engines, "bf16", lambda tower, example, path: Wrong())
    assert checked(of("encode").vit_bf16(2))[0].startswith("failed: ")


@pytest.mark.usefixtures("made_images", "weights")
def test_the_graph_of_bundled_gives_its_features(of: Callable[[str], Any]):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert checked(of("encode").bundled_onnxruntime(1)) == ("ok: cosine 1.0000000", 2.2)


@pytest.mark.usefixtures("made_images", "weights")
def test_a_second_run_gives_the_same_bits(of: Callable[[str], Any]):
    assert checked(of("cache").second_run(3)) == ("ok: the rows of 3 images are the encoder's in 16 bits", 1000.0)


def test_random_rows_are_the_written_ones_at_one_hundredth_more(of: Callable[[str], Any]):
    assert checked(of("cache").rows(6000, 512, 300))[0].startswith("ok: rows equal, 1.00")
    assert checked(of("cache").rows(600, 16, 30))[0].startswith("failed: rows equal, 1.")  # short rows: the keys weigh too much


def test_resamples_in_one_call_are_those_of_scikit_learn(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    found, goal = checked(of("bootstrap").macro_auroc_and_balanced_accuracy(90, 3, 8))
    assert (found[:4], goal) == ("ok: ", 100.0)
    monkeypatch.setattr(of("bootstrap"), "in_a_loop", lambda probabilities, truth, chosen: (0.5, 0.5))
    assert checked(of("bootstrap").macro_auroc_and_balanced_accuracy(90, 3, 8))[0].startswith("failed: largest difference")


def test_the_search_of_the_cache_finds_what_the_loops_find(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    found, goal = checked(of("cache_search").twenty_by_twenty(40, 4, 32))
    assert (found[:4], goal) == ("ok: ", 50.0)
    monkeypatch.setattr(of("cache_search"), "searched", lambda *given, **more: (1.0, 5.5))
    assert checked(of("cache_search").twenty_by_twenty(40, 4, 32))[0].startswith("failed: alpha 1, beta 5.5")


def test_ridge_finds_the_penalty_and_the_decisions_of_scikit_learn(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    found, goal = checked(of("ridge").leave_one_out(120, 3, 16, 20))
    assert (found[:4], goal) == ("ok: ", 5.0)
    monkeypatch.setattr("medtame.strategies.tuning.ridge_probe.leave_one_out", lambda x, y, penalties: penalties)  # always the first
    assert checked(of("ridge").leave_one_out(120, 3, 16, 20))[0].startswith("failed: penalty 0.0001")


def test_transduction_equals_the_dense_one_and_holds_no_matrix_of_all_pairs(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    found, goal = checked(of("transduction").of_rows(300, 4, 16, (5000, 10_000)))
    assert (found[:4], goal) == ("ok: ", 10.0)
    module = "medtame.strategies.direct_use.transductive"
    monkeypatch.setattr("medtame.features.neighbours.NUMBERS_AT_ONCE", 2**30)
    assert checked(of("transduction").of_rows(300, 4, 16, (1000, 2000)))[0].startswith("failed: ")  # all pairs at once: memory
    monkeypatch.undo()
    monkeypatch.setattr(f"{module}.nearest", lambda features, count: (torch.zeros(len(features), 0, dtype=torch.long), torch.zeros(0)))
    assert checked(of("transduction").of_rows(300, 4, 16, (5000, 10_000)))[0].startswith("failed: ")


def test_a_peak_is_what_is_held_at_a_time(of: Callable[[str], Any]):
    def work() -> None:
        for _ in range(5):
            torch.ones(1000).add(1)

    assert of("transduction").peak_bytes(work) == 8000


def test_the_grid_equals_fourteen_plain_methods(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    small = {"shots": (1, 4), "draws": 2, "test": 60, "classes": 3, "dimension": 16, "resamples": 5, "timed": 3}
    found, goal = checked(of("grid").fourteen_methods(**small))
    assert (found[:4], goal) == ("ok: ", 200.0)
    assert "3 of 56 plain cells timed and scaled" in found
    with torch.no_grad(), of("grid").fourteen_methods(**small) as case:
        intervals = case.ours()
        assert case.plain_share == 3 / 56
    assert len(intervals) == 28
    assert all((low <= high and 0 <= low <= 1) for both in intervals.values() for low, high in both)
    monkeypatch.setitem(of("plain_methods").METHODS, "gda", of("plain_methods").zero_shot)
    assert "(gda)" in checked(of("grid").fourteen_methods(**small | {"shots": (2,), "draws": 1}))[0]


def test_the_command_states_each_benchmark_of_the_issue(
    of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    main, harness = of("__main__"), of("harness")
    assert [*main.BENCHMARKS] == [*ISSUE]
    monkeypatch.setitem(main.BENCHMARKS, "cache_rows", lambda: of("cache").rows(6000, 512, 30))
    for words in (["--json"], []):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "cache_rows", *words])
        assert main.main() == 0
        said = capsys.readouterr().out
        if words:
            [result] = json.loads(said)
            assert [*result] == ["name", "ours_seconds", "plain_seconds", "ratio", "goal", "check"]
            assert result["ratio"] == pytest.approx(result["plain_seconds"] / result["ours_seconds"])
        else:
            assert said.startswith("cache_rows")
    missed = harness.Result(name="a", ours_seconds=1, plain_seconds=1.5, ratio=1.5, goal=2.0, check="ok: same")
    assert "1.50 x   goal 2 missed" in main.line(missed)


def test_a_case_is_warmed_and_timed_in_turn(of: Callable[[str], Any]):
    from contextlib import nullcontext

    turns: list[str] = []
    case = of("harness").Case(
        ours=lambda: turns.append("ours"),
        plain=lambda: turns.append("plain"),
        check=lambda: turns.append("check") or "ok: ",
        goal=None,
        rounds=3,
    )
    threads = torch.get_num_threads()
    assert of("harness").measured("a", nullcontext(case)).name == "a"
    assert turns == ["check", *["ours", "plain"] * 3]
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("made_images", "weights")
def test_packed_prompts_agree_or_fail(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    """Two layers in the place of twelve; where a token may see the prompts before it, the gradient is another."""
    prompts, config = of("prompts"), prompt_config()
    monkeypatch.setattr(prompts.open_clip, "get_model_config", lambda name: config)
    for precision in ("float32", "bfloat16"):
        assert checked(prompts.step(3, precision, 1.0))[0].startswith("ok: gradient cosine")
    assert checked(prompts.short_frozen_prompts(6))[0].startswith("ok: cosine 1.0000000")
    monkeypatch.setattr(torch.Tensor, "__or__", lambda one, other: torch.ones_like(one))
    assert checked(prompts.step(3, "float32", 1.0))[0].startswith("failed: gradient cosine")


def prompt_config() -> dict[str, Any]:
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 2}
    return {"embed_dim": 512, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}, "text_cfg": text}


def test_two_prompts_give_the_two_halves_or_fail(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    decoder = of("decoder")
    monkeypatch.setattr(decoder, "SIZE", 64)
    assert checked(decoder.two_prompts())[0].startswith("ok: both at once took")
    monkeypatch.setattr(decoder, "PROMPT_STEPS", 1)
    assert checked(decoder.two_prompts())[0].startswith("failed: both at once took")


@pytest.mark.usefixtures("made_images", "weights")
def test_kept_maps_train_a_decoder_as_encoding_at_each_step_does(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    decoder = of("decoder")
    for name, value in {"SIZE": 64, "BATCH": 2}.items():
        monkeypatch.setattr(decoder, name, value)
    assert checked(decoder.cached_grids("bundled", None))[0].startswith("ok: losses differ by")
    right = decoder.thinned
    monkeypatch.setattr(decoder, "thinned", lambda scale, share, generator: right(scale.roll(2, 3), share, generator))
    assert checked(decoder.cached_grids("bundled", None))[0].startswith("failed: losses differ by")


def test_the_search_of_a_memory_is_exact_and_a_wrong_one_is_caught(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    assert checked(of("anomaly").search(2, 300, 6))[0].startswith("ok: 72 distances to 300 patches differ by at most ")
    monkeypatch.setattr(of("anomaly"), "nearest", lambda vectors, bank: torch.cdist(vectors, bank[:-50]).amin(1))
    assert checked(of("anomaly").search(2, 300, 6))[0].startswith("failed: ")


def test_the_average_precision_of_every_resample_is_that_of_a_plain_loop(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    detection = of("detection")
    found = checked(detection.average_precision(6, 5, 20, 2, 0))[0]
    assert found.startswith("ok: ")
    assert found.endswith("all plain ones timed")
    found = checked(detection.average_precision(6, 5, 20, 2, 40))[0]
    assert found.startswith("ok: ")
    assert found.endswith("21 of 41 plain ones timed and scaled")
    monkeypatch.setattr(detection, "OVERLAPS", detection.OVERLAPS + 0.01)
    assert checked(detection.average_precision(6, 5, 20, 2, 0))[0].startswith("failed: largest difference")


@pytest.mark.parametrize("blocks", [None, 2])
def test_low_rank_changes_over_16_bits_descend_as_those_in_single_precision(
    blocks: int | None, of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    from open_clip.transformer import VisionTransformer

    tuning = of("tuning")
    shape = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "output_dim": 32}
    monkeypatch.setattr(tuning, "SIDE", 32)
    monkeypatch.setattr(tuning, "random_visual", lambda: VisionTransformer(**shape))
    found = checked(tuning.lora(blocks, 1.0))[0]
    assert found.startswith("ok: gradient cosine 0.999")
    assert ("kB kept an image" in found) == (blocks is not None)
    right = tuning.halved

    def noisy(tower: nn.Module, moving: Any) -> None:
        right(tower, moving)
        tower.visual.transformer.resblocks[2].mlp.c_fc.base_layer.weight.mul_(1.5)  # type: ignore[union-attr,index,operator]

    monkeypatch.setattr(tuning, "halved", noisy)
    assert checked(tuning.lora(blocks, 1.0))[0].startswith("failed: gradient cosine")


def test_the_search_finds_what_a_product_with_all_rows_finds_or_fails(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    search = of("search")
    monkeypatch.setattr(search, "CLUSTERS", 50)
    monkeypatch.setattr(search, "LEAST_RECALL", {True: 0.95, False: 0.999})
    found, goal = checked(search.nearest(4000, 15.0, asked=20))
    assert (found[:24], goal) == ("ok: recall@10 1.0000 (ex", 15.0)
    monkeypatch.setattr("medtame.features.index.EXACT_UP_TO", 1000)
    assert checked(search.nearest(4000, 50.0, asked=20))[0].startswith("ok: recall@10 ")
    monkeypatch.setattr(search, "by_lists", lambda listed, asked, count, depth: search.exact(listed.bank, -asked, count))
    monkeypatch.setattr(search, "deepened", lambda listed, queries, own: (search_lists.Depth(50, 20), [1.0]))
    assert checked(search.nearest(4000, 50.0, asked=20))[0].startswith("failed: recall@10 0.0")


def test_the_gradient_in_chunks_is_that_of_the_plain_batch_or_fails(of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    pretraining, peaks = of("pretraining"), {"plain": 9.0, "ours": 3.0}
    monkeypatch.setattr(pretraining, "peak_of", lambda kind, count: peaks[kind])
    small = pretraining.Shape(32, 16, 32, 2, 1)
    found, goal = checked(pretraining.chunked(6, 2, small, 64))
    assert found.startswith("ok: gradient cosine 1.000000")
    assert found.endswith("64 pairs hold 3 MiB in chunks of 64, 9 MiB at once")
    assert goal == pytest.approx(1 / 1.35)
    peaks["ours"] = 10.0
    assert checked(pretraining.chunked(6, 2, small, 64))[0].startswith("failed: ")
    peaks["ours"] = 3.0
    right = pretraining.in_chunks
    monkeypatch.setattr(
        pretraining, "in_chunks", lambda pairs, part, draws, chunk: right(pairs, part, draws[:4], chunk)
    )  # two are left out
    assert checked(pretraining.chunked(6, 2, small, 64))[0].startswith("failed: gradient cosine 0.")
