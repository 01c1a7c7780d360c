"""The report says what the record holds: every number, the right words for an interval, nothing from outside, nothing unescaped."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from medtame.errors import RunError
from medtame.report import html, model_card, plots
from medtame.report.record import Record, checked, decimals, number, read_json, verdict, write_json

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=y>"
SHOTS = (1, 4, "all")
MEANS = {
    "zero_shot": (0.29, 0.29, 0.29),
    "linear_probe": (0.41, 0.58, 0.74),
    "clap": (0.43, 0.604, 0.752),
    "constant": (0.3333, 0.3333, 0.3333),
}


def thumbnail() -> str:
    written = io.BytesIO()
    Image.new("L", (4, 4), 128).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def row(of: str, place: int, **changed: Any) -> dict[str, Any]:
    mean = MEANS[of][place]
    values = {
        "method": of,
        "strategy": "tuning",
        "learning": "none",
        "encoder": "bundled",
        "shots": SHOTS[place],
        "regime": "standard",
        "draws": 20,
        "metric": "balanced_accuracy",
        "mean": mean,
        "low": mean - 0.0512,
        "high": mean + 0.0467,
        "gain": mean - 0.29,
        "gain_low": mean - 0.3281,
        "gain_high": mean - 0.2713,
        "gain_p": 0.002,
        "gain_p_holm": 0.014,
        "gain_over_probe": mean - MEANS["linear_probe"][place],
        "gain_over_probe_low": mean - MEANS["linear_probe"][place] - 0.0213,
        "gain_over_probe_high": mean - MEANS["linear_probe"][place] + 0.0191,
        "gain_over_probe_p": 0.2,
        "gain_over_probe_p_holm": 0.61,
        "harm_rate": 0.15,
        "fit_seconds": 0.37 + place,
        "trainable_parameters": 1536 + place,
    }
    return values | changed


def control(arm: str, difference: float, low: float, high: float, verdict: str = "") -> dict[str, Any]:
    values = {"arm": arm, "when": "refit", "metric": "balanced_accuracy", "mean": 0.7, "low": 0.65, "high": 0.74, "verdict": verdict}
    return values | {"difference": difference, "difference_low": low, "difference_high": high}


def values(**changed: Any) -> dict[str, Any]:
    details = {
        "question": "Which adaptation tells pneumonia from normal?",
        "encoder": {"spec": "bundled", "image_identity": "lite0:abc", "text_identity": "minilm:def", "medical_text": False},
        "baselines": ["constant"],
        "warnings": ["No patient column: split by image."],
        "prompts": {"normal": ["a normal chest X-ray"], "pneumonia": ["a chest X-ray with pneumonia"]},
        "protocol": {
            "metric": "balanced_accuracy",
            "draws": 20,
            "shots": list(SHOTS),
            "how_best_was_chosen": "cross-validated support score",
        },
        "environment": {"medtame": "0.1.0", "cpu_threads": 2},
        "command": "medtame compare labels.csv --task classification",
        "worst_cases": [{"image": "a/1.png", "thumbnail": thumbnail(), "truth": "normal", "said": "pneumonia", "confidence": 0.93}],
        "metrics": {"clap": {"ece": {"value": 0.0613, "low": 0.0417, "high": 0.0912, "n": 125}}},
    }
    made = {
        "schema": 1,
        "task": "classification",
        "data": {"n": 417, "classes": {"normal": 200, "pneumonia": 217}, "groups": 402, "split": {"train": 292, "test": 125}},
        "rows": [row(method, place) for method in MEANS for place in range(3)],
        "not_run": [{"method": "full", "minutes": 48.2}],
        "best": "clap",
        "controls": [control("constant_text", 0.05, 0.02, 0.08), control("random_text", 0.004, -0.008, 0.016)],
        "run": "/out/run",
        "report": "/out/report.html",
        "details": details | changed.pop("details", {}),
    }
    return made | changed


def tree(record: Record) -> ET.Element:
    """The page as XML: fails where it is not well-formed."""
    return ET.fromstring(html.page(record))


def said(element: ET.Element) -> str:
    for end in element.iter("br"):
        end.tail = f" {(end.tail or '').lstrip()}"
    return " ".join("".join(element.itertext()).replace("\u00a0", " ").split())


class Tags(HTMLParser):
    """What a browser's parser makes of the page: tags with their attributes, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


