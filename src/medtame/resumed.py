"""Learning that is broken off and gone on with: the state of a step as one file in the folder that the run will be saved to.

A state is bit for bit what a learner goes on with (`learning.loop`). The file is written whole or not at all, every EVERY_SECONDS,
at Ctrl-C (the step that is being made is finished first) and where a loss is no number; it says what it belongs to, and is removed
once the run is saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medtame.data.samples import ManifestSamples
from medtame.encoders.towers import Digests
from medtame.errors import LearningError, RunError
from medtame.features.store import Store
from medtame.learning.loop import Step
from medtame.state import write_whole

NAME = "learning.safetensors"
EVERY_SECONDS = 30.0
SMALL_BYTES = 64 * 2**20  # a state up to here is copied at each step, a larger one every EVERY_SECONDS
Watch = Callable[[Step], None]


@dataclass(frozen=True)
class State:
    """What a learner had after a step, and of how many."""

    number: int
    of: int
    tensors: Mapping[str, Tensor]

    @classmethod
    def after(cls, step: Step) -> State:
        return cls(step.number, step.of, step.state())


def fingerprint(samples: ManifestSamples) -> str:
    """Of every value of every column of some rows, and of the numbers of their images."""
    columns = {name: [str(value) for value in samples.column(name)] for name in sorted(samples.columns)}
    named = next((name for name in ("image", "fixed") if name in samples), None)
    images = [] if named is None else Digests(Store()).of(samples.pictures(named))
    return hashlib.sha256(json.dumps([columns, list(images), samples.window]).encode()).hexdigest()


class Learning:
    """The learning that belongs to a folder: called after each step as a watch, it keeps what can be gone on with."""

    def __init__(
        self,
        folder: Path,
        belongs: Mapping[str, Any],
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
        every_seconds: float | None = None,
    ) -> None:
        self.folder, self.watch, self.clock = folder, watch, clock
        self.every_seconds = EVERY_SECONDS if every_seconds is None else every_seconds
        self.belongs: dict[str, Any] = json.loads(json.dumps(belongs))
        self.start: dict[str, Tensor] | None = None  # what is gone on with
        self.note = ""  # what a reader of the run must know of it
        self._copied = self._written = clock()
        self._before: State | None = None  # the last copy; its loss is known at the next step only
        self._good: State | None = None  # the last state whose loss was a number
        self._kept = 0  # the step in the file
        self._asked_to_stop = False
        self._handler: Any = None

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def read(self) -> None:
        """Go on with what the folder holds; with nothing in it, from the beginning. Raises RunError."""
        if (self.folder / "config.json").is_file():
            raise RunError(f"the run in {self.folder} is finished: give a new folder with --out")
        if not self.path.is_file():
            if self.folder.exists() and any(not one.name.startswith(f".{NAME}.") for one in self.folder.iterdir()):
                raise RunError(f"{self.folder} holds no learning to go on with: give a new folder with --out")
            return
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, of, failed, before = about["step"], about["of"], about["failed"], about["belongs"]
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise RunError(f"{self.path} cannot be read ({str(error).splitlines()[0]}): remove it and begin again") from None
        slower = self._slower(before) if failed else ""
        if not slower:
            self._same(before)
        if failed and not slower:
            raise RunError(f"the learning in {self.folder} broke off ({failed}): go on with --resume and a lower --set learning_rate")
        self.start, self._kept = tensors, step
        self.note = f"Gone on after step {step} of {of}{slower}; the seconds of the fit are those after it."

    def _slower(self, before: Mapping[str, Any]) -> str:
        """Words where all that differs from what was begun is a lower learning rate."""
        old, new = (one["settings"].get("learning_rate") for one in (before, self.belongs))
        alike = {**before, "settings": {**before["settings"], "learning_rate": new}} == self.belongs
        return f" with learning_rate {new:g} in the place of {old:g}" if alike and old is not None and new < old else ""

    def _same(self, before: Mapping[str, Any]) -> None:
        changed = next((key for key in self.belongs if before.get(key) != self.belongs[key]), None)
        if changed == "settings" and before["method"] == self.belongs["method"]:
            old, new = before["settings"], self.belongs["settings"]
            name = next(name for name in {**new, **old} if old.get(name) != new.get(name))
            changed = f"{name} ({old.get(name)!r}, now {new.get(name)!r})"
        elif changed is not None and isinstance(self.belongs[changed], (str, int)) and changed != "rows":
            changed = f"{changed} ({before.get(changed)!r}, now {self.belongs[changed]!r})"
        if changed is not None:
            raise RunError(f"the learning in {self.folder} was begun with another {changed}: go on as it was begun, or give a new folder")

    def __call__(self, step: Step) -> None:
        """After a step: its loss was a number, so the state that it began with is good."""
        self._hold()
        now = self.clock()
        if self._before is not None and self._before.number == step.number - 1 and math.isfinite(step.loss):
            self._good = self._before
        if self._good is not None and self._good.number > self._kept and now - self._written >= self.every_seconds:
            self.write(self._good)
        small = self._before is None or sum(one.nbytes for one in self._before.tensors.values()) <= SMALL_BYTES
        if small or now - self._copied >= self.every_seconds:
            self._before, self._copied = State.after(step), now
        try:
            self.watch(step)
            if self._asked_to_stop:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.release()
            self.write(State.after(step))
            raise KeyboardInterrupt(self.told()) from None
        if step.number == step.of:
            self.release()

    def told(self) -> str:
        return f"stopped; step {self._kept} is kept in {self.folder}: go on with the same words, --out {self.folder} and --resume"

    def write(self, state: State, failed: str = "") -> None:
        about = json.dumps({"step": state.number, "of": state.of, "failed": failed, "belongs": self.belongs})
        tensors = {name: one.detach().contiguous().clone() for name, one in state.tensors.items()}
        write_whole(self.path, lambda path: save_file(tensors, path, metadata={"about": about}))
        self._kept, self._written = state.number, self.clock()

    def broken(self, error: LearningError) -> LearningError:
        """Keep the last good state; the error with a word of how to go on."""
        if self._good is None:
            return error
        self.write(self._good, str(error))
        kept = f"the state of step {self._kept}, the last with a loss that is a number, is kept in {self.folder}"
        return LearningError(f"{error}; {kept}: go on with --resume and a lower --set learning_rate, or begin again")

    def rescued(self) -> None:
        """Whatever else ended the learning: the last good state, if the file does not hold a later one."""
        if self._good is not None and self._good.number > self._kept:
            with contextlib.suppress(OSError):
                self.write(self._good)

    def forget(self) -> None:
        """The run is saved."""
        self.path.unlink(missing_ok=True)
        for left in self.folder.glob(f".{NAME}.*"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)

    def _hold(self) -> None:
        """From the first step on Ctrl-C waits for the end of the step; a second one does not. A handler of the caller's stays."""
        plain = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._handler is None and plain:
            self._handler = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True

    def release(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


@contextlib.contextmanager
def kept(folder: Path, belongs: Mapping[str, Any], watch: Watch, *, resume: bool, every_seconds: float | None = None) -> Iterator[Learning]:
    """The learning of a folder while it runs: its `start` is for the learner, it is the watch; after the block the run must be saved."""
    learning = Learning(folder, belongs, watch, every_seconds=every_seconds)
    if resume:
        learning.read()
    try:
        yield learning
    except LearningError as error:
        raise learning.broken(error) from None
    except BaseException:
        learning.rescued()
        raise
    finally:
        learning.release()
    learning.forget()
