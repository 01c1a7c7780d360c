import numpy as np
import pytest

from doubles import tiny_encoder
from medtame import catalogue
from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples
from medtame.errors import DataError, PairError
from medtame.metrics.text import findings_in
from medtame.tasks.report_generation import ReportGeneration, shipped
from medtame.types import Predicted, Scores, Texts

TRUTH = ["There is a large tumour on the right.", "No focal lesion is seen.", "A small haemorrhage of the left hemisphere."]


def samples(texts=TRUTH) -> ManifestSamples:
    images = [ArrayPicture(np.full((32, 32), 0.5), f"image-{i}") for i in range(len(texts))]
    return ManifestSamples({"image": images, "findings": list(texts)}, np.arange(len(texts)))


def frame(**settings):
    return ReportGeneration(**settings).frame(samples(), "texts")


def measured(said, truth=TRUTH, **settings) -> dict[str, float]:
    found = frame(**settings).measure(Predicted(table=[{"prediction": text} for text in said]), samples(truth))
    return {name: statistic.value() for name, statistic in found.items()}


def test_the_problem_is_images_and_their_findings():
    problem = frame().problem(samples(), tiny_encoder(), 3)
    assert problem.targets == TRUTH
    assert (problem.query.wants, problem.query.words, problem.seed) == ("texts", None, 3)
    with pytest.raises(DataError, match="may not see 'findings'"):
        problem.query.samples.column("findings")


def test_true_reports_score_one_and_nothing_is_made_up_or_left_out():
    found = measured(TRUTH)
    assert list(found) == ["finding_f1", "hallucination_rate", "omission_rate", "bleu4", "rouge_l"]
    assert (found["finding_f1"], found["hallucination_rate"], found["omission_rate"]) == (1, 0, 0)
    assert found["bleu4"] == pytest.approx(100)
    assert found["rouge_l"] == pytest.approx(1)


def test_findings_are_counted_over_all_reports():
    """True: tumour, right; none; haemorrhage, left. Said: tumour, left; infarct, right; nothing."""
    found = measured(["A tumour on the left.", "An infarct on the right.", "The brain is unremarkable."])
    assert found["finding_f1"] == pytest.approx(2 * 1 / (4 + 4))
    assert found["hallucination_rate"] == pytest.approx(3 / 4)
    assert found["omission_rate"] == pytest.approx(3 / 4)


def test_a_vocabulary_of_one_s_own_counts_instead():
    found = measured(["large", "none", "small"], vocabulary={"size": ["large", "small"]})
    assert found["finding_f1"] == 1


def test_a_text_is_read_with_its_findings():
    query = frame().query(samples().only(["image"]), tiny_encoder())
    table = frame().read(query, Texts(["A tumour on the left, no infarct.", "", "fine"])).table
    assert table[0] == {"image": "image-0", "prediction": "A tumour on the left, no infarct.", "findings": "left|tumour", "warning": ""}
    assert [row["warning"] for row in table] == ["", "no answer", ""]
    with pytest.raises(PairError, match="reads texts"):
        frame().read(query, Scores(np.zeros((3, 2))))


def test_words_are_refused():
    with pytest.raises(DataError, match="asks no question"):
        frame().query(samples(), tiny_encoder(), ["what is it"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("There is a large ring-enhancing mass in the right cerebral hemisphere, in keeping with a tumour.", {"tumour", "right"}),
        ("Left-sided scattered white matter lesions with a small overall load.", {"white matter lesions", "left"}),
        ("No tumour, haemorrhage or infarct is seen. The ventricles are of normal width.", set()),
        ("Low signal in keeping with a large infarct of the left hemisphere.", {"infarct", "left"}),
        ("The heart is enlarged. Small bilateral pleural effusions. No pneumothorax.", {"cardiomegaly", "pleural effusion", "both sides"}),
        ("Patchy opacities with consolidation in the left lower lobe; pulmonary edema.", {"opacity", "consolidation", "left", "oedema"}),
        ("Normal appearance of the brain.", set()),
    ],
)
def test_the_shipped_vocabulary_reads_reports(text, said):
    assert findings_in(text, shipped()) == said


def test_no_wording_belongs_to_two_findings():
    wordings = [wording for each in shipped().values() for wording in each]
    assert len(wordings) == len(set(wordings))
    assert all(wording == wording.lower() for wording in wordings)


def test_settings():
    built = catalogue.build(catalogue.TASKS, "report_generation", {"vocabulary": {"mass": ["mass", "lump"]}})
    assert built.frame(samples(), "texts").vocabulary == {"mass": ["mass", "lump"]}
    with pytest.raises(DataError, match="'findings'"):
        ReportGeneration().usable(samples().only(["image"]))
