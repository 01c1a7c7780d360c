"""The static page: everything is in it, nothing is fetched, and a real browser filters it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from medtame import shelves
from medtame.literature import page, tables, words

DOCS = Path(__file__).parents[2] / "docs" / "literature.html"


@pytest.fixture(scope="module")
def html():
    return page.html(tables.papers(), tables.models(), shelves.methods())


def test_every_paper_and_model_is_there_with_labels_evidence_and_link(html):
    assert html.count("data-labels=") == len(tables.papers())
    for paper in tables.papers():
        assert paper.link.replace("&", "&amp;") in html
    for model in tables.models():
        assert f">{model.name}<" in html
    assert html.count('class="tag weak">title only') == sum(paper.evidence == "title only" for paper in tables.papers())
    assert words.READING.replace("'", "&#39;") in html
    assert "unknown, of 68 models" in html
    assert "in medtame: " in html


def test_nothing_is_fetched(html):
    assert not re.findall(r"<(?:script|img|iframe|link|source|video)\b[^>]*\b(?:src|href)=", html)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|import\s*\(", html)


def test_titles_are_text_and_not_markup():
    one = tables.papers()[0].model_copy(update={"title": "<script>alert(1)</script> 'quoted'"})
    made = page.html([one], tables.models()[:1], [])
    assert "<script>alert" not in made
    assert made == page.html([one], tables.models()[:1], [])


def test_the_page_of_the_documents_has_all_papers_and_models():
    text = DOCS.read_text(encoding="utf-8")
    assert text.count("data-labels=") == len(tables.papers()), "run medtame papers --page docs/literature.html"
    for model in tables.models():
        assert f">{model.name}<" in text


def browser():
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium here")
def test_a_browser_filters_it(html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")

    def shown(fragment):
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--virtual-time-budget=2000",
        )
        address = f"{(tmp_path / 'page.html').as_uri()}#{fragment}"
        command = [browser(), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        rows = re.findall(r"<tr data-labels='[^']*'([^>]*)>|<tr data-labels=\"[^\"]*\"([^>]*)>", text)
        return sum("hidden" not in "".join(row) for row in rows), re.search(r'id="count"[^>]*>([^<]*)<', text)[1]

    segmentation = sum("segmentation" in (paper.task, *paper.other_tasks) and "fusion" in paper.strategy for paper in tables.papers())
    assert shown("task=segmentation&strategy=fusion") == (segmentation, f"{segmentation} papers")
    assert shown("search=lvit") == (1, "1 paper")
    assert shown("year=not%20said")[0] == 16
