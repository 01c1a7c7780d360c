"""A chat server that speaks OpenAI's protocol, asked over HTTP. Its address and key belong to this process and are kept nowhere.

They come from the environment: MEDTAME_CHAT_URL, MEDTAME_CHAT_KEY, and MEDTAME_CHAT_ALLOW_REMOTE=1, without which only a server
on this machine (127.0.0.0/8, ::1, localhost) is asked. No error names the address; httpx writes no log of it meanwhile.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medtame.errors import ChatError

if TYPE_CHECKING:
    import httpx

URL, KEY, ALLOW_REMOTE = "MEDTAME_CHAT_URL", "MEDTAME_CHAT_KEY", "MEDTAME_CHAT_ALLOW_REMOTE"
ON = frozenset({"1", "on", "yes", "true"})
MOST_WAIT_SECONDS = 60.0  # between two tries; a server that asks for more is not asked again
MOST_BYTES = 8 * 2**20  # of a reply
LOGS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
FILTERED = "content_filter"


@dataclass(frozen=True)
class Patience:
    """How long one try may take, how many more follow a failed one, and how long to wait before the first of these (then doubled)."""

    timeout_seconds: float
    retries: int
    wait_seconds: float


@dataclass(frozen=True)
class ChatServer:
    """Where to ask, and the key; never shown, never saved."""

    address: str = field(repr=False)
    key: str = field(repr=False, default="")
    local: bool = True

    @contextlib.contextmanager
    def opened(self, patience: Patience, connections: int) -> Iterator[httpx.Client]:
        """A client that follows no redirect, and uses no proxy of the environment where the server is on this machine."""
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=connections)
        with (
            unlogged(),
            httpx.Client(
                headers=headers, timeout=patience.timeout_seconds, limits=limits, follow_redirects=False, trust_env=not self.local
            ) as client,
        ):
            yield client

    def said(self, client: httpx.Client, body: Mapping[str, Any], patience: Patience, stop: Event) -> str:
        """The text of the reply; empty where the server or the model refuses. Raises ChatError after the last try."""
        for number in range(patience.retries + 1):
            try:
                return self._once(client, body, patience)
            except _AgainError as again:
                wait = min(patience.wait_seconds * 2**number, MOST_WAIT_SECONDS) if again.wait is None else again.wait
                if number == patience.retries or wait > MOST_WAIT_SECONDS or stop.wait(wait):
                    tries = f"{number + 1} {'try' if number == 0 else 'tries'}"
                    asks = f", and it asks to wait {wait:.0f} s" if wait > MOST_WAIT_SECONDS else ""
                    raise ChatError(
                        f"the chat server {again.what} ({tries}{asks}): {again.mend}; answers so far are kept, so a second run goes on"
                    ) from None
        raise AssertionError("the last try returns or raises")

    def _once(self, client: httpx.Client, body: Mapping[str, Any], patience: Patience) -> str:
        import httpx

        late = _AgainError(
            f"gave no answer within {patience.timeout_seconds:g} s", "raise the setting timeout_seconds, or ask a faster model"
        )
        deadline, parts, size = time.monotonic() + patience.timeout_seconds, [], 0
        try:
            with client.stream("POST", self.address, json=body) as reply:
                for part in reply.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if time.monotonic() > deadline:
                        raise late
                    if size > MOST_BYTES:
                        raise ChatError(f"the chat server sent more than {MOST_BYTES // 2**20} MB for one answer: ask another server")
                status, headers = reply.status_code, reply.headers
        except httpx.TimeoutException:
            raise late from None
        except httpx.ConnectError:
            raise _AgainError("cannot be reached", f"start it, or correct --chat-url (or {URL})") from None
        except (httpx.TransportError, httpx.DecodingError):
            raise _AgainError("broke off in the middle of an answer", "look at its log") from None
        content = b"".join(parts)
        if status != 200:
            raise refused(status, headers, self._told(content))
        return text_of(content)

    def _told(self, content: bytes) -> str:
        """What an error of the server says, in one short line; nothing where it repeats the address or the key."""
        try:
            error = json.loads(content)["error"]
            text = " ".join(str(error["message"] if isinstance(error, dict) else error).split())[:160]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        parts = urlsplit(self.address)
        secret = [word for word in (self.key, parts.netloc, parts.hostname) if word]
        return "" if "://" in text or any(word.casefold() in text.casefold() for word in secret) else f" ({text})"


class _AgainError(Exception):
    """Inside this file only: a try that failed and may be made again, after `wait` seconds where the server says so."""

    def __init__(self, what: str, mend: str, wait: float | None = None) -> None:
        super().__init__()
        self.what, self.mend, self.wait = what, mend, wait


def from_environment() -> ChatServer:
    """The server that this process was given. Raises ChatError, before anything is sent."""
    given = os.environ.get(URL, "").strip()
    if not given:
        raise ChatError(
            f"no chat server is given: name one with --chat-url (or {URL}), such as the one on this machine that serves the model"
        )
    try:
        parts = urlsplit(given)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise ChatError("--chat-url is not the address of a chat server: give http or https, a host, and the path, such as …/v1")
    if parts.username is not None or parts.password is not None:
        raise ChatError(f"--chat-url holds a name or a password: give the key in the environment variable {KEY} instead")
    local = loopback(host)
    if not local and os.environ.get(ALLOW_REMOTE, "").lower() not in ON:
        raise ChatError(
            f"the chat server is not on this machine, so images would leave it: add --allow-remote (or {ALLOW_REMOTE}=1) where that is "
            "permitted, or use a server on this machine"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return ChatServer(f"{parts.scheme}://{parts.netloc}{path}/chat/completions", os.environ.get(KEY, "").strip(), local)


def loopback(host: str) -> bool:
    """Whether a host is this machine for certain: an address of 127.0.0.0/8 or ::1, or localhost where it means nothing else."""
    if host.casefold().rstrip(".") == "localhost":
        try:
            found = {str(place[4][0]) for place in socket.getaddrinfo(host, None)}
        except OSError:
            return False
        return bool(found) and all(map(_loops, found))
    return _loops(host)


def _loops(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found == ipaddress.ip_address("::1") or (found.version == 4 and found.is_loopback)


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Nothing of what the HTTP client does is logged meanwhile: its records hold the address and the headers."""
    loggers = [logging.getLogger(name) for name in LOGS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def refused(status: int, headers: Mapping[str, str], told: str) -> Exception:
    """What a status other than 200 means: to be tried again, or the one line of an error."""
    if status == 429:
        return _AgainError(f"is asked too often{told}", "ask again later, or lower the setting parallel", retry_after(headers))
    if status >= 500:
        return _AgainError(f"has an error of its own, status {status}{told}", "look at its log", retry_after(headers))
    if 300 <= status < 400:
        return ChatError("the chat server redirects to another address, which is not followed: give the address it redirects to")
    if status in (401, 403):
        return ChatError(f"the chat server wants another key, status {status}: set the environment variable {KEY}")
    if status == 404:
        return ChatError(
            f"the chat server has no such model or path, status 404{told}: correct the setting model, or the path of --chat-url"
        )
    if status == 413:
        return ChatError("the chat server takes no image of this size, status 413: lower the setting longest_side or examples")
    return ChatError(f"the chat server refuses the request, status {status}{told}: correct the settings")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from a number or a date; None where it does not say."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        until = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def text_of(content: bytes) -> str:
    """The words of a reply; empty where the model refuses or a filter took them. A reply that is none may be asked for again."""
    try:
        choice = json.loads(content)["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") == FILTERED:
            return ""
        said = message["content"]
        if isinstance(said, list):
            said = "".join(part["text"] for part in said if part.get("type") == "text")
        if not isinstance(said, str | None):
            raise TypeError
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise _AgainError("sent a reply that is no chat answer", "look at its log, and whether it speaks OpenAI's protocol") from None
    return said or ""