# ---- record ---------------------------------------------------------------------------------------------------


def test_json_round_trips_and_has_the_public_keys(tmp_path: Path) -> None:
    record = checked(values())
    write_json(record, tmp_path / "result.json")
    assert read_json(tmp_path / "result.json") == record
    plain = json.loads((tmp_path / "result.json").read_text())
    assert set(plain) == {"schema", "task", "data", "rows", "not_run", "best", "controls", "run", "report", "details"}
    assert plain["schema"] == 1
    assert plain["rows"] == values()["rows"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    rows = [row("clap", 0), row("clap", 1, gain_low=bad)]
    with pytest.raises(RunError, match=r"rows\.1\.gain_low: it should be a finite number \(got '(nan|inf)'\)$"):
        checked(values(rows=rows))


def test_unknown_keys_and_pictures_of_another_kind_are_refused() -> None:
    with pytest.raises(RunError, match=r"rows\.0\.gian"):
        checked(values(rows=[row("clap", 0, gian=0.1)]))
    for wrong in ("not base64!", base64.b64encode(b"<svg/>").decode()):
        with pytest.raises(RunError, match="a thumbnail is a PNG file in base64") as error:
            checked(values(details={"worst_cases": [{"image": "a", "thumbnail": wrong}]}))
        assert "\n" not in str(error.value)


def test_bytes_that_no_page_can_show_are_replaced() -> None:
    record = checked(values(best="a\x00b\udcff"))
    assert record.best == "a\ufffdb\ufffd"


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "old.json").write_text('{"schema": 0}')
    for name, words in {
        "absent.json": "cannot read",
        "damaged.json": "is not JSON",
        "old.json": "has schema 0, this medtame reads 1",
    }.items():
        with pytest.raises(RunError, match=words) as error:
            read_json(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="cannot write"):
        write_json(checked(values()), tmp_path / "damaged.json" / "result.json")


# ---- words from numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ((0.213, 0.15, 0.28), "helps by 0.213 [0.150, 0.280]"),
        ((-0.05, -0.08, -0.02), "harms by 0.050 [0.020, 0.080]"),
        ((0.01, -0.02, 0.04), "no measurable benefit (+0.010 [−0.020, +0.040])"),
        ((-0.01, -0.04, 0.02), "no measurable benefit (−0.010 [−0.040, +0.020])"),
        ((0.02, 0.0, 0.04), "no measurable benefit (+0.020 [+0.000, +0.040])"),
        ((0.02, None, None), "not measured with an interval"),
        ((None, None, None), "not measured with an interval"),
    ],
)
def test_the_verdict_follows_the_interval(measured: tuple[float | None, float | None, float | None], words: str) -> None:
    assert verdict(*measured) == words


def test_numbers_are_written_for_people() -> None:
    assert [number(v) for v in (None, 0.5, -0.5, -0.0001)] == ["–", "0.500", "−0.500", "0.000"]
    assert [decimals(v) for v in (0.8, 0.0613, 0.0042, 31.2, 250.0, 0.0, None)] == [3, 3, 4, 2, 1, 3, 3]


def test_the_answer_is_taken_from_the_most_shots_of_the_chosen_method() -> None:
    found = html.headline(checked(values()))
    assert found.sentence == (
        "With all training rows, clap reaches balanced accuracy 0.752; it helps by 0.462 [0.424, 0.481] over zero_shot; "
        "it shows no measurable benefit (+0.012 [−0.009, +0.031]) over the plain linear_probe; "
        "there is no measurable benefit of the text (+0.004 [−0.008, +0.016])."
    )
    assert [card.tone for card in found.cards] == ["better", "none", "none"]


