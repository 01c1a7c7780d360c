"""Every error that a user can cause. One line each: what is wrong, what was got, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedtameError(Exception):
    """A mistake that the user can mend; the command line prints its one line and ends with exit code 2."""


class DataError(MedtameError):
    """A manifest, a folder, a split or a label that cannot be used."""


class ImageError(DataError):
    """An image file that cannot be read."""


class EncoderError(MedtameError):
    """An encoder whose weights are absent, broken or of another kind."""


class SettingsError(MedtameError):
    """A setting that does not exist or has a wrong value."""


class UnknownNameError(SettingsError):
    """A method, task, column or option that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"no {kind} is called {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


class PairError(MedtameError):
    """A method and a task (or encoder) that do not meet."""


class LearningError(MedtameError):
    """A descent whose loss is no number any more."""


class StoppedError(MedtameError):
    """Ctrl-C during a learning whose last step is kept; the command line ends with exit code 130."""


class RunError(MedtameError):
    """A run folder that cannot be opened, written or resumed."""


class ChatError(MedtameError):
    """A chat server that is not given, may not be asked, cannot be reached or says nothing that can be used. Names no address."""


class MissingExtraError(MedtameError):
    """An optional package that is not installed."""
