"""Papers found, counted and cited: filters against a slow twin, BibTeX parsed back, the matrix against its margins."""

from __future__ import annotations

import random
import re
from xml.etree import ElementTree

import pytest

from medtame.errors import DataError, UnknownNameError
from medtame.literature import choose, picture, records, tables, words
from medtame.literature.schema import Paper

PAPERS = tables.papers()


def paper(**changed):
    row = dict.fromkeys(Paper.model_fields, "") | {
        "title": "A title",
        "task": "segmentation",
        "evidence": "abstract",
        "origin": "added",
        "identifier": "arxiv:2401.00001",
    }
    return Paper.model_validate(row | changed)


# ---- filters -------------------------------------------------------------------------------------------------


def test_each_filter_is_what_a_loop_finds():
    wanted = {
        "task": ("segmentation", lambda one: one.task == "segmentation" or "segmentation" in one.other_tasks),
        "main_task": ("segmentation", lambda one: one.task == "segmentation"),
        "other_task": ("segmentation", lambda one: "segmentation" in one.other_tasks),
        "strategy": ("fusion", lambda one: "fusion" in one.strategy),
        "learning": ("prompt_learning", lambda one: "prompt_learning" in one.learning),
        "modality": ("x-ray", lambda one: "X-ray" in one.modality),
        "body_part": ("Chest", lambda one: "chest" in one.body_part),
        "model": ("biomedclip", lambda one: "BiomedCLIP" in one.model),
        "dataset": ("MIMIC-CXR", lambda one: "MIMIC-CXR" in one.dataset),
        "year": ("2023", lambda one: one.year == 2023),
        "code": ("yes", lambda one: bool(one.code)),
        "evidence": ("title only", lambda one: one.evidence == "title only"),
    }
    for field, (value, test) in wanted.items():
        found = choose.filtered(PAPERS, {field: value})
        assert found == [one for one in PAPERS if test(one)], field
        assert 0 < len(found) < len(PAPERS)


def test_filters_meet_and_words_of_the_title_too():
    found = choose.filtered(PAPERS, {"task": "anomaly_detection", "strategy": "tuning", "year": "2024-2025"}, "clip FEW")
    assert found
    for one in found:
        assert one.year in (2024, 2025)
        assert "clip" in one.title.lower()
        assert "few" in one.title.lower()


def test_an_empty_field_is_found_as_not_said():
    assert len(choose.filtered(PAPERS, {"strategy": "not said"})) == 16
    assert choose.filtered(PAPERS, {"year": "not said"}) == [one for one in PAPERS if one.year is None]


def test_a_filter_that_matches_nothing_says_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'X-ray'"):
        choose.filtered(PAPERS, {"modality": "xray"})
    with pytest.raises(UnknownNameError, match="BiomedCLIP"):
        choose.filtered(PAPERS, {"model": "BioMedCLP"})
    with pytest.raises(
        DataError, match=r"no paper has modality 'fundus' and task 'registration': the 2 left before it have modality .*MRI"
    ):
        choose.filtered(PAPERS, {"task": "registration", "modality": "fundus"})
    with pytest.raises(DataError, match="did you mean segmentation"):
        choose.filtered(PAPERS, {}, "segmntation")
    with pytest.raises(DataError, match="no paper has year '1990-1995': the 153 left before it have year 2024"):
        choose.filtered(PAPERS[:153], {"year": "1990-1995"})


# ---- counts --------------------------------------------------------------------------------------------------


def test_the_matrix_counts_each_paper_once_and_hides_none():
    counted = choose.counts(PAPERS, "task", "strategy")
    assert counted["rows"]["names"] == list(words.TASKS)
    assert counted["columns"]["names"] == [*words.STRATEGIES, "not said"]
    assert sum(map(sum, counted["counts"])) == len(PAPERS) == counted["papers"]
    for i, task in enumerate(words.TASKS):
        for j, strategy in enumerate(words.STRATEGIES):
            assert counted["counts"][i][j] == sum(one.task == task and one.strategy[:1] == (strategy,) for one in PAPERS)


def test_a_field_of_several_values_counts_in_each_and_years_are_in_order():
    counted = choose.counts(PAPERS, "modality", "year")
    assert counted["columns"]["names"] == ["2021", "2022", "2023", "2024", "2025", "not said"]
    row = counted["counts"][counted["rows"]["names"].index("X-ray")]
    assert sum(row) == sum("X-ray" in one.modality for one in PAPERS)
    with pytest.raises(UnknownNameError, match="strategy"):
        choose.counts(PAPERS, "task", "stratgy")


def test_the_picture_holds_every_number_and_is_the_same_each_time():
    counted = choose.counts(PAPERS, "task", "strategy")
    drawn = picture.svg(counted, words.READING)
    assert drawn == picture.svg(counted, words.READING)
    shown = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    numbers = [int(text) for text in shown if text and text.isdigit()]
    assert sorted(numbers) == sorted(number for line in counted["counts"] for number in line)
    assert "language model" in shown
    assert any("own reading" in (text or "") for text in shown)


# ---- Markdown and what a person reads ------------------------------------------------------------------------


def test_evidence_stands_beside_the_labels_and_empty_is_not_said():
    row = paper(title="A | b", year="", strategy="", evidence="title only")
    cells = dict(zip(records.COLUMNS, records.cells(row), strict=True))
    assert (cells["year"], cells["strategy"], cells["modality"], cells["evidence"]) == ("not said", "not said", "not said", "title only")
    text = records.markdown([row])
    line = text.splitlines()[2]
    assert line.startswith("| [A \\| b](<https://arxiv.org/abs/2401.00001>) | not said | segmentation | not said |")
    assert "title only" in line
    assert words.READING in text