def test_the_weakest_refit_decides_whether_the_text_matters() -> None:
    both_help = [control("constant_text", 0.05, 0.02, 0.08), control("random_text", 0.03, 0.01, 0.05)]
    assert "the text helps by 0.030 [0.010, 0.050]" in html.headline(checked(values(controls=both_help))).sentence
    harmed = [control("random_text", -0.03, -0.05, -0.01)]
    assert "the text harms by 0.030 [0.010, 0.050]" in html.headline(checked(values(controls=harmed))).sentence
    only_predict = [control("shuffled_text", 0.2, 0.1, 0.3)]
    assert "whether the text matters was not tested" in html.headline(checked(values(controls=only_predict))).sentence
    unread = [control("words", 0, 0, 0, "the method reads no words: text cannot help it")]
    assert "it reads no words" in html.headline(checked(values(controls=unread))).sentence


def test_a_reference_that_was_chosen_is_not_said_to_help() -> None:
    sentence = html.headline(checked(values(best="zero_shot"))).sentence
    assert "it is the reference zero_shot itself" in sentence
    assert "over the plain linear_probe" in sentence
    worse = [row("clap", 2, gain=-0.1, gain_low=-0.15, gain_high=-0.05), row("zero_shot", 2)]
    assert "it harms by 0.100 [0.050, 0.150] over zero_shot" in html.headline(checked(values(rows=worse))).sentence
    assert html.headline(checked(values(best=None))).sentence == "No method could be compared."


# ---- the page -------------------------------------------------------------------------------------------------


def test_every_number_of_every_row_stands_in_its_line() -> None:
    record = checked(values())
    body = next(table for table in tree(record).iter("table") if "every number of shots" in said(table))
    lines = {}
    for group in body.findall("tbody"):
        shots, *rest = group.findall("tr")
        lines |= {(said(line[0]), said(shots)): [said(cell) for cell in line[1:]] for line in rest}
    assert len(lines) == len(record.rows)
    for one in record.rows:
        found = lines[one.method, html.shots_words(one.shots)]
        claim = " beats it" if one.gain_low > 0 else ""
        gain = f"{number(one.gain, signed=True)} [{number(one.gain_low)}, {number(one.gain_high)}] p 0.014{claim}"
        probe = (
            f"{number(one.gain_over_probe, signed=True)} [{number(one.gain_over_probe_low)}, {number(one.gain_over_probe_high)}] p 0.610"
        )
        assert found == [
            "20",
            f"{number(one.mean)} [{number(one.low)}, {number(one.high)}]",
            "–" if one.method == "zero_shot" else gain,
            "–" if one.method == "linear_probe" else probe,
            "–" if one.method == "zero_shot" else "15 %",
            number(one.fit_seconds, 2),
            f"{one.trainable_parameters:,}",
        ]


def test_a_claim_stands_in_words_and_is_explained_and_only_where_it_holds_after_the_correction() -> None:
    claimed, too_many, below = row("clap", 2, gain_p_holm=0.0004), row("clap", 2, gain_p_holm=0.051), row("clap", 2, gain_low=-0.01)
    reference = row("clap", 2, gain_p_holm=None, gain_over_probe_p_holm=None)
    said_of = []
    for one in (claimed, too_many, below, reference):
        page = said(tree(checked(values(rows=[one]))))
        said_of.append((page.count("] p < 0.001 beats it"), page.count("beats it"), "corrected by Holm" in page))
    assert said_of == [(2, 3, True), (0, 1, True), (0, 1, True), (0, 0, False)]  # in both tables, and once where it is explained


def test_the_main_table_is_sorted_marked_and_complete() -> None:
    table = next(table for table in tree(checked(values())).iter("table") if table.get("class") == "main")
    head = [said(cell) for cell in next(table.iter("tr"))]
    assert head[:4] == ["method", "1 shot", "4 shots", "all training rows"]
    lines = [[said(cell) for cell in line] for line in table.findall("tbody/tr")]
    assert [line[0] for line in lines] == [
        "clap chosen tuning",
        "linear_probe plain reference tuning",
        "constant baseline tuning",
        "zero_shot plain reference tuning",
    ]
    assert lines[0][1:4] == ["0.430 [0.379, 0.477]", "0.604 [0.553, 0.651]", "0.752 [0.701, 0.799]"]


