"""The report of a comparison: one HTML file that needs nothing else, no network and no script, and that prints well.

Rows are named by their number, unless names were asked for when the record was made. Thumbnails show the pixels as they are, with
whatever is burnt into them: whoever passes the file on passes them on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from medtame.report import figure_page, plots
from medtame.report.parts import Measured
from medtame.report.record import (
    Control,
    PartOfData,
    Record,
    Row,
    beats,
    bracket,
    decimals,
    engine_sentence,
    number,
    p_words,
    tone,
    verdict,
    write_file,
)
from medtame.trust.controls import ARMS

METRICS = {
    "balanced_accuracy": "mean over classes of the share of their images that are answered right; chance is one over the number of classes",
    "accuracy": "share of rows that are answered right",
    "macro_auroc": "area under the ROC curve of each class against the rest, averaged over classes; chance is 0.5",
    "ece": "expected calibration error: how far confidence is from the share right, in 15 bins of equal mass, debiased; lower is better",
    "brier": "mean squared distance of the probabilities from the truth; lower is better",
    "dice": "overlap of mask and truth: twice the intersection over the sum of both areas",
    "iou": "overlap of mask and truth: intersection over union",
    "hd95_mm": "95th percentile of the distances between the two surfaces, in millimetres; lower is better",
    "hd95_pixels": "95th percentile of the distances between the two surfaces, in pixels (spacing unknown); lower is better",
    "surface_dice": "share of both surfaces that lie within the tolerance of one another",
    "instance_f1": "F1 of found objects, matched at an overlap of 0.5",
    "panoptic_quality": "F1 of found objects times the mean overlap of those matched",
    "ap": "average precision of boxes (COCO), averaged over classes and overlaps of 0.50 to 0.95; up to 100 boxes of a class an image, "
    "or twice the most objects of a class where an image has more than 100; an object that nobody marked counts as a wrong box",
    "ap50": "average precision of boxes (COCO) at an overlap of 0.5",
    "ar": "share of objects found, averaged over classes and over overlaps of 0.50 to 0.95",
    "froc": "share of objects found at an overlap of 0.5, averaged over 1/8, 1/4, 1/2, 1, 2, 4 and 8 wrong boxes of a class an image",
    "count_error": "how many objects of a class too many or too few are counted in an image, on average; lower is better",
    "image_auroc": "area under the ROC curve of abnormal against normal images; chance is 0.5",
    "image_ap": "average precision of abnormal against normal images",
    "pixel_ap": "average precision of abnormal pixels",
    "pixel_pro": "overlap a region, averaged over false positive rates up to 0.3",
    "finding_f1": "F1 of the findings named in a report",
    "hallucination_rate": "share of named findings that are not there; lower is better",
    "omission_rate": "share of findings there that are not named; lower is better",
    "bleu4": "overlap of words in runs of up to four with the reference text",
    "rouge_l": "longest common run of words with the reference text",
    "closed_accuracy": "share of yes-or-no questions that are answered right",
    "open_exact_match": "share of open questions whose answer is the reference word for word",
    "token_f1": "F1 of the words of an answer",
    "visual_reliance": "accuracy less accuracy with the images of other patients",
    "paraphrase_consistency": "share of paraphrases of a question that got the same answer",
    "accuracy_of_surest_half": "accuracy when the half of the answers that are least sure is held back",
    "recall_at_1": "share of queries whose partner is ranked first",
    "recall_at_5": "share of queries whose partner is among the first five",
    "recall_at_10": "share of queries whose partner is among the first ten",
    "median_rank": "median rank of the partner; lower is better",
    "mrr": "mean of one over the rank of the partner",
    "ndcg": "normalised discounted cumulative gain",
    "precision_at_10": "share of the first ten that are relevant",
    "kid": "kernel distance between features of made and real images; lower is better",
    "frechet_distance": "Fréchet distance between features of made and real images; lower is better",
    "train_synthetic_test_real": "score on real images of a probe that learnt from made ones",
    "prompt_agreement": "share of made images that are recognised as what was asked for",
    "ms_ssim": "similarity among made images; high values mean little variety",
    "psnr_db": "peak signal-to-noise ratio, in decibels",
    "ssim": "structural similarity with the original",
    "data_consistency_db": "agreement with the given image after shrinking the answer, in decibels",
    "target_registration_error": "mean distance of landmarks after registration; lower is better",
    "relative_target_registration_error": "the same over the diagonal of the image; lower is better",
    "folding_percent": "percent of the field that folds onto itself; lower is better",
    "log_jacobian_sd": "spread of the local change of volume; lower is smoother",
    "relative_gain": "mean relative gain over each task learnt alone",
}
LISTED = 20  # classes of the table of parts
SUFFIXES = ("_image_to_text", "_text_to_image")


def write(record: Record, path: Path) -> None:
    """Write the report; the file appears whole or not at all."""
    write_file(path, page(record))


def page(record: Record) -> str:
    """The whole page as well-formed text: the same record gives the same bytes."""
    blocks = [block(record, metric) for metric in dict.fromkeys(row.metric for row in record.rows)]
    found = record.details.figures
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            details=record.details,
            protocol=record.details.protocol,
            headline=headline(record),
            blocks=blocks,
            tested=any(p is not None for row in record.rows for p in (row.gain_p_holm, row.gain_over_probe_p_holm)),
            figures=None if found is None else figure_page.page(found, places(record, blocks), calibration(record)),
            numbered=any(one.image.startswith("row ") for one in (*record.details.worst_cases, *record.details.best_cases)),
            arms={arm.name: arm for arm in ARMS},
            definitions={name: definition(name) for name in measured_names(record) if "/" not in name},
            columns={name: metric_column(record, name) for name in metric_names(record) if "/" not in name},
            by_part={name: metric_column(record, name) for name in metric_names(record) if "/" in name},
        )
    )


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("medtame.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "words": plots.words, "shots": shots_words, "unbroken": unbroken, "breakable": breakable}
    made.globals |= {"part_classes": part_classes, "rest_of": rest_of, "engine_sentence": engine_sentence}
    made.globals |= {"bracket": bracket, "decimals": decimals, "verdict": verdict, "tone": tone}
    made.globals |= {"beats": beats, "p_words": p_words}
    return made


def places(record: Record, blocks: Sequence[Block]) -> dict[str, int]:
    """The number of each method's colour, the same in all figures."""
    named = blocks[0].places if blocks else {}
    spec = record.details.encoder.spec
    return {row.method: named[title] for row in record.rows for title in (row.method, f"{row.method} · {spec}") if title in named}


