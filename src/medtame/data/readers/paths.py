"""Paths of a manifest: where they start, what they may reach, and what stands there.

Absolute paths are taken as they are. A relative path starts from the root and stays in it: one that climbs out with `..`, or through
a link, is refused; the root may be a link itself. A name on disk that differs only by Unicode form (NFC, NFD) is found. A folder
in the place of an image is a DICOM series, if it holds just one.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medtame.data.readers import walk
from medtame.data.readers.table import Fault, quoted
from medtame.data.series import SeriesPicture, headers, scan

_CLIMBS = "Give an absolute path, or the folder above with --root."
_LINKS = "Give the link's target as an absolute path, or with --root a folder that holds both."
_ABSENT = "Paths start from the manifest's folder, or from --root."
_EMPTY = "Fill the empty cells, or delete their rows."
_FOLDER = "Name a file, or a folder with the files of one DICOM series."


@dataclass
class Checked:
    """A column of paths: cells as the disk spells them, series, or pictures; what is wrong; and how many names differed by Unicode form."""

    cells: list[Any]
    faults: list[Fault]
    respelled: int = 0
    notes: list[str] = field(default_factory=list)


class Finder:
    """Looks up paths below one root. Each folder is listed once and each cell looked up once, so many rows cost little."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.normpath(root).rstrip(os.sep)
        self._inside = os.path.realpath(root).rstrip(os.sep) + os.sep
        self._listings: dict[str, dict[str, bool]] = {}  # folder -> name -> whether it is a link
        self._forms: dict[str, dict[str, list[str]]] = {}
        self._within: dict[str, bool] = {}

    def column(
        self, name: str, cells: Sequence[Any], *, image: bool, series: Mapping[str, tuple[Path, ...]] = MappingProxyType({})
    ) -> Checked:
        """Every cell of a path column; a picture stays as it is.

        `image`: may not be empty, may be a series. `series`: cells that a reader has joined.
        """
        found: dict[str, tuple[str | SeriesPicture, str, str]] = {}
        for joined, paths in series.items():
            found[joined] = (
                (SeriesPicture(paths, joined), "", "")
                if self._all_stay(paths)
                else (joined, "leads out of the root through a link", _LINKS)
            )
        checked = Checked([], [])
        for row, cell in enumerate(cells):
            if cell is None:
                checked.cells.append(None)
                if image:
                    checked.faults.append(Fault(row, f"{name} is empty", _EMPTY))
                continue
            if not isinstance(cell, str):
                checked.cells.append(cell)
                continue
            if cell not in found:
                found[cell] = self._one(cell, image, checked)
            value, what, mend = found[cell]
            checked.cells.append(value)
            if what:
                checked.faults.append(Fault(row, f"{name} {quoted(cell)} {what}", mend))
        return checked

    def _one(self, cell: str, image: bool, checked: Checked) -> tuple[str | SeriesPicture, str, str]:
        """(the value, what is wrong, how to mend it)."""
        plain, absolute = os.path.normpath(cell), Path(cell).is_absolute()
        if not absolute and (plain == os.pardir or plain.startswith(os.pardir + os.sep)):
            return cell, "climbs out of the root", _CLIMBS
        whole = plain if absolute else f"{self.root}{os.sep}{plain}"
        folder, file = os.path.split(whole)
        value, is_link = cell, self._listing(folder).get(file)
        if is_link is None:
            if _is(Path.is_dir, whole):
                return self._series(cell, whole, absolute, checked) if image else (cell, "is a folder, not a file", _FOLDER)
            spelled = None if cell.isascii() else self._respelled(Path(whole))
            if spelled is None:
                return cell, f"is not there{self._hint(cell, folder, file)}", _ABSENT
            checked.respelled += 1
            whole, value = str(spelled), str(spelled) if absolute else spelled.relative_to(self.root or os.sep).as_posix()
            folder, file = os.path.split(whole)
            is_link = spelled.is_symlink()
        if not absolute and not self._stays(folder, whole if is_link else None):
            return cell, "leads out of the root through a link", _LINKS
        return value, "", ""

    def _stays(self, folder: str, link: str | None) -> bool:
        """Whether a folder, and the target of a link in it, lie in the root."""
        if folder not in self._within:
            self._within[folder] = (os.path.realpath(folder) + os.sep).startswith(self._inside)
        return self._within[folder] and (link is None or os.path.realpath(link).startswith(self._inside))

    def _all_stay(self, files: Sequence[Path]) -> bool:
        return all(self._stays(str(file.parent), str(file) if file.is_symlink() else None) for file in files)

    def _series(self, cell: str, folder: str, absolute: bool, checked: Checked) -> tuple[str | SeriesPicture, str, str]:
        files = [file for file in walk.files(Path(folder)) if walk.is_dicom(file)]
        if not absolute and not self._all_stay(files):
            return cell, "leads out of the root through a link", _LINKS
        found = scan(headers(files))
        if not found.series:
            return cell, "is a folder without a DICOM series", _FOLDER
        if len(found.series) > 1:
            return cell, f"is a folder with {len(found.series)} DICOM series", "Give each series a row and a folder, or a file, of its own."
        checked.notes += found.notes(Path(self.root))
        return SeriesPicture(found.series[0].paths, cell), "", ""

    def _listing(self, folder: str) -> dict[str, bool]:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                self._listings[folder] = {}
        return self._listings[folder]

    def _alike(self, folder: str, name: str) -> list[str]:
        """Names in a folder, files and folders, that are one name but for Unicode form and case."""
        if folder not in self._forms:
            forms: dict[str, list[str]] = {}
            try:
                for entry in Path(folder).iterdir():
                    forms.setdefault(unicodedata.normalize("NFC", entry.name).casefold(), []).append(entry.name)
            except (OSError, ValueError):
                pass
            self._forms[folder] = forms
        return self._forms[folder].get(unicodedata.normalize("NFC", name).casefold(), [])

    def _respelled(self, path: Path) -> Path | None:
        """The file as the disk spells it, where only the Unicode form of its name or of a folder differs; else None."""
        found = Path(path.anchor)
        for part in path.parts[1:] if path.anchor else path.parts:
            wanted = unicodedata.normalize("NFC", part)
            alike = [name for name in self._alike(str(found), part) if unicodedata.normalize("NFC", name) == wanted]
            exact = _is(Path.exists, found / part)
            if not exact and len(alike) != 1:
                return None
            found = found / (part if exact else alike[0])
        return found if _is(Path.is_file, found) else None

    def _hint(self, cell: str, folder: str, file: str) -> str:
        near = self._alike(folder, file)
        if near:
            return f" (there is {quoted(near[0])})"
        return " (write / between folders)" if "\\" in cell and os.sep == "/" else ""


def _is(what: Callable[[Path], bool], path: str | Path) -> bool:
    """What stands there; nothing does under a name that no file can have."""
    try:
        return what(Path(path))
    except (OSError, ValueError):
        return False
