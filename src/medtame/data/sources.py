"""Where the bytes of one image lie: in a file of its own, or in memory, taken out of a file that holds many."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias


@dataclass(frozen=True, eq=False)
class Content:
    """The bytes of a file, and the name that it had. The name is never looked up."""

    name: str
    data: bytes = field(repr=False)

    @property
    def suffix(self) -> str:
        """As of a path: `.png`."""
        return PurePosixPath(self.name).suffix


Source: TypeAlias = Path | Content


def opened(source: Source) -> IO[bytes]:
    """Open for reading, from the start. Raises OSError."""
    return io.BytesIO(source.data) if isinstance(source, Content) else source.open("rb")


@contextmanager
def on_disk(source: Source) -> Iterator[Path]:
    """A path that another process can read: of bytes in memory a file of one's own with the same ending, gone afterwards."""
    if isinstance(source, Path):
        yield source
        return
    name = PurePosixPath(source.name).name.lower()
    ending = next((known for known in (".nii.gz",) if name.endswith(known)), source.suffix.lower())
    ending = ending if ending[1:].replace(".", "").isalnum() and ending.isascii() else ""
    with tempfile.TemporaryDirectory(prefix="medtame-") as folder:
        path = Path(folder) / f"image{ending}"
        path.write_bytes(source.data)
        yield path
