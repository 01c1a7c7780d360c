"""The figures as the page shows them: drawn where their numbers are, told in words and tables, dark and light, without a name."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtame.comparison.figures import figures
from medtame.comparison.grid import Outcome
from medtame.comparison.table import Resampling
from medtame.metrics.classification import classification
from medtame.metrics.intervals import resampled_groups
from medtame.report import figure_page, html, model_card, plots
from medtame.report import figures as drawings
from medtame.report.figure_values import Figures
from medtame.report.record import Record, checked, finite, number

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("clear", "a rather long name of a class of findings", "mass")
METHODS = ("clap", "zero_shot", "linear_probe")


def found(names: tuple[str, ...] = CLASSES, shots: Any = "all") -> dict[str, Any]:
    random = np.random.default_rng(0)
    truth = random.integers(0, len(names), 120)
    cells = {}
    for signal, method in zip((1.5, 0.0, 1.0), METHODS, strict=True):
        logits = random.normal(size=(120, len(names))) + signal * np.eye(len(names))[truth]
        cells[method, shots] = [Outcome(classification(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), truth), {})]
    made = figures(cells, "clap", METHODS[1:], shots, names, Resampling(resampled_groups(np.arange(120), 100, 0), 0))
    assert made is not None
    return finite(made)  # type: ignore[no-any-return]


def record(**details: Any) -> Record:
    row = {"strategy": "tuning", "learning": "none", "encoder": "bundled", "shots": "all", "regime": "standard", "draws": 1}
    numbers = {"metric": "balanced_accuracy", "mean": 0.7, "low": 0.6, "high": 0.8, "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    known = {
        "encoder": {"spec": "bundled"},
        "figures": found(),
        "metrics": {"clap": {"ece": {"value": 0.0613, "low": 0.0417, "high": 0.0912, "n": 120}}},
        "protocol": {"resamples": 100, "split_sentence": "The column 'split' names 60 training and 120 test rows."},
        "warnings": ["The column 'split' names 60 training and 120 test rows.", "Look at this."],
        "parts": [
            {"name": "train", "rows": 60, "groups": 31, "classes": {"clear": 40, "mass": 20}},
            {"name": "test", "rows": 120, "groups": 57, "classes": {"clear": 120}},
        ],
        "leakage": "Checked: no patient stands on both sides.",
        "costs": [
            {"method": "clap", "fits": "prototypes", "draws": 1, "fit_seconds": 0.43, "peak_megabytes": 901.2, "stores_support": True}
        ],
        "best_cases": [{"image": "row 7", "truth": "mass", "said": "mass", "confidence": 0.91, "truth_score": 0.91}],
        "worst_cases": [{"image": "row 9", "truth": "mass", "said": "clear", "confidence": 0.8, "truth_score": 0.05}],
        "confident_mistakes": [{"image": "row 11", "truth": "clear", "said": "mass", "confidence": 0.88, "truth_score": 0.12}],
    } | details
    return checked(
        {
            "schema": 1,
            "task": "classification",
            "data": {"n": 180},
            "rows": [{"method": method, **row, **numbers} for method in METHODS],
            "best": "clap",
            "details": known,
        }
    )


def tree(one: Record) -> ET.Element:
    return ET.fromstring(html.page(one))


def said(element: ET.Element) -> str:
    for end in element.iter("br"):
        end.tail = f" {(end.tail or '').lstrip()}"
    return " ".join("".join(element.itertext()).replace("\u00a0", " ").split())


def table(page: ET.Element, words: str) -> list[list[str]]:
    one = next(table for table in page.iter("table") if words in said(table))
    return [[said(cell) for cell in line] for line in one.iter("tr")]


def places(root: ET.Element, name: str) -> list[tuple[float, float]]:
    group = next(element for element in root.iter() if element.get("id") == name)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", next(group.iter(f"{SVG}path")).get("d") or "")]


# ---- drawings -------------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_through_its_numbers_in_the_square() -> None:
    known = Figures.model_validate(found())
    macro = [one for one in known.curves if one.kind == "roc" and one.label is None]
    assert [one.method for one in macro] == list(METHODS)
    root = ET.fromstring(drawings.curves(macro, dict.fromkeys(METHODS, 0), "roc"))
    diagonal = next(path for path in root.iter(f"{SVG}path") if "stroke-dasharray" in (path.get("style") or ""))
    (left, bottom), (right, top) = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", diagonal.get("d") or "")
    across, up = float(right) - float(left), float(top) - float(bottom)
    for i, one in enumerate(macro):
        drawn = places(root, f"roc-line-{i}")
        wanted = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
        for (x, y), ends in zip(wanted[:: len(wanted) - 1], (drawn[0], drawn[-1]), strict=True):
            assert ends == pytest.approx((float(left) + x * across, float(bottom) + y * up), abs=0.05)
        heights = {round((y - float(bottom)) / up, 3) for _, y in drawn}
        assert heights <= {round(y, 3) for _, y in wanted} | {round(y, 3) + e for _, y in wanted for e in (-0.001, 0.001)}


def test_bars_end_at_recall_and_reliability_has_a_mark_a_bin() -> None:
    known = Figures.model_validate(found())
    root = ET.fromstring(drawings.bars(known.classes, 0, "bars"))
    widths = []
    for k, one in enumerate(known.classes):
        xs = [x for x, _ in places(root, f"bars-bar-{k}")]
        widths.append((max(xs) - min(xs)) / (one.recall.value or 1))
    assert widths == pytest.approx([widths[0]] * 3, rel=1e-3)  # the same scale for all, from zero
    dots = ET.fromstring(drawings.reliability(known.reliability[0], 0, "rel"))
    line = next(element for element in dots.iter() if element.get("id") == "rel-line-0")
    assert len(list(line.iter(f"{SVG}use"))) == len(known.reliability[0].bins) == 15


@pytest.mark.parametrize("names", [CLASSES, tuple(f"class number {k}" for k in range(9)), ("a", "b" * 80)])
def test_no_word_of_a_figure_is_cut_or_lies_on_another(names: tuple[str, ...]) -> None:
    known = Figures.model_validate(found(names))
    page = figure_page.page(known, {}, {})
    assert page.bars is not None
    drawn = [*page.macro, *page.reliability, page.bars, *(one for _, pair in page.by_class for one in pair)]
    assert len(page.by_class) == (len(names) if len(names) <= 6 else 0)
    for one in drawn:
        root = ET.fromstring(str(one.svg))
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        boxes = []
        for word in root.iter(f"{SVG}text"):
            if "rotate(-90" in (word.get("transform") or ""):
                continue
            x, y, style = float(word.get("x") or 0), float(word.get("y") or 0), word.get("style") or ""
            reach = 6.4 * len("".join(word.itertext()))
            start = x - (reach if "end" in style else reach / 2 if "middle" in style else 0)
            assert start > -1
            assert start + reach < width + 8  # the half of "1.0" below the right edge
            assert 0 < y < height
            boxes.append((start, start + reach, y))
        for i, (left, right, y) in enumerate(boxes):
            for other_left, other_right, other_y in boxes[i + 1 :]:
                assert min(right, other_right) - max(left, other_left) <= 0 or abs(y - other_y) > 7


def test_every_colour_of_a_figure_is_a_variable_that_the_dark_page_sets() -> None:
    text = html.page(record())
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark = re.findall(r":root \{([^}]*)\}", style)
    assert "@media screen and (prefers-color-scheme: dark)" in style
    used = set(re.findall(r"var\(--([\w-]+)", text)) - {"share", "tint"}
    for theme in (light, dark):
        assert used <= set(re.findall(r"--([\w-]+):", theme))
    drawn = text[text.index("</style>") :]
    assert set(re.findall(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", drawn))) == set()
    for name, colour in ((name, colour) for colour, name in plots.COLOURS.items()):
        assert f"--{name}: {colour}" in light.lower()


@pytest.mark.parametrize("theme", [0, 1])
def test_words_and_lines_stand_out_from_the_paper(theme: int) -> None:
    text = html.page(record())
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{([^}]*)\}", text)[theme]))

    def light(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for name in ("ink", "quiet", "good", "bad", "accent"):  # WCAG 2: 4.5 for words
        assert contrast(name, "paper") > 4.5
    assert contrast("note-ink", "note") > 4.5
    assert contrast("on-accent", "accent") > 4.5
    for k in range(8):
        assert contrast(f"c{k}", "paper") > 2  # a line also has a marker, a dash or a label


# ---- the page -------------------------------------------------------------------------------------------------


def test_the_numbers_of_every_figure_stand_in_a_table() -> None:
    one = record()
    page, known = tree(one), one.details.figures
    assert known is not None
    for kind, words in (("roc", "true positive rate at each"), ("precision_recall", "precision at each recall")):
        lines = {line[0]: line[1:] for line in table(page, words)}
        for curve in (curve for curve in known.curves if curve.kind == kind):
            cells = lines[f"{curve.method}, {curve.label or 'mean over classes'}"]
            assert [cell.split()[0] for cell in cells] == [number(y, 2) for y in curve.y[::5]]
            assert cells[3].split(maxsplit=1)[1] == f"[{number(curve.low[15], 2)}, {number(curve.high[15], 2)}]"
    for reliability in known.reliability:
        lines_of = table(page, f"Reliability of {reliability.method}")[1:]
        assert [line[1] for line in lines_of] == [str(bin.n) for bin in reliability.bins]
        assert [line[3].split()[0] for line in lines_of] == [number(bin.right.value) for bin in reliability.bins]
    assert known.confusion is not None
    matrix = table(page, "Confusion matrix of clap")[1:]
    for name, counts, line in zip(CLASSES, known.confusion.counts, matrix, strict=True):
        assert line == [name, *(f"{n} {100 * n / sum(counts):.0f} %" if n else "0" for n in counts), str(sum(counts))]
    for score, line in zip(known.classes, table(page, "Every class against the rest")[1:], strict=True):
        values = [score.recall, score.precision, score.auroc, score.average_precision]
        assert line[:2] == [score.label, str(score.n)]
        assert line[2:] == [f"{number(m.value)} [{number(m.low)}, {number(m.high)}]" for m in values]


def test_data_costs_and_cases_are_told_once_each() -> None:
    page = tree(record())
    assert table(page, "Rows by part")[1:] == [
        ["clear", "40", "120"],
        ["mass", "20", "0"],
        ["all rows", "60", "120"],
        ["patients or cases", "31", "57"],
    ]
    assert next(line for line in table(page, "peak memory") if line[0] == "clap") == ["clap", "prototypes", "–", "0.43", "–", "901", "yes"]
    text = said(page)
    assert text.count("names 60 training and 120 test rows") == 1
    for words in (
        "Leakage Checked: no patient stands on both sides.",
        "truth mass (0.05) said clear (0.80) row 9",
        "truth mass said mass (0.91) row 7",
        "Most confident mistakes",
        "calibration error 0.061 [0.042, 0.091]",
    ):
        assert words in re.sub(r"(Leakage)(?=\S)", r"\1 ", text)
    two = said(tree(record(confident_mistakes=[])))
    assert "Worst cases, which are also the most confident mistakes" in two
    assert "No test image was answered wrongly." in said(tree(record(confident_mistakes=[], worst_cases=[])))


def test_a_screen_reader_finds_headings_in_order_names_for_figures_and_scopes() -> None:
    page = tree(record())
    levels = [int(element.tag[1]) for element in page.iter() if re.fullmatch(r"h[1-6]", str(element.tag))]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    drawn = [element for element in page.iter("div") if element.get("role") == "img"]
    assert len(drawn) == 1 + 2 + 6 + 3 + 1  # dots, two means, three classes, three methods, bars
    assert all(len(element.get("aria-label") or "") > 20 for element in drawn)
    loose = [*page.iter(f"{SVG}svg"), *page.iter("svg")]
    covered = {id(svg) for element in drawn for svg in element.iter() if str(svg.tag).endswith("svg")}
    assert all(id(svg) in covered or svg.get("aria-hidden") == "true" for svg in loose)
    for cell in page.iter("th"):
        assert cell.get("scope") in ("col", "row", "rowgroup")
    for one in page.iter("table"):
        assert one.find("caption") is not None or one.get("aria-label")
        widths = {sum(int(cell.get("colspan") or 1) for cell in line) for line in one.iter("tr")}
        assert len(widths) == 1
    anchors = {element.get("href") for element in page.iter("a")}
    assert {"#figures", "#cases", "#costs"} <= anchors


def test_a_method_has_one_colour_in_all_figures() -> None:
    text = html.page(record())
    page = ET.fromstring(text)
    keys = {}
    for key in (item for legend in page.iter("ul") if legend.get("class") == "legend" for item in legend):
        name = said(key).split()[0]
        line = next(element for element in key.iter() if str(element.tag).endswith("line"))
        keys.setdefault(name, set()).add(re.findall(r"--(c\d)", line.get("style") or "")[0])
    assert {name: len(colours) for name, colours in keys.items()} == dict.fromkeys(METHODS, 1)
    assert len(set.union(*keys.values())) == 3


def test_many_classes_are_a_list_without_curves() -> None:
    text = said(tree(record(figures=found(tuple(f"class {k}" for k in range(60))))))
    assert "The commonest wrong answers" in text
    assert "Confusion matrix" not in text
    assert "curves are not drawn for so many" in text


# ---- the card -------------------------------------------------------------------------------------------------


def test_the_card_says_the_same_in_words(tmp_path: Path) -> None:
    known = Figures.model_validate(found())
    model_card.write(
        tmp_path / "README.md",
        {
            "method": "clap",
            "task": "classification",
            "encoder": {"spec": "bundled"},
            "data": {"n": 60},
            "stores_support_rows": False,
            "answer": "With all training rows, clap reaches 0.7.",
            "how_chosen": "highest score in 3-fold cross-validation",
            "figures": known,
            "cost": {"method": "clap", "fits": "LoRA of the tower", "draws": 1, "fit_seconds": 0.4, "trainable_parameters": 1536},
            "parts": [{"name": "test", "rows": 120, "groups": 57, "classes": {"clear": 120}}],
            "leakage": "Checked.",
            "controls": [
                {"arm": "blank_image", "metric": "x", "mean": 0.5, "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3}
                | {"verdict": "the image is read"}
            ],
        },
    )
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert known.confusion is not None
    counts = np.array(known.confusion.counts)
    wrong = counts * (1 - np.eye(3, dtype=int))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    first = model_card.mistaken(known)[0]
    assert (first.truth, first.said, first.n) == (CLASSES[i], CLASSES[j], wrong.max())
    bins = known.reliability[0].bins
    right = sum(bin.n * (bin.right.value or 0) for bin in bins) / 120
    assert right == pytest.approx(counts.trace() / counts.sum())
    recall = known.classes[0].recall
    for words in (
        "With all training rows, clap reaches 0.7.",
        "It was chosen by: highest score in 3-fold cross-validation.",
        f"| clear | {known.classes[0].n} | {number(recall.value)} \\[{number(recall.low)}, {number(recall.high)}\\] |",
        f"- {first.truth} is said to be {first.said} {first.n} times",
        f"where {number(right, 2)} of the answers are right",
        "- blank image: the image is read (as given minus changed +0.200 \\[0.100, 0.300\\])",
        "Fitted: LoRA of the tower; 1,536 trainable parameters, 0.40 seconds a fit",
        "- test: 120 rows of 57 patients or cases (clear 120)",
        "- leakage: Checked.",
    ):
        assert words in text
