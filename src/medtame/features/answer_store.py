"""Answers of generative models on disk, by the SHA-256 of all that they depend on: model, words, images, settings.

One SQLite file beside the features. A key tells nothing of what it was made from; no address, no path and no name of an image is
there, but an answer is text about a patient's image, as features are numbers about it. A damaged file is deleted, and its
answers are simply missing again; where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock

from medtame.features.store import default_folder

KEYS_AT_ONCE = 500
SECONDS_TO_WAIT = 10  # for another process that writes


class AnswerStore:
    """Texts by key (SHA-256 in hexadecimal), under `folder`; without one, the user's cache or MEDTAME_CACHE. Threads may share it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or default_folder()) / "answers.sqlite"
        self._lock, self._told = Lock(), False

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers that are there; absent ones are left out."""
        found: dict[str, str] = {}
        if not self.path.is_file():
            return found
        try:
            with self._lock, closing(self._opened()) as kept:
                for start in range(0, len(keys), KEYS_AT_ONCE):
                    part = [bytes.fromhex(key) for key in keys[start : start + KEYS_AT_ONCE]]
                    rows = kept.execute(f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(part))})", part)
                    found.update({bytes(key).hex(): str(answer) for key, answer in rows})
        except (sqlite3.OperationalError, OSError):
            return found
        except sqlite3.DatabaseError:
            self._delete()
        return found

    def keep(self, key: str, answer: str) -> bool:
        """Keep one answer at once. False, with one warning, where the disk is full or may not be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, closing(self._opened()) as kept:
                kept.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (bytes.fromhex(key), answer))
                kept.commit()
        except (sqlite3.OperationalError, OSError):
            self._complain()
            return False
        except sqlite3.DatabaseError:
            self._delete()
            return False
        return True

    def _opened(self) -> sqlite3.Connection:
        kept = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)
        kept.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
        return kept

    def _delete(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _complain(self) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"answers are not kept on disk: {self.path.parent} is full or may not be written; the next run will ask again: make "
                "room, or set MEDTAME_CACHE to another folder",
                stacklevel=3,
            )