def test_low_metrics_are_sorted_the_other_way_and_gains_keep_their_sign() -> None:
    record = checked(values(details={"protocol": {"lower_is_better": True}}))
    table = next(table for table in tree(record).iter("table") if table.get("class") == "main")
    assert [said(line[0]).split()[0] for line in table.findall("tbody/tr")] == ["zero_shot", "constant", "linear_probe", "clap"]


def test_the_page_shows_the_rest_of_the_record() -> None:
    record = checked(values())
    text = said(tree(record))
    for words in (
        "Research use only; not for clinical decisions.",
        "An encoder without medical text: do not carry these numbers over to others.",
        "No patient column: split by image.",
        "full (about 48 min)",
        "a chest X-ray with pneumonia",
        "medtame compare labels.csv --task classification",
        "truth normal said pneumonia (0.93) a/1.png",
        "0.061 [0.042, 0.091]",
        "n 125",
        "normal 200, pneumonia 217",
        "lite0:abc",
        "constant text fitted again",
        html.METRICS["ece"],
    ):
        assert words in text
    assert "imulated" not in text
    medical = checked(values(details={"simulated": True, "encoder": {"spec": "hf:x", "medical_text": True}}))
    assert "An encoder without medical text" not in said(tree(medical))
    assert "simulated images" in said(next(tree(medical).iter("header")))


def test_nothing_is_loaded_from_outside_and_no_script_runs(tmp_path: Path) -> None:
    html.write(checked(values()), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = tags(text)
    for tag, attributes in found:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        str(attributes[name])[1:] for _, attributes in found for name in ("href", "xlink:href") if str(attributes.get(name)).startswith("#")
    }
    assert targets <= set(ids)


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    record = checked(values())
    write_json(record, tmp_path / "result.json")
    assert html.page(record) == html.page(read_json(tmp_path / "result.json"))
    assert not re.search(r"20\d\d-\d\d-\d\d", html.page(record))


def test_everything_from_the_record_is_escaped() -> None:
    rows = [row("clap", place, method=f"m{HOSTILE}", encoder=HOSTILE, strategy=HOSTILE) for place in range(3)] + [row("zero_shot", 2)]
    details = {
        "question": HOSTILE,
        "encoder": {"spec": HOSTILE, "notes": HOSTILE},
        "prompts": {HOSTILE: [HOSTILE]},
        "warnings": [HOSTILE],
        "command": HOSTILE,
        "controls_note": HOSTILE,
        "worst_cases": [{"image": HOSTILE, "thumbnail": thumbnail(), "truth": HOSTILE, "said": HOSTILE}],
        "examples": [{"image": HOSTILE, "thumbnail": thumbnail(), "caption": HOSTILE}],
        "metrics": {HOSTILE: {HOSTILE: {"value": 0.5}}},
        "start": HOSTILE,
    }
    data = {"n": 1, "classes": [HOSTILE], "split": HOSTILE}
    record = checked(
        values(
            rows=rows,
            best=f"m{HOSTILE}",
            data=data,
            details=details,
            not_run=[{"method": HOSTILE}],
            controls=[control(HOSTILE, 0, 0, 0, HOSTILE)],
        )
    )
    clean = {tag for tag, _ in tags(html.page(checked(values(details={"examples": details["examples"]}))))}
    found = tags(html.page(record))
    assert {tag for tag, _ in found} <= clean
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    page = tree(record)
    assert said(next(page.iter("h1"))) == " ".join(HOSTILE.split())
    assert "".join(page.itertext()).count("<script>alert") > 15
    assert all(HOSTILE in str(image.get("alt")) for image in page.iter("img"))


