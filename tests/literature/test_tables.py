"""The tables of the literature: what the review's files hold, and one test a rule."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from medtame import encoders, shelves
from medtame.errors import DataError
from medtame.literature import links, tables, words
from medtame.literature.schema import FACTS, Model, Paper

GOOD = {
    "title": "A new adapter",
    "year": "2024",
    "task": "segmentation",
    "other_tasks": "",
    "learning": "fine_tuning",
    "strategy": "tuning;fusion",
    "model": "CLIP",
    "modality": "X-ray",
    "body_part": "chest",
    "dataset": "BUSI",
    "code": "owner/name",
    "identifier": "arxiv:2401.00001",
    "url": "",
    "evidence": "abstract",
    "origin": "added",
}


def table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Paper.model_fields))
        writer.writeheader()
        writer.writerows(rows)
    return path


def faults(tmp_path, *rows):
    return [str(fault) for fault in tables.read_papers(table(tmp_path / "papers.csv", *rows))[1]]


def fault(tmp_path, **changed):
    """The one line that a changed row gets."""
    found = faults(tmp_path, GOOD | changed)
    assert len(found) == 1, found
    assert found[0].startswith("line 2: ")
    assert "\n" not in found[0]
    return found[0]


# ---- what the tables hold ------------------------------------------------------------------------------------


def test_the_reviews_153_papers_with_the_labels_that_its_readme_counts():
    papers = [paper for paper in tables.papers() if paper.origin == "review"]
    assert len(papers) == 153
    main = Counter(paper.strategy[0] if paper.strategy else "" for paper in papers)
    assert main == {"fusion": 35, "language_model": 32, "tuning": 24, "knowledge": 23, "direct_use": 23, "": 16}
    assert Counter(paper.evidence for paper in papers) == {"abstract": 123, "title only": 25, "repository": 5}
    tasks = Counter(paper.task for paper in papers)
    assert (tasks["classification"], tasks["segmentation"], tasks["multi_task"], tasks["registration"]) == (32, 25, 16, 1)
    assert set(tasks) == set(words.TASKS)
    assert sum(paper.year is None for paper in papers) == 16


def test_the_68_models():
    assert len(tables.models()) == 68
    filed = {model.name: model.domain for model in tables.models()}
    assert filed["SAT"] == filed["Chexagent"] == "natural", "as the review files them"
    assert filed["BiomedCLIP"] == "medical"


def test_the_words_are_the_shelves_words():
    assert shelves.STRATEGIES is words.STRATEGIES
    assert set(shelves.ALL_TASKS) == set(words.TASKS)
    assert len(words.TASKS) == 11
    assert len(words.STRATEGIES) == 5


def test_the_tables_are_what_the_script_makes_of_the_reviews_tables():
    folder = Path(os.environ.get("MEDTAME_LITERATURE", Path(__file__).parents[3] / "shared" / "literature"))
    if not folder.is_dir():
        pytest.skip("the review's own tables are not here: set MEDTAME_LITERATURE to their folder")
    spec = importlib.util.spec_from_file_location("make_literature", Path(__file__).parents[2] / "scripts" / "make_literature.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    labels = {(row["field"], row["source"]): row["medtame"] for row in script.rows(script.LABELS)}
    source = script.rows(folder / "papers.csv")
    assert [script.paper(row, labels) for row in source] == [paper for paper in tables.papers() if paper.origin == "review"]
    rewritten = {row["title"]: row for row in source}
    one = next(paper for paper in tables.papers() if paper.title.startswith("Bootstrapping Large Language Models"))
    assert rewritten[one.title]["adaptation_strategy"] == "language-model alignment;knowledge guidance"
    assert one.strategy == ("language_model", "knowledge")
    known = {model.name: model for model in tables.models()}
    for row in script.rows(folder / "models.csv"):
        model = known[row["name"]]
        assert (model.paper, model.domain, model.identifier) == (row["paper"], row["domain"], row["identifier"])


# ---- one test a rule, on papers ------------------------------------------------------------------------------


def test_the_tables_of_the_package_are_sound():
    assert tables.read_papers(tables.PAPERS)[1] == []
    assert tables.read_models(tables.MODELS)[1] == []


def test_a_good_row_is_good(tmp_path):
    assert faults(tmp_path, GOOD) == []
    written = tables.written([Paper.model_validate(GOOD)])
    assert list(csv.DictReader(written.splitlines())) == [GOOD]


@pytest.mark.parametrize(
    ("column", "value", "near"),
    [
        ("task", "segmentaton", "'segmentation'"),
        ("other_tasks", "clasification", "'classification'"),
        ("strategy", "tunning", "'tuning'"),
        ("learning", "fine-tuning", "'fine_tuning'"),
        ("modality", "Xray", "'X-ray'"),
        ("body_part", "chests", "'chest'"),
        ("evidence", "abstracts", "'abstract'"),
    ],
)
def test_an_unknown_word_names_the_nearest(tmp_path, column, value, near):
    said = fault(tmp_path, **{column: value})
    assert repr(value) in said
    assert f"Did you mean {near}?" in said


def test_task_and_evidence_may_not_be_empty(tmp_path):
    assert "unknown task ''" in fault(tmp_path, task="")
    assert "unknown evidence ''" in fault(tmp_path, evidence="")


def test_titles_are_unique_without_regard_to_case_and_signs(tmp_path):
    again = GOOD | {"title": "A New: adapter!", "identifier": "arxiv:2401.00002"}
    assert faults(tmp_path, GOOD, again) == ["line 3: title 'A New: adapter!' stands in line 2 too"]


def test_identifiers_are_unique_and_a_doi_is_blind_to_case(tmp_path):
    first, second = GOOD | {"identifier": "doi:10.1000/ABC.1"}, GOOD | {"title": "Another", "identifier": "doi:10.1000/abc.1"}
    assert faults(tmp_path, first, second) == ["line 3: identifier 'doi:10.1000/abc.1' stands in line 2 too"]


def test_pages_are_unique(tmp_path):
    first = GOOD | {"identifier": "", "url": "https://papers.example.org/1"}
    assert faults(tmp_path, first, first | {"title": "Another"}) == ["line 3: url 'https://papers.example.org/1' stands in line 2 too"]


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=abc&X-Amz-Expires=300",
        "Expires=1700000000&Signature=abc&Key-Pair-Id=K",
        "sv=2020&se=2024-01-01&sig=abc",
        "AWSAccessKeyId=AKIA&Expires=1",
        "token=abc",
        "x-goog-signature=1",
        "_tag=PIIabc&hash=1",
    ],
)
def test_a_signed_or_expiring_link_is_refused(tmp_path, query):
    said = fault(tmp_path, identifier="", url=f"https://papers.example.org/a.pdf?{query}")
    assert "signed or expires" in said
    assert "abc" not in said, "a signature is a secret: it is not repeated"


def test_other_queries_are_no_signature():
    for address in ("https://ieeexplore.ieee.org/stamp/stamp.jsp?arnumber=10372102", "https://openreview.net/forum?id=SygXPaEYvH"):
        assert links.checked_link(address) == address


def test_a_link_is_a_web_address_without_a_password(tmp_path):
    assert "no web address" in fault(tmp_path, identifier="", url="see the library")
    assert "password" in fault(tmp_path, identifier="", url="https://me:secret@papers.example.org/a")


def test_an_identifier_gives_the_link():
    assert links.stable("arxiv:2303.00915") == "https://arxiv.org/abs/2303.00915"
    assert links.stable("doi:10.1038/s41591-023-02504-3") == "https://doi.org/10.1038/s41591-023-02504-3"
    assert links.stable("pmc:PMC11100845") == "https://pmc.ncbi.nlm.nih.gov/articles/PMC11100845/"
    for paper in tables.papers():
        if paper.identifier:
            assert paper.link == links.stable(paper.identifier)
            assert paper.link.startswith("https://")


def test_every_paper_but_one_has_a_link():
    assert [paper.title[:40] for paper in tables.papers() if not paper.link] == ["Harnessing the potential of large langua"]


@pytest.mark.parametrize("identifier", ["arxiv:23030915", "doi:11.1/x", "pmc:11100845", "pubmed:1", "ieee:abc", "pii:S1"])
def test_an_identifier_has_the_form_of_its_kind(tmp_path, identifier):
    assert repr(identifier) in fault(tmp_path, identifier=identifier)


def test_identifier_and_page_are_not_both_filled(tmp_path):
    assert "leave url empty" in fault(tmp_path, url="https://arxiv.org/abs/2401.00001")


def test_an_added_paper_has_a_link(tmp_path):
    assert "neither identifier nor url" in fault(tmp_path, identifier="")


@pytest.mark.parametrize("year", ["24", "1899", "2099", "in press", "2024.0"])
def test_a_year_has_four_digits(tmp_path, year):
    assert repr(year) in fault(tmp_path, year=year)


def test_an_empty_year_stays_empty(tmp_path):
    rows, found = tables.read_papers(table(tmp_path / "papers.csv", GOOD | {"year": "", "model": "", "strategy": ""}))
    assert found == []
    assert (rows[0][1].year, rows[0][1].model, rows[0][1].strategy) == (None, (), ())
    assert tables.cell(rows[0][1].year) == ""


def test_a_title_in_bibtex_is_refused(tmp_path):
    for title in ('{B}ild und {\\"u}ber', "Se{\\~n}ales", "\\'Etude"):
        said = fault(tmp_path, title=title)
        assert "BibTeX markup" in said
        assert "ü" in said
    assert faults(tmp_path, GOOD | {"title": "Über Bilder: Größe & Maß (50 %)"}) == []
    assert "no title" in fault(tmp_path, title=" ")


def test_code_is_a_repository(tmp_path):
    assert "owner/name" in fault(tmp_path, code="https://github.com/owner/name")


def test_a_task_is_not_said_twice_and_strategies_are_two_at_most(tmp_path):
    assert "again under other_tasks" in fault(tmp_path, other_tasks="segmentation")
    assert "3 strategies" in fault(tmp_path, strategy="tuning;fusion;knowledge")


def test_names_are_spelled_one_way(tmp_path):
    other = GOOD | {"title": "Another", "identifier": "arxiv:2401.00002", "model": "Clip", "dataset": "Bu-SI"}
    assert faults(tmp_path, GOOD, other) == [
        "line 3: model 'Clip' is spelled 'CLIP' in line 2",
        "line 3: dataset 'Bu-SI' is spelled 'BUSI' in line 2",
    ]


# ---- files that are no such table ----------------------------------------------------------------------------


def test_a_file_in_latin_1_says_so(tmp_path):
    path = table(tmp_path / "papers.csv", GOOD, GOOD | {"title": "Über", "identifier": "arxiv:2401.00002"})
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 0xdc in line 3, perhaps Latin-1\): save it as UTF-8"):
        tables.read_papers(path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = table(tmp_path / "papers.csv", GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert tables.read_papers(path)[1] == []


def test_a_missing_column_and_a_missing_file_name_themselves(tmp_path):
    (tmp_path / "short.csv").write_text("title,year\nA,2024\n", encoding="utf-8")
    with pytest.raises(DataError, match="lacks the column 'task'"):
        tables.read_papers(tmp_path / "short.csv")
    with pytest.raises(DataError, match=r"absent\.csv cannot be read"):
        tables.read_papers(tmp_path / "absent.csv")


def test_a_comma_without_quotes_is_found(tmp_path):
    path = table(tmp_path / "papers.csv", GOOD)
    path.write_text(path.read_text(encoding="utf-8").replace("A new adapter", "A new, adapter"), encoding="utf-8")
    assert [str(fault)[:7] for fault in tables.read_papers(path)[1]] == ["line 2:"]


# ---- one test a rule, on models ------------------------------------------------------------------------------


def model(**changed):
    facts = dict.fromkeys((*FACTS, "licence_covers"), "unknown")
    row = {"name": "M", "paper": "", "domain": "natural", "identifier": "", "url": "", "checkpoint": "", "loads_as": "", "source": ""}
    return Model.model_validate(row | facts | changed)


def refused(**changed):
    with pytest.raises(ValidationError) as error:
        model(**changed)
    return error.value.errors()[0]["msg"]


PAGE = "https://github.com/owner/name/blob/abc/LICENSE"


def test_no_licence_without_a_source():
    assert "source names no document" in refused(licence="MIT", licence_covers="weights")
    assert "source names only the title" in refused(licence="MIT", licence_covers="weights", source="title")
    assert model(licence="MIT", licence_covers="weights", source=PAGE).licence == "MIT"
    for row in tables.models():
        assert row.licence == "unknown" or set(row.source) - {"title"}, row.name


def test_no_other_fact_without_a_source():
    for name, value in {"size": "7B", "modality": "CT", "kind": "segmenter", "reached": "API"}.items():
        assert "source names no document" in refused(**{name: value})
    assert "only the title" in refused(reached="API", source="title")
    assert model(modality="CT", source="title").modality == "CT"


def test_what_is_not_known_is_unknown_and_never_empty():
    assert "size is empty: write unknown" in refused(size="", source=PAGE)
    assert "licence_covers" in refused(licence="MIT", source=PAGE)
    assert "checkpoint" in refused(reached="API", checkpoint="a/b", source=PAGE)
    assert "unknown kind of model" in refused(kind="encoder", source=PAGE)


def test_a_source_is_a_document():
    assert "no web page" in refused(size="7B", source="I remember")
    assert "signed" in refused(size="7B", source="https://a.example.org/x?token=1")
    assert model(size="7B", source="pypi:transformers==5.24.0:transformers/models/clip/modeling_clip.py").size == "7B"


def test_a_name_in_medtame_is_one_that_medtame_opens():
    for row in tables.models():
        assert not row.loads_as or row.loads_as.partition(":")[0] in encoders.FAMILIES, row.name


def test_two_models_of_one_name_are_found(tmp_path):
    rows = [model().model_copy(update={"name": name}) for name in ("CLIP", "clip")]
    (tmp_path / "models.csv").write_text(tables.written(rows), encoding="utf-8")
    assert [str(fault) for fault in tables.read_models(tmp_path / "models.csv")[1]] == ["line 3: name 'clip' stands in line 2 too"]


def test_every_row_is_json():
    from medtame.literature import records

    assert len(json.loads(json.dumps([records.paper(row) for row in tables.papers()]))) == len(tables.papers())
    unknown = records.unknowns(tables.models())
    assert unknown["licence"] == sum(row.licence == "unknown" for row in tables.models()) > 0
    assert f"licence {unknown['licence']}" in records.unknowns_said(tables.models())
