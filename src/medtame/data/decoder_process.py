"""The child of `worker`: reads requests from its input, answers on its output, and ends when its input does.

It never imports torch, so that it starts in half a second. Where the system can, it may take no more than `MEMORY_BYTES`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydicom import config

from medtame.data import dicom_frames  # noqa: F401 (the commonest reader, loaded before the clock runs)
from medtame.data.worker import DAMAGED, LIMIT_S
from medtame.errors import ImageError

MEMORY_BYTES = 4 << 30
ORPHAN_S = 60  # alone with a file that hangs, it ends itself


def main() -> None:
    """Serve until the input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a decoder prints must not stand among the answers
    _limit_memory()
    warnings.simplefilter("ignore")
    config.settings.reading_validation_mode = config.IGNORE
    _send(answers, {"ready": True}, None)
    for line in requests:
        request = json.loads(line)
        if hasattr(signal, "alarm"):
            signal.alarm(ORPHAN_S + int(LIMIT_S))
        said, pixels = answered(**request)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        _send(answers, said, pixels)


def answered(kind: str, what: str, path: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """What a reader says and its pixels, or {"error": a reason that holds nothing of the file's text, or None}."""
    reader = import_module(f"medtame.data.{'dicom_frames' if kind == 'dicom' else kind}")
    try:
        said, pixels = getattr(reader, what)(Path(path), **arguments)
    except ImageError as error:
        return {"error": str(error)}, None
    except PermissionError:
        return {"error": "no permission"}, None
    except MemoryError:
        return {"error": f"it is damaged, or needs more than {MEMORY_BYTES >> 30} GiB of memory"}, None
    except (*DAMAGED, *reader.DAMAGED):
        return {"error": None}, None
    return said, pixels


def _send(answers: IO[bytes], said: dict[str, Any], pixels: np.ndarray[Any, Any] | None) -> None:
    if pixels is not None:
        pixels = np.ascontiguousarray(pixels)
        said = {**said, "shape": pixels.shape, "dtype": pixels.dtype.str}
    answers.write(json.dumps(said).encode() + b"\n")
    if pixels is not None:
        answers.write(pixels.reshape(-1).view(np.uint8).data)
    answers.flush()


def _limit_memory() -> None:
    if sys.platform.startswith("linux"):  # macOS has the call and does not keep it; Windows has none
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main()
