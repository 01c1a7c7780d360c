"""Several findings an image: each a yes-or-no problem with a positive and a negative prompt; macro AUROC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from doubles import disc, tiny_encoder
from medtame import run as path
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.run import answer, fitted
from medtame.strategies.base import zero_shot_logits
from medtame.strategies.direct_use.zero_shot import ZeroShot
from medtame.strategies.tuning.clap import Clap
from medtame.strategies.tuning.linear_probe import LinearProbe
from medtame.tasks.classification import Classification, Findings, findings_of, truth_of
from medtame.trust.controls import reworded
from medtame.types import Candidates, Scores


def pictures(n: int, seed: int) -> ManifestSamples:
    """Images with a bright disc on the left, a dark one on the right, both, or neither."""
    random = np.random.default_rng(seed)
    images, labels = [], []
    for i in range(n):
        bright, dark = i % 2 == 0, i // 2 % 2 == 0
        first = disc("bright" if bright else "nothing", "left", random)[0]
        second = disc("dark" if dark else "nothing", "right", random)[0]
        images.append(ArrayPicture(np.clip(first + second - 0.5, 0, 1).astype(np.float32), f"image-{i}"))
        found = [name for name, there in (("a bright disc", bright), ("a dark disc", dark)) if there]
        labels.append("|".join(found) or "No finding")
    return ManifestSamples({"image": images, "labels": labels}, np.arange(n).astype(str))


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def task():
    train = pictures(24, 0)
    return Classification().settled(Classification().usable(train))


def test_cells_are_split_and_words_for_nothing_are_no_finding():
    assert findings_of("effusion | nodule") == ("effusion", "nodule")
    assert findings_of("No Finding") == ()
    assert findings_of(None) is None


def test_the_task_turns_to_findings_and_keeps_its_settings(task):
    assert isinstance(task, Findings)
    assert task.learnt == ("a bright disc", "a dark disc")
    asked = Classification(prompts={"a dark disc": ("a black spot",)}, slices=2)
    found = asked.settled(asked.usable(pictures(8, 1)))
    assert (found.prompts, found.slices) == (asked.prompts, 2)
    with pytest.raises(DataError, match="'a blue disc' is no finding"):
        replace(asked, prompts={"a blue disc": ("x",)}).settled(pictures(8, 1))


def test_truth_has_ones_zeros_and_the_unknown():
    samples = pictures(4, 0).replaced(labels=["a|b", "no finding", None, "b"])
    np.testing.assert_array_equal(truth_of(samples, ("a", "b")), [[1, 1], [0, 0], [np.nan, np.nan], [0, 1]])
    with pytest.raises(DataError, match="'c' is not among the findings"):
        truth_of(samples.replaced(labels=["c"] * 4), ("a", "b"))


def test_zero_shot_ranks_as_the_softmax_over_the_pair_does(task, encoder):
    test = pictures(16, 3)
    frame = task.frame(pictures(24, 0), "scores")
    query = frame.query(test.only(("image",)), encoder)
    logits = zero_shot_logits(query)
    image = encoder.whole(test)
    for k, name in enumerate(frame.names):
        mean = [torch.nn.functional.normalize(encoder.texts(words).mean(0), dim=0) for words in (frame.prompts[k], frame.negatives[k])]
        pair = (encoder.scale * image @ torch.stack(mean).T).softmax(1)[:, 0]
        assert torch.equal(pair.argsort(), logits[:, k].argsort()), name


def test_a_probe_learns_both_findings_and_not_shuffled_ones(task, encoder):
    train, test = pictures(40, 0), pictures(40, 3)
    found = fitted(train, task, LinearProbe(), encoder).measure(test)
    assert found["macro_auroc"].value() > 0.95
    said = fitted(train, task, LinearProbe(), encoder).predict(test)
    truth = truth_of(test, task.learnt)
    slow = np.mean([roc_auc_score(truth[:, k], said.arrays["scores"][:, k]) for k in range(2)])
    assert found["macro_auroc"].value() == pytest.approx(slow, abs=1e-9)
    row = said.table[0]
    assert set(row["prediction"].split("|")) - {""} == {name for name in task.learnt if row[f"score_{name}"] > 0.5}
    chance = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(40)
        wrong = train.replaced(labels=[train.column("labels")[i] for i in order])
        chance.append(fitted(wrong, task, LinearProbe(), encoder).measure(test)["macro_auroc"].value())
    assert abs(np.mean(chance) - 0.5) < 0.25


def test_clap_starts_at_zero_shot_but_for_a_threshold_a_finding(task, encoder):
    train, test = pictures(24, 0), pictures(8, 3)
    still, plain = (fitted(train, task, method, encoder) for method in (Clap(steps=0), ZeroShot()))
    first, second = (answer(run.adapted, run.query(test), "row") for run in (still, plain))
    assert isinstance(first, Scores)
    assert isinstance(second, Scores)
    shift = first.values - second.values
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-4, rtol=0)


def test_a_method_that_needs_one_label_is_refused_by_name(task):
    class OneLabel(LinearProbe):
        needs = frozenset({"labels", "one_label"})

    with pytest.raises(PairError, match=r"the method needs one_label of the task.*zero_shot"):
        path.meet(task, OneLabel())
    assert path.meet(Classification(), OneLabel()) == "scores"


def test_a_row_is_drawn_for_its_rarest_finding():
    samples = pictures(5, 0).replaced(labels=["a", "a|b", "normal", None, "a"])
    assert Findings().strata(samples).tolist() == ["a", "b", "none", None, "a"]


def test_controls_change_both_wordings(task, encoder):
    query = task.frame(pictures(24, 0), "scores").query(pictures(4, 1).only(("image",)), encoder)
    for arm in ("constant_text", "random_text", "shuffled_text", "paraphrased_text", "held_out_text"):
        changed = reworded(query, arm).wanted
        assert changed.negatives is not None
        assert changed.prompts != query.wanted.prompts
        assert changed.negatives != query.wanted.negatives
    assert reworded(query, "constant_text").texts().abs().max() == 0  # nothing is left of the words


def test_negatives_are_for_candidates_of_which_several_may_hold():
    with pytest.raises(DataError, match="several may hold"):
        Candidates(names=("a",), prompts=(("a",),), negatives=(("no a",),))
