"""Weight tuning on every family of towers: which weights move, how many they are, and that kept block inputs change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contracts.tiny import tiny
from doubles import tiny_encoder, tiny_vit_encoder
from medtame import catalogue, encoders
from medtame.encoders.blocks import Before, after, blocks_of, depths_of, last_blocks_of
from medtame.encoders.opened import opened
from medtame.encoders.towers import TowerEncoder
from medtame.errors import PairError
from medtame.learning.fine_tuning import Sight, adaptable, copied, first_pixels, halved
from medtame.learning.low_rank import LowRank
from medtame.strategies.base import support_loss
from medtame.strategies.tuning.bias_and_norm_tuning import small_weights
from medtame.strategies.tuning.singular_value_tuning import Rescaled, rescaled
from medtame.tasks.classification import Classification
from medtame.types import Problem

VITS = ("tiny_vit", "open_clip_vit", "open_clip_siglip", "hf_clip", "hf_siglip")
KINDS = ("tiny", *VITS, "open_clip_resnet")
BLOCKS = {"open_clip_vit": "visual.transformer.resblocks", "open_clip_siglip": "visual.trunk.blocks", "tiny_vit": "blocks"}


@pytest.fixture(scope="module")
def made_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TowerEncoder]:
    root: Path = tmp_path_factory.mktemp("models")
    found = {"tiny": tiny_encoder(), "tiny_vit": tiny_vit_encoder()}
    for kind in ("open_clip_vit", "open_clip_siglip", "open_clip_resnet", "hf_clip", "hf_siglip"):
        getattr(made, kind)(root / kind)
        found[kind] = encoders.load(f"{'hf' if kind.startswith('hf') else 'open_clip'}:{root / kind}")
    return found


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, made_encoders: dict[str, TowerEncoder]) -> TowerEncoder:
    return made_encoders[request.param]


@pytest.fixture(params=VITS)
def transformer(request: pytest.FixtureRequest, made_encoders: dict[str, TowerEncoder]) -> TowerEncoder:
    return made_encoders[request.param]


def problem_of(encoder: TowerEncoder, rows: int = 9) -> Problem:
    task = Classification()
    train = task.usable(tiny("classification")[0])
    return task.settled(train).frame(train, "scores").problem(train, encoder, 0).take(np.arange(rows))  # type: ignore[union-attr]


def learnt(method: str, problem: Problem, **settings: Any) -> Any:
    return catalogue.build(catalogue.METHODS, method, {"steps": 2, "batch": 9, **settings}).fit(problem)


def weights(tower: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in opened(tower).named_parameters()}


def moved(tower: nn.Module, before: dict[str, Tensor]) -> set[str]:
    after = dict(tower.named_parameters())
    assert after.keys() == before.keys()
    return {name for name in before if not torch.equal(after[name], before[name])}


def matrices(tower: nn.Module) -> dict[str, Tensor]:
    """By hand: the weights of two axes that multiply vectors, as (out, in)."""
    found = {}
    for name, layer in opened(tower).named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.weight[0, 0].numel() == 1 and layer.groups == 1):
            found[name] = layer.weight.flatten(1)
    return found


def test_lora_changes_every_matrix_and_nothing_else(encoder: TowerEncoder) -> None:
    before, known = weights(encoder.image_tower), matrices(encoder.image_tower)
    problem = problem_of(encoder)
    adapted = learnt("lora", problem, rank=3)
    assert sum(tensor.numel() for tensor in adapted.image.values()) == sum(3 * sum(matrix.shape) for matrix in known.values())
    assert moved(adapted.encoder(encoder).image_tower, before) == {f"{name}.weight" for name in known}
    assert moved(opened(encoder.image_tower), before) == set()


def test_lora_merged_answers_as_unmerged(encoder: TowerEncoder) -> None:
    change, names = LowRank(2, 4.0, True), adaptable(encoder.image_tower)
    tower, parameters = change.around(encoder.image_tower, names, 0)
    drawn = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))
    problem = problem_of(encoder)
    plain = encoder.changed(image=change.merged(encoder.image_tower, names, parameters), identity="merged")
    assert not any("lora" in name for name, _ in plain.image_tower.named_modules())
    with torch.no_grad():
        expected = problem.query.vectors(encoder.changed(image=tower, identity="unmerged"))
        assert float((expected - problem.query.vectors()).abs().max()) > 1e-2
        torch.testing.assert_close(problem.query.vectors(plain), expected, atol=1e-4, rtol=0)
    name = names[0]
    low = {part: parameters[f"{name}.lora_{part}.default.weight"].detach().flatten(1) for part in "AB"}
    by_hand = matrices(encoder.image_tower)[name] + 4.0 / 2**0.5 * low["B"] @ low["A"]
    torch.testing.assert_close(matrices(plain.image_tower)[name], by_hand)


def test_lora_of_the_text_side(transformer: TowerEncoder) -> None:
    problem, before = problem_of(transformer), weights(transformer.text_tower)
    adapted = learnt("lora", problem, sides="both", rslora=True)
    changed = adapted.encoder(transformer)
    assert moved(changed.text_tower, before) == {f"{name}.weight" for name in matrices(transformer.text_tower)}
    assert moved(changed.image_tower, weights(transformer.image_tower)) == {f"{name}.weight" for name in matrices(transformer.image_tower)}
    alone = learnt("lora", problem, sides="text")
    assert alone.encoder(transformer).image_tower is transformer.image_tower
    assert alone.text.keys() == adapted.text.keys()


def test_biases_and_norms_move_and_nothing_else(encoder: TowerEncoder) -> None:
    before, apart = weights(encoder.image_tower), opened(encoder.image_tower)
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    by_hand = {
        f"{name}.{own}".lstrip(".")
        for name, part in apart.named_modules()
        for own, _ in part.named_parameters(recurse=False)
        if own == "bias" or isinstance(part, norms)
    }
    assert set(small_weights(encoder.image_tower)) == by_hand
    adapted = learnt("bias_and_norm_tuning", problem_of(encoder))
    assert sum(tensor.numel() for tensor in adapted.weights.values()) == sum(before[name].numel() for name in by_hand)
    found = moved(adapted.encoder(encoder).image_tower, before)
    assert found <= by_hand
    assert all(".k_proj." in name for name in by_hand - found)  # what is added to every key changes no attention
    assert moved(opened(encoder.image_tower), before) == set()


def test_singular_values_move_and_nothing_else(encoder: TowerEncoder) -> None:
    before, known = weights(encoder.image_tower), matrices(encoder.image_tower)
    adapted = learnt("singular_value_tuning", problem_of(encoder))
    assert sum(tensor.numel() for tensor in adapted.changes.values()) == sum(min(matrix.shape) for matrix in known.values())
    tower = adapted.encoder(encoder).image_tower
    assert moved(tower, before) == {f"{name}.weight" for name in known}
    for name, matrix in known.items():
        left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
        by_hand = left @ np.diag(values * (1 + adapted.changes[name].numpy())) @ right
        np.testing.assert_allclose(matrices(tower)[name].numpy(), by_hand, atol=1e-5)


def test_singular_values_unchanged_are_the_tower_itself(encoder: TowerEncoder) -> None:
    tower, layers = rescaled(encoder.image_tower)
    assert all(isinstance(layer, Rescaled) for layer in layers.values())
    pixels = first_pixels(problem_of(encoder).query)
    with torch.no_grad():
        whole, maps = tower(pixels)
        expected, expected_maps = opened(encoder.image_tower)(pixels)
    assert torch.equal(whole, expected)
    assert torch.equal(maps[0], expected_maps[0])


def test_last_blocks_move_and_nothing_else(transformer: TowerEncoder) -> None:
    before = weights(transformer.image_tower)
    last = last_blocks_of(opened(transformer.image_tower), 1)[0]
    adapted = learnt("last_blocks", problem_of(transformer))
    by_hand = {name for name in before if name.startswith(f"{last}.")}
    assert set(adapted.weights) == by_hand
    found = moved(adapted.encoder(transformer).image_tower, before)
    assert found <= by_hand
    assert all(".k_proj.bias" in name for name in by_hand - found)


def test_full_fine_tuning_moves_everything(transformer: TowerEncoder) -> None:
    before = weights(transformer.image_tower)
    adapted = learnt("full_fine_tuning", problem_of(transformer), probe_steps=2)
    assert set(adapted.weights) == set(before)
    assert all(".k_proj.bias" in name for name in set(before) - moved(adapted.encoder(transformer).image_tower, before))
    assert float(adapted.head.abs().sum()) > 0


def test_rates_fall_with_the_distance_from_the_end(transformer: TowerEncoder) -> None:
    """Of two equal steps of AdamW's first size, weights of block k move decay^(n + 1 - k) of the rate."""
    problem = problem_of(transformer)
    before = weights(transformer.image_tower)
    adapted = learnt("full_fine_tuning", problem, steps=1, probe_steps=3, learning_rate=1e-3, layer_decay=0.5, batch=9)
    tower, _ = copied(transformer.image_tower, before)
    depths = depths_of(tower, first_pixels(problem.query))
    end = len(blocks_of(tower)) + 1
    assert {0, 1, 2, end} <= set(depths.values())
    for name, depth in depths.items():
        step = float((adapted.weights[name] - before[name]).abs().max())
        if "k_proj.bias" not in name:  # its gradient is nothing
            assert step == pytest.approx(1e-3 * 0.5 ** (end - depth), rel=0.02), name


