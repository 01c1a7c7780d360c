"""Where a model's files are: a folder, beside the folder that names it, MEDTAME_MODELS, the local hub cache; else the hub.

`MEDTAME_MODELS` names a folder that holds models as OWNER/NAME, OWNER--NAME or NAME. A model is named as on the hub.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from medtame.errors import EncoderError

REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
SECONDS_TO_ANSWER = 5.0
OFF = frozenset({"1", "on", "yes", "true"})

Wanted = tuple[tuple[str, ...], ...]  # of each group one file, the first that is there


@dataclass(frozen=True)
class Place:
    """A folder with a model's files."""

    name: str  # OWNER/NAME as on the hub, or the folder's own name
    folder: Path
    revision: str = ""  # the commit, where it comes from the hub

    def file(self, *names: str) -> Path | None:
        """The first of the files that is there."""
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def has(self, wanted: Wanted) -> bool:
        return all(self.file(*names) is not None for names in wanted)


def of_folder(folder: Path) -> Place:
    """The place that a folder is; a folder of the hub cache keeps its name and commit."""
    folder = folder.expanduser()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return Place(folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder, folder.name)
    return Place(folder.resolve().name, folder)


def local(name: str, wanted: Wanted, beside: Sequence[Path] = ()) -> Place | None:
    """Where a model of the hub lies on this machine with all the files wanted; None where it does not."""
    if not REPOSITORY.fullmatch(name):
        return None
    for folder, revision in _candidates(name, beside):
        place = Place(name, folder, revision)
        if folder.is_dir() and place.has(wanted):
            return place
    return None


def found(name: str, wanted: Wanted, extra: Sequence[str] = (), beside: Sequence[Path] = ()) -> Place | None:
    """The same; else it is fetched, `extra` files too where they exist. None where the hub cannot be reached."""
    return local(name, wanted, beside) or (fetched(name, wanted, extra) if online() else None)


def online() -> bool:
    """Whether the user allows the hub to be asked; nothing is sent to find out whether it answers."""
    return not any(os.environ.get(name, "").lower() in OFF for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def fetched(name: str, wanted: Wanted, extra: Sequence[str]) -> Place | None:
    """Only the files wanted, into the local hub cache. None where the hub cannot be reached. Raises EncoderError."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if not REPOSITORY.fullmatch(name) or not _answers():
        return None
    try:
        folders = [_fetched_one(name, names) for names in wanted]
        for each in extra:
            _fetched_one(name, (each,))
    except GatedRepoError:
        raise EncoderError(
            f"{name} asks you to accept its terms first: accept them on its page of the hub, run `hf auth login`, and try again"
        ) from None
    except LocalEntryNotFoundError:
        return None  # no connection
    except RepositoryNotFoundError:
        raise EncoderError(f"the hub has no model {name}, or not for you: check the name, or run `hf auth login`") from None
    except OSError:
        return None
    for names, folder in zip(wanted, folders, strict=True):
        if folder is None:
            raise EncoderError(f"the hub's {name} has no {' or '.join(names)}: it is of another kind; give another encoder")
    return next((of_folder(folder) for folder in folders if folder is not None), None)


def hub_cache() -> Path:
    """The folder of the local hub cache, by the hub's own environment variables."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below
    return Path.home() / ".cache" / "huggingface" / "hub"


def absent(spec: str, needs: Sequence[tuple[str, str]], family: str) -> EncoderError:
    """One error for all that is not here: (repository, files) each, and how to point to it."""
    listed = " and ".join(f"{name} ({files})" for name, files in needs)
    tail = f"give {family}:FOLDER with the first one's folder" + (" and the others beside it" if len(needs) > 1 else "")
    return EncoderError(
        f"{spec} is not on this machine and the hub cannot be asked: it needs {listed}; copy each into a folder of that name under one "
        f"folder and set MEDTAME_MODELS to that, or {tail}, or run once with a connection (HF_HUB_OFFLINE unset)"
    )


def _candidates(name: str, beside: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    models = os.environ.get("MEDTAME_MODELS")
    roots = [root for folder in beside for root in (folder, folder.resolve().parent, folder.resolve().parent.parent)]
    for root in (*roots, *([Path(models).expanduser()] if models else [])):
        for form in dict.fromkeys((name, name.replace("/", "--"), name.rpartition("/")[2])):
            yield root / form, ""
    stored = hub_cache() / f"models--{name.replace('/', '--')}"
    main = stored / "refs" / "main"
    if main.is_file():
        commit = main.read_text(encoding="utf-8").strip()
        yield stored / "snapshots" / commit, commit
    for folder in sorted((stored / "snapshots").glob("*")):
        yield folder, folder.name


def _fetched_one(name: str, names: Sequence[str]) -> Path | None:
    """The folder in the cache that now holds the first of these files which the hub has; None where it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for each in names:
        try:
            return Path(hf_hub_download(name, each, cache_dir=hub_cache())).parent
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    return None


def _answers() -> bool:
    """Whether the hub's machine takes a connection, so that no one waits for half a minute of retries; not asked behind a proxy."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if getproxies():
        return True
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