def test_a_record_with_next_to_nothing_still_makes_a_page() -> None:
    bare = {"schema": 1, "task": "registration", "data": {"n": 2}, "rows": [], "best": None, "details": {"encoder": {"spec": "bundled"}}}
    assert "No method could be compared." in said(tree(checked(bare)))
    empty = row(
        "clap",
        0,
        **dict.fromkeys(("mean", "low", "high", "gain", "gain_low", "gain_high", "harm_rate", "fit_seconds", "trainable_parameters")),
    )
    assert "was not measured with an interval over zero_shot" in said(tree(checked(bare | {"rows": [empty], "best": "clap"})))


def test_several_encoders_stand_apart() -> None:
    rows = [row("clap", 2), row("clap", 2, encoder="hf:other", mean=0.9), row("zero_shot", 2), row("zero_shot", 2, encoder="hf:other")]
    record = checked(values(rows=rows))
    table = next(table for table in tree(record).iter("table") if table.get("class") == "main")
    assert [said(line[0]).split(" tuning")[0] for line in table.findall("tbody/tr")][:2] == [
        "clap · hf:other",
        "clap · bundled chosen",
    ]
    assert "reaches balanced accuracy 0.752" in html.headline(record).sentence


# ---- plots ----------------------------------------------------------------------------------------------------


def curve(name: str, *means: float, flat: bool = False) -> plots.Series:
    return plots.Series(name, {str(k): (m, m - 0.03, m + 0.02) for k, m in zip(SHOTS, means, strict=True)}, flat)


def by_id(root: ET.Element, name: str) -> ET.Element:
    return next(element for element in root.iter() if element.get("id") == name)


def path(root: ET.Element, name: str) -> list[tuple[float, float]]:
    drawn = by_id(root, name).find(f"{SVG}path")
    assert drawn is not None
    return points(drawn.get("d") or "")


def drawn_points(root: ET.Element) -> list[tuple[float, float]]:
    """Every point that is drawn, in SVG units: lines, markers where they are used, and bands moved to where they are used."""
    defined = {
        path.get("id"): path.get("d") or "" for defs in root.iter(f"{SVG}defs") for path in defs.iter(f"{SVG}path") if path.get("id")
    }
    found = [point for path in root.iter(f"{SVG}path") if not path.get("id") for point in points(path.get("d") or "")]
    for use in root.iter(f"{SVG}use"):
        shape = defined[str(use.get("{http://www.w3.org/1999/xlink}href"))[1:]]
        found += [(x + float(use.get("x") or 0), y + float(use.get("y") or 0)) for x, y in points(shape)]
    return found