def calibration(record: Record) -> dict[str, Measured]:
    """Calibration error by the name in the reliability figures; one that is of no method is of the run with its temperature."""
    found = {method: found["ece"] for method, found in record.details.metrics.items() if "ece" in found}
    heat, drawn = record.details.temperature, record.details.figures
    if heat is not None and drawn is not None and "ece" in heat.metrics:
        found |= {one.method: heat.metrics["ece"].after for one in drawn.reliability if one.method not in record.details.metrics}
    return found


def part_classes(parts: Sequence[PartOfData]) -> list[str]:
    """The classes of all parts, those with most rows first where they are too many to list."""
    names = list(dict.fromkeys(name for part in parts for name in part.classes))
    rows = {name: sum(part.classes.get(name, 0) for part in parts) for name in names}
    return names if len(names) <= LISTED else sorted(names, key=lambda name: -rows[name])


def rest_of(part: PartOfData, names: Sequence[str]) -> int:
    return sum(part.classes.get(name, 0) for name in names)


def unbroken(text: str) -> str:
    """The text with its intervals kept on one line."""
    return re.sub(r"(\[[^ \]]+) ", "\\1\u00a0", text)


def breakable(name: str) -> Markup:
    """A name that a narrow page may break after its underscores."""
    return Markup("_<wbr />").join(name.split("_"))


# ---- the answer in words --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """One question with its answer; the tone (better, worse, none, unknown) is that of its interval."""

    question: str
    answer: str
    tone: str


