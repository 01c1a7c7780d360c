"""The text at the start of NRRD, MHA and MHD files: its fields, and in which file the pixels lie."""

from __future__ import annotations

from pathlib import Path

from medtame.errors import ImageError

_HEADER_BYTES = 1 << 16


def header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of an NRRD or MetaImage header, names in small letters, and the byte after it. Raises ImageError where it has no end."""
    with path.open("rb") as file:
        text = file.read(_HEADER_BYTES)
    nrrd, fields, at = text.startswith(b"NRRD"), {}, 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        name, _, value = line.decode("latin-1").strip().partition(":" if nrrd else "=")
        fields[name.strip().lower()] = value.strip()
        if not line.strip() if nrrd else "elementdatafile" in fields:
            return fields, at
    raise ImageError("its header has no end")


def data_file(path: Path) -> Path:
    """Where the pixels lie. Raises ImageError for a list of files and for a file in another folder."""
    fields, _ = header(path)
    named = next((fields[key] for key in ("elementdatafile", "data file", "datafile") if key in fields), "LOCAL")
    if named.upper() == "LOCAL":
        return path
    if path.suffix.lower() != ".mhd" or named.upper() == "LIST" or "%" in named or Path(named).name != named or "\\" in named:
        raise ImageError("its pixels lie in several files or in another folder; save it as one .mha or .nrrd file")
    if not (path.parent / named).is_file():
        raise ImageError("the file with its pixels is not beside it")
    return path.parent / named
