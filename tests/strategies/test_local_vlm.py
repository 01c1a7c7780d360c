"""A generative model of transformers, read from files as a real one is; its scores against slow twins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_generator
from asking import pictures
from doubles import tiny_encoder
from medtame import run as path
from medtame.encoders import generators
from medtame.errors import EncoderError, RunError, SettingsError
from medtame.features.answer_store import AnswerStore
from medtame.learning.shown_images import shown
from medtame.run import Run
from medtame.strategies.direct_use.local_vlm import LocalVlm
from medtame.tasks.classification import Classification, Findings
from medtame.tasks.report_generation import ReportGeneration
from medtame.types import Scores, Texts

TRAIN = pictures(6, "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_generator.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))


def fitted(folder: Path, task: Any = None, train: Any = TRAIN, **settings: Any) -> Run:
    task = (task or Classification()).settled(train)
    return path.fitted(train, task, LocalVlm(model=str(folder), **settings), tiny_encoder())


def scores(run: Run, n: int = 4) -> torch.Tensor:
    found = run.answer(run.query(pictures(n)))
    assert isinstance(found, Scores)
    return found.values


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)


def slow_likelihood(folder: Path, picture: Any, prompt: str, answer: str) -> float:
    """One token after the other, each asked with all before it, by transformers alone."""
    processor, model = loaded(folder)
    text = f"USER: <image>{prompt}ASSISTANT: "
    image = generators.rgb(shown(picture, 768))
    given = processor(images=[image], text=[text], return_tensors="pt")
    logs = []
    for token in processor.tokenizer(answer, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            logs.append(float(model(**given).logits[0, -1].log_softmax(-1)[token]))
        given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[token]])], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return float(np.mean(logs))


def test_likelihoods_equal_a_token_by_token_twin(folder: Path) -> None:
    prompt = "What does this medical image show? Answer with one short phrase and nothing else."
    found = scores(fitted(folder), 2)
    for row, picture in enumerate(pictures(2).pictures()):
        wanted = [slow_likelihood(folder, picture, prompt, name) for name in ("black", "grey", "white")]
        assert found[row].tolist() == pytest.approx(wanted, abs=2e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3, "the image reaches the answer"


def test_several_labels_are_yes_minus_no(folder: Path) -> None:
    train = TRAIN.replaced(labels=["black", "black|grey", "none"] * 2)
    found = scores(fitted(folder, Findings(), train), 1)
    (picture,) = pictures(1).pictures()
    for k, name in enumerate(("black", "grey")):
        yes, no = (
            slow_likelihood(folder, picture, f"Does this medical image show {name}? Answer yes or no.", word) for word in ("yes", "no")
        )
        assert float(found[0, k]) == pytest.approx(yes - no, abs=4e-5)


def test_texts_are_the_greedy_words(folder: Path) -> None:
    train = TRAIN.replaced(findings=["clear lungs"] * 6)
    run = fitted(folder, ReportGeneration(), train, most_tokens=6)
    found = run.answer(run.query(pictures(2)))
    assert isinstance(found, Texts)
    processor, model = loaded(folder)
    for text, picture in zip(found.values, pictures(2).pictures(), strict=True):
        begun = "USER: <image>Describe the findings of this medical image as a short radiology report.ASSISTANT: "
        given = processor(images=[generators.rgb(shown(picture, 768))], text=[begun], return_tensors="pt")
        ids: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(**given).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
            given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([ids[-1:]])], 1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        assert text == processor.decode(ids, skip_special_tokens=True).strip()


def test_generated_answers_are_read_by_the_same_rules_and_nonsense_is_refused(folder: Path) -> None:
    run = fitted(folder, scoring="generated", most_tokens=4)
    assert scores(run).isnan().all(), "random weights name no class"
    assert [row["prediction"] for row in run.predict(pictures(2)).table] == ["refused", "refused"]


def test_answers_are_kept_and_the_order_of_classes_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scores(fitted(folder))
    turned = Classification(classes=("white", "black", "grey"))
    assert torch.allclose(scores(fitted(folder, turned))[:, [1, 2, 0]], first, atol=1e-6)

    def asked_again(*given: Any) -> Any:
        pytest.fail("the model was asked again")

    monkeypatch.setattr(generators.Generator, "likelihoods", asked_again)
    assert torch.equal(scores(fitted(folder)), first)


def test_a_run_names_its_model_and_notices_other_files(folder: Path, tmp_path: Path) -> None:
    own = tiny_generator.save(tmp_path / "own", seed=1)
    run = fitted(own)
    run.save(tmp_path / "run")
    opened = path.open(tmp_path / "run", lambda spec: tiny_encoder())
    assert torch.equal(scores(opened), scores(run))
    tiny_generator.save(own, seed=2)  # the same sizes, other weights
    assert not torch.allclose(scores(fitted(own)), scores(opened)), "kept answers are of the weights that gave them"
    AnswerStore().path.unlink()
    with pytest.raises(RunError, match="are not those that this run was made with"):
        scores(opened)


def test_a_model_without_a_chat_template_is_asked_plainly(tmp_path: Path) -> None:
    plain = tiny_generator.save(tmp_path / "plain", talk=False)
    place = generators.place_of(str(plain))
    generator = generators.load(place.folder, place.name, generators.identity(place), "float32")
    assert generator.begun("Which?") == "<image>Which?\nAnswer:"
    assert scores(fitted(plain)).isfinite().all()


def test_a_name_is_found_among_the_models_of_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTAME_MODELS", str(folder.parent))
    assert torch.equal(scores(fitted("someone/tiny")), scores(fitted(folder)))  # type: ignore[arg-type]


def test_what_is_no_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="local_vlm needs a folder"):
        path.fitted(TRAIN, Classification().settled(TRAIN), LocalVlm(), tiny_encoder())
    with pytest.raises(EncoderError, match="'no/such' is not on this machine"):
        fitted("no/such")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"has no config\.json"):
        fitted(tmp_path / "empty")
    broken = tiny_generator.save(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EncoderError, match="is not read as a generative model") as caught:
        scores(fitted(broken))
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    own = tiny_generator.save(tmp_path / "own")
    weights = load_file(own / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj.weight" in name))
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 weights"):
        scores(fitted(own))


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    own = tiny_generator.save(tmp_path / "own")
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "foreign", "auto_map": {"AutoModelForImageTextToText": "foreign.Model", "AutoConfig": "foreign.Config"}}
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (own / "foreign.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')", encoding="utf-8")
    with pytest.raises(EncoderError, match="is not read as a generative model"):
        scores(fitted(own))
    assert not (tmp_path / "run").exists()