def test_markdown_has_a_line_a_paper_with_the_same_number_of_cells():
    lines = [line for line in records.markdown(PAPERS).splitlines() if line.startswith("|")]
    assert len(lines) == len(PAPERS) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {10}


# ---- BibTeX, parsed back -------------------------------------------------------------------------------------

LETTERS = {"`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307", '"': "\u0308"}
LETTERS |= {"r": "\u030a", "H": "\u030b", "v": "\u030c", "c": "\u0327", "k": "\u0328"}
NAMED = {
    "textbackslash": "\\", "textbraceleft": "{", "textbraceright": "}", "textasciitilde": "~", "textasciicircum": "^", "ss": "ß", "ae": "æ",
    "AE": "Æ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "i": "ı", "textendash": "–", "textemdash": "—", "textquoteright": "’",
    "textquoteleft": "‘", "textquotedblleft": "“", "textquotedblright": "”", "textdegree": "°",
}  # fmt: skip


def parsed(text):
    """A small reader of BibTeX: entries as (kind, key, fields); braces are counted as BibTeX counts them, backslashes or not."""
    entries, place = [], 0
    while (head := re.compile(r"\s*@(\w+)\{([^,\s{}]+),\s*").match(text, place)) is not None:
        place, fields = head.end(), {}
        while (name := re.compile(r"(\w+)\s*=\s*\{").match(text, place)) is not None:
            start = place = name.end()
            depth = 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[place], 0)
                place += 1
            fields[name[1]] = text[start : place - 1]
            place = re.compile(r"\s*,?\s*").match(text, place).end()
        assert text[place] == "}", text[place : place + 40]
        entries.append((head[1], head[2], fields))
        place += 1
    assert not text[place:].strip(), text[place : place + 40]
    return entries


def read(tex):
    """The letters that BibTeX shows."""
    import unicodedata

    tex = re.sub(r"\{\\([a-zA-Z]{2,}|[oOlLi])\}", lambda found: NAMED[found[1]].replace("{", "\ue000").replace("}", "\ue001"), tex)
    tex = re.sub(r"\{\\([urHvck])\{(.)\}\}", lambda found: found[2] + LETTERS[found[1]], tex)
    tex = re.sub(r"\{\\([`'^~=.\"])(.)\}", lambda found: found[2] + LETTERS[found[1]], tex)
    tex = re.sub(r"\\([&%$#_])", r"\1", tex).replace("{", "").replace("}", "")
    return unicodedata.normalize("NFC", tex.replace("\ue000", "{").replace("\ue001", "}"))


def test_bibtex_of_all_papers_is_read_back():
    entries = parsed(records.bibtex(PAPERS))
    assert len(entries) == len(PAPERS)
    assert len({key.lower() for _, key, _ in entries}) == len(PAPERS)
    for (kind, key, fields), one in zip(entries, PAPERS, strict=True):
        assert kind == "misc"
        assert re.fullmatch(r"[a-z0-9-]+", key)
        assert read(fields["title"]) == one.title.replace("\u2010", "-").replace("\u2011", "-")
        assert fields.get("year") == (str(one.year) if one.year else None)
        assert fields.get("url", "") == one.link
        assert one.evidence in read(fields["note"])
        if one.identifier.startswith("arxiv:"):
            assert fields["eprint"] == one.identifier.removeprefix("arxiv:")
        if one.identifier.startswith("doi:"):
            assert fields["doi"] == one.identifier.removeprefix("doi:")


def test_braces_and_umlauts_in_a_title_are_balanced_ascii_and_come_back():
    title = "Größe {und} Maß}: Żółć, Çelik, naïve 50 % & {x_1} \\ ~ ^ “é”"
    written = records.bibtex([paper().model_copy(update={"title": title})])
    ((_, _, fields),) = parsed(written)
    assert read(fields["title"]) == title
    assert fields["title"].isascii()
    assert fields["title"].startswith("{")


def test_random_titles_come_back():
    draw = random.Random(0)
    for _ in range(200):
        title = "".join(draw.choice("aZ éüñçřåőğ{}{}\\%&$#_~^–ßøŁ") for _ in range(12))
        ((_, _, fields),) = parsed(records.bibtex([paper().model_copy(update={"title": title})]))
        assert read(fields["title"]) == title


# ---- methods and papers --------------------------------------------------------------------------------------


def test_methods_of_a_paper_are_those_that_name_it_then_those_of_its_cell():
    one = paper(strategy="fusion;tuning", identifier="arxiv:2401.00001")
    methods = [
        {"name": "a", "strategy": "fusion", "tasks": ["segmentation"], "papers": []},
        {"name": "b", "strategy": "tuning", "tasks": ["segmentation"], "papers": ["arxiv:2401.00001"]},
        {"name": "c", "strategy": "fusion", "tasks": ["classification"], "papers": []},
        {"name": "d", "strategy": "tuning", "tasks": ["segmentation"], "papers": []},
    ]
    assert choose.closest_methods(one, methods) == [
        {"method": "b", "why": "names this paper"},
        {"method": "a", "why": "same task and strategy"},
    ]
    assert choose.closest_methods(paper(identifier="", url="https://a.example.org/1"), methods) == []
