"""Identifiers and links: what a stable link is, and why another one is refused."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

FORMS = {
    "arxiv": (re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}"), "https://arxiv.org/abs/{}", "2303.00915"),
    "doi": (re.compile(r"10\.\d{4,9}/[^\s;,]+"), "https://doi.org/{}", "10.1038/s41591-023-02504-3"),
    "pmc": (re.compile(r"PMC\d{4,9}"), "https://pmc.ncbi.nlm.nih.gov/articles/{}/", "PMC11100845"),
    "pii": (re.compile(r"[SB][0-9X]{16}"), "https://www.sciencedirect.com/science/article/pii/{}", "S1361841524001518"),
    "ieee": (re.compile(r"\d{6,9}"), "https://ieeexplore.ieee.org/document/{}", "10172039"),
}
SIGNED = re.compile(
    r"x-(amz|goog|oss|ms)-.*|.*(signature|expires|expiry|token|credential|policy|session).*|sig|se|sv|sp|st|auth|hash|key-pair-id"
    r"|awsaccesskeyid|ossaccesskeyid|googleaccessid|_tag|cf_chl.*",
    re.IGNORECASE,
)


def checked_identifier(text: str) -> str:
    """`scheme:value` of a known scheme and form, or empty. Raises ValueError."""
    if not text:
        return text
    scheme, _, value = text.partition(":")
    if scheme not in FORMS:
        raise ValueError(f"identifier {text!r} starts with none of {', '.join(f'{name}:' for name in FORMS)}")
    form, _, example = FORMS[scheme]
    if not form.fullmatch(value):
        raise ValueError(f"identifier {text!r} has another form than {scheme}:{example}")
    return text


def key(identifier: str) -> str:
    """The same for two spellings of one identifier: a DOI is blind to case, an arXiv version is no other paper."""
    return identifier.casefold()


def stable(identifier: str) -> str:
    """The link that an identifier always leads to; empty without one."""
    scheme, _, value = identifier.partition(":")
    return FORMS[scheme][1].format(value) if scheme in FORMS else ""


def checked_link(text: str) -> str:
    """A https link without a signature, an expiry or a session; or empty. Raises ValueError."""
    if not text:
        return text
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or "." not in parts.netloc or any(sign.isspace() for sign in text):
        raise ValueError(f"link {text!r} is no web address")
    if parts.username or parts.password:
        raise ValueError("the link carries a user name or a password: give the public address of the page")
    signed = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SIGNED.fullmatch(name)]
    if signed:
        raise ValueError(f"the link is signed or expires ({', '.join(signed)}): give the page's own address or an identifier")
    return text