def points(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", drawn)]


def ticks(root: ET.Element, axis: str) -> list[tuple[float, float]]:
    """(place, value) of the labelled ticks of an axis, in SVG units."""
    found = []
    for group in root.iter(f"{SVG}g"):
        if re.fullmatch(rf"\w+-{axis}tick_\d+", group.get("id") or ""):
            words = next(group.iter(f"{SVG}text"))
            place = next(iter(group.iter(f"{SVG}use")), None)
            line = next(group.iter(f"{SVG}path"), None)
            assert place is not None or line is not None
            at = re.search(r"M ([\d.-]+) ([\d.-]+)", (line.get("d") if line is not None else "") or "")
            assert at is not None
            found.append((float(at.group(1 if axis == "x" else 2)), float("".join(words.itertext()).replace("−", "-"))))
    return found


def test_a_curve_passes_through_its_values() -> None:
    series = [curve("clap", 0.43, 0.6, 0.75), curve("zero_shot", 0.29, 0.29, 0.29, flat=True), curve("probe", 0.5, 0.4, 0.7)]
    root = ET.fromstring(plots.few_shot_curves(series, [str(k) for k in SHOTS], "balanced_accuracy"))
    (first_y, first), (last_y, last) = ticks(root, "y")[0], ticks(root, "y")[-1]
    slope = (last_y - first_y) / (last - first)
    assert slope < 0  # higher values lie higher, and SVG counts downwards
    for i, one in ((0, series[0]), (2, series[2])):
        drawn = path(root, f"curves-line-{i}")
        assert [y for _, y in drawn] == pytest.approx([first_y + slope * (mean - first) for mean, _, _ in one.points.values()], abs=0.01)
        assert drawn[1][0] - drawn[0][0] == pytest.approx(drawn[2][0] - drawn[1][0], abs=0.01)
    dashed = by_id(root, "curves-line-1").find(f"{SVG}path")
    assert dashed is not None
    assert "stroke-dasharray" in (dashed.get("style") or "")
    assert [y for _, y in path(root, "curves-line-1")] == pytest.approx([first_y + slope * (0.29 - first)] * 2, abs=0.01)


def test_dots_are_sorted_and_lie_at_their_values() -> None:
    series = [curve("middle", 0, 0, 0.6), curve("best", 0, 0, 0.8), curve("worst", 0, 0, 0.1)]
    for lower, wanted in ((False, [1, 0, 2]), (True, [2, 0, 1])):
        root = ET.fromstring(plots.dot_plot(series, "all", "dice", lower_is_better=lower))
        dots = {i: next(by_id(root, f"dots-line-{i}").iter(f"{SVG}use")) for i in range(3)}
        assert sorted(dots, key=lambda i: float(dots[i].get("y") or 0)) == wanted
        (first_x, first), (last_x, last) = ticks(root, "x")[0], ticks(root, "x")[-1]
        scale = (last_x - first_x) / (last - first)
        places = [first_x + scale * (one.points["all"][0] - first) for one in series]
        assert [float(dots[i].get("x") or 0) for i in range(3)] == pytest.approx(places, abs=0.01)


def test_nothing_is_clipped_and_labels_do_not_overlap() -> None:
    series = [curve(f"a method with a rather long name {i}", 0.5, 0.6, 0.7 + 0.001 * i) for i in range(12)]
    names = [str(k) for k in SHOTS]
    for text in (plots.few_shot_curves(series, names, "dice"), plots.dot_plot(series, "all", "dice")):
        root = ET.fromstring(text)
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        for x, y in drawn_points(root):
            assert 0 <= x <= width
            assert 0 <= y <= height
        for word in root.iter(f"{SVG}text"):
            x, y = float(word.get("x") or 0), float(word.get("y") or 0)
            reach = 6.4 * len("".join(word.itertext()))  # DejaVu Sans at 10: about 6.1 a letter
            anchor = word.get("style") or ""
            if "rotate(-90" in (word.get("transform") or ""):
                continue
            assert x - (reach if "end" in anchor else reach / 2 if "middle" in anchor else 0) > -1
            assert x + (0 if "end" in anchor else reach / 2 if "middle" in anchor else reach) < width + 1
            assert 0 < y < height
    root = ET.fromstring(plots.few_shot_curves(series, names, "dice"))
    ends = sorted(float(word.get("y") or 0) for word in root.iter(f"{SVG}text") if "rather long" in "".join(word.itertext()))
    assert len(ends) == len(plots.STYLES)
    assert min(b - a for a, b in itertools.pairwise(ends)) > 10


def test_labels_move_apart_and_stay_inside() -> None:
    assert plots.apart([0.5, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.5, 0.6, 0.9])
    assert plots.apart([0.95, 0.98, 1.0], 0.1, 0, 1) == pytest.approx([0.8, 0.9, 1.0])
    assert plots.apart([0.0, 0.1], 0.1, 0, 1) == pytest.approx([0.0, 0.1])
    assert plots.apart([], 0.1, 0, 1) == []


def test_figures_are_equal_bytes_without_a_date_and_names_are_taken_as_they_are() -> None:
    series = [curve("$x_1$ <script>", 0.1, 0.2, 0.3), plots.Series("a gap", {"1": (0.2, None, None)})]
    one, two = (plots.few_shot_curves(series, [str(k) for k in SHOTS], "dice") for _ in range(2))
    assert one == two
    assert "<metadata" not in one
    assert "$x_1$ <script>" in {"".join(word.itertext()) for word in ET.fromstring(one).iter(f"{SVG}text")}


# ---- model card -----------------------------------------------------------------------------------------------


def card(**changed: Any) -> dict[str, Any]:
    return {
        "method": "tip_adapter",
        "task": "classification",
        "strategy": "tuning",
        "learning": "none",
        "settings": {"alpha": 1.0},
        "papers": ["arxiv:2111.03930"],
        "encoder": {"spec": "bundled", "image_identity": "lite0:abc", "text_identity": "minilm:def", "medical_text": False},
        "data": {"n": 48, "classes": {"normal": 24, "a|b": 24}, "groups": 40, "rows": "train", "split": "by patient"},
        "stores_support_rows": True,
        "metrics": {"balanced_accuracy": {"value": 0.812, "low": 0.755, "high": 0.861, "n": 125}},
        "warnings": ["No patient column."],
        "prompts": {"normal": ["a normal chest X-ray"]},
        "command": "medtame adapt labels.csv --method tip_adapter",
    } | changed


def written(folder: Path, **changed: Any) -> str:
    model_card.write(folder / "README.md", card(**changed))
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_has_a_head_that_yaml_reads_and_the_checksum_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    text = written(tmp_path, tags=['odd: "tag" #1'])
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "license": "unknown",
        "library_name": "medtame",
        "base_model": "bundled",
        "tags": ["medical", "vision-language", "classification", "tip_adapter", "research-use-only", 'odd: "tag" #1'],
    }
    assert hashlib.sha256(b"weights").hexdigest() in text
    for words in (
        "Research use only; not for clinical decisions.",
        "## Out of scope",
        "medtame predict RUN IMAGE",
        "arxiv:2111.03930",
        "| balanced_accuracy | 0.812 | \\[0.755, 0.861\\] | 125 |",
        "| alpha | 1.0 |",
        "rows: 48, of 40 patients or cases",
        "a\\|b (24)",
        "training rows are stored inside this run",
        "No patient column.",
        "a normal chest X-ray",
    ):
        assert words in text


