"""What methods that speak need outside this process: a chat server, and a generative model on disk. Made where a test asks for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from tiny import GENERATOR

import tiny_generator
from asking import served


@pytest.fixture(scope="session", autouse=True)
def speakers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both, where a test of this session is about them; answers are kept in a folder of their own."""
    names = " ".join(item.name for item in request.session.items)
    patch = pytest.MonkeyPatch()
    if "chat_model" in names or "local_vlm" in names:
        patch.setenv("MEDTAME_CACHE", str(tmp_path_factory.mktemp("cache")))
    if "local_vlm" in names:
        tiny_generator.save(GENERATOR)
    if "chat_model" not in names:
        yield
    else:
        with served() as server:
            patch.setenv("MEDTAME_CHAT_URL", server.url)
            yield
    patch.undo()
    shutil.rmtree(GENERATOR, ignore_errors=True)
