from collections import Counter

import numpy as np
import pytest

from doubles import tiny_encoder
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError
from medtame.strategies.baselines.constant_report import ConstantReport, medoid, numbered_words
from medtame.tasks.report_generation import ReportGeneration

WORDS = ("no", "effusion", "seen", "the", "heart", "is", "normal", "left", "opacity")


def token_f1(one: str, other: str) -> float:
    a, b = Counter(one.lower().split()), Counter(other.lower().split())
    total = sum(a.values()) + sum(b.values())
    return 2 * sum((a & b).values()) / total if total else 0.0


def texts(n: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, 9))) for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_the_medoid_has_the_largest_mean_token_f1_to_the_others(seed):
    given = [*texts(12, seed), *texts(3, seed)]
    means = [np.mean([token_f1(text, other) for k, other in enumerate(given) if k != i]) for i, text in enumerate(given) if text]
    mine = np.mean([token_f1(given[medoid(given)], other) for k, other in enumerate(given) if k != medoid(given)])
    assert mine == pytest.approx(max(means), abs=1e-9)


def test_repeated_words_count_as_often_as_they_stand_there():
    assert numbered_words("No no effusion") == ["no 1", "no 2", "effusion 1"]


def test_every_image_gets_the_same_report():
    findings = ["the heart is normal", "the heart is large", "an opacity", "the heart is normal ."]
    grey = ArrayPicture(np.full((32, 32), 0.5), "grey")
    samples = ManifestSamples({"image": [grey] * 4, "findings": findings}, np.arange(4))
    frame = ReportGeneration().frame(samples, "texts")
    adapted = ConstantReport().fit(frame.problem(samples, tiny_encoder(), 0))
    assert adapted.answer(frame.query(samples.only(["image"]), tiny_encoder())).values == ["the heart is normal"] * 4


def test_reports_without_words_are_refused():
    samples = ManifestSamples({"image": [ArrayPicture(np.full((32, 32), 0.5), "grey")] * 2, "findings": [" ", ""]}, np.arange(2))
    frame = ReportGeneration().frame(samples, "texts")
    with pytest.raises(DataError, match="all 2 support texts are empty"):
        ConstantReport().fit(frame.problem(samples, tiny_encoder(), 0))
