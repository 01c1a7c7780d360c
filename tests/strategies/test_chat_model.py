"""A chat model asked over HTTP: a real server process that answers from the pixels it got, and all that it may do wrong."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asking import EVERY, GREYS, Served, pictures, served
from doubles import tiny_encoder
from medtame import run as path
from medtame.errors import ChatError, DataError, MedtameError, PairError, SettingsError
from medtame.features.answer_store import AnswerStore
from medtame.learning.chat_server import from_environment, loopback
from medtame.run import Run
from medtame.strategies.direct_use.chat_model import ChatModel
from medtame.tasks.classification import Classification, Findings
from medtame.tasks.image_text_retrieval import ImageTextRetrieval
from medtame.tasks.report_generation import ReportGeneration
from medtame.tasks.visual_question_answering import VisualQuestionAnswering
from medtame.types import Scores

KEY = "sk-very-secret"
QUICK = {"model": "grey", "timeout_seconds": 20.0, "retries": 1, "wait_seconds": 0.01}
LATE = ("slow", "hang", "drip")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers of each test are its own, and no address is left of another."""
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    for name in ("MEDTAME_CHAT_URL", "MEDTAME_CHAT_KEY", "MEDTAME_CHAT_ALLOW_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Served | str], None]:
    def set_url(server: Served | str) -> None:
        monkeypatch.setenv("MEDTAME_CHAT_URL", server if isinstance(server, str) else server.url)

    return set_url


@pytest.fixture(scope="module")
def good() -> Iterator[Served]:
    """A server without a fault, shared."""
    with served() as server:
        yield server


def fitted(n: int = 6, **settings: Any) -> Run:
    train = pictures(n, "train")
    return path.fitted(train, Classification().settled(train), ChatModel(**{**QUICK, **settings}), tiny_encoder(), seed=1)


def said(run: Run, n: int = 6) -> list[Any]:
    return [row["prediction"] for row in run.predict(pictures(n)).table]


def wrong(run: Run, n: int = 6) -> str:
    with pytest.raises(ChatError) as caught:
        run.predict(pictures(n))
    assert "\n" not in str(caught.value)
    for secret in ("127.0.0.1", "localhost", "://", KEY):
        assert secret not in str(caught.value)
    return str(caught.value)


TRUTH = [list(GREYS)[i % 3] for i in range(6)]


# ---- what is sent and what is read ----------------------------------------------------------------------------


def test_each_row_gets_the_answer_of_its_own_image_in_order(at: Any) -> None:
    with served() as server:
        at(server)
        run, test = fitted(parallel=4), pictures(12)
        order = np.random.default_rng(0).permutation(12)
        assert [row["prediction"] for row in run.predict(test.take(order)).table] == [test.column("label")[i] for i in order]
        seen = server.seen()
    means = sorted(float(picture.array().mean()) for picture in test.pictures())
    assert np.allclose(sorted(one["grey"] for one in seen), means, atol=0.003), "the pixels that arrived are those of the images"
    assert {one["path"] for one in seen} == {"/v1/chat/completions"}
    assert {one["model"] for one in seen} == {"grey"}
    assert all("A) black\nB) grey\nC) white" in one["words"] for one in seen)
    assert not any("secret-name" in one["words"] for one in seen)


def test_logits_claim_no_confidence(at: Any, good: Served) -> None:
    at(good)
    run = fitted()
    found = run.answer(run.query(pictures(3)))
    assert isinstance(found, Scores)
    assert found.values.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_row_asks_only_about_what_it_may_take(at: Any) -> None:
    with served() as server:
        at(server)
        run = fitted()
        query = replace(run.query(pictures(3).take([0, 2])), allowed=np.array([[False, True, True]] * 2))
        found = run.answer(query)
        assert "A) grey\nB) white" in server.seen()[0]["words"]
    assert isinstance(found, Scores)
    assert found.values.argmax(1).tolist() == [1, 2], "black is the nearer to grey where black is not offered"
    assert (found.values[:, 0] == -1e4).all()


def test_several_labels_and_texts(at: Any) -> None:
    train = pictures(6, "train")
    several = train.replaced(labels=["black", "black|grey", "none"] * 2)
    with served() as server:
        at(server)
        run = path.fitted(several, Findings().settled(several), ChatModel(**QUICK), tiny_encoder())
        assert [row["prediction"] for row in run.predict(pictures(3)).table] == ["", "black", "black|grey"]
        reports = train.replaced(findings=["clear lungs"] * 6)
        run = path.fitted(reports, ReportGeneration(), ChatModel(**QUICK), tiny_encoder())
        texts = said(run, 3)
    wanted = [round(float(np.round(picture.array() * 255).mean())) for picture in pictures(3).pictures()]
    assert texts == [f"The mean grey is {mean}." for mean in wanted]


def test_examples_are_earlier_turns_balanced_seeded_and_kept_in_the_run(at: Any, tmp_path: Path) -> None:
    """The server answers as the example of the nearest grey does: with wrong labels at fit it says the wrong ones."""
    train = pictures(9, "train")
    turned = train.replaced(label=[{"black": "white", "grey": "black", "white": "grey"}[label] for label in train.column("label")])
    run = path.fitted(turned, Classification().settled(turned), ChatModel(**{**QUICK, "examples": 3}), tiny_encoder(), seed=5)
    again = path.fitted(turned, Classification().settled(turned), ChatModel(**{**QUICK, "examples": 3}), tiny_encoder(), seed=6)
    adapted, other = run.adapted, again.adapted
    assert sorted(adapted.example_answers) == ["A) black", "B) grey", "C) white"]  # type: ignore[attr-defined]
    means = [[float(image.float().mean()) for image in one.example_images] for one in (adapted, other)]  # type: ignore[attr-defined]
    assert means[0] != means[1], "another seed, other examples"
    run.save(tmp_path / "run")
    opened = path.open(tmp_path / "run", lambda spec: tiny_encoder())
    with served() as server:
        at(server)
        assert said(opened, 3) == ["white", "black", "grey"]
        assert {one["turns"] for one in server.seen()} == {7}


def test_examples_of_questions_texts_and_findings_say_what_is_true_of_them() -> None:
    train = pictures(6, "train")

    def answers(task: Any, samples: Any) -> list[tuple[str, str]]:
        run = path.fitted(samples, task.settled(samples), ChatModel(**QUICK, examples=6), tiny_encoder(), seed=2)
        found: Any = run.adapted
        return sorted(zip(found.example_answers, found.example_prompts, strict=True))

    asked = ["is it black", "what is it", "is it white"] * 2
    said = answers(VisualQuestionAnswering(), train.replaced(question=asked, answer=["yes", "grey", "no"] * 2))
    assert len(said) == 6
    assert {(answer.partition(" ")[2], prompt.splitlines()[0]) for answer, prompt in said} == {
        ("yes", "is it black"),
        ("grey", "what is it"),
        ("no", "is it white"),
    }
    said = answers(ReportGeneration(), train.replaced(findings=[f"report {i}" for i in range(6)]))
    assert [answer for answer, _ in said] == [f"report {i}" for i in range(6)]
    said = answers(Findings(), train.replaced(labels=["black", "black|grey", "none"] * 2))
    assert [answer for answer, _ in said] == ["A) black"] * 2 + ["A) black\nB) grey"] * 2 + ["none"] * 2
    shared = replace(train, groups=np.repeat(["one", "two", "three"], 2))
    said = answers(ImageTextRetrieval(), shared.replaced(text=[f"text {i}" for i in range(6)]))
    assert [answer.partition(" ")[2] for answer, _ in said] == ["text 0"] * 2 + ["text 2"] * 2 + ["text 4"] * 2


def test_prompts_are_what_the_model_reads_and_template_and_size_are_kept_to(at: Any) -> None:
    train = pictures(6, "train")
    task = Classification(prompts={"black": ("aaa dark",), "grey": ("bbb middle",), "white": ("ccc bright",)}).settled(train)
    method = ChatModel(**{**QUICK, "template": "Look: {question}\n{options}", "longest_side": 16})
    run = path.fitted(train, task, method, tiny_encoder())
    with served() as server:
        at(server)
        assert said(run) == TRUTH
        assert server.seen()[0]["words"] == "Look: What does this medical image show?\nA) aaa dark\nB) bbb middle\nC) ccc bright"


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"model": ""}, "model=NAME"), ({"model": "http://a/b"}, "model=NAME"), ({"template": "which?"}, "{options}")],
)
def test_settings_that_cannot_be_asked_with(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        fitted(**settings)


def test_regions_are_not_asked_about_one_by_one_and_examples_need_labels(at: Any) -> None:
    with pytest.raises(PairError, match="whole_images"):
        path.meet(path.catalogue.build(path.catalogue.TASKS, "segmentation"), ChatModel())
    train = pictures(6, "train")
    task = Classification().settled(train)
    with pytest.raises(DataError, match="none of 6 support rows has an answer"):
        path.fitted(train.replaced(label=[None] * 6), task, ChatModel(**{**QUICK, "examples": 2}), tiny_encoder())


# ---- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "filter", "I am sorry, I cannot say.", "white or grey", "not white", "purple", ""])
def test_a_refusal_and_an_answer_without_one_class_is_nan_counted_and_never_a_class(at: Any, fault: str) -> None:
    with served(fault or "nothing said", first=1, count=2) as server:
        at(server)
        run = fitted(parallel=1)
        found = run.predict(pictures(6))
        assert [row["prediction"] for row in found.table] == [TRUTH[0], "refused", "refused", *TRUTH[3:]]
        assert [row["warning"] for row in found.table] == ["", "no answer", "no answer", "", "", ""]
        assert np.isnan(found.arrays["scores"]).all(1).tolist() == [False, True, True, False, False, False]
        assert run.measure(pictures(6))["balanced_accuracy"].value() == pytest.approx((1 + 0.5 + 0.5) / 3)
        assert run.measure(pictures(6))["accuracy"].value() == pytest.approx(4 / 6)
        assert len(server.seen()) == 6, "a refusal is an answer: it is kept and not asked for again"


# ---- failures of the server -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("slow", "no answer within 1 s (1 try)"),
        ("hang", "no answer within 1 s (1 try)"),
        ("drip", "no answer within 1 s (1 try)"),
        ("500", "error of its own, status 500 (2 tries)"),
        ("429", "asked too often (2 tries)"),
        ("429-long", "asked too often (1 try, and it asks to wait 3600 s)"),
        ("broken", "sent a reply that is no chat answer (2 tries)"),
        ("disconnect", "broke off in the middle of an answer (2 tries)"),
        ("401", "another key, status 401"),
        ("404", "no such model or path, status 404"),
        ("418", "refuses the request, status 418"),
        ("redirect", "redirects to another address, which is not followed"),
    ],
)
def test_a_failure_is_one_line_and_what_was_answered_is_kept(
    at: Any, good: Served, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv("MEDTAME_CHAT_KEY", KEY)
    before = len(good.seen())
    run = fitted(parallel=1, **({"timeout_seconds": 1.0, "retries": 0} if fault in LATE else {}))
    with served(fault, first=3, count=EVERY, to=good.url) as server:
        at(server)
        assert words in wrong(run)
        assert {one["key"] for one in server.seen()} == {f"Bearer {KEY}"}
    assert len(good.seen()) == before, "a redirect was followed"
    at(good)
    assert said(run) == TRUTH
    assert len(good.seen()) == before + 3, "the three rows that were answered before are not asked again"


@pytest.mark.parametrize("fault", ["429", "500", "broken", "disconnect", "slow"])
def test_a_passing_failure_is_tried_again(at: Any, fault: str) -> None:
    with served(fault, first=1, count=1) as server:
        at(server)
        assert said(fitted(parallel=1, **({"timeout_seconds": 1.0} if fault in LATE else {}))) == TRUTH
        assert len(server.seen()) == 7


def test_a_failure_among_parallel_requests_keeps_the_others(at: Any) -> None:
    with served("401", first=2, count=1) as server:
        at(server)
        run = fitted(parallel=3)
        assert "another key" in wrong(run)
        asked = len(server.seen())
        assert said(run) == TRUTH
        assert len(server.seen()) == 7, f"{asked} were asked before"


def test_nobody_listens_and_everything_known_needs_no_server(at: Any, good: Served) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at(f"http://127.0.0.1:{port}")
    run = fitted()
    assert "cannot be reached (2 tries): start it" in wrong(run)
    at(good)
    assert said(run) == TRUTH
    at(f"http://127.0.0.1:{port}")
    assert said(run) == TRUTH


def test_the_same_image_twice_is_asked_once_and_other_settings_are_asked_anew(at: Any) -> None:
    with served() as server:
        at(server)
        test = pictures(3).take([0, 1, 0, 0, 2])
        assert [row["prediction"] for row in fitted().predict(test).table] == ["black", "grey", "black", "black", "white"]
        assert len(server.seen()) == 3
        for changes in ({"model": "other"}, {"most_tokens": 9}, {"longest_side": 100}, {"examples": 3}):
            before = len(server.seen())
            said(fitted(**changes), 3)
            assert len(server.seen()) == before + 3, changes


def test_a_damaged_cache_is_made_again(at: Any, good: Served, cache: Path) -> None:
    at(good)
    assert said(fitted()) == TRUTH
    (cache / "answers.sqlite").write_bytes(b"no database at all" * 100)
    assert said(fitted()) == TRUTH
    assert AnswerStore().keep("00" * 32, "kept")
    assert AnswerStore().read(["00" * 32, "11" * 32]) == {"00" * 32: "kept"}


# ---- addresses ------------------------------------------------------------------------------------------------


def test_no_server_is_one_line_that_says_how_to_name_one() -> None:
    assert "--chat-url" in wrong(fitted())


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/v1", "https://example.org", "http://127.0.0.1.example.org", "http://0.0.0.0:1", "http://[2001:db8::1]"]
)
def test_a_host_elsewhere_is_refused_before_a_byte_is_sent(at: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    def called(*given: Any, **more: Any) -> Any:
        pytest.fail("a connection was tried")

    at(url)
    run = fitted()
    monkeypatch.setattr(socket.socket, "connect", called)
    monkeypatch.setattr(socket, "getaddrinfo", called)
    monkeypatch.setattr(socket, "create_connection", called)
    assert "not on this machine, so images would leave it: add --allow-remote" in wrong(run)


def test_a_host_elsewhere_may_be_allowed(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTAME_CHAT_ALLOW_REMOTE", "1")
    at("https://models.example.org/api/v1/")
    server = from_environment()
    assert (server.address, server.local) == ("https://models.example.org/api/v1/chat/completions", False)
    assert "example" not in repr(server)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1/v1?key=1", "http://me:pass@127.0.0.1", "http://127.0.0.1:x"]
)
def test_an_address_that_is_none(at: Any, url: str) -> None:
    at(url)
    with pytest.raises(ChatError, match="--chat-url") as caught:
        from_environment()
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("127.1", False),
    ],
)
def test_what_this_machine_is(host: str, here: bool) -> None:
    assert loopback(host) is here


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as proxy, served() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        at(server)
        assert said(fitted()) == TRUTH
        assert not proxy.seen()


def test_address_key_and_names_are_in_no_file_and_no_log(
    at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDTAME_CHAT_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with served("500", first=4, count=EVERY) as server:
        at(server)
        run = fitted(examples=2)
        with pytest.raises(MedtameError) as caught:
            run.predict(pictures(6))
        run.predict(pictures(3))
        run.save(tmp_path / "run")
        secrets = [KEY, "127.0.0.1", str(server.port), "secret-name", "patient-"]
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in kept} >= {"config.json", "weights.safetensors", "answers.sqlite"}
    for secret in secrets:
        assert secret not in caplog.text + str(caught.value) + repr(run.adapted)
        assert not [file for file in kept if secret.encode() in file.read_bytes() or secret in str(file.relative_to(tmp_path))], secret