def test_kept_inputs_of_a_block_give_the_same_gradients(transformer: TowerEncoder) -> None:
    problem = problem_of(transformer)
    loss, rows = support_loss(problem.query, problem.targets), torch.tensor([4, 0, 7, 2])
    for count in (1, 2):
        change = LowRank(2, 4.0, False)
        tower, parameters = change.around(transformer.image_tower, adaptable(transformer.image_tower, count), 0)
        for parameter in parameters.values():
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        block = last_blocks_of(opened(transformer.image_tower), count)[0]
        kept, full = Sight.of(problem.query, tower, block), Sight.of(problem.query, tower, None)
        assert kept.tokens is not None
        assert len(kept.tokens) == len(problem.query.samples)
        assert full.tokens is None
        found, expected = (torch.autograd.grad(loss(see(rows), rows), list(parameters.values())) for see in (kept, full))
        for a, b in zip(found, expected, strict=True):
            assert float(b.abs().max()) > 0
            torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def test_kept_inputs_of_regions_are_those_of_maps(made_encoders: dict[str, TowerEncoder]) -> None:
    """Rows that are parts of images: vectors are pooled from the first map, two rows of one image share what is kept."""
    problem = problem_of(made_encoders["open_clip_vit"])
    regions = torch.tensor([[0.0, 0.0, 0.6, 0.5], [0.3, 0.2, 1.0, 1.0], [0.0, 0.4, 1.0, 0.9]])
    query = replace(problem.query.take([0, 1]), source=np.array([0, 1, 1]), regions=regions)
    tower, named = copied(query.encoder.image_tower, ["visual.transformer.resblocks.1.mlp.c_fc.weight"])
    kept, full = Sight.of(query, tower, "visual.transformer.resblocks.1"), Sight.of(query, tower, None)
    assert kept.tokens is not None
    assert len(kept.tokens) == 2
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(kept(rows), full(rows), atol=1e-6, rtol=0)
    found, expected = (torch.autograd.grad(see(rows)[:, 0].sum(), list(named.values()))[0] for see in (kept, full))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_kept_inputs_end_at_the_same_weights(made_encoders: dict[str, TowerEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(made_encoders["open_clip_vit"])
    kept = learnt("last_blocks", problem, steps=4, batch=4)
    monkeypatch.setattr("medtame.learning.fine_tuning.KEPT_BYTES", 0)
    full = learnt("last_blocks", problem, steps=4, batch=4)
    for name, tensor in kept.weights.items():
        torch.testing.assert_close(tensor, full.weights[name], atol=2e-5, rtol=0)


def test_a_tower_that_reads_its_first_part_again_is_run_whole() -> None:
    """The tiny convolutional tower adds to its third part what entered it, and calls its last part twice."""
    tower, pixels = opened(tiny_encoder().image_tower), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert blocks_of(tower) == ["stem", "down", "mix", "out"]
    assert after(tower, "mix", pixels) is None
    assert after(tower, "out", pixels) is None
    whole = Before(tower, "mix")(pixels)[0]
    assert torch.equal(whole, torch.relu(tower.down(torch.relu(tower.stem(pixels)))))  # type: ignore[operator]


def test_blocks_are_the_transformers_layers(made_encoders: dict[str, TowerEncoder]) -> None:
    for kind, chain in BLOCKS.items():
        depth = 3 if kind == "tiny_vit" else 2
        assert blocks_of(opened(made_encoders[kind].image_tower)) == [f"{chain}.{number}" for number in range(depth)]
    with pytest.raises(PairError, match="blocks=4 were asked for and the encoder's tower has 3"):
        last_blocks_of(made_encoders["tiny_vit"].image_tower, 4)


def test_depths_tell_what_a_block_depends_on(made_encoders: dict[str, TowerEncoder]) -> None:
    encoder = made_encoders["open_clip_vit"]
    apart = opened(encoder.image_tower)
    tower, _ = copied(encoder.image_tower, [name for name, _ in apart.named_parameters()])
    depths = depths_of(tower, first_pixels(problem_of(encoder).query))
    assert {name for name, depth in depths.items() if depth == 0} == {
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.conv1.weight",
        "visual.ln_pre.weight",
        "visual.ln_pre.bias",
    }
    assert {name for name, depth in depths.items() if depth == 3} == {"visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"}


def test_sixteen_bits_give_nearly_the_same_gradients(made_encoders: dict[str, TowerEncoder]) -> None:
    encoder = made_encoders["open_clip_vit"]
    problem, names = problem_of(encoder), adaptable(encoder.image_tower)
    loss, rows = support_loss(problem.query, problem.targets), torch.arange(9)
    found = []
    for precision in ("float32", "bfloat16"):
        tower, parameters = LowRank(4, 8.0, False).around(encoder.image_tower, names, 0)
        for parameter in parameters.values():
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        if precision == "bfloat16":
            halved(tower, parameters.values())
            assert {str(p.dtype) for p in parameters.values()} == {"torch.float32"}
            assert tower.visual.transformer.resblocks[0].mlp.c_fc.base_layer.weight.dtype == torch.bfloat16
        see = Sight.of(problem.query, tower, None, precision)  # type: ignore[arg-type]
        slopes = torch.autograd.grad(loss(see(rows), rows), list(parameters.values()))
        found.append(torch.cat([slope.flatten() for slope in slopes]).double())
    assert float(nn.functional.cosine_similarity(*found, dim=0)) > 0.99
    assert encoder.image_tower.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.float32  # type: ignore[union-attr,index]


def test_a_text_side_without_layers_is_refused(made_encoders: dict[str, TowerEncoder]) -> None:
    with pytest.raises(PairError, match="no layers"):
        adaptable(None)
    with pytest.raises(PairError, match="neither linear layers nor pointwise"):
        adaptable(nn.Sequential(nn.Conv2d(3, 8, 3)))
