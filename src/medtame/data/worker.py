"""One long-lived process that decodes what may hang or crash a decoder: DICOM, NIfTI, NRRD and MHA.

The parent writes a line of JSON a request; the child (`decoder_process`) answers with a line of JSON and, for pixels, the raw
numbers after it. A file that takes too long or ends the child costs that child only: the next request starts a new one. The
process starts with the first request, serves all threads in turn, and ends with the parent; a forked parent starts its own.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import struct
import subprocess
import sys
import threading
import zlib
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medtame.errors import ImageError

if TYPE_CHECKING:
    from medtame.types import Array

Kind: TypeAlias = Literal["dicom", "nifti", "volumes"]
Answer: TypeAlias = "tuple[dict[str, Any], Array | None]"

LIMIT_S = 8.0
BYTES_PER_S = 20e6  # a large file gets this much longer, for a slow disk
START_LIMIT_S = 60.0
MAX_PIXELS = 178_956_970  # of one slice or frame; the limit above which Pillow, too, speaks of a decompression bomb
MAX_VOXELS = 1 << 28  # of a whole volume
DAMAGED = (  # what decoders raise on broken bytes
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


class Worker:
    """The process and the pipes to it."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process; None before the first request and after one that ended it."""
        return None if self._process is None else self._process.pid

    def ask(self, kind: Kind, what: str, path: Path, **arguments: Any) -> Answer:
        """Call `what` of the reader `kind` for a file: what it says, and its pixels if it gives any.

        Raises ImageError with the reader's reason, or where the file took too long or ended the process; ValueError where the
        file is damaged and the reader gave no reason.
        """
        request = json.dumps({"kind": kind, "what": what, "path": str(path.absolute()), "arguments": arguments})
        limit_s = self.limit_s + path.stat().st_size / BYTES_PER_S
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._process = _started()
            heard = self._timed(self._process, request.encode() + b"\n", limit_s)
        if heard is None:
            raise ImageError(f"it took longer than {limit_s:.0f} s; it is damaged or far too large")
        said, pixels = heard
        if "error" not in said:
            return said, pixels
        if said["error"] is None:
            raise ValueError("damaged")
        raise ImageError(said["error"])

    def pixels(self, kind: Kind, what: str, path: Path, **arguments: Any) -> tuple[dict[str, Any], Array]:
        """`ask` for what gives pixels."""
        said, pixels = self.ask(kind, what, path, **arguments)
        if pixels is None:
            raise ValueError("no pixels")
        return said, pixels

    def close(self) -> None:
        """End the process; a later request starts another. A fork of the owner leaves it alone."""
        if os.getpid() == self._owner:
            with self._lock:
                self._end()

    def _timed(self, process: subprocess.Popen[bytes], request: bytes, limit_s: float) -> Answer | None:
        """The answer, or None where it came too late: then, and where anything else goes wrong, the process is ended."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s, stop)
        timer.start()
        heard = None
        try:
            heard = _exchanged(process, request)
        except (OSError, EOFError, ValueError):
            if not late.is_set():
                raise ImageError("its decoder broke down on it; it is damaged or of a rare kind") from None
        finally:
            timer.cancel()
            timer.join()
            if heard is None or late.is_set():
                self._end()
        return heard

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _started() -> subprocess.Popen[bytes]:
    """A child that has said that it is ready."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "medtame.data.decoder_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
    )
    timer = threading.Timer(START_LIMIT_S, process.kill)
    timer.start()
    ready = _piped(process.stdout).readline()
    timer.cancel()
    if not ready:
        process.kill()
        process.wait()
        raise ImageError(f"the decoding process does not start; try `{sys.executable} -m medtame.data.decoder_process`")
    return process


def _exchanged(process: subprocess.Popen[bytes], request: bytes) -> Answer:
    stdin, stdout = _piped(process.stdin), _piped(process.stdout)
    sent = 0
    while sent < len(request):  # past Python's buffer, so a fork never holds half a request
        sent += os.write(stdin.fileno(), request[sent:])
    line = stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    said = json.loads(line)
    if "shape" not in said:
        return said, None
    dtype = np.dtype(said["dtype"])
    numbers = bytearray(math.prod(said["shape"]) * dtype.itemsize)
    if stdout.readinto(numbers) != len(numbers):  # type: ignore[attr-defined]
        raise EOFError
    return said, np.frombuffer(numbers, dtype).reshape(said["shape"])


def _piped(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise EOFError
    return pipe


@cache
def worker() -> Worker:
    """The one of this process, started when it is first asked."""
    made = Worker()
    atexit.register(made.close)
    return made


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker.cache_clear)
