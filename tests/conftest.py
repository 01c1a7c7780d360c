"""Shared fixtures: where real data lies, and no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: workers of several threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """The full cross product of methods and tasks runs only where a mark expression asks for it."""
    config.option.markexpr = config.option.markexpr or "not full"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skip with its reason."""
    folder = Path(os.environ.get("MEDTAME_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real images are not here: set MEDTAME_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test passes with the network off."""

    def refused(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address).startswith(("('127.", "('::1'")):
            raise OSError(f"a test asked for the network: {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MEDTAME_ENGINE", "eager")  # no export of a graph for sets of more than a hundred images