def test_the_card_says_when_nothing_is_stored_or_measured(tmp_path: Path) -> None:
    text = written(tmp_path, stores_support_rows=False, metrics={}, license="apache-2.0", base_model="org/model")
    assert "no training row is stored inside this run" in text
    assert "Not measured" in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["base_model"]) == ("apache-2.0", "org/model")
    assert "SHA-256" not in text


def test_hostile_words_stay_words_in_the_card(tmp_path: Path) -> None:
    bad = HOSTILE + " [a](http://x) | `b`\n# head\n---"
    text = written(
        tmp_path,
        method=bad,
        task=bad,
        data={"n": 1, "classes": [bad], "split": bad},
        prompts={bad: [bad]},
        warnings=[bad],
        limits=[bad],
        papers=[bad],
        settings={bad: bad},
        encoder={"spec": bad, "notes": bad},
        metrics={bad: {"value": 0.5}},
    )
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == bad
    assert "<script" not in body
    assert "<img" not in body
    assert not re.search(r"(?<!\\)\[a", body)
    assert sum(line.startswith("# ") for line in body.splitlines()) == 1
    table = [line for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3, 5}


def test_a_card_with_a_missing_detail_is_one_line(tmp_path: Path) -> None:
    details = card()
    del details["stores_support_rows"]
    with pytest.raises(RunError, match="the model card cannot be written: stores_support_rows: Field required") as error:
        model_card.write(tmp_path / "README.md", details)
    assert "\n" not in str(error.value)
    with pytest.raises(RunError, match=r"metrics\.dice\.value"):
        written(tmp_path, metrics={"dice": {"value": float("nan")}})


def test_encoders_are_set_against_the_first() -> None:
    gains = [
        {
            "encoder": "hf:x",
            "over": "bundled",
            "method": "clap",
            "shots": "all",
            "metric": "accuracy",
            "gain": g,
            "gain_low": g - 0.1,
            "gain_high": g + 0.1,
        }
        for g in (0.2, -0.05)
    ]
    text = said(tree(checked(values(details={"encoder_gains": gains}))))
    assert "Encoders against bundled" in text
    assert "claphf:xall training rows+0.200 [0.100, 0.300]" in text
    assert "Encoders against" not in said(tree(checked(values())))
