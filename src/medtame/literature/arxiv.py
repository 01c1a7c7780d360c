"""Title, year and link of a paper from arXiv's public interface, for a new row of the table."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from xml.etree import ElementTree

from medtame.errors import DataError
from medtame.literature import links

HOST, SECONDS, MOST_BYTES = "export.arxiv.org", 20, 1_000_000
ATOM = "{http://www.w3.org/2005/Atom}"
Fetch = Callable[[str], bytes]


def fetched(address: str) -> bytes:
    """What the address answers. Raises OSError, TimeoutError among them."""
    request = Request(address, headers={"User-Agent": "medtame"})
    with urlopen(request, timeout=SECONDS) as answer:
        content: bytes = answer.read(MOST_BYTES)
    return content


def looked_up(identifier: str, fetch: Fetch = fetched) -> dict[str, str]:
    """title, year and identifier of `arxiv:ID`. Raises DataError: no such form, no such paper, or no network and what to do then."""
    try:
        number = links.checked_identifier(identifier).removeprefix("arxiv:")
    except ValueError as error:
        raise DataError(f"{error}: give arxiv:ID, such as arxiv:2303.00915") from None
    if not identifier.startswith("arxiv:"):
        raise DataError(f"only arXiv can be asked: give arxiv:ID, or write the row of {identifier!r} by hand (see CONTRIBUTING.md)")
    try:
        answer = fetch(f"https://{HOST}/api/query?id_list={number}&max_results=1")
    except (HTTPError, URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise DataError(f"{HOST} was not reached ({reason}): {by_hand(number)}") from None
    return read(answer, number)


def read(answer: bytes, number: str) -> dict[str, str]:
    """The first entry of an Atom answer. Raises DataError."""
    try:
        entry = ElementTree.fromstring(answer).find(f"{ATOM}entry")
    except ElementTree.ParseError:
        raise DataError(f"{HOST} answered something else than a paper: {by_hand(number)}") from None
    title = " ".join((entry.findtext(f"{ATOM}title") or "").split()) if entry is not None else ""
    published = (entry.findtext(f"{ATOM}published") or "") if entry is not None else ""
    if not title or title == "Error" or not re.match(r"\d{4}-", published):
        raise DataError(f"arXiv knows no paper {number!r}: check the number at https://arxiv.org/abs/{number}")
    return {"title": title, "year": published[:4], "identifier": f"arxiv:{number}"}


def by_hand(number: str) -> str:
    return (
        f"open https://arxiv.org/abs/{number} in a browser and write title, year and identifier arxiv:{number} into a row of the table "
        "by hand, as CONTRIBUTING.md shows; then run medtame papers --check FILE"
    )
