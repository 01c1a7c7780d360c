"""The options of the command line that say where a chat model is asked: for this process only, and never written down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

ADDRESS = "--chat-url"


def _given(value: str | None) -> None:
    """Tell `learning.chat_server` through the environment of this process."""
    if value is not None:
        os.environ["MEDTAME_CHAT_URL"] = value


def _allowed(value: bool) -> None:
    if value:
        os.environ["MEDTAME_CHAT_ALLOW_REMOTE"] = "1"


ChatUrl = Annotated[
    str | None,
    typer.Option(
        ADDRESS,
        callback=_given,
        help="chat_model: the server that is asked, such as http://localhost:8000/v1. Never stored.",
        metavar="URL",
    ),
]
AllowRemote = Annotated[
    bool, typer.Option("--allow-remote", callback=_allowed, help="Images may leave this machine for the server of --chat-url.")
]


def without_address(words: Sequence[str]) -> list[str]:
    """The words of a command line as they may be kept: the address is left out, so that who repeats it gives one again."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word == ADDRESS:
            skip = not skip
        elif not word.startswith(f"{ADDRESS}="):
            kept.append(word)
    return kept
