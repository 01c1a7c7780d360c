"""A chat server process for the length of a test, and images whose mean grey is their truth."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtame.data.images import ArrayPicture
from medtame.data.samples import ManifestSamples

GREYS = {"black": 0.1, "grey": 0.5, "white": 0.9}  # in alphabetical order, as the server picks them
EVERY = 10**6


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    port: int

    def seen(self) -> list[dict[str, Any]]:
        """The requests that it got so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/seen", timeout=10) as reply:
            found: list[dict[str, Any]] = json.loads(reply.read())
            return found


@contextlib.contextmanager
def served(fault: str = "", first: int = 0, count: int = 0, to: str = "") -> Iterator[Served]:
    """A server process that meets `fault` in `count` requests from number `first` on."""
    script = str(Path(__file__).with_name("chat_server.py"))
    process = subprocess.Popen([sys.executable, script, fault or "none", str(first), str(count), to], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Served(f"http://127.0.0.1:{port}/v1", port)
    finally:
        process.kill()
        process.communicate()


def pictures(n: int, part: str = "") -> ManifestSamples:
    """n noisy images of the three greys in turn, each of its own patient and size, with their labels."""
    random = np.random.default_rng(len(part))
    labels = [list(GREYS)[i % 3] for i in range(n)]
    made = [
        ArrayPicture(np.clip(random.normal(GREYS[label], 0.05, (16 + i % 5, 12)), 0, 1).astype(np.float32), f"{part}secret-name-{i}")
        for i, label in enumerate(labels)
    ]
    return ManifestSamples({"image": made, "label": labels}, np.array([f"{part}patient-{i}" for i in range(n)]))
