"""Asking arXiv: a recorded answer, an unknown number, no network."""

from __future__ import annotations

from urllib.error import URLError

import pytest

from medtame.errors import DataError
from medtame.literature import arxiv

ANSWER = b"""<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/recorded</id>
  <title>arXiv Query: search_query=&amp;id_list=2405.18541&amp;start=0&amp;max_results=1</title>
  <opensearch:totalResults>1</opensearch:totalResults>
  <entry>
    <id>http://arxiv.org/abs/2405.18541v2</id>
    <title>Low-Rank Few-Shot Adaptation of
  Vision-Language Models</title>
    <updated>2024-06-03T13:07:00Z</updated>
    <published>2024-05-28T19:16:59Z</published>
    <author><name>Maxime Zanella</name></author>
    <author><name>Ismail Ben Ayed</name></author>
  </entry>
</feed>
"""
NOTHING = b"<feed xmlns='http://www.w3.org/2005/Atom'><title>arXiv Query</title></feed>"


def test_a_recorded_answer_gives_title_year_and_identifier():
    asked = []

    def fetch(address):
        asked.append(address)
        return ANSWER

    found = arxiv.looked_up("arxiv:2405.18541", fetch)
    assert found == {"title": "Low-Rank Few-Shot Adaptation of Vision-Language Models", "year": "2024", "identifier": "arxiv:2405.18541"}
    assert asked == ["https://export.arxiv.org/api/query?id_list=2405.18541&max_results=1"]


def test_a_number_that_arxiv_does_not_know():
    with pytest.raises(DataError, match=r"knows no paper '2405\.99999'"):
        arxiv.looked_up("arxiv:2405.99999", lambda address: NOTHING)


def test_an_answer_that_is_no_paper_and_no_network_say_how_to_do_it_by_hand():
    def unreachable(address):
        raise URLError("no route to host")

    for fetch, reason in ((unreachable, "no route to host"), (lambda address: b"<html>busy", "something else")):
        with pytest.raises(DataError) as error:
            arxiv.looked_up("arxiv:2405.18541", fetch)
        said = str(error.value)
        assert "\n" not in said
        for word in (reason, "by hand", "https://arxiv.org/abs/2405.18541", "CONTRIBUTING.md", "--check"):
            assert word in said


def test_with_the_network_off_nothing_hangs():
    with pytest.raises(DataError, match="was not reached"):
        arxiv.looked_up("arxiv:2405.18541")


@pytest.mark.parametrize("identifier", ["2405.18541", "arxiv:24.1", "doi:10.1000/x", "arxiv:2405.18541&x=1"])
def test_another_form_is_refused_before_asking(identifier):
    with pytest.raises(DataError, match="arxiv:"):
        arxiv.looked_up(identifier, lambda address: pytest.fail("asked"))