@dataclass(frozen=True)
class Headline:
    """The answer in one sentence, and the same by question."""

    sentence: str
    cards: list[Card]


def headline(record: Record) -> Headline:
    """What the numbers say of the best method at the largest number of shots. Nothing is claimed that its interval does not hold."""
    details, last = record.details, final_row(record)
    if last is None:
        return Headline("No method could be compared.", [])
    digits = decimals(last.mean, last.low, last.high)
    over = [(details.start, last.gain, last.gain_low, last.gain_high, "")]
    if details.plain != details.start:
        over.append((details.plain, last.gain_over_probe, last.gain_over_probe_low, last.gain_over_probe_high, "the plain "))
    said, cards = [], []
    for name, gain, low, high, kind in over:
        if not name:
            continue
        question = f"Does adaptation help over {kind}{name}?"
        if last.method == name:
            cards.append(Card(question, f"{name} itself was chosen: no other method was preferred", "none"))
            said.append(f"it is {kind or 'the reference '}{name} itself")
            continue
        cards.append(Card(question, verdict(gain, low, high, digits), tone(low, high)))
        said.append(f"{stated(cards[-1])} over {kind}{name}")
    text, clause = text_answer(record, digits)
    start = f"{shots_words(last.shots, 'With ')}, {last.method} reaches {plots.words(last.metric)} {number(last.mean, digits)}"
    return Headline(f"{start}; {'; '.join([*said, clause])}.", [*cards, text])


def stated(card: Card) -> str:
    return f"it {'shows ' if card.tone == 'none' else 'was ' if card.tone == 'unknown' else ''}{card.answer}"


def text_answer(record: Record, digits: int) -> tuple[Card, str]:
    """Does the text matter: the weakest of the controls that were fitted again with other words decides."""
    question = "Does the text matter?"
    refit = {arm.name for arm in ARMS if arm.changes in ("words", "findings") and arm.when == "refit"}
    found = [control for control in record.controls if control.arm in refit and control.difference_low is not None]
    if any("reads no words" in control.verdict for control in record.controls):
        return Card(question, "this method reads no words", "unknown"), "it reads no words"
    if not found:
        return Card(question, record.details.controls_note or "not tested", "unknown"), "whether the text matters was not tested"
    weakest = min(found, key=lambda control: control.difference_low or 0.0)
    measured = weakest.difference, weakest.difference_low, weakest.difference_high
    answer, said = verdict(*measured, digits, of=" of the text"), tone(*measured[1:])
    return Card(question, answer, said), f"there is {answer}" if said == "none" else f"the text {answer}"


def final_row(record: Record) -> Row | None:
    """The best method at its largest number of shots, on the encoder that the details name where there are several."""
    rows = [row for row in record.rows if row.method == record.best]
    rows = [row for row in rows if row.encoder == record.details.encoder.spec] or rows
    return max(rows, key=lambda row: order(row.shots), default=None)


def order(shots: int | str) -> float:
    return float("inf") if shots == "all" else float(shots)


def shots_words(shots: int | str, start: str = "") -> str:
    """1 shot, 16 shots, all training rows."""
    name = "all training rows" if shots == "all" else "no shots" if shots == 0 else "1 shot" if shots == 1 else f"{shots} shots"
    return start + name


# ---- the tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One method (on one encoder) of the main table: its rows by shots, the last of them, and what it is."""

    title: str
    cells: Mapping[int | str, Row]
    last: Row
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """All that was measured with one metric: the main table, best first, and its figures."""

    metric: str
    shots: Sequence[int | str]
    digits: int
    gain_digits: int
    lines: list[Line]
    places: Mapping[str, int]
    curves: Markup | None
    dots: Markup | None


def block(record: Record, metric: str) -> Block:
    rows = [row for row in record.rows if row.metric == metric]
    shots = sorted({row.shots for row in rows}, key=order)
    lines = [line(record, rows, key) for key in dict.fromkeys((row.method, row.encoder) for row in rows)]
    sign = 1 if record.details.protocol.lower_is_better else -1
    lines.sort(key=lambda one: (one.last.mean is None, sign * (one.last.mean or 0.0), one.title))
    digits = decimals(*(value for row in rows for value in (row.mean, row.low, row.high)))
    gains = (value for row in rows for value in (row.gain, row.gain_low, row.gain_high, row.gain_over_probe_low, row.gain_over_probe_high))
    named = sorted(lines, key=lambda one: importance(record, one))  # the first of them get a colour
    told = {record.best, record.details.start, record.details.plain}
    shown = [one for one in named if any(row.mean is not None for row in one.cells.values())]
    series = [curve(one, many=len(shots) > 1, banded=one.last.method in told) for one in shown]
    names = [str(k) for k in shots]
    curves = Markup(plots.few_shot_curves(series, names, metric)) if series and len(shots) > 1 else None
    lower = record.details.protocol.lower_is_better
    dots = Markup(plots.dot_plot(series, names[-1], metric, lower_is_better=lower)) if series else None
    return Block(
        metric, shots, digits, max(digits, min(decimals(*gains), 4)), lines, {one.name: k for k, one in enumerate(series)}, curves, dots
    )


def importance(record: Record, one: Line) -> int:
    """The chosen method, what it is set against, the best; last the baselines, which use no encoder."""
    against = [record.details.start, record.details.plain]
    if "chosen" in one.marks:
        return 0
    if one.last.method in against:
        return 1 + against.index(one.last.method)
    return 3 if "plain reference" in one.marks else 5 if "baseline" in one.marks else 4


def line(record: Record, rows: Sequence[Row], key: tuple[str, str]) -> Line:
    cells: dict[int | str, Row] = {row.shots: row for row in rows if (row.method, row.encoder) == key}
    several = len({row.encoder for row in rows if row.method not in record.details.baselines}) > 1
    details, marks = record.details, []
    if key[0] == record.best and (not several or key[1] == details.encoder.spec):
        marks.append("chosen")
    if key[0] in details.baselines:
        marks.append("baseline")
    elif key[0] in (details.start, details.plain, *details.references):
        marks.append("plain reference")
    title = f"{key[0]} · {key[1]}" if several and key[1] else key[0]
    return Line(title, cells, cells[max(cells, key=order)], tuple(marks))


def curve(one: Line, *, many: bool, banded: bool) -> plots.Series:
    points = {str(k): (row.mean, row.low, row.high) for k, row in one.cells.items() if row.mean is not None}
    means = {mean for mean, _, _ in points.values()}
    return plots.Series(one.title, points, flat=many and (set(points) == {"0"} or (len(points) > 1 and len(means) == 1)), banded=banded)


@dataclass(frozen=True)
class Column:
    """One metric of the per-metric table: digits and how many rows or cases it rests on."""

    digits: int
    n: str


def metric_column(record: Record, name: str) -> Column:
    found: list[Measured] = [metrics[name] for metrics in record.details.metrics.values() if name in metrics]
    counts = sorted({measured.n for measured in found if measured.n is not None})
    n = "" if not counts else f"n {counts[0]}" if len(counts) == 1 else f"n {counts[0]} to {counts[-1]}"
    return Column(decimals(*(value for m in found for value in (m.value, m.low, m.high))), n)


def metric_names(record: Record) -> list[str]:
    """Every metric of the tables, once; `metric/PART` is one of a part of the rows, such as a type of question."""
    return list(dict.fromkeys(name for row in record.details.metrics.values() for name in row))


def measured_names(record: Record) -> list[str]:
    """Every metric that the page shows, once."""
    controls: list[Control] = record.controls
    tables = [name for metrics in record.details.metrics.values() for name in metrics]
    return list(dict.fromkeys([*(row.metric for row in record.rows), *tables, *(control.metric for control in controls)]))


def definition(name: str) -> str:
    """A metric in one phrase; of `part.metric` the metric is defined."""
    plain = name.rpartition(".")[2]
    direction = next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), "")
    phrase = METRICS.get(plain.removesuffix(direction), "")
    return f"{phrase}, {plots.words(direction.lstrip('_'))}" if phrase and direction else phrase
